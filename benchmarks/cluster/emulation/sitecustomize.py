"""Emulated device: each forward pass takes a fixed time and no processor time.

Python imports this module when it starts, if its folder is in `PYTHONPATH`. When the service's
scheduler is imported, the module adds a sleep of `EMULATED_DEVICE_SECONDS` to each forward pass.
The real forward pass still computes the answer, so use a tiny checkpoint.

If there is a file at `EMULATED_DEVICE_STUCK`, the next forward pass removes it and never ends.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

PATCHED = "service.engine.scheduler"
SECONDS = float(os.environ.get("EMULATED_DEVICE_SECONDS", "0"))
STUCK = os.environ.get("EMULATED_DEVICE_STUCK")


class Slowed(Loader):
    """Loads the scheduler, and makes its forward passes slower."""

    def __init__(self, real: Loader) -> None:
        self._real = real

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Create the module as the real loader does."""
        return self._real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Execute the module, then replace its `walk`."""
        self._real.exec_module(module)
        real = module.walk

        def walk(*args: Any, **kwargs: Any) -> Any:
            time.sleep(SECONDS)
            if STUCK is not None:
                with suppress(FileNotFoundError):
                    os.remove(STUCK)
                    threading.Event().wait()
            return real(*args, **kwargs)

        module.walk = walk  # type: ignore[attr-defined]


class Finder(MetaPathFinder):
    """Finds the scheduler, and no other module."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the scheduler's specification with the loader replaced by `Slowed`."""
        if name != PATCHED:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = Slowed(spec.loader)
        return spec


if SECONDS > 0:
    sys.meta_path.insert(0, Finder())
