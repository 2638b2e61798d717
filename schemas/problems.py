"""Errors: RFC 9457 problem details, and every code there is."""

from __future__ import annotations

from typing import Annotated, NamedTuple

from pydantic import Field

from schemas.common import Answer

POINTER_LENGTH = 64
"""A pointer is cut here, since it may name a field of the caller's."""


class FieldError(Answer):
    """One mistake in the body; never the value itself."""

    pointer: Annotated[str, Field(description="RFC 6901, into the sent body")]
    message: str


class Problem(Answer):
    """`application/problem+json`."""

    type: Annotated[str, Field(description="`/problems/{code}`, which explains it")]
    title: str
    status: int
    detail: str
    instance: Annotated[
        str, Field(description="the path that was asked, as far as the service knows it")
    ]
    code: Annotated[str, Field(description="stable; for programs")]
    request_id: str
    retryable: Annotated[bool, Field(description="whether the same request may succeed later")]
    errors: list[FieldError] | None = None
    limit: float | int | None = None
    actual: float | int | None = None


class Kind(NamedTuple):
    """One row of the table of problems."""

    status: int
    title: str
    meaning: str

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status in (408, 429, 503, 504)


PROBLEMS: dict[str, Kind] = {
    "malformed_json": Kind(
        400, "Malformed JSON", "The body is not JSON in UTF-8, or nests too deep."
    ),
    "missing_key": Kind(401, "Missing key", "Send `Authorization: Bearer KEY`."),
    "wrong_key": Kind(403, "Wrong key", "The key is not one of those configured."),
    "not_found": Kind(404, "Not found", "There is nothing at this path."),
    "method_not_allowed": Kind(
        405, "Method not allowed", "`Allow` names the methods of this path."
    ),
    "not_acceptable": Kind(
        406,
        "Not acceptable",
        "Answers are `application/json`, and with tensors `application/vnd.safetensors`.",
    ),
    "request_timeout": Kind(
        408,
        "Request timeout",
        "The request did not arrive in time; the connection is closed.",
    ),
    "body_too_large": Kind(413, "Body too large", "The body has more bytes than `limit`."),
    "too_many_items": Kind(413, "Too many items", "The request brings more prompts than `limit`."),
    "unsupported_media_type": Kind(
        415, "Unsupported media type", "Send the body as `application/json`, not compressed."
    ),
    "unknown_host": Kind(
        421,
        "Unknown host",
        "`Host` is none of the service's names: `DELTAW_ALLOWED_HOSTS` adds one.",
    ),
    "validation": Kind(422, "Invalid request", "`errors` points at each mistake in the body."),
    "not_supported": Kind(422, "Not supported", "This combination has no answer."),
    "no_anchor_token": Kind(
        422, "No anchor token", "The tokenizer has no <|endoftext|>: take another baseline."
    ),
    "bad_span": Kind(
        422,
        "Bad span",
        "Spans are half-open, not empty, in order, do not overlap, and leave something over.",
    ),
    "empty_context": Kind(422, "Empty context", "The context has no tokens."),
    "empty_query": Kind(422, "Empty query", "The query, or a prompt, has no tokens."),
    "prompt_too_long": Kind(
        422, "Prompt too long", "It needs more positions than the model has; nothing is truncated."
    ),
    "layer_out_of_range": Kind(422, "Layer out of range", "The model has no such layer."),
    "position_out_of_range": Kind(
        422, "Position out of range", "The query, or the prompt, has no such token."
    ),
    "token_out_of_range": Kind(422, "Token out of range", "The id is not in the vocabulary."),
    "unknown_hook_point": Kind(
        422, "Unknown hook point", "`/v1/model` names those that there are."
    ),
    "never_fits": Kind(
        422,
        "Never fits",
        "The work, or the answer, is larger than any request is granted: ask for less at a time.",
    ),
    "queue_full": Kind(
        429,
        "Queue full",
        "As many requests wait as may, or for longer than one may: see `Retry-After`.",
    ),
    "headers_too_large": Kind(
        431, "Headers too large", "The request's head is too long; the connection is closed."
    ),
    "internal": Kind(500, "Internal error", "A fault of the service; its log has the request id."),
    "non_finite": Kind(
        500, "Not finite", "The model computed NaN or infinity, or a norm of 0 to divide by."
    ),
    "loading": Kind(503, "Loading", "The model is still being loaded."),
    "draining": Kind(503, "Draining", "The service is shutting down and takes no new work."),
    "out_of_memory": Kind(503, "Out of memory", "There was not enough memory for this request."),
    "self_check_failed": Kind(
        503, "Self-check failed", "The equivalence check at start did not hold: no number is given."
    ),
    "deadline_exceeded": Kind(
        504, "Deadline exceeded", "Waiting and computing took longer than a request is granted."
    ),
}
"""Every problem by its code. 499, for a client that has left, is only logged."""
