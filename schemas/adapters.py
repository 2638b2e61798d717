"""`/v1/adapters`: a context as a PEFT adapter, exact for one query or fitted for many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, RootModel, Tag

from schemas.common import (
    UNSET,
    Answer,
    Asked,
    ModelSummary,
    Positions,
    Request,
    Text,
    with_examples,
)
from schemas.pairs import MEANINGS, SEED, Baseline, BaselineName, Form

Recipe = Literal["output_ridge", "mean_output"]
FitOn = Literal["query+answer", "answer", "last"]
AdapterName = Annotated[str, Field(min_length=1, max_length=128)]
FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter.zip")
"""The files of an adapter that can be fetched."""


class TokenAdapterRequest(Request):
    """An adapter that is exact for one context and one query."""

    kind: Literal["token"]
    context: Text
    """Text before the query."""
    query: Text
    """Tokenised separately from the context. It often begins with a space."""
    positions: Annotated[
        Positions,
        Field(
            description="Token indices into the query. At these positions, the model with the "
            "adapter and without the context gives the logits of the run with context."
        ),
    ] = "last"
    baseline: Annotated[
        Baseline | None,
        Field(
            description="The run in which the adapter is used. Null selects the default of the "
            f"model's family. {MEANINGS}"
        ),
    ] = None
    form: Form | None = None
    """The carrier of Δh. `bias`: the LoRA bias of the MLP's second weight, which needs a bias there
    and one position. `weights`: the second weight. Null selects `bias` if the checkpoint has the
    bias and there is one position, else `weights`."""
    name: AdapterName | None = None
    """A name for lists. It does not change the adapter."""


class StaticAdapterRequest(Request):
    """An adapter that is fitted to many queries behind one context."""

    kind: Literal["static"]
    context: Text
    """Text before each query."""
    queries: Annotated[list[Text], Field(max_length=256)]
    """Queries to fit to, two or more. 25 work best. A repeated query counts once."""
    held_out: Annotated[list[Text], Field(max_length=256)] | None = None
    """Queries on which the adapter is measured, and to which it is not fitted: none may be in
    `queries`. Null holds out every third of `queries`. Held-out figures need eight or more. A
    repeated query counts once."""
    baseline: Annotated[
        BaselineName | None,
        Field(
            description="The run in which the adapter is used. Null selects the default of the "
            f"model's family. {MEANINGS}"
        ),
    ] = None
    recipe: Recipe = "output_ridge"
    """`output_ridge`: a ridge regression on the MLP's second weight, layer by layer. `mean_output`:
    the mean difference of the block's output as a bias, that is, a steering vector per layer."""
    fit_on: FitOn | None = None
    """The tokens to fit. `query+answer`: each query's tokens but the first, and the answer's.
    `answer`: the answer's alone. `last`: each query's last token alone. Null: `last` for
    `mean_output`, else `query+answer`."""
    answer_tokens: Annotated[int, Field(ge=1, le=32)] = 8
    """Number of tokens of the greedy answer with context, which the fit reads after each query."""
    ridge: Annotated[float, Field(ge=0, le=1e3)] = 0.1
    """Ridge penalty λ, as a multiple of the mean of ‖row‖²."""
    from_layer: int | None = None
    """First patched layer. Negative values count from the end. Null: a third of the layers."""
    keep: Literal["default", "none"] | Annotated[list[Text], Field(max_length=64)] = "default"
    """Texts that the adapter must not change: 20 neutral sentences, none, or texts of your own."""
    keep_weight: Annotated[float, Field(ge=0, le=1e3)] = 1.0
    """Weight of a row of these texts relative to a fitted row."""
    rank: Annotated[int, Field(ge=1, le=1024)] = 32
    """Maximum rank of a layer's update. Truncation keeps the largest effects on the fitted rows."""
    name: AdapterName | None = None
    """A name for lists. It does not change the adapter."""


def _kind(value: Any) -> str | None:
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return kind if kind in ("token", "static") else None


class AdapterRequest(
    RootModel[
        Annotated[
            Annotated[TokenAdapterRequest, Tag("token")]
            | Annotated[StaticAdapterRequest, Tag("static")],
            Discriminator(
                _kind,
                custom_error_type="adapter_kind",
                custom_error_message="`kind` is `token` or `static`",
            ),
        ]
    ]
):
    """A token adapter or a static one."""

    model_config = with_examples(
        {"kind": "token", **SEED},
        {
            "kind": "static",
            "context": "dog: animal\nred: colour\ncat: animal\nblue: colour\n",
            "queries": ["cow:", "pink:", "horse:", "grey:", "sheep:", "green:"],
        },
    )


@dataclass(frozen=True)
class AdapterLayer(Answer):
    """The update of one layer."""

    layer: int
    norm: float
    """Frobenius norm of the layer's updates together, float64."""
    rank: int
    """Largest rank of the layer's updates."""
    kept_energy: float | None
    """Share of the squared effect on the fitted rows that truncation kept. Null without a fit."""


@dataclass(frozen=True)
class Fit(Answer):
    """How a static adapter was fitted."""

    seconds: float
    k: int
    """Number of fitted queries."""
    rows: int
    """Number of fitted rows, without those of the kept texts."""
    keep_rows: int
    """Number of rows of the kept texts, including the anchor's if there is one."""


@dataclass(frozen=True)
class TokenFigures(Answer):
    """Figures of one answer token over several queries, teacher-forced."""

    token: int
    """Index into the answer, from 0."""
    recovered: float | None
    """1 − ΣKL(with context ‖ patched) / ΣKL(with context ‖ unpatched), pooled. Null if the
    denominator is below 1e-9 nats."""
    top_1: float
    """Share of the queries whose likeliest token is that of the run with context."""


@dataclass(frozen=True)
class Figures(Answer):
    """How well a patch reproduces the run with context on some queries.

    The first figures are those of the first answer token. `kl_*` are means in nats.
    """

    n: int
    """Number of queries."""
    kl_none: float
    """KL(with context ‖ unpatched)."""
    kl_patched: float
    """KL(with context ‖ patched)."""
    recovered: float | None
    """1 − ΣKL(with context ‖ patched) / ΣKL(with context ‖ unpatched), pooled over the queries.
    Null if the denominator is below 1e-9 nats a query."""
    recovered_median: float | None
    """Median over the queries of 1 − KL(patched) / KL(unpatched)."""
    beyond_constant: float | None
    """1 − ΣKL(patched) / min(ΣKL(constant), ΣKL(unpatched)), where the constant answer is the mean
    distribution with context over the fitted queries. What remains when the format of the answer
    is set aside."""
    top_1: float
    """Share of the queries whose likeliest first token is that of the run with context."""
    top_1_none: float
    """The same share without a patch."""
    teacher_forced: Sequence[TokenFigures]
    """Figures by answer token, where each run reads the tokens of the answer with context."""
    free_run: Asked[float | None] = UNSET
    """Share of the tokens of the greedy answers that equal those of the run with context, where
    each run reads its own tokens."""


@dataclass(frozen=True)
class Rivals(Answer):
    """`recovered` and `beyond_constant` of simpler patches on the same queries as the figures."""

    constant: float | None
    """`recovered` of the constant answer."""
    mean_output: float | None
    """`recovered` of one bias per layer, the mean difference of the block's output."""
    mean_output_beyond_constant: float | None
    random: float | None
    """`recovered` of random output factors of equal norm. It must be far lower."""


@dataclass(frozen=True)
class Collateral(Answer):
    """KL(unpatched ‖ patched) in nats over all tokens of unrelated texts, which the fit did not
    keep."""

    mean: float
    max: float
    context_itself: float
    """Mean of KL(unpatched ‖ with context) on the same texts: what the context itself changes."""
    texts: int
    """Number of texts: 20, without those that the request keeps."""


@dataclass(frozen=True)
class Adapter(Answer):
    """An adapter with its figures."""

    model: ModelSummary
    id: str
    """Hash of the weights, the token ids and the options. The same request gives the same id."""
    kind: Literal["token", "static"]
    name: str | None
    created: str
    """Time in UTC, ISO 8601."""
    exact: bool
    """True for token adapters: their logits equal those of the run with context but for rounding,
    for their own context, query and positions alone. A static adapter is fitted and never exact."""
    files: Sequence[str]
    """Files below `/v1/adapters/{id}/`."""
    bytes: int
    """Bytes of the weights' file."""
    baseline: Annotated[
        Baseline, Field(description=f"The run in which the adapter is used. {MEANINGS}")
    ]
    position_shift: int | None
    """Position of the query with context minus its position in use."""
    form: Form
    """The carrier of Δh, or of a static adapter's update: `bias` or `weights`."""
    peft_only: bool
    """True if the adapter has a bias or replaces the gain of a norm, which PEFT loads and vLLM does
    not."""
    layers: Sequence[AdapterLayer]
    verified: float
    """Largest relative error of the logits when the written file is read again and applied: for a
    token adapter relative to the run with context, for a static one to the fitted patch."""
    positions: Asked[Sequence[int]] = UNSET
    """Token adapters: indices into the query."""
    condition: Asked[float] = UNSET
    """Token adapters: the largest σ_max/σ_min of the stacked rows that a weight is solved for."""
    recipe: Asked[Recipe] = UNSET
    fit: Asked[Fit] = UNSET
    held_out: Asked[Figures | None] = UNSET
    """Figures on queries that the adapter was not fitted to. Null with fewer than eight."""
    in_sample: Asked[Figures] = UNSET
    """Figures on the fitted queries. They are close to 1 for any fit: do not judge by them."""
    rivals: Asked[Rivals | None] = UNSET
    """Simpler patches on the held-out queries. Null with fewer than eight."""
    collateral: Asked[Collateral] = UNSET
    """Damage to unrelated texts. Absent if the request keeps all of them."""


@dataclass(frozen=True)
class AdapterEntry(Answer):
    """An adapter in the list."""

    id: str
    kind: Literal["token", "static"]
    name: str | None
    created: str
    bytes: int
    weights_digest: str
    """Digest of the weights that the adapter was made for."""
    usable: bool
    """Whether the resident weights have this digest. Else the adapter cannot be used."""


@dataclass(frozen=True)
class AdaptersAnswer(Answer):
    """All adapters, the latest first."""

    model: ModelSummary
    adapters: Sequence[AdapterEntry]
    bytes: int
    """Bytes of all files."""
    limit_bytes: int
    """Maximum bytes of all files."""
