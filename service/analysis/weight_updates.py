"""Weight updates: the effect of a context on each layer, as norms and factors, not as matrices."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from torch import Tensor

from schemas.common import UNSET, Unset
from schemas.pairs import AnotherContext, Stream
from schemas.weight_updates import (
    Include,
    JointUpdate,
    JointUpdatesAnswer,
    NextTokens,
    Norms,
    Reuse,
    Split,
    Update,
    WeightUpdatesAnswer,
    WeightUpdatesRequest,
)
from service.analysis.factors import factors, layer_update, ratio, ratios
from service.analysis.inputs import refuse, resolve_layers
from service.analysis.joints import joint_updates
from service.analysis.next_tokens import next_tokens
from service.analysis.pairs import Pair, gathered, resolve_pair
from service.analysis.reuse import reuses
from service.analysis.split import splits
from service.engine import Activations, AnswerSize, Model, Plan, Question, Site, plan, together
from service.theory import Comparison, below_noise, compare


def plan_weight_updates(
    model: Model, request: WeightUpdatesRequest
) -> Plan[WeightUpdatesAnswer[Tensor] | JointUpdatesAnswer[Tensor]]:
    """Plan the weight updates of a context. Raises `Refused` if an input does not fit."""
    layers = resolve_layers(model, request.layers)
    pair = resolve_pair(model, request.context, request.query, request.baseline, request.positions)
    check_combination(request, pair)
    probes = probe_pairs(model, request, pair)
    entries = len(layers) * (1 if request.joint else len(pair.positions))
    size = AnswerSize(
        entries=entries * (1 + len(probes)) + len(pair.positions),
        tokens=pair.echoed_tokens,
        numbers=entries * numbers(model, request, len(pair.positions)),
    )
    include = frozenset(request.include)
    if request.joint:
        return plan(model, joint_weight_updates(model, pair, layers, include), size)
    question = weight_updates(model, pair, layers, include, request.stream, probes)
    return plan(model, question, size)


def check_combination(request: WeightUpdatesRequest, pair: Pair) -> None:
    """Refuse options that are not defined together.

    Raises:
        NotSupported: `split` without `alone` and the free stream, or `joint` with options that need
            one patch per position, or with a single position.
    """
    if "split" in request.include:
        refuse(request.baseline != "alone", "`split` needs the baseline `alone`.", "include")
        refuse(request.stream != "free", "`split` needs the stream `free`.", "include")
    sequential_probes = bool(request.probe_queries) and request.stream != "free"
    refuse(sequential_probes, "`probe_queries` needs the stream `free`.", "probe_queries")
    if request.joint:
        refuse(len(pair.positions) < 2, "`joint` needs two positions or more.", "joint")
        refuse(request.stream != "free", "`joint` needs the stream `free`.", "joint")
        single = {"bias", "split"} & set(request.include)
        refuse(
            bool(single),
            "`joint` has one patch for all positions. It has no `bias` and no `split`.",
            "include",
        )
        refuse(
            bool(request.probe_queries),
            "`joint` has no single update that `probe_queries` could reuse.",
            "probe_queries",
        )


def probe_pairs(model: Model, request: WeightUpdatesRequest, pair: Pair) -> list[Pair]:
    """The context and baseline of a pair before each probe query, at its last token."""
    baseline = request.baseline
    if isinstance(baseline, AnotherContext):
        baseline = AnotherContext(context=list(pair.baseline.ids[: -len(pair.query)]))
    return [
        resolve_pair(model, pair.context, query, baseline, "last", query_at=("probe_queries", i))
        for i, query in enumerate(request.probe_queries)
    ]


def numbers(model: Model, request: WeightUpdatesRequest, positions: int) -> int:
    """Number of float32 numbers in the tensors of one entry."""
    pair_of_factors = model.d_model + model.d_mlp
    if request.joint:
        return 2 * positions * pair_of_factors if "factors" in request.include else 0
    count = pair_of_factors if "factors" in request.include else 0
    count += model.d_model if "bias" in request.include else 0
    return count + (2 * pair_of_factors if "split" in request.include else 0)


def weight_updates(
    model: Model,
    pair: Pair,
    layers: Sequence[int],
    include: Collection[Include],
    stream: Stream = "free",
    probes: Sequence[Pair] = (),
) -> Question[WeightUpdatesAnswer[Tensor]]:
    """Form the update of each layer at each requested position.

    Args:
        model: The resident model.
        pair: The run with context and its baseline.
        layers: Layers from 0.
        include: The parts to return besides the norms. `split` needs the baseline `alone` and the
            free stream.
        stream: Whether a layer's baseline is read from the ordinary stream, or from the one that
            the patched layers below it produce.
        probes: Other queries after the same context and baseline, on which each update is reused,
            in the free stream.
    """
    relation = pair.relation(model, stream)
    updates: Sequence[Update[Tensor]]
    likely: Sequence[NextTokens] | Unset
    parts: Sequence[Split[Tensor] | Unset]
    reused: Sequence[Sequence[Reuse] | Unset]
    updates, likely, parts, reused = yield from together(
        _updates(model, pair, layers, include, stream),
        next_tokens(model, pair, "next_tokens" in include),
        splits(model, pair, layers, "split" in include),
        reuses(model, pair, layers, probes),
    )
    finished = [
        replace(update, split=part, reuse=again)
        for update, part, again in zip(updates, parts, reused, strict=True)
    ]
    return WeightUpdatesAnswer(*relation, finished, likely)


def joint_weight_updates(
    model: Model, pair: Pair, layers: Sequence[int], include: Collection[Include]
) -> Question[JointUpdatesAnswer[Tensor]]:
    """Form one patch per layer for all requested positions; arguments as `weight_updates`."""
    relation = pair.relation(model)
    updates: Sequence[JointUpdate[Tensor]]
    likely: Sequence[NextTokens] | Unset
    updates, likely = yield from together(
        joint_updates(model, pair, layers, include),
        next_tokens(model, pair, "next_tokens" in include),
    )
    return JointUpdatesAnswer(*relation, updates, likely)


def _updates(
    model: Model,
    pair: Pair,
    layers: Sequence[int],
    include: Collection[Include],
    stream: Stream,
) -> Question[list[Update[Tensor]]]:
    reads = pair.reads(layers, ("mlp_in", "resid_mid"))
    base = pair.baseline_runs(layers, ("mlp_in", "resid_mid"), stream)
    context, *rest = yield [pair.with_context.run(reads), *base]
    baseline = gathered(rest)
    updates: list[Update[Tensor]] = []
    for layer in layers:
        updates += _of_layer(model, pair.positions, layer, context, baseline, include)
        yield ()
    return updates


def _of_layer(
    model: Model,
    positions: Sequence[int],
    layer: int,
    context: Activations,
    baseline: Activations,
    include: Collection[Include],
) -> Iterable[Update[Tensor]]:
    w_in = model.blocks[layer].w_in.weight
    found = layer_update(layer, context, baseline, w_in)
    n, h = Site(layer, "mlp_in"), Site(layer, "resid_mid")
    mlp_in = _norms(compare(baseline[n], context[n]))
    resid_mid = _norms(compare(baseline[h], context[h]))
    noise = below_noise(baseline[n], context[n], baseline[n].dtype).tolist()
    frobenius, spectral = model.weight_norms[layer]
    wire = found.to(found.weight.output.dtype)
    return [
        Update(
            layer=layer,
            position=position,
            weight=model.family.weight_in.format(layer=layer),
            shape=list(w_in.shape),
            rank=int(norm > 0),
            norm=norm,
            relative_norm=ratio(norm, frobenius),
            spectral_share=ratio(norm, spectral),
            mlp_in=mlp_in[i],
            resid_mid=resid_mid[i],
            below_noise=noise[i],
            factors=factors(wire.weight[i]) if "factors" in include else UNSET,
            bias=wire.bias[i].cpu() if "bias" in include else UNSET,
        )
        for i, (position, norm) in enumerate(
            zip(positions, found.weight.norm.tolist(), strict=True)
        )
    ]


def _norms(compared: Comparison) -> list[Norms]:
    """The norms at each position."""
    columns = (
        compared.norm_with_context.tolist(),
        compared.norm_baseline.tolist(),
        compared.norm_difference.tolist(),
        ratios(compared.cosine),
    )
    return [Norms(*row) for row in zip(*columns, strict=True)]
