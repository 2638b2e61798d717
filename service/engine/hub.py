"""Download the files of a checkpoint into the hub's cache."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_session, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import logging

from service.errors import CannotLoad

INSTEAD = "set DELTAW_MODEL to a folder that holds a checkpoint, or to `bundled`"
PROXY_VARIABLES = ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
CLIENT_VARIABLES = (*PROXY_VARIABLES, "SSL_CERT_DIR", "SSL_CERT_FILE")
"""Environment variables from which the hub's HTTP client is made, in either case."""


def fetch(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """Download the files of a hub id that are not in the cache yet.

    Args:
        name: The hub id, such as `gpt2`.
        revision: A branch, tag or commit; None for the default branch.
        patterns: Names of the files, with wildcards. Subfolders are left out.

    Returns:
        The folder of the snapshot in the cache; its name is the commit.

    Raises:
        CannotLoad: The files are not in the cache and cannot be downloaded.
    """
    try:
        hooks = get_session().event_hooks["request"]
    except Exception as error:
        raise CannotLoad(
            f"the HTTP client for the hub cannot be set up ({_said(error)}): correct "
            f"{' or '.join(_suspects(error)) or 'its environment'}"
        ) from error
    if _bound not in hooks:
        hooks.append(_bound)
    # Its retries would be logged beside the one sentence about their end.
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        folder = snapshot_download(
            name, revision=revision, allow_patterns=list(patterns), ignore_patterns=["*/*"]
        )
        return Path(folder)
    except Exception as error:  # The hub's client has no common base class for its errors.
        raise CannotLoad(_sentence(error, name, revision)) from error


def _suspects(error: Exception) -> list[str]:
    """The environment variables that may have caused an error of the client's construction."""
    of_files = isinstance(error, OSError) and not isinstance(error, ImportError)
    named = [name for name in sorted(os.environ) if name.upper() in CLIENT_VARIABLES]
    named = [name for name in named if name.upper().startswith("SSL_") == of_files]
    if isinstance(error, ImportError):  # httpx needs a package for SOCKS that is not installed
        return [name for name in named if os.environ[name].startswith("socks")]
    return named


def _bound(request: Any) -> None:
    """Give each phase of a request a timeout; the first requests of a download have none."""
    request.extensions["timeout"] = {
        phase: constants.HF_HUB_DOWNLOAD_TIMEOUT if seconds is None else seconds
        for phase, seconds in request.extensions["timeout"].items()
    }


def _sentence(error: Exception, name: str, revision: str | None) -> str:
    """Say why a download failed, and what to set."""
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    pinned = f"revision {revision!r} of {name!r}" if revision else repr(name)
    match error:
        case HFValidationError():
            return f"{name!r} is neither a folder nor a hub id: {INSTEAD}"
        case RevisionNotFoundError():
            return f"the hub has no {pinned}: set DELTAW_REVISION to a branch, tag or commit of it"
        case RepositoryNotFoundError() if not isinstance(error, GatedRepoError):
            return (
                f"the hub has no public model {name!r}: correct the name, set HF_TOKEN if the "
                f"model is private, or {INSTEAD}"
            )
        case HfHubHTTPError() if error.response.status_code in (401, 403):
            return (
                f"the hub refuses access to {name!r} (status {error.response.status_code}): set "
                "HF_TOKEN to a token of an account that may read it and that has accepted its "
                f"terms, or {INSTEAD}"
            )
        case OfflineModeIsEnabled() | LocalEntryNotFoundError():
            return (
                f"{pinned} is not complete in the hub's cache, and HF_HUB_OFFLINE forbids the "
                f"download: unset it, or {INSTEAD}"
            )
        case OSError(errno=int()):
            return (
                f"the hub's cache at {constants.HF_HUB_CACHE} cannot be used for {pinned} "
                f"({error.strerror}): make room there, or set HF_HOME to another folder"
            )
    return f"{pinned} cannot be downloaded ({_said(error)}): try again, or {INSTEAD}"


def _said(error: Exception) -> str:
    """The type of an error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return ": ".join([type(error).__name__, *lines[:1]])
