"""Logs of a process that Ray Serve starts."""

from __future__ import annotations

import sys
from typing import Literal

from service.telemetry import configure_logs


def log_to_stderr(log_format: Literal["auto", "json", "console"] = "json") -> None:
    """Write log lines to the process's own stderr, as `deltaw serve` does.

    Ray Serve replaces `sys.stderr` with a logger that buffers a thousand lines.
    """
    sys.stderr = sys.__stderr__
    configure_logs(log_format)
