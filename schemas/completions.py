"""`POST /v1/completions` and `GET /v1/models`, in the shape of OpenAI's API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal

from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator

from schemas.activations import HookPoint
from schemas.common import (
    UNSET,
    Answer,
    Asked,
    Encoding,
    Layers,
    ModelSummary,
    Request,
    Text,
    Values,
    string_or_list,
    with_examples,
)
from schemas.pairs import MEANINGS, SEED_CONTEXT, Baseline

Recompute = Literal["all", "new"]
FinishReason = Literal["stop", "length"]
StopText = Annotated[str, Field(min_length=1)]
Stops = Annotated[
    Annotated[StopText, Tag("string")]
    | Annotated[list[StopText], Field(max_length=4), Tag("list")],
    string_or_list("give a text or a list of up to four texts"),
]


def _or_null(schema: dict[str, Any]) -> None:
    schema["type"] = [schema["type"], "null"]


NULL_IS_DEFAULT = Field(json_schema_extra=_or_null)
"""Documents that null is accepted and means the default."""


class RecomputedPatch(Request):
    """Generate without the context, under patches that reproduce the run with context."""

    context: Text
    """Text before the prompt, which the generating run does not read."""
    baseline: Annotated[
        Baseline | None,
        Field(
            description="The run that generates. Null selects the default of the model's family. "
            f"{MEANINGS}"
        ),
    ] = None
    recompute: Recompute = "all"
    """`all`: for each token, the whole text runs again under one set of weights (up to 64 tokens).
    `new`: only the newest row runs, under its own update, after rows that ran under earlier ones.
    Both reproduce the run with context, but only with `all` does one set of weights give a
    token."""


class AdapterPatch(Request):
    """Generate with an adapter."""

    adapter: str
    """Id of the adapter."""
    scale: Annotated[float, Field(ge=-100, le=100)] = 1.0
    """Factor of the adapter's update. 1 is the adapter as made."""
    context: Text | None = None
    """The adapter's context. The generating run does not read it; the run that `agreement` compares
    with does. It puts the prompt at the positions where the adapter's baseline has the query.
    Without it, the prompt begins at position 0, behind the anchor for an `anchored` adapter."""


def _kind_of_patch(value: Any) -> str:
    named = isinstance(value, AdapterPatch) or (isinstance(value, dict) and "adapter" in value)
    return "adapter-patch" if named else "recomputed-patch"


Patch = Annotated[
    Annotated[RecomputedPatch, Tag("recomputed-patch")]
    | Annotated[AdapterPatch, Tag("adapter-patch")],
    Discriminator(_kind_of_patch),
]


class Capture(Request):
    """Activations to return for every generated token."""

    layers: Layers = "all"
    hook_points: list[HookPoint] = ["resid_post"]
    reduce: Literal["none", "norm"] = "none"
    encoding: Encoding = "base64"


class StreamOptions(Request):
    """Options of a stream."""

    include_usage: bool = False
    """End with an event that has `usage` and no choices."""


class CompletionRequest(Request):
    """A prompt to continue."""

    model_config = with_examples(
        {"prompt": SEED_CONTEXT, "max_tokens": 8, "temperature": 0},
        {
            "prompt": " The capital of Germany is",
            "patch": {"context": SEED_CONTEXT, "recompute": "new"},
            "agreement": True,
            "max_tokens": 8,
            "temperature": 0,
        },
    )

    model: str | None = None
    """Id of the resident model, or of an adapter. Null: the resident model."""
    prompt: Text
    """Text, or token ids. One prompt per request."""
    max_tokens: Annotated[int, Field(ge=1), NULL_IS_DEFAULT] = 16
    """Maximum number of tokens to generate. They and the prompt must fit the model's positions."""
    temperature: Annotated[float, Field(ge=0, le=100), NULL_IS_DEFAULT] = 1.0
    """Sampling temperature. 0 takes the likeliest token."""
    top_p: Annotated[float, Field(gt=0, le=1), NULL_IS_DEFAULT] = 1.0
    """Samples from the likeliest tokens whose probabilities add up to this."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """The same seed and request give the same tokens. Null: a new seed, which the answer names."""
    stop: Stops | None = None
    """Texts that end the completion. The text of the answer ends before them."""
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    """Number of likeliest tokens to return with their log-probabilities."""
    echo: Annotated[bool, NULL_IS_DEFAULT] = False
    """Put the prompt before the completion's text."""
    stream: Annotated[bool, NULL_IS_DEFAULT] = False
    """Answer with server-sent events, the last of which is `[DONE]`."""
    stream_options: StreamOptions | None = None
    """Options of the stream. Needs `stream`."""
    user: str | None = None
    """Ignored."""
    n: int | None = None
    """Only 1 is supported."""
    best_of: int | None = None
    """Only 1 is supported."""
    presence_penalty: float | None = None
    """Only 0 is supported."""
    frequency_penalty: float | None = None
    """Only 0 is supported."""
    logit_bias: dict[str, float] | None = None
    """Only an empty object is supported."""
    suffix: str | None = None
    """Only null is supported."""
    patch: Patch | None = None
    """Generate under a patch. Null: the resident weights."""
    agreement: bool = False
    """Compare each token with the choice of the run that reads the context. Needs `patch`; if the
    patch is an adapter's, also its `context`."""
    capture: Capture | None = None
    """Return activations of each generated token. Null: none."""

    @field_validator("max_tokens", "temperature", "top_p", "echo", "stream", mode="before")
    @classmethod
    def _null_is_default(cls, value: Any, info: ValidationInfo) -> Any:
        # Clients of OpenAI send null for an option that they leave to the service.
        assert info.field_name is not None
        return cls.model_fields[info.field_name].default if value is None else value


@dataclass(frozen=True)
class Logprobs(Answer):
    """Log-probabilities, one entry per token of the completion."""

    tokens: Sequence[str]
    token_logprobs: Sequence[float | None]
    """Null for the first token of an echoed prompt."""
    top_logprobs: Sequence[Mapping[str, float] | None] | None
    text_offset: Sequence[int]
    """Number of characters of the text before each token."""


@dataclass(frozen=True)
class TokenAgreement(Answer):
    """One generated token in the patched run and in the run with context."""

    token: int
    """Id of the token, which the patched run chose."""
    same_token: bool
    """Whether the run with context chooses this token too, after the same tokens and with the same
    random numbers."""
    kl: float
    """KL(with context ‖ patched) in nats, float64."""
    margin: float
    """Log-probability of the likeliest token minus that of the second, with context."""
    rows_patched: int
    """Number of rows on which the patch acted."""


@dataclass(frozen=True)
class CapturedActivations(Answer, Generic[Values]):
    """Activations of one hook point, one row per generated token.

    A token's activations are those of the row whose logits the token was chosen from.
    """

    layer: int
    hook_point: HookPoint
    values: Values
    """[tokens, width], or [tokens] with `reduce: "norm"`."""


@dataclass(frozen=True)
class Choice(Answer):
    """The completion."""

    text: str
    index: int
    finish_reason: FinishReason | None
    """`stop`: a stop text or the model's end token. `length`: `max_tokens` was reached. Null in a
    stream before the end."""
    logprobs: Logprobs | None = None


@dataclass(frozen=True)
class Usage(Answer):
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


@dataclass(frozen=True)
class Completion(Answer, Generic[Values]):
    """A completion, or one event of a stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    """Unix time in seconds."""
    model: str
    """Id of the model or of the adapter."""
    choices: Sequence[Choice]
    resident_model: Asked[ModelSummary] = UNSET
    """The weights. In a stream, only the first event has this field."""
    seed: Asked[int] = UNSET
    """The seed that was used. In a stream, only the first event has this field."""
    usage: Asked[Usage | None] = UNSET
    tokens: Asked[Sequence[int]] = UNSET
    """Ids of the generated tokens of `choices`."""
    agreement: Asked[Sequence[TokenAgreement]] = UNSET
    one_set_of_weights: Asked[bool] = UNSET
    """True if one set of weights gives each token (`recompute: "all"`) or all tokens (an adapter).
    False with `recompute: "new"`. In a stream, only the first event has this field."""
    activations: Asked[Sequence[CapturedActivations[Values]]] = UNSET


@dataclass(frozen=True)
class ModelCard(Answer):
    """A model or an adapter, in OpenAI's shape."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    parent: str | None
    """Id of the model that an adapter belongs to. Null for the resident model."""


@dataclass(frozen=True)
class ModelsAnswer(Answer):
    """The resident model and its adapters."""

    object: Literal["list"]
    data: Sequence[ModelCard]
