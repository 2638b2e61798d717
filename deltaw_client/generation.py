"""Functions, like those of `resources`, to generate text and to list the models that can do so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from typing import Any, ParamSpec

from deltaw_client import answers
from deltaw_client.calls import EVENTS, JSON, A, Call
from deltaw_client.resources import Text, post, takes
from schemas.common import Request
from schemas.completions import (
    AdapterPatch,
    Capture,
    CompletionRequest,
    RecomputedPatch,
    StreamOptions,
)

P = ParamSpec("P")


@takes(CompletionRequest)
def completions(
    prompt: Text,
    *,
    model: str | None = None,
    max_tokens: int = 16,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int | None = None,
    stop: str | Sequence[str] | None = None,
    logprobs: int | None = None,
    echo: bool = False,
    patch: RecomputedPatch | AdapterPatch | Mapping[str, Any] | None = None,
    agreement: bool = False,
    capture: Capture | Mapping[str, Any] | None = None,
    stream_options: StreamOptions | Mapping[str, Any] | None = None,
    request_id: str | None = None,
    deadline_seconds: float | None = None,
) -> Call[answers.Completion]:
    """Continue a prompt: `answer.choices[0].text`.

    With a `patch`, the model generates without the context. With `agreement=True`, each entry of
    `answer.agreement` compares a token with the run with context. With `capture`,
    `answer.activations[i].values` is an array with a row per token.
    """
    return post(answers.Completion, "/v1/completions", locals())


def _streamed(call: Callable[P, Call[A]]) -> Callable[P, Call[A]]:
    @wraps(call)
    def made(*args: P.args, **kwargs: P.kwargs) -> Call[A]:
        whole = call(*args, **kwargs)
        return replace(whole, fields={**(whole.fields or {}), "stream": True}, accept=EVENTS)

    arguments = (call.__doc__ or "").partition("\n\nArgs:\n")[2]
    made.__doc__ = f"""Continue a prompt, and give each piece as soon as it is generated.

A piece is a `Completion` with the text and the tokens since the previous piece. The first piece
also has the model and the seed. `deadline_seconds` is the time until the next piece. Before the
first piece, errors are retried like those of other calls; later they are raised. Closing the
iterator ends the generation.

Args:
{arguments}"""
    return made


stream_completions = _streamed(completions)


@takes(Request)
def models(
    *, request_id: str | None = None, deadline_seconds: float | None = None
) -> Call[answers.Models]:
    """List the resident model and its adapters, whose `parent` is the model's id."""
    return Call(answers.Models, "/v1/models", None, JSON, request_id, deadline_seconds)
