"""Static adapters: one patch of the MLPs that is fitted to many queries behind one context.

The fit reads the greedy answers with context, then all queries with their answers, with context and
without, and then walks through the blocks from `from_layer` on. Its figures are those of queries
that it has not seen, because on the fitted ones every fit looks perfect.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from schemas.adapters import AdapterLayer, Fit, StaticAdapterRequest
from service.analysis.adapters.answers import Answer, greedy_answers
from service.analysis.adapters.capture import (
    Captured,
    Layout,
    behind,
    captured,
    indices,
    layout_of,
)
from service.analysis.adapters.figures import (
    LEAST_HELD_OUT,
    collateral_of,
    constant_answer,
    constant_gap,
    figures_of,
    gaps,
    in_slices,
    rivals_of,
)
from service.analysis.adapters.fitting import Lane, fit
from service.analysis.adapters.made import MadeAdapter, fitted_tokens
from service.analysis.adapters.queries import Task, resolve_task
from service.analysis.next_tokens import last_site
from service.analysis.pairs import Prompt
from service.engine import Condition, Fixed, Model, Plan, Question, Work, fetch, numbers
from service.errors import IllConditioned
from service.theory import discrepancy
from service.theory.static_patch import Fitted, mean_output, output_ridge, randomised
from service.theory.static_update import LowRank, StaticUpdate

PASSES = 6
"""Passes of a query at most: two with context, one without, two lanes and the free run."""


def plan_static_adapter(model: Model, body: StaticAdapterRequest) -> Plan[MadeAdapter]:
    """Plan the fit of a static adapter. Raises `Refused` if an input does not fit."""
    task = resolve_task(model, body)
    queries = [one.baseline for one in task.queries]
    texts = [one.baseline for one in task.collateral]
    rows = len(task.queries[0].with_context.ids)
    rows += PASSES * (_rows(queries) + body.answer_tokens * len(queries))
    rows += 3 * _rows(texts) + 2 * _rows(task.keep)
    work = Work(rows, model.n_layers, _dtype(model).itemsize)
    return Plan(static_adapter(model, task, body), work=work)


def static_adapter(model: Model, task: Task, body: StaticAdapterRequest) -> Question[MadeAdapter]:
    """Fit a static adapter, and measure it.

    Args:
        model: The resident model.
        task: The resolved request.
        body: The options of the fit.
    """
    started, dtype = time.monotonic(), _dtype(model)
    answers = yield from greedy_answers(
        model, [one.with_context for one in task.queries], body.answer_tokens, dtype
    )
    queries = [behind(*one) for one in zip(task.queries, answers, strict=True)]
    layout = layout_of(task, queries, body.answer_tokens, fitted_tokens(body))
    seen = yield from captured(model, task, queries, layout, dtype)
    rules = _Rules(model, layout, seen, body)
    streams = yield from fit(task.layers, _lanes(task, layout, seen, rules), rules.formed)
    seconds = time.monotonic() - started
    patch = Fixed({layer: one.update.to(dtype) for layer, one in rules.fitted.items()})
    figures = yield from _figures(model, task, layout, seen, streams)
    if figures["held_out"] is not None:
        share = yield from _free_run(model, task, answers[len(task.fitted) :], dtype, patch)
        figures["held_out"] = replace(figures["held_out"], free_run=share)
    updates, layers = _read(rules.fitted)
    expected = streams[0][indices(model, layout.query_ends)]
    ridge = body.recipe == "output_ridge"
    return MadeAdapter(
        kind="static",
        exact=False,
        form="weights" if ridge else "bias",
        baseline=task.baseline,
        position_shift=task.position_shift,
        updates=updates,
        layers=layers,
        fields={
            "recipe": body.recipe,
            "fit": Fit(
                seconds=seconds,
                k=len(task.fitted),
                rows=len(layout.fit_rows),
                keep_rows=len(layout.keep_rows) if ridge else 0,
            ),
            **figures,
        },
        check=lambda read: _verified(model, task, read, expected),
    )


class _Rules:
    """The rules that form the update of each layer.

    Args:
        model: The resident model.
        layout: The rows.
        seen: The first pass.
        body: The options of the fit.
    """

    def __init__(
        self, model: Model, layout: Layout, seen: Captured, body: StaticAdapterRequest
    ) -> None:
        self.fitted: dict[int, Fitted] = {}
        self.formed: list[Condition] = []
        fit_rows, keep_rows = layout.fit_rows, layout.keep_rows
        place = {row: i for i, row in enumerate(fit_rows)}
        self._targets = seen.targets
        self._fit_rows = indices(model, fit_rows)
        self._keep_rows = indices(model, keep_rows)
        self._ends = indices(model, [place[row] for row in layout.query_ends])
        weights = [1.0] * len(fit_rows) + [body.keep_weight] * len(keep_rows)
        self._weights = torch.tensor(weights, dtype=torch.float64, device=model.device)
        self._body = body

    def adapter(self, layer: int, act: Tensor, post: Tensor) -> StaticUpdate:
        """The update that the request asks for."""
        gap = self._gap(layer, post)
        if self._body.recipe == "mean_output":
            self.fitted[layer] = mean_output(gap)
        else:
            kept = self._keep_rows
            self.fitted[layer] = output_ridge(
                torch.cat([act[self._fit_rows], act[kept]]),
                torch.cat([gap, gap.new_zeros(len(kept), gap.shape[1])]),
                self._weights,
                self._body.ridge,
                self._body.rank,
            )
        error = IllConditioned(
            f"The fit of layer {layer} has no solution: its weighted rows are too dependent for "
            "this ridge. Raise `ridge`, or lower `keep_weight`.",
            at=("ridge",),
        )
        self.formed.append(Condition(self.fitted[layer].norm, error))
        return self.fitted[layer].update

    def mean_output(self, layer: int, _act: Tensor, post: Tensor) -> StaticUpdate:
        """The mean difference of the block's output at the queries' last tokens, as a bias."""
        return mean_output(self._gap(layer, post)[self._ends]).update

    def random(self, layer: int, _act: Tensor, _post: Tensor) -> StaticUpdate:
        """The adapter's update with random output factors of equal norm."""
        return randomised(self.fitted[layer], seed=layer)

    def _gap(self, layer: int, post: Tensor) -> Tensor:
        """What the outputs of the fitted rows lack, (rows, d_model), float64."""
        return self._targets[layer].double() - post[self._fit_rows].double()


def _lanes(task: Task, layout: Layout, seen: Captured, rules: _Rules) -> list[Lane]:
    """The adapter's lane, and those of its rivals if there are enough held-out queries."""
    lanes = [Lane(layout.prompts, seen.stream, rules.adapter)]
    if len(task.held_out) < LEAST_HELD_OUT:
        return lanes
    for first, rule in ((0, rules.mean_output), (len(task.fitted), rules.random)):
        prompts = slice(first, layout.queries)
        stream = seen.stream[layout.rows_of(prompts)]
        lanes.append(Lane(layout.prompts[prompts], stream, rule))
    return lanes


def _figures(
    model: Model, task: Task, layout: Layout, seen: Captured, streams: Sequence[Tensor]
) -> Question[dict[str, Any]]:
    """The figures of an adapter, from the stream after the last block of each lane."""
    rows, k = layout.measured_rows, len(task.fitted)
    adapter = streams[0][indices(model, rows)]
    kinds = (seen.with_context, seen.without, adapter)
    (truth, without, patched), texts = zip(*map(layout.divided, kinds), strict=True)
    none, own = yield from gaps(model, truth, [without, patched])
    constant = yield from constant_answer(model, truth[:k, 0])
    flat = yield from constant_gap(model, truth[:, 0], constant)
    held_out = rivals = None
    if len(streams) > 1:
        begin = layout.rows_of(slice(k, layout.queries)).start
        ends = indices(
            model, rows[k * layout.tokens : layout.queries * layout.tokens][:: layout.tokens]
        )
        others = [streams[1][ends, None], streams[2][ends - begin, None]]
        mean, random = yield from gaps(model, truth[k:, :1], others)
        rivals = rivals_of(none.part(k, None), mean, random, flat[k:])
        held_out = figures_of(none.part(k, None), own.part(k, None), flat[k:])
    found: dict[str, Any] = {
        "held_out": held_out,
        "in_sample": figures_of(none.part(0, k), own.part(0, k), flat[:k]),
        "rivals": rivals,
    }
    if task.collateral:
        found["collateral"] = yield from collateral_of(
            model, texts[1], texts[2], texts[0], len(task.collateral)
        )
    return found


def _free_run(
    model: Model, task: Task, answers: Sequence[Answer], dtype: torch.dtype, patch: Fixed
) -> Question[float]:
    """Share of the tokens of the patched runs' own greedy answers that equal these answers."""
    prompts = [one.baseline for one in task.held_out]
    own = yield from greedy_answers(model, prompts, len(answers[0]), dtype, patch)
    pairs = zip(chain(*own), chain(*answers), strict=True)
    return fmean(one == other for one, other in pairs)


def _read(
    fitted: Mapping[int, Fitted],
) -> tuple[dict[int, StaticUpdate], list[AdapterLayer]]:
    """The updates in float32 on the host, and the figures of each layer."""
    asked = [_tensors(one) for one in fitted.values()]
    host = iter(fetch(list(chain(*asked))))
    updates, layers = {}, []
    for (layer, one), tensors in zip(fitted.items(), asked, strict=True):
        size, *read = [next(host) for _ in tensors]
        energy = None
        if one.kept_energy is None:
            updates[layer] = StaticUpdate(bias=read[0])
        else:
            updates[layer] = StaticUpdate(w_out=LowRank(*read[:2]))
            energy = numbers(read[2])
        layers.append(AdapterLayer(layer, numbers(size), one.rank, energy))
    return updates, layers


def _tensors(one: Fitted) -> list[Tensor]:
    """The norm of an update, its parts in float32, and the energy that truncation kept."""
    update, energy = one.update.to(torch.float32), one.kept_energy
    weight = [] if update.w_out is None else [update.w_out.input, update.w_out.output]
    bias = [] if update.bias is None else [update.bias]
    return [one.norm, *weight, *bias, *([] if energy is None else [energy])]


def _verified(
    model: Model, task: Task, updates: Mapping[int, StaticUpdate], expected: Tensor
) -> Question[float]:
    """Largest relative error of the fitted queries' logits under updates that were read again.

    Args:
        model: The resident model.
        task: The resolved request.
        updates: The updates.
        expected: The stream after the last block at the end of each fitted query, as the fit has
            it, (queries, d_model).
    """
    site, dtype = last_site(model), expected.dtype
    patch = Fixed(updates)
    received = yield [
        replace(one.baseline.run({site: (one.baseline.query_length - 1,)}, dtype), patch=patch)
        for one in task.fitted
    ]
    streams = torch.stack([expected, torch.cat([run[site] for run in received])])
    (errors,) = yield from in_slices(
        model, streams, lambda logits: [discrepancy(*logits).relative_error], received
    )
    worst: float = max(numbers(errors))
    return worst


def _dtype(model: Model) -> torch.dtype:
    """The dtype of the runs: a fit in half precision would fit rounding."""
    return torch.promote_types(model.dtype, torch.float32)


def _rows(prompts: Iterable[Prompt]) -> int:
    return sum(len(prompt.ids) for prompt in prompts)
