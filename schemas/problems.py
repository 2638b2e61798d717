"""Problems (RFC 9457): their form, and the table of all codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

from pydantic import Field

from schemas.common import UNSET, Answer, Asked

POINTER_LENGTH = 64
"""Characters of a pointer. Longer ones are cut, because a pointer may name a caller's field."""


@dataclass(frozen=True)
class FieldError(Answer):
    """One mistake in the body, without the value itself."""

    pointer: Annotated[str, Field(description="JSON pointer (RFC 6901) into the sent body.")]
    message: str


@dataclass(frozen=True)
class Problem(Answer):
    """`application/problem+json`."""

    type: Annotated[str, Field(description="`/problems/{code}`, a page that explains the code.")]
    title: str
    status: int
    detail: str
    instance: Annotated[
        str, Field(description="Path of the request, as far as it names a resource of the service.")
    ]
    code: Annotated[str, Field(description="Stable name of the problem, for programs.")]
    request_id: str
    retryable: Annotated[bool, Field(description="Whether the same request may succeed later.")]
    errors: Asked[Sequence[FieldError]] = UNSET
    limit: Annotated[Asked[float | int], Field(description="The limit that was exceeded.")] = UNSET
    actual: Annotated[
        Asked[float | int], Field(description="The value that exceeded the limit.")
    ] = UNSET


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
    "malformed_request": Kind(
        400,
        "Malformed request",
        "The request has no `Host`, several, or one that is not a host name. HTTP/1.1 needs one.",
    ),
    "malformed_json": Kind(
        400,
        "Malformed JSON",
        "The body is not JSON in UTF-8, or its nesting is too deep.",
    ),
    "missing_key": Kind(
        401,
        "Missing key",
        "The service needs a key. Send `Authorization: Bearer KEY`.",
    ),
    "wrong_key": Kind(403, "Wrong key", "The key is not one of the configured keys."),
    "not_found": Kind(404, "Not found", "The service has no resource at this path."),
    "method_not_allowed": Kind(
        405,
        "Method not allowed",
        "This path does not support the method. `Allow` names the ones it supports.",
    ),
    "not_acceptable": Kind(
        406,
        "Not acceptable",
        "Answers are `application/json`. Answers with tensors are also "
        "`application/vnd.safetensors`.",
    ),
    "request_timeout": Kind(
        408,
        "Request timeout",
        "The request did not arrive in time. The connection is closed.",
    ),
    "body_too_large": Kind(
        413,
        "Body too large",
        "The body has more bytes than `limit`. Split the request.",
    ),
    "too_many_items": Kind(
        413,
        "Too many items",
        "The request has more prompts than `limit`. Split it.",
    ),
    "unsupported_media_type": Kind(
        415,
        "Unsupported media type",
        "Send the body as `application/json`, uncompressed.",
    ),
    "unknown_host": Kind(
        421,
        "Unknown host",
        "`Host` is not a name of the service. `DELTAW_ALLOWED_HOSTS` adds names.",
    ),
    "validation": Kind(422, "Invalid request", "The body has mistakes. `errors` points at each."),
    "not_supported": Kind(
        422,
        "Not supported",
        "This combination of options is not defined. `errors` names the option.",
    ),
    "no_anchor_token": Kind(
        422,
        "No anchor token",
        "The tokenizer has no <|endoftext|>. Choose another baseline.",
    ),
    "bad_span": Kind(
        422,
        "Bad span",
        "Spans are half-open, not empty, in ascending order, and do not overlap. Those of "
        "`without` leave at least one token.",
    ),
    "empty_context": Kind(422, "Empty context", "The context has no tokens."),
    "empty_query": Kind(422, "Empty query", "The query or a prompt has no tokens."),
    "prompt_too_long": Kind(
        422,
        "Prompt too long",
        "The prompt has more tokens than the model has positions. The service never truncates.",
    ),
    "layer_out_of_range": Kind(422, "Layer out of range", "The model has no such layer."),
    "position_out_of_range": Kind(
        422,
        "Position out of range",
        "The query or the prompt has no token at this position.",
    ),
    "token_out_of_range": Kind(422, "Token out of range", "The token id is not in the vocabulary."),
    "unknown_hook_point": Kind(
        422,
        "Unknown hook point",
        "The model has no such hook point. `/v1/model` names them.",
    ),
    "never_fits": Kind(
        422,
        "Never fits",
        "The work or the answer exceeds the limit of one request. Split the request.",
    ),
    "queue_full": Kind(
        429,
        "Queue full",
        "The queue is full, or the expected wait exceeds the deadline. Retry after "
        "`Retry-After` seconds.",
    ),
    "headers_too_large": Kind(
        431,
        "Headers too large",
        "The request's head is too long. The connection is closed.",
    ),
    "internal": Kind(
        500,
        "Internal error",
        "The service has a fault. Its log has the traceback under the request id.",
    ),
    "non_finite": Kind(
        500,
        "Not finite",
        "The model computed NaN or infinity, or a vector of norm 0 that ΔW divides by.",
    ),
    "loading": Kind(
        503,
        "Loading",
        "The model is still loading. Retry after `Retry-After` seconds.",
    ),
    "draining": Kind(503, "Draining", "The service is shutting down and accepts no new requests."),
    "out_of_memory": Kind(
        503,
        "Out of memory",
        "There was not enough memory for this request. Retry, or ask for less.",
    ),
    "self_check_failed": Kind(
        503,
        "Self-check failed",
        "The equivalence check at start did not hold, or the engine has failed. The service "
        "returns no numbers.",
    ),
    "deadline_exceeded": Kind(
        504,
        "Deadline exceeded",
        "The request was not answered within its deadline.",
    ),
}
"""Every problem by its code. The log also has status 499, for a client that left."""
