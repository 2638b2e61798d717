"""The routes of resources that answer bodies: one body as JSON, or one per line as NDJSON."""

from __future__ import annotations

from inspect import cleandoc

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from service.api.bodies import parse_body, read_body
from service.api.exchange import Exchange, Resource, off_loop
from service.api.heads import JSON, NDJSON, SAFETENSORS, media_type
from service.api.lines import answer_lines
from service.api.openapi import ASKED, answers, operation
from service.api.tensors import negotiate
from service.engine import Plan


def add(router: APIRouter, resource: Resource) -> None:
    """Add the route of a resource."""

    async def handle(request: Request) -> Response:
        if media_type(request) == NDJSON:
            return answer_lines(request, resource)
        return await answer_one(request, resource)

    router.add_api_route(
        resource.path,
        handle,
        methods=["POST"],
        name=resource.path.removeprefix("/v1/").replace("-", "_"),
        description=cleandoc(resource.text),
        responses=answers(
            resource.answer,
            tensors=resource.tensors,
            lines=True,
            problems=(*ASKED, *resource.problems),
        ),
        **operation(resource.request),
    )


async def answer_one(request: Request, resource: Resource) -> Response:
    """Answer a request with one body."""
    content = await read_body(request)
    body = await parse_body(resource.request, content)
    return await answer_parsed(request, resource, body, len(content))


async def answer_parsed(
    request: Request, resource: Resource, body: BaseModel, size: int
) -> Response:
    """Answer a request whose body has been read, of `size` bytes."""
    offered = (JSON, SAFETENSORS) if resource.tensors else (JSON,)
    ask = Exchange(request, negotiate(request.headers.get("accept"), offered), size)
    prepared = await off_loop(resource.is_small(body, size), ask.prepare, resource, body)
    answer = await ask.ask(prepared) if isinstance(prepared, Plan) else prepared
    resource.count(ask.state.metrics, answer)
    return await ask.respond(answer)
