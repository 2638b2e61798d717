"""`POST /v1/completions`, in the shape of OpenAI's API."""

from __future__ import annotations

from inspect import cleandoc
from typing import Any

from fastapi import APIRouter, Request, Response

from schemas.completions import AdapterPatch, Completion, CompletionRequest
from service.analysis.adapters.made import LoadedAdapter
from service.analysis.completions import Emit, plan_completion
from service.analysis.inputs import refuse
from service.api.bodies import parse_body, read_body
from service.api.exchange import SMALL_TEXT, Exchange, Resource, off_loop
from service.api.heads import JSON, NDJSON, media_type
from service.api.lines import answer_lines
from service.api.models import loaded_adapter
from service.api.openapi import ASKED, GENERATED, answers, operation
from service.api.resources import answer_parsed
from service.api.sse import EVENT_STREAM, EventStream, Feed
from service.api.tensors import negotiate
from service.engine import Plan

TEXT = """Continue a prompt, in the shape of OpenAI's API.

The model generates with the resident weights, or with an adapter and a scale. Or it generates
without a context, under patches that reproduce the run with context and are recomputed for each
token. `agreement` compares each token with the run with context. `capture` returns the activations
of every generated token.

With `stream`, the answer is server-sent events, one per token, then `[DONE]`. An error after the
first event is an event with the problem as `error`, and no `[DONE]` follows."""
EVENT = {
    "type": "object",
    "description": "One event of the stream. Before version 3.2, OpenAPI cannot describe a whole "
    "stream.",
    "properties": {
        "data": {
            "type": "string",
            "description": "A completion with one token, as JSON. The last event is `[DONE]`, or "
            'after an error `{"error": …}` with the problem.',
        }
    },
    "required": ["data"],
}
PROBLEMS = (*GENERATED, "unknown_adapter", "other_weights")


def prepare(ask: Exchange, body: CompletionRequest, emit: Emit | None = None) -> Plan[Any]:
    """Check a body and plan its answer. Without `emit`, refuse a body that asks for a stream."""
    refuse(body.stream and emit is None, "A line cannot be streamed. Leave `stream` out.", "stream")
    plan = plan_completion(ask.model, body, _adapter(ask, body), emit)
    ask.encoding = "json" if body.capture is None else body.capture.encoding
    ask.check_size(plan.size)
    ask.check_work(plan)
    return plan


def _adapter(ask: Exchange, body: CompletionRequest) -> LoadedAdapter | None:
    """The adapter that a body names as its model or in its patch."""
    named = body.patch.adapter if isinstance(body.patch, AdapterPatch) else None
    if body.model in (None, ask.model.id):
        return None if named is None else ask.state.adapters.load(ask.model, named)
    found = loaded_adapter(ask.state, str(body.model))
    refuse(
        body.patch is not None and named != found.id,
        "The model is an adapter, so `patch` can only name the same one.",
        "patch",
    )
    return found


def is_small(body: CompletionRequest, size: int) -> bool:
    """Whether the event loop plans a body itself: a short one that reads no adapter's files."""
    return size <= SMALL_TEXT and body.model is None and not isinstance(body.patch, AdapterPatch)


COMPLETIONS = Resource(
    "/v1/completions",
    CompletionRequest,
    Completion,
    prepare,
    TEXT,
    tensors=True,
    prompts=("prompt",),
    problems=PROBLEMS,
    is_small=is_small,
)


async def handle(request: Request) -> Response:
    """Answer a request: one body, with or without a stream, or one body per line."""
    if media_type(request) == NDJSON:
        return answer_lines(request, COMPLETIONS)
    content = await read_body(request)
    body = await parse_body(CompletionRequest, content)
    if not body.stream:
        return await answer_parsed(request, COMPLETIONS, body, len(content))
    # OpenAI's clients send `Accept: application/json` even when they ask for a stream.
    negotiate(request.headers.get("accept"), (EVENT_STREAM, JSON))
    ask, feed = Exchange(request, JSON, len(content)), Feed()
    with ask.timed("tokenize"):
        plan = await off_loop(is_small(body, len(content)), prepare, ask, body, feed.emit)
    return EventStream(ask, plan, feed, usage_event if _wants_usage(body) else lambda _: None)


def _wants_usage(body: CompletionRequest) -> bool:
    return body.stream_options is not None and body.stream_options.include_usage


def usage_event(whole: Completion[Any]) -> Completion[Any]:
    """The last event of a stream whose request asks for the usage."""
    fields = (whole.id, whole.object, whole.created, whole.model)
    return Completion(*fields, choices=[], usage=whole.usage)


router = APIRouter()
_responses = answers(Completion, tensors=True, lines=True, problems=(*ASKED, *PROBLEMS))
_responses[200]["content"][EVENT_STREAM] = {"schema": EVENT}
router.add_api_route(
    COMPLETIONS.path,
    handle,
    methods=["POST"],
    name="completions",
    description=cleandoc(TEXT),
    responses=_responses,
    **operation(CompletionRequest),
)
