"""Methods of the clients, made from the functions of `resources` and the modules like it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol

from deltaw_client.calls import A, Call

P = ParamSpec("P")


class Makes(Protocol):
    """An object that makes calls and waits for their answers."""

    def make(self, call: Call[A]) -> A:
        """Make a call."""


class MakesAsync(Protocol):
    """An object that makes calls on an event loop."""

    async def make(self, call: Call[A]) -> A:
        """Make a call."""


def method(call: Callable[P, Call[A]]) -> Callable[Concatenate[Makes, P], A]:
    """Turn a resource into a method that makes its call and waits for the answer."""

    @wraps(call)
    def made(client: Makes, /, *args: P.args, **kwargs: P.kwargs) -> A:
        return client.make(call(*args, **kwargs))

    return made


def async_method(
    call: Callable[P, Call[A]],
) -> Callable[Concatenate[MakesAsync, P], Coroutine[Any, Any, A]]:
    """Turn a resource into a coroutine method that makes its call."""

    @wraps(call)
    async def made(client: MakesAsync, /, *args: P.args, **kwargs: P.kwargs) -> A:
        return await client.make(call(*args, **kwargs))

    return made
