"""Weight updates: what a context does to each layer, as norms and factors, never as a matrix."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from service.analysis.numbers import ratio, ratios
from service.analysis.pairs import Pair
from service.engine import Activations, Model, Question, Site
from service.theory import (
    Comparison,
    ImplicitUpdate,
    below_noise,
    compare,
    implicit_update,
    kl_divergence,
)

Include = Literal["factors", "bias", "next_tokens", "split"]
LIKELIEST = 10
"""How many next tokens are named."""


@dataclass(frozen=True)
class Norms:
    """One activation with the context and in the baseline run."""

    norm_with_context: float
    norm_baseline: float
    norm_difference: float
    cosine: float | None


@dataclass(frozen=True)
class Factors:
    """ΔW = outer(input, output), in the stored orientation.

    Args:
        input: n/‖n‖², (d_model).
        output: Δn·W, (d_mlp).
    """

    input: Tensor
    output: Tensor


@dataclass(frozen=True)
class Update:
    """The update of one layer for one query position.

    Args:
        layer: From 0 up.
        position: Index into the query.
        weight: The name of the updated weight in the checkpoint.
        shape: Of that weight, as stored.
        rank: 1; 0 where the context changes nothing.
        norm: ‖ΔW‖, Frobenius = spectral.
        relative_norm: ‖ΔW‖ / ‖W‖, Frobenius.
        spectral_share: ‖ΔW‖ / ‖W‖, spectral.
        mlp_in: The vector that W multiplies.
        resid_mid: The residual stream before ln_2.
        below_noise: Whether the difference is within the dtype's rounding.
        factors: ΔW, where asked for.
        bias: Δh, (d_model), where asked for.
    """

    layer: int
    position: int
    weight: str
    shape: tuple[int, int]
    rank: int
    norm: float
    relative_norm: float | None
    spectral_share: float | None
    mlp_in: Norms
    resid_mid: Norms
    below_noise: bool
    factors: Factors | None = None
    bias: Tensor | None = None


@dataclass(frozen=True)
class LikelyToken:
    """A token that may come next."""

    id: int
    text: str
    probability: float


@dataclass(frozen=True)
class NextTokens:
    """The likeliest tokens after one query position, in each run.

    Args:
        position: Index into the query.
        with_context: Likeliest first.
        baseline: Likeliest first.
        kl_divergence: KL(with context ‖ baseline) in nats, over the whole vocabulary.
    """

    position: int
    with_context: tuple[LikelyToken, ...]
    baseline: tuple[LikelyToken, ...]
    kl_divergence: float


@dataclass(frozen=True)
class WeightUpdates:
    """Layer by layer, and in a layer position by position."""

    updates: tuple[Update, ...]
    next_tokens: tuple[NextTokens, ...] | None = None


def weight_updates(
    model: Model, pair: Pair, layers: Sequence[int], include: Collection[Include]
) -> Question[WeightUpdates]:
    """The update of each layer at each asked position, free stream.

    Args:
        model: The resident model.
        pair: The run with context and its baseline.
        layers: From 0 up.
        include: What to give beside the norms.
    """
    reads = pair.reads(layers, ("mlp_in", "resid_mid"))
    logits = Site(model.n_layers, "logits")
    if "next_tokens" in include:
        reads[logits] = pair.positions
    context, baseline = yield [pair.with_context.run(reads), pair.baseline.run(reads)]
    updates = tuple(
        update
        for layer in layers
        for update in _of_layer(model, pair.positions, layer, context, baseline, include)
    )
    if logits not in reads:
        return WeightUpdates(updates)
    return WeightUpdates(
        updates, _next_tokens(model, pair.positions, context[logits], baseline[logits])
    )


def layer_update(
    layer: int, context: Activations, baseline: Activations, w_in: Tensor
) -> ImplicitUpdate:
    """ΔW and Δh of a layer from what two runs read, one for each position."""
    n, h = Site(layer, "mlp_in"), Site(layer, "resid_mid")
    return implicit_update(baseline[n], context[n], baseline[h], context[h], w_in)


def _of_layer(
    model: Model,
    positions: Sequence[int],
    layer: int,
    context: Activations,
    baseline: Activations,
    include: Collection[Include],
) -> list[Update]:
    w_in = model.blocks[layer].w_in.weight
    found = layer_update(layer, context, baseline, w_in)
    n, h = Site(layer, "mlp_in"), Site(layer, "resid_mid")
    mlp_in, resid_mid = compare(baseline[n], context[n]), compare(baseline[h], context[h])
    noise = below_noise(baseline[n], context[n], baseline[n].dtype).tolist()
    frobenius, spectral = model.weight_norms[layer]
    wire = found.to(found.weight.output.dtype)
    return [
        Update(
            layer=layer,
            position=position,
            weight=model.family.weight_in.format(layer=layer),
            shape=(w_in.shape[0], w_in.shape[1]),
            rank=int(norm > 0),
            norm=norm,
            relative_norm=ratio(norm, frobenius),
            spectral_share=ratio(norm, spectral),
            mlp_in=_norms(mlp_in, i),
            resid_mid=_norms(resid_mid, i),
            below_noise=noise[i],
            factors=Factors(wire.weight.input[i].cpu(), wire.weight.output[i].cpu())
            if "factors" in include
            else None,
            bias=wire.bias[i].cpu() if "bias" in include else None,
        )
        for i, (position, norm) in enumerate(
            zip(positions, found.weight.norm.tolist(), strict=True)
        )
    ]


def _norms(compared: Comparison, i: int) -> Norms:
    return Norms(
        norm_with_context=float(compared.norm_with_context[i]),
        norm_baseline=float(compared.norm_baseline[i]),
        norm_difference=float(compared.norm_difference[i]),
        cosine=ratios(compared.cosine)[i],
    )


def _next_tokens(
    model: Model, positions: Sequence[int], context: Tensor, baseline: Tensor
) -> tuple[NextTokens, ...]:
    divergences = kl_divergence(context, baseline).tolist()
    likeliest = [_likeliest(model, logits) for logits in (context, baseline)]
    return tuple(
        NextTokens(position, likeliest[0][i], likeliest[1][i], divergences[i])
        for i, position in enumerate(positions)
    )


def _likeliest(model: Model, logits: Tensor) -> list[tuple[LikelyToken, ...]]:
    """The likeliest next tokens of each row of logits."""
    top = logits.double().softmax(-1).topk(min(LIKELIEST, logits.shape[-1]), dim=-1)
    return [
        tuple(
            LikelyToken(id, model.tokenizer.token(id).text, probability)
            for id, probability in zip(ids, probabilities, strict=True)
        )
        for ids, probabilities in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]
