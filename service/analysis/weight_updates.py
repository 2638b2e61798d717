"""Weight updates: the effect of a context on each layer, as norms and factors, not as matrices."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from torch import Tensor

from schemas.common import UNSET, Unset
from schemas.pairs import AnotherContext, Form, Stream
from schemas.weight_updates import (
    Bias,
    FirstWeightUpdate,
    Gain,
    Include,
    JointUpdate,
    JointUpdatesAnswer,
    NextTokens,
    Norms,
    Reuse,
    SecondWeightUpdate,
    Split,
    Update,
    WeightUpdatesAnswer,
    WeightUpdatesRequest,
)
from service.analysis.factors import POINTS, columns_of, layer_update, on_wire, ratio, ratios
from service.analysis.inputs import refuse, require_form, resolve_layers
from service.analysis.joints import joint_updates
from service.analysis.next_tokens import next_tokens
from service.analysis.pairs import Pair, gathered, resolve_pair
from service.analysis.reuse import reuses
from service.analysis.split import splits
from service.engine import Activations, AnswerSize, Model, Plan, Question, Site, plan, together
from service.theory import Comparison, OutputUpdate, RankOne, below_noise, compare, norm

PART_BYTES = 256
"""Upper estimate of a tensor's reference, with its place in the header of a safetensors file, or of
the names and norms of a weight."""
INDEX_BYTES = 8
"""Maximum characters of an index of a gain's lifted entries in JSON, with its comma."""


def plan_weight_updates(
    model: Model, request: WeightUpdatesRequest
) -> Plan[WeightUpdatesAnswer[Tensor] | JointUpdatesAnswer[Tensor]]:
    """Plan the weight updates of a context. Raises `Refused` if an input does not fit."""
    layers = resolve_layers(model, request.layers)
    pair = resolve_pair(model, request.context, request.query, request.baseline, request.positions)
    check_combination(model, request, pair)
    probes = probe_pairs(model, request, pair)
    entries = len(layers) * (1 if request.joint else len(pair.positions))
    size = AnswerSize(
        entries=entries * (1 + len(probes)) + len(pair.positions),
        tokens=pair.echoed_tokens,
        numbers=entries * numbers(model, request, len(pair.positions)),
        entry_bytes=entry_bytes(model, request),
    )
    include = frozenset(request.include)
    if request.joint:
        return plan(model, joint_weight_updates(model, pair, layers, include), size)
    question = weight_updates(model, pair, layers, include, request.stream, probes, request.form)
    return plan(model, question, size)


def check_combination(model: Model, request: WeightUpdatesRequest, pair: Pair) -> None:
    """Refuse options that are not defined together.

    Raises:
        NotSupported: `split` without `alone` and the free stream, or `joint` with options that need
            one patch per position, or with a single position.
    """
    require_form(model, request.form, request.joint)
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
    first = len(model.first_weights(0))
    factors = model.d_model + first * model.d_mlp
    if request.joint:
        weights = first + 1
        every = weights * positions * (model.d_model + model.d_mlp)
        return every if "factors" in request.include else 0
    bias = model.d_model
    if request.form == "weights":
        gain = model.d_model if model.post_norms else 0
        bias = model.d_mlp + model.d_model + gain
    counts = {"factors": factors, "bias": bias, "split": 2 * factors}
    return sum(count for part, count in counts.items() if part in request.include)


def entry_bytes(model: Model, request: WeightUpdatesRequest) -> int:
    """Upper estimate of an entry's bytes in JSON, without its tensors.

    A plain entry has one first weight and a bias. Any further parts are added to it.
    """
    include = request.include
    further = len(model.first_weights(0)) - 1
    parts = further * (1 + ("factors" in include) + 2 * ("split" in include))
    lifted = 0
    if request.form == "weights" and "bias" in include:
        parts += 5 if model.post_norms else 3
        lifted = model.d_model if model.post_norms else 0
    return AnswerSize.entry_bytes + parts * PART_BYTES + lifted * INDEX_BYTES


def weight_updates(
    model: Model,
    pair: Pair,
    layers: Sequence[int],
    include: Collection[Include],
    stream: Stream = "free",
    probes: Sequence[Pair] = (),
    form: Form = "bias",
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
        form: The carrier of Δh.
    """
    relation = pair.relation(model, stream)
    updates: Sequence[Update[Tensor]]
    likely: Sequence[NextTokens] | Unset
    parts: Sequence[Split[Tensor] | Unset]
    reused: Sequence[Sequence[Reuse] | Unset]
    updates, likely, parts, reused = yield from together(
        _updates(model, pair, layers, include, stream, form),
        next_tokens(model, pair, "next_tokens" in include),
        splits(model, pair, layers, "split" in include),
        reuses(model, pair, layers, probes),
    )
    finished = [
        replace(update, split=part, reuse=again)
        for update, part, again in zip(updates, parts, reused, strict=True)
    ]
    return WeightUpdatesAnswer(*relation, form, finished, likely)


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
    form: Form,
) -> Question[list[Update[Tensor]]]:
    carrier = form if "bias" in include else "bias"
    reads = pair.reads(layers, POINTS[carrier])
    base = pair.baseline_runs(layers, POINTS["bias"], stream, form=form)
    context, *rest = yield [pair.with_context.run(reads), *base]
    baseline = gathered(rest)
    updates: list[Update[Tensor]] = []
    for layer in layers:
        updates += _of_layer(model, pair.positions, layer, context, baseline, include, carrier)
        yield ()
    return updates


def _of_layer(
    model: Model,
    positions: Sequence[int],
    layer: int,
    context: Activations,
    baseline: Activations,
    include: Collection[Include],
    form: Form,
) -> Iterable[Update[Tensor]]:
    found = layer_update(layer, context, baseline, model.blocks[layer], form)
    n, h = Site(layer, "mlp_in"), Site(layer, "resid_mid")
    mlp_in = _norms(compare(baseline[n], context[n]))
    resid_mid = _norms(compare(baseline[h], context[h]))
    noise = below_noise(baseline[n], context[n], baseline[n].dtype).tolist()
    wire = on_wire(found.weight)
    weights = _first_weights(model, layer, found.weight, wire, "factors" in include)
    carriers: Sequence[Carriers] = [(UNSET, UNSET, UNSET)] * len(positions)
    if "bias" in include and form == "bias":
        parameter = model.bias_parameter(layer)
        values = found.bias.to(wire.output.dtype).cpu()
        carriers = [(Bias(row, parameter), UNSET, UNSET) for row in values]
    elif "bias" in include and found.out is not None:
        carriers = _output_parts(model, layer, found.out)
    return [
        Update(
            layer=layer,
            position=position,
            rank=int(size > 0),
            norm=size,
            below_noise=noise[i],
            weights=weights[i],
            mlp_in=mlp_in[i],
            resid_mid=resid_mid[i],
            input=wire.input[i] if "factors" in include else UNSET,
            bias=carriers[i][0],
            w_out=carriers[i][1],
            gain=carriers[i][2],
        )
        for i, (position, size) in enumerate(
            zip(positions, found.weight.norm.tolist(), strict=True)
        )
    ]


def _first_weights(
    model: Model, layer: int, update: RankOne, wire: RankOne, give_outputs: bool
) -> list[list[FirstWeightUpdate[Tensor]]]:
    """The update of each first weight, at each position.

    Args:
        model: The resident model.
        layer: The layer.
        update: ΔW of all first weights side by side, a batch of positions.
        wire: The same factors in the dtype and on the device of an answer.
        give_outputs: Whether the answer has the output factors.
    """
    by_weight = []
    norms = zip(model.first_weights(layer), model.weight_norms[layer], strict=True)
    for first, (frobenius, spectral) in norms:
        outputs = wire.output[..., first.columns]
        sizes = columns_of(update, first.columns).norm.tolist()
        by_weight.append(
            [
                FirstWeightUpdate(
                    name=first.name,
                    shape=first.shape,
                    norm=size,
                    relative_norm=ratio(size, frobenius),
                    spectral_share=ratio(size, spectral),
                    output=output if give_outputs else UNSET,
                )
                for size, output in zip(sizes, outputs, strict=True)
            ]
        )
    return [list(of_position) for of_position in zip(*by_weight, strict=True)]


Carriers = tuple[Bias[Tensor] | Unset, SecondWeightUpdate[Tensor] | Unset, Gain[Tensor] | Unset]
"""`bias`, `w_out` and `gain` of an update."""


def _output_parts(model: Model, layer: int, out: OutputUpdate) -> list[Carriers]:
    """`w_out` and `gain` of each position in the form of an answer."""
    wire = on_wire(out.weight)
    frobenius = model.second_weight_norms[layer]
    name, gain_name = model.second_weight(layer), model.post_norm_gain(layer)
    post_norm = model.blocks[layer].post_mlp
    parts: list[Carriers] = []
    for i, size in enumerate(out.weight.norm.tolist()):
        w_out = SecondWeightUpdate(
            name, wire.input[i], wire.output[i], size, ratio(size, frobenius)
        )
        gain: Gain[Tensor] | Unset = UNSET
        if out.gain is not None and gain_name is not None and post_norm is not None:
            old, new = post_norm.gain.double(), out.gain[i].double()
            lifted = [] if out.lifted is None else out.lifted[i].nonzero().flatten().tolist()
            change = float(norm(new - old))
            values = new.to(wire.output.dtype).cpu()
            gain = Gain(gain_name, values, lifted, change, ratio(change, float(norm(old))))
        parts.append((UNSET, w_out, gain))
    return parts


def _norms(compared: Comparison) -> list[Norms]:
    """The norms at each position."""
    columns = (
        compared.norm_with_context.tolist(),
        compared.norm_baseline.tolist(),
        compared.norm_difference.tolist(),
        ratios(compared.cosine),
    )
    return [Norms(*row) for row in zip(*columns, strict=True)]
