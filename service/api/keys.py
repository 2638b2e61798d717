"""API keys: `Authorization: Bearer`, where any are configured."""

from __future__ import annotations

import hmac
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from service.api.refusals import ProblemError
from service.api.state import state_of

SCHEME = HTTPBearer(
    auto_error=False, description="An API key. Needed only where the service has keys."
)
FINGERPRINT = b"deltaw"
"""Key of the hash that names API keys in the log."""
Bearer = Annotated[HTTPAuthorizationCredentials | None, Depends(SCHEME)]


async def require_key(request: Request, sent: Bearer) -> None:
    """Refuse a request without a valid key. Without configured keys, accept every request.

    The comparison takes the same time for every key, so that timing reveals none.

    Raises:
        ProblemError: `missing_key` or `wrong_key`.
    """
    keys = state_of(request).keys
    if not keys:
        return
    if sent is None:
        raise ProblemError("missing_key", headers={"WWW-Authenticate": "Bearer"})
    offered = sent.credentials.encode()
    matches = [hmac.compare_digest(offered, key.encode()) for key in keys]
    if not any(matches):
        raise ProblemError("wrong_key")
    request.scope["deltaw.key"] = fingerprint(sent.credentials)


def fingerprint(key: str) -> str:
    """The name of an API key in the log: 8 hexadecimal digits, which do not reveal the key.

    The hash has a fixed key, so that all replicas give an API key the same name. A reader of the
    log can therefore test a guess, which does not help against a random API key.
    """
    return hmac.digest(FINGERPRINT, key.encode(), "sha256").hex()[:8]
