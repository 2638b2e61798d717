"""Problems (RFC 9457): their form, and the table of all codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from schemas.common import UNSET, Answer, Asked

POINTER_LENGTH = 64
"""Characters of a pointer. Longer ones are cut, because a pointer may name a caller's field."""


@dataclass(frozen=True)
class FieldError(Answer):
    """One mistake in the body, without the value itself."""

    pointer: str
    """JSON pointer (RFC 6901) into the sent body."""
    message: str


@dataclass(frozen=True)
class Problem(Answer):
    """`application/problem+json`."""

    type: str
    """`/problems/{code}`, a page that explains the code."""
    title: str
    status: int
    detail: str
    instance: str
    """Path of the request, as far as it names a resource of the service."""
    code: str
    """Stable name of the problem, for programs."""
    request_id: str
    retryable: bool
    """Whether the same request may succeed later."""
    errors: Asked[Sequence[FieldError]] = UNSET
    limit: Asked[float | int] = UNSET
    """The limit that was exceeded."""
    actual: Asked[float | int] = UNSET
    """The value that exceeded the limit."""


class Kind(NamedTuple):
    """One row of the table of problems."""

    status: int
    title: str
    meaning: str

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status in (408, 429, 502, 503, 504)


MEANINGS: dict[int, dict[str, str]] = {
    400: {
        "malformed_request": "The request has no `Host`, several, or one that is not a host name. "
        "HTTP/1.1 needs one.",
        "malformed_json": "The body is not JSON in UTF-8, or its nesting is too deep.",
    },
    401: {"missing_key": "The service needs a key. Send `Authorization: Bearer KEY`."},
    403: {"wrong_key": "The key is not one of the configured keys."},
    404: {
        "not_found": "The service has no resource at this path.",
        "unknown_model": "The id is neither the resident model's nor an adapter's. `/v1/models` "
        "lists the valid ids.",
        "unknown_adapter": "No adapter has this id. `/v1/adapters` lists all adapters.",
    },
    405: {
        "method_not_allowed": "This path does not support the method. `Allow` names the ones it "
        "supports.",
    },
    406: {
        "not_acceptable": "Answers are `application/json`. Answers with tensors are also "
        "`application/vnd.safetensors`. Lines are answered as `application/x-ndjson`.",
    },
    408: {"request_timeout": "The request did not arrive in time. The connection is closed."},
    409: {
        "other_weights": "The adapter was made for other weights than the resident ones. Make it "
        "again.",
    },
    413: {
        "body_too_large": "The body has more bytes than `limit`. Split the request.",
        "too_many_items": "The request has more prompts than `limit`. Split it.",
        "too_many_lines": "The request has more lines than `limit`. Split it.",
    },
    415: {
        "unsupported_media_type": "Send the body as `application/json`, or one body per line as "
        "`application/x-ndjson`, uncompressed.",
    },
    421: {
        "unknown_host": "`Host` is not a name of the service. `DELTAW_ALLOWED_HOSTS` adds names.",
    },
    422: {
        "validation": "The body has mistakes. `errors` points at each.",
        "not_supported": "This combination of options is not defined. `errors` names the option.",
        "no_anchor_token": "The tokenizer has no anchor. Choose another baseline.",
        "bad_span": "Spans are half-open, not empty, in ascending order, and do not overlap. Those "
        "of `without` leave at least one token.",
        "empty_context": "The context has no tokens.",
        "empty_query": "The query or a prompt has no tokens.",
        "prompt_too_long": "The prompt has more tokens than the model has positions. The service "
        "never truncates.",
        "layer_out_of_range": "The model has no such layer.",
        "position_out_of_range": "The query or the prompt has no token at this position.",
        "token_out_of_range": "The token id is not in the vocabulary.",
        "unknown_hook_point": "The model has no such hook point. `/v1/model` names them.",
        "too_few_queries": "A static adapter is fitted to two queries or more. 25 work best.",
        "never_fits": "The work or the answer exceeds the limit of one request. Split the request.",
        "dependent_rows": "The MLP's inputs or activations at several positions are nearly "
        "linearly dependent, so no single patch is exact at all of them. `actual` is the condition "
        "number, or the relative error of the adapter's logits. Ask for fewer positions.",
        "ill_conditioned": "Rounding errors would spoil the adapter: its fit has no solution with "
        "this `ridge`, or the relative error of an exact adapter's logits, `actual`, exceeds "
        "`limit`. `detail` names the option to change.",
    },
    429: {
        "queue_full": "The queue is full, or the expected wait exceeds the deadline. Retry after "
        "`Retry-After` seconds.",
    },
    431: {"headers_too_large": "The request's head is too long. The connection is closed."},
    500: {
        "internal": "The service has a fault. Its log has the traceback under the request id.",
        "non_finite": "The model computed NaN or infinity, or a vector of norm 0 that ΔW divides "
        "by.",
        "no_rows_patched": "The patch acted on no row. The service does not return the text, "
        "because it would be unpatched.",
    },
    502: {
        "replica_lost": "The replica that had the request ended before it answered. The proxy of a "
        "fleet says so. Send the request again; one that makes or deletes an adapter may have been "
        "carried out.",
    },
    503: {
        "loading": "The model is still loading. Retry after `Retry-After` seconds.",
        "draining": "The service is shutting down and accepts no new requests.",
        "out_of_memory": "There was not enough memory for this request. Retry, or ask for less.",
        "self_check_failed": "The equivalence check at start did not hold, or the engine has "
        "failed. The service returns no numbers.",
    },
    504: {"deadline_exceeded": "The request was not answered within its deadline."},
    507: {
        "storage_full": "The service cannot store the adapter: its disk or its limit is full. "
        "Delete adapters.",
    },
}
"""The meaning of each code, by its status. The log also has status 499, for a client that left."""
TITLES = {
    "malformed_json": "Malformed JSON",
    "validation": "Invalid request",
    "internal": "Internal error",
    "non_finite": "Not finite",
    "self_check_failed": "Self-check failed",
}
"""Titles that are not the code in words."""
PROBLEMS = {
    code: Kind(status, TITLES.get(code, code.capitalize().replace("_", " ")), meaning)
    for status, meanings in MEANINGS.items()
    for code, meaning in meanings.items()
}
"""Every problem by its code."""
