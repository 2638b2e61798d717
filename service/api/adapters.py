"""`/v1/adapters`: make, list, fetch and delete adapters.

A request that makes an adapter is answered when the adapter is on the disk. The service writes the
files, reads them back and applies them before it lists the adapter. Requests for the same adapter
at the same time share one fit, which is cancelled when the last client leaves.
"""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, TypeAlias

from fastapi import APIRouter, Depends, Request, Response
from fastapi import Path as PathParameter

from schemas.adapters import (
    FILES,
    Adapter,
    AdapterEntry,
    AdapterRequest,
    AdaptersAnswer,
    StaticAdapterRequest,
    TokenAdapterRequest,
)
from service.analysis.adapters.made import MadeAdapter, adapter_id
from service.analysis.adapters.static import plan_static_adapter
from service.analysis.adapters.token import plan_token_adapter
from service.api.bodies import parse_body, read_body
from service.api.exchange import SMALL_TEXT, Exchange, off_loop, plain_exchange
from service.api.files import FileAnswer, caching, matches
from service.api.heads import JSON, SAFETENSORS
from service.api.openapi import ASKED, answers, operation
from service.api.refusals import ProblemError
from service.api.stages import record_timings
from service.api.state import Found
from service.api.tensors import negotiate
from service.engine import Model, Plan, Timings

router = APIRouter()
Body: TypeAlias = TokenAdapterRequest | StaticAdapterRequest
PLANS: Mapping[str, Callable[[Model, Any], Plan[MadeAdapter]]] = {
    "token": plan_token_adapter,
    "static": plan_static_adapter,
}
ROUNDING = 1e-4
"""Largest relative error of an exact adapter's logits, for models of every dtype: an adapter is
formed, stored and applied in float32. Rounding of well-conditioned rows gives up to 5e-6, and a
wrong update 5e-4 or more."""
MEDIA_TYPES = dict(zip(FILES, (JSON, SAFETENSORS, "application/zip"), strict=True))
CONTENT = {
    media: {
        "schema": {"type": "object"} if media == JSON else {"type": "string", "format": "binary"}
    }
    for media in MEDIA_TYPES.values()
}
TAGGED = {
    "headers": {"ETag": {"schema": {"type": "string"}, "description": "For `If-None-Match`."}}
}
UNKNOWN = ("not_found", "unknown_adapter")
LOCKED = ("missing_key", "wrong_key", "internal")
"""Problems that every resource in this module can return."""
Id = Annotated[
    str,
    PathParameter(description="Id of an adapter.", json_schema_extra={"pattern": "^[0-9a-f]{32}$"}),
]
File = Annotated[str, PathParameter(json_schema_extra={"enum": [*FILES]})]
Plain = Annotated[Exchange, Depends(plain_exchange)]


@router.post(
    "/v1/adapters",
    name="create_adapter",
    responses=answers(Adapter, tensors=False, problems=(*ASKED, "storage_full")),
    **operation(AdapterRequest, lines=False),
)
async def create(request: Request) -> Response:
    """Make an adapter, or find the one that the same request made before.

    `token`: the patch of all layers that is exact for one context and one query. `static`: an
    update of the MLPs' second weights that is fitted to many queries behind one context; its
    figures on held-out queries say how well it does. The adapter is a folder that PEFT loads.
    """
    content = await read_body(request)
    body = (await parse_body(AdapterRequest, content)).root
    ask = Exchange(request, negotiate(request.headers.get("accept"), (JSON,)), len(content))
    small = len(content) <= SMALL_TEXT
    with ask.timed("tokenize"):
        wanted = await off_loop(small, adapter_id, ask.model, body)
    return await ask.respond(await _found_or_made(ask, body, wanted))


async def _found_or_made(ask: Exchange, body: Body, wanted: str) -> Adapter:
    """Return the adapter with an id. If there is none, make it from the body."""
    store = ask.state.adapters
    found = await asyncio.to_thread(store.find, wanted)
    if found is not None:
        return found
    begun = time.perf_counter()

    async def stored(made: MadeAdapter) -> Adapter:
        adapter = await _stored(ask, body, wanted, made)
        seconds = time.perf_counter() - begun
        ask.state.metrics.adapter_seconds.labels(adapter.kind).observe(seconds)
        return adapter

    return await ask.wait(ask.state.making.share(wanted, lambda: _computed(ask, body), stored))


async def _computed(ask: Exchange, body: Body) -> MadeAdapter:
    """Compute an adapter. Nothing is on the disk yet."""
    state = ask.state
    await asyncio.to_thread(state.adapters.require_room)
    with ask.timed("tokenize"):
        planned = await asyncio.to_thread(PLANS[body.kind], ask.model, body)
    ask.check_work(planned)
    ask.note_rows(planned)
    timings, seconds = Timings(), state.settings.adapter_seconds
    with record_timings(ask.request.scope, timings):
        made, _ = await state.engine.ask(planned, seconds, timings=timings)
    ask.note_timings(timings)
    return made


async def _stored(ask: Exchange, body: Body, wanted: str, made: MadeAdapter) -> Adapter:
    """Write an adapter, apply what was read back from its files, and list it."""
    state, model = ask.state, ask.model
    draft = await asyncio.to_thread(state.adapters.draft, model, made.updates)
    try:
        check = Plan(made.check(draft.updates))
        seconds = state.settings.adapter_seconds
        verified, _ = await state.engine.ask(check, seconds, accepted=True)
        _require_exact(made, verified)
    except BaseException:
        await asyncio.to_thread(state.adapters.discard, draft)
        raise
    adapter = Adapter(
        model=model.summary,
        id=wanted,
        kind=made.kind,
        name=body.name,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        exact=made.exact,
        files=FILES,
        bytes=draft.bytes,
        baseline=made.baseline,
        position_shift=made.position_shift,
        form=made.form,
        peft_only=any(
            update.bias is not None or update.gain is not None for update in made.updates.values()
        ),
        layers=made.layers,
        verified=verified,
        **made.fields,
    )
    return await asyncio.to_thread(state.adapters.keep, draft, adapter)


def _require_exact(made: MadeAdapter, verified: float) -> None:
    """Refuse an exact adapter whose file misses the run with context by more than rounding.

    Raises:
        ProblemError: `dependent_rows` for several positions, of which fewer may be exact, or else
            `ill_conditioned`.
    """
    if not made.exact or verified <= ROUNDING:
        return
    several = len(made.fields.get("positions", ())) > 1
    raise ProblemError(
        "dependent_rows" if several else "ill_conditioned",
        f"The adapter's relative error of the logits is {verified:.1e}; the bound for an exact one "
        f"is {ROUNDING:.0e}. It was not stored. "
        + ("Ask for fewer positions." if several else "Choose another baseline or form."),
        limit=ROUNDING,
        actual=verified if math.isfinite(verified) else sys.float_info.max,  # JSON has no infinity
    )


@router.get(
    "/v1/adapters",
    responses=answers(
        AdaptersAnswer,
        tensors=False,
        problems=(*LOCKED, "not_acceptable", "loading", "self_check_failed"),
    ),
)
async def list_adapters(ask: Plain) -> Response:
    """List all adapters, the latest first.

    Adapters made for other weights are listed too. You can fetch and delete them, but not use them.
    """
    model, store = ask.model.summary, ask.state.adapters
    records, held = await asyncio.to_thread(lambda: (store.records(), store.used_bytes))
    entries = [
        AdapterEntry(
            id=one.id,
            kind=one.kind,
            name=one.name,
            created=one.created,
            bytes=one.bytes,
            weights_digest=one.model.weights_digest,
            usable=one.model.weights_digest == model.weights_digest,
        )
        for one in records
    ]
    return await ask.respond(AdaptersAnswer(model, entries, held, store.limit_bytes))


@router.get(
    "/v1/adapters/{id}",
    responses=answers(
        Adapter, tensors=False, problems=(*LOCKED, "not_acceptable", "unknown_adapter")
    ),
)
async def describe(ask: Plain, id: Id) -> Response:
    """Describe an adapter, with the figures that were given when it was made."""
    return await ask.respond(await asyncio.to_thread(ask.state.adapters.get, id))


@router.get(
    "/v1/adapters/{id}/{file}",
    response_model=None,
    responses={
        **answers(None, tensors=False, problems=(*LOCKED, *UNKNOWN, "storage_full")),
        200: {"content": CONTENT, **TAGGED},
        304: TAGGED | {"description": "The client has the file already."},
    },
)
async def download(request: Request, state: Found, id: Id, file: File) -> Response:
    """Fetch a file of an adapter.

    `adapter_config.json` and `adapter_model.safetensors` in one folder are what
    `peft.PeftModel.from_pretrained` loads. `adapter.zip` holds both.
    """
    if file not in MEDIA_TYPES:
        raise ProblemError("not_found")
    # Weak, since an adapter that was deleted and made again may differ by rounding.
    etag = f'W/"{id}"'
    if matches(request.headers.getlist("if-none-match"), etag):
        await asyncio.to_thread(state.adapters.get, id)
        return Response(status_code=304, headers=caching(etag))
    opened = await asyncio.to_thread(state.adapters.open, id, file)
    return FileAnswer(opened, name=file, etag=etag, media_type=MEDIA_TYPES[file])


@router.delete(
    "/v1/adapters/{id}",
    status_code=204,
    response_model=None,
    responses={
        **{
            status: said
            for status, said in answers(
                None, tensors=False, problems=(*LOCKED, "unknown_adapter")
            ).items()
            if status != 200
        },
        204: {"description": "The adapter is deleted."},
    },
)
async def delete(state: Found, id: Id) -> Response:
    """Delete an adapter. Requests that already use it run to their end."""
    await asyncio.to_thread(state.adapters.delete, id)
    return Response(status_code=204)
