"""Weight updates: the effect of a context on each layer, as norms and factors, not as matrices."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from schemas.common import UNSET, Unset
from schemas.pairs import AnotherContext, Form, Stream
from schemas.weight_updates import (
    Bias,
    FirstWeightUpdate,
    Gain,
    Include,
    Norms,
    SecondWeightUpdate,
    Update,
    WeightUpdatesAnswer,
    WeightUpdatesRequest,
)
from service.analysis.factors import POINTS, columns_of, finite, ratio, second_updates
from service.analysis.inputs import refuse, resolve_layers
from service.analysis.next_tokens import next_tokens
from service.analysis.pairs import Pair, resolve_pair
from service.analysis.pieces import Piece, exists, first_weights, pieces, update_cost
from service.analysis.reuse import reuses
from service.analysis.split import splits
from service.analysis.unread import Part, Unread, in_pieces, read
from service.engine import (
    Activations,
    AnswerSize,
    Batch,
    Model,
    Plan,
    Question,
    Run,
    numbers,
    plan,
    together,
    vectors,
)
from service.theory import OutputUpdate, below_noise, compare, implicit_update, norm

PART_BYTES = 256
"""Upper estimate of a tensor's reference, with its place in the header of a safetensors file, or of
the names and norms of a weight."""
INDEX_BYTES = 8
"""Maximum characters of an index of a gain's lifted entries in JSON, with its comma."""


def plan_weight_updates(
    model: Model, request: WeightUpdatesRequest
) -> Plan[WeightUpdatesAnswer[Tensor]]:
    """Plan the weight updates of a context. Raises `Refused` if an input does not fit."""
    layers = resolve_layers(model, request.layers)
    pair = resolve_pair(model, request.context, request.query, request.baseline, request.positions)
    check_combination(request)
    probes = probe_pairs(model, request, pair)
    entries = len(layers) * len(pair.positions)
    size = AnswerSize(
        entries=entries * (1 + len(probes)) + len(pair.positions),
        tokens=pair.echoed_tokens,
        numbers=entries * size_of_tensors(model, request),
        entry_bytes=entry_bytes(model, request),
    )
    include = frozenset(request.include)
    options = (layers, include, request.stream, request.form)
    batch = Batch(partial(_of_items, model, *options), options, (pair, probes))
    return plan(model, batch.alone(), size, batch=batch)


def _of_items(
    model: Model,
    layers: Sequence[int],
    include: Collection[Include],
    stream: Stream,
    form: Form,
    items: Sequence[tuple[Pair, Sequence[Pair]]],
) -> Question[tuple[WeightUpdatesAnswer[Tensor], ...]]:
    """The weight updates of pairs with their probes."""
    pairs, probes = zip(*items, strict=True)
    return weight_updates(model, pairs, layers, include, stream, probes, form)


def check_combination(request: WeightUpdatesRequest) -> None:
    """Refuse options that are not defined together.

    Raises:
        NotSupported: `split` without `alone` and the free stream, or probes without the latter.
    """
    if "split" in request.include:
        refuse(request.baseline != "alone", "`split` needs the baseline `alone`.", "include")
        refuse(request.stream != "free", "`split` needs the stream `free`.", "include")
    sequential_probes = bool(request.probe_queries) and request.stream != "free"
    refuse(sequential_probes, "`probe_queries` needs the stream `free`.", "probe_queries")


def probe_pairs(model: Model, request: WeightUpdatesRequest, pair: Pair) -> list[Pair]:
    """The context and baseline of a pair before each probe query, at its last token."""
    baseline = request.baseline
    if isinstance(baseline, AnotherContext):
        baseline = AnotherContext(context=list(pair.baseline.ids[: -len(pair.query)]))
    return [
        resolve_pair(model, pair.context, query, baseline, "last", query_at=("probe_queries", i))
        for i, query in enumerate(request.probe_queries)
    ]


def size_of_tensors(model: Model, request: WeightUpdatesRequest) -> int:
    """Number of float32 numbers in the tensors of one entry."""
    first = len(model.first_weights(0))
    factors = model.d_model + first * model.d_mlp
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
    pairs: Sequence[Pair],
    layers: Sequence[int],
    include: Collection[Include],
    stream: Stream = "free",
    probes: Sequence[Sequence[Pair]] = (),
    form: Form = "bias",
) -> Question[tuple[WeightUpdatesAnswer[Tensor], ...]]:
    """Form the update of each layer at each requested position of each pair.

    Args:
        model: The resident model.
        pairs: The run with context and its baseline, of each request. One request is a batch of
            one.
        layers: Layers from 0.
        include: The parts to return besides the norms. `split` needs the baseline `alone` and the
            free stream.
        stream: Whether a layer's baseline is read from the ordinary stream, or from the one that
            the patched layers below it produce.
        probes: For each pair, other queries after the same context and baseline, on which each
            update is reused, in the free stream. Empty: none for any pair.
        form: The carrier of Δh.
    """
    asked: dict[str, Question[Unread[Any]]] = {
        "updates": _updates(model, pairs, layers, include, stream, form)
    }
    if "next_tokens" in include:
        asked["next_tokens"] = next_tokens(model, pairs)
    if "split" in include:
        asked["split"] = splits(model, pairs, layers)
    if any(probes):
        asked["reuse"] = reuses(model, pairs, layers, probes)
    unread = yield from together(*asked.values())
    found = dict(zip(asked, (yield from read(*unread)), strict=True))
    answers = []
    for i, pair in enumerate(pairs):
        updates: list[Update[Tensor]] = found["updates"][i]
        if "split" in found:
            parts = zip(updates, found["split"][i], strict=True)
            updates = [replace(update, split=part) for update, part in parts]
        if "reuse" in found:
            again = zip(updates, found["reuse"][i], strict=True)
            updates = [replace(update, reuse=reused or UNSET) for update, reused in again]
        likely = found["next_tokens"][i] if "next_tokens" in found else UNSET
        relation = pair.relation(model, stream)
        answers.append(WeightUpdatesAnswer(*relation, form, updates, likely))
        yield ()
    return tuple(answers)


def _updates(
    model: Model,
    pairs: Sequence[Pair],
    layers: Sequence[int],
    include: Collection[Include],
    stream: Stream,
    form: Form,
) -> Question[Unread[Sequence[Sequence[Update[Tensor]]]]]:
    """Form the updates of each pair, layer by layer."""
    carrier = form if "bias" in include else "bias"
    runs: list[Run] = []
    has_context: list[bool] = []
    for pair in pairs:
        base = pair.baseline_runs(layers, POINTS["bias"], stream, form=form)
        # A run that follows another shares its pack, so a pair's runs stay side by side.
        runs += [pair.with_context.run(pair.reads(layers, POINTS[carrier])), *base]
        has_context += [True, *([False] * len(base))]
    received = yield runs
    context = [one for one, has in zip(received, has_context, strict=True) if has]
    baseline = [one for one, has in zip(received, has_context, strict=True) if not has]
    positions = [position for pair in pairs for position in pair.positions]
    cost = update_cost(model)
    if carrier == "weights":
        cost += model.d_mlp * model.d_model
    cut = pieces(model, layers, len(positions), cost)

    def form_piece(piece: Piece) -> Part:
        rows = positions[piece.rows]
        return _part(model, piece, rows, baseline, context, include, carrier)

    lengths = [len(pair.positions) for pair in pairs]
    return (yield from in_pieces(cut, form_piece, lengths, received))


def _part(
    model: Model,
    piece: Piece,
    positions: Sequence[int],
    baseline: Sequence[Activations],
    context: Sequence[Activations],
    include: Collection[Include],
    form: Form,
) -> Part:
    """Form the updates of a piece, (layers, rows)."""
    read = piece.stacked((baseline, context), "mlp_in", "resid_mid")
    vectors_read = read.double()
    (n, n_context), (h, h_context) = (point.unbind(1) for point in vectors_read.unbind(1))
    compared = compare(vectors_read[:, :, 0], vectors_read[:, :, 1])
    found = implicit_update(n, n_context, h, h_context, first_weights(model, piece))
    weights = model.first_weights(piece.layers[0])
    sizes = [found.weight.norm]
    if len(weights) > 1:
        sizes += [columns_of(found.weight, weight.columns).norm for weight in weights]
    conditions = [exists(sizes[0])]
    tensors = {
        "sizes": torch.stack(sizes, -1),
        "norms": torch.stack(
            [
                compared.norm_with_context,
                compared.norm_baseline,
                compared.norm_difference,
                compared.cosine,
            ],
            -1,
        ),
        "noise": below_noise(n, n_context, read.dtype),
    }
    if "factors" in include:
        tensors |= {"input": found.weight.input.float(), "output": found.weight.output.float()}
    if "bias" in include and form == "bias":
        tensors["bias"] = found.bias.float()
    elif "bias" in include:
        act = piece.stacked((context,), "mlp_act")[:, 0, 0]
        blocks = [model.blocks[layer] for layer in piece.layers]
        out = second_updates(blocks, act, found.bias)
        carried = _carried(model, piece.layers, out)
        sizes_of = carried.keys() & {"out_size", "gain_sizes"}
        conditions += [exists(carried[name]) for name in sizes_of]
        tensors |= carried

    def finish(host: Sequence[Tensor]) -> list[list[Update[Tensor]]]:
        return _entries(model, piece.layers, positions, dict(zip(tensors, host, strict=True)))

    return Part(list(tensors.values()), finish, conditions)


def _carried(model: Model, layers: Sequence[int], out: OutputUpdate) -> dict[str, Tensor]:
    """The tensors of the changed second weights and gains of layers."""
    found = {
        "out_size": out.weight.norm,
        "out_input": out.weight.input.float(),
        "out_output": out.weight.output.float(),
    }
    post_norms = [model.blocks[layer].post_mlp for layer in layers]
    if out.gain is not None and out.lifted is not None:
        old = torch.stack([one.gain for one in post_norms if one is not None])
        gains = old.double().unsqueeze(1)
        change = norm(out.gain - gains)
        found["gain_sizes"] = torch.stack([change, norm(gains).expand_as(change)], -1)
        found["gain"] = out.gain.float()
        found["lifted"] = out.lifted
    return found


def _entries(
    model: Model, layers: Sequence[int], positions: Sequence[int], host: Mapping[str, Tensor]
) -> list[list[Update[Tensor]]]:
    """The entries of a piece, [layer][row], from its tensors on the host."""
    sizes, norms, noise = (numbers(host[name]) for name in ("sizes", "norms", "noise"))
    inputs, biases = _rows(host.get("input")), _rows(host.get("bias"))
    output = host.get("output")
    columns = [weight.columns for weight in model.first_weights(layers[0])]
    outputs = [_rows(None if output is None else output[..., one]) for one in columns]
    carriers: Iterator[Carriers] = repeat((UNSET, UNSET))
    if "out_size" in host:
        carriers = _carriers(model, layers, host)
    found = []
    for i, layer in enumerate(layers):
        parameter = model.bias_parameter(layer)
        described = list(zip(model.first_weights(layer), model.weight_norms[layer], strict=True))
        of_layer = []
        for position, (size, *each), below, of_mlp_in, of_resid_mid in zip(
            positions, sizes[i], noise[i], *norms[i], strict=True
        ):
            bias = next(biases)
            w_out, gain = next(carriers)
            of_layer.append(
                Update(
                    layer=layer,
                    position=position,
                    rank=1 if size > 0 else 0,
                    norm=size,
                    below_noise=below,
                    weights=[
                        FirstWeightUpdate(
                            name=first.name,
                            shape=first.shape,
                            norm=own,
                            relative_norm=ratio(own, frobenius),
                            spectral_share=ratio(own, spectral),
                            output=next(rows),
                        )
                        for (first, (frobenius, spectral)), own, rows in zip(
                            described, each or [size], outputs, strict=True
                        )
                    ],
                    mlp_in=_norms(of_mlp_in),
                    resid_mid=_norms(of_resid_mid),
                    input=next(inputs),
                    bias=UNSET if bias is UNSET else Bias(bias, parameter),
                    w_out=w_out,
                    gain=gain,
                )
            )
        found.append(of_layer)
    return found


def _rows(values: Tensor | None) -> Iterator[Tensor | Unset]:
    """The vectors of a tensor on the host, or no vector for any row."""
    return repeat(UNSET) if values is None else iter(vectors(values))


Carriers = tuple[SecondWeightUpdate[Tensor] | Unset, Gain[Tensor] | Unset]
"""`w_out` and `gain` of an update."""


def _carriers(
    model: Model, layers: Sequence[int], host: Mapping[str, Tensor]
) -> Iterator[Carriers]:
    """`w_out` and `gain` of each layer and row."""
    inputs, outputs = iter(vectors(host["out_input"])), iter(vectors(host["out_output"]))
    gains = _rows(host.get("gain"))
    changes, lifted = (
        numbers(host[name]) if name in host else [] for name in ("gain_sizes", "lifted")
    )
    for i, (layer, sizes) in enumerate(zip(layers, numbers(host["out_size"]), strict=True)):
        frobenius = model.second_weight_norms[layer]
        name, gain_name = model.second_weight(layer), model.post_norm_gain(layer)
        for row, size in enumerate(sizes):
            w_out = SecondWeightUpdate(
                name, next(inputs), next(outputs), size, ratio(size, frobenius)
            )
            gain: Gain[Tensor] | Unset = UNSET
            values = next(gains)
            if values is not UNSET and gain_name is not None:
                change, old = changes[i][row]
                changed = [index for index, one in enumerate(lifted[i][row]) if one]
                gain = Gain(gain_name, values, changed, change, ratio(change, old))
            yield w_out, gain


def _norms(figures: Sequence[float]) -> Norms:
    """The norms at one position."""
    with_context, baseline, difference, cosine = figures
    return Norms(with_context, baseline, difference, finite(cosine))
