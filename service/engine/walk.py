"""The walk: a pack through the blocks, every hook point a local variable.

    h = x + attn(ln_1(x))                    resid_mid
    n = ln_2(h)                              mlp_in
    x = h + w_out(act(w_in(n))) [+ Δh]       resid_post, W_in + ΔW and Δh on rows of patched runs

Only what some run reads is computed: rows leave after their last layer, and in that layer only rows
that are read become queries. The mask is boolean, as sdpa needs it; `eager` would add it to scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import compress

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from schemas.activations import HookPoint
from service.engine.block import Block
from service.engine.model import Model
from service.engine.pack import Index, Pack, pack
from service.engine.patch import layer_patch
from service.engine.prefixes import CachedRows, Prefixes, stacked
from service.engine.run import STAGE, Activations, Run, Site
from service.errors import NonFiniteActivation

SLICE = 128
"""Rows of attention that are computed at a time on a CPU."""


def forward(
    model: Model,
    runs: Sequence[Run],
    proceed: Callable[[], None] = lambda: None,
    prefixes: Prefixes | None = None,
) -> Sequence[Activations]:
    """Run all runs in one pack, and return the activations of each.

    Args:
        model: The resident model.
        runs: Runs of one dtype.
        proceed: Called before each block. It may raise to end the walk.
        prefixes: The prefix cache to read and write.

    Raises:
        NonFiniteActivation: A site that is read holds NaN or infinity.
    """
    kept = prefixes if prefixes is not None and any(map(prefixes.keeps, runs)) else Prefixes()
    reading = _Reading(model, runs, pack(runs, kept.find), kept.budget > 0)
    _walk(model, reading, runs[0].dtype or model.dtype, proceed)
    for run, cached, path in zip(runs, reading.pack.begins, reading.pack.paths, strict=True):
        kept.keep(run, cached, partial(reading.node, path))
    return reading.activations


class _Reading:
    """The state of a forward: the activations and the keys and values so far."""

    def __init__(self, model: Model, runs: Sequence[Run], laid_out: Pack, keeps: bool) -> None:
        self.pack = laid_out
        self.device = model.device
        self.activations: list[dict[Site, Tensor]] = [{} for _ in runs]
        self._runs = runs
        self._keeps = keeps
        self._row_of = np.arange(len(laid_out.tokens))
        self._computed: list[tuple[Index, Tensor, Tensor]] = []

    def computed(self, rows: Index, keys: Tensor, values: Tensor) -> None:
        """Record a layer's keys and values of the pack's `rows`, (heads, rows, d_head) each."""
        if self._keeps:
            self._computed.append((rows, keys.clone(), values.clone()))

    def node(self, path: Index, start: int, stop: int) -> Tensor | None:
        """Keys and values of a run's rows in the form of a node; None if there are none."""
        wanted, layers, places = path[start:stop], [], []
        for rows, keys, values in self._computed:
            place = rows.searchsorted(wanted).clip(max=len(rows) - 1)
            if not np.array_equal(rows[place], wanted):
                break
            layers.append((keys, values))
            places.append(torch.from_numpy(place).to(self.device))
        return stacked(layers, places) if layers else None

    def note(self, layer: int, point: HookPoint, value: Tensor, rows: Index) -> None:
        """Give each run that reads this site its rows of `value`, which holds the pack's `rows`."""
        site = Site(layer, point)
        readers = self.pack.reads.get(site)
        if readers is None:
            return
        self._row_of[rows] = np.arange(len(rows))
        wanted = self._row_of[np.concatenate([of_run for _, of_run in readers])]
        read = value[torch.from_numpy(wanted).to(self.device)]
        if not bool(torch.isfinite(read).all()):
            raise NonFiniteActivation(f"{point} of layer {layer} holds NaN or infinity")
        parts = torch.split(read, [len(of_run) for _, of_run in readers])
        for (run, _), part in zip(readers, parts, strict=True):
            reduce = self._runs[run].reduce
            self.activations[run][site] = part if reduce is None else reduce(part)


def _walk(model: Model, reading: _Reading, dtype: torch.dtype, proceed: Callable[[], None]) -> None:
    laid_out = reading.pack
    rows = np.arange(len(laid_out.tokens))
    x = model.token_embedding[_index(laid_out.tokens, model)].to(dtype)
    x = x + model.position_embedding[_index(laid_out.positions, model)].to(dtype)
    sees = torch.from_numpy(laid_out.sees).to(model.device)
    cached = laid_out.cached
    for layer in range(int(laid_out.depth.max(initial=-1)) + 1):
        proceed()
        stay = laid_out.depth[rows] >= layer
        if not stay.all():
            rows, x, sees = _keep(stay, rows, x, sees)
        if any(node.depth <= layer for node, _ in cached):
            cached, sees = _keep_cached(layer, cached, sees)
        x, rows, sees = _block(model.blocks[layer].to(dtype), layer, x, rows, sees, cached, reading)


def _keep(
    stay: NDArray[np.bool_], rows: Index, x: Tensor, sees: Tensor
) -> tuple[Index, Tensor, Tensor]:
    """The rows that stay in the pack, their stream, and their mask."""
    here = torch.from_numpy(np.flatnonzero(stay)).to(x.device)
    ahead = sees.shape[1] - len(sees)
    columns = torch.cat([torch.arange(ahead, device=x.device), ahead + here])
    return rows[stay], x[here], sees[here][:, columns]


def _keep_cached(
    layer: int, cached: Sequence[CachedRows], sees: Tensor
) -> tuple[tuple[CachedRows, ...], Tensor]:
    """Drop the cached rows that lack a layer, and their columns of the mask."""
    reach = [part.node.depth > layer for part in cached]
    own = sees.shape[1] - sum(part.rows for part in cached)
    counts = torch.tensor([*(part.rows for part in cached), own], device=sees.device)
    columns = torch.tensor([*reach, True], device=sees.device).repeat_interleave(counts)
    return tuple(compress(cached, reach)), sees[:, columns]


def _block(
    block: Block,
    layer: int,
    x: Tensor,
    rows: Index,
    sees: Tensor,
    cached: Sequence[CachedRows],
    reading: _Reading,
) -> tuple[Tensor, Index, Tensor]:
    """Compute one block: the stream after it, the pack's rows that are left, and their mask."""

    def note(point: HookPoint, value: Tensor) -> None:
        reading.note(layer, point, value, rows)

    stage = reading.pack.stage(layer)
    note("resid_pre", x)
    normed = block.ln_1(x)
    note("ln_1_out", normed)
    asked = stage[rows] >= STAGE["attn_out"]
    if not asked.any():
        return x[:0], rows[:0], sees[:0, : sum(part.rows for part in cached)]
    every = None if asked.all() else torch.from_numpy(np.flatnonzero(asked)).to(x.device)
    known = [part.node.layers[layer, :, :, : part.rows] for part in cached]
    attended, keys, values = attention(block, normed, sees, every, known)
    reading.computed(rows, keys, values)
    if every is not None:
        rows, x, sees = _keep(asked, rows, x, sees)
    note("attn_out", attended)
    x = x + attended
    note("resid_mid", x)
    normed = block.ln_2(x)
    note("mlp_in", normed)
    asked = stage[rows] >= STAGE["mlp_pre"]
    patch = layer_patch(reading.pack, layer, block, rows, rows[asked], x, normed)
    if not asked.all():
        normed = normed[torch.from_numpy(np.flatnonzero(asked)).to(x.device)]
        rows, x, sees = _keep(asked, rows, x, sees)
    if len(rows):
        x = block.mlp(x, normed, note, patch)
    return x, rows, sees


def attention(
    block: Block,
    normed: Tensor,
    sees: Tensor,
    queries: Tensor | None,
    cached: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention's output for some rows, (queries, d_model), and the keys and values of all.

    Args:
        block: The block.
        normed: ln_1_out, (rows, d_model).
        sees: The mask of visible rows, bool, (rows, cached + rows).
        queries: Indices of the rows that become queries; None: all.
        cached: Keys and values of cached rows, (2, heads, rows, d_head) each.
    """
    width = normed.shape[1]
    k, v = torch.split(block.keys_values(normed), width, dim=1)
    q = block.queries(normed if queries is None else normed[queries])
    if queries is not None:
        sees = sees[queries]
    q, k, v = (part.view(len(part), block.n_heads, -1).transpose(0, 1) for part in (q, k, v))
    keys = torch.cat([*(kept[0] for kept in cached), k], 1)
    values = torch.cat([*(kept[1] for kept in cached), v], 1)
    # No row sees a later row, so a slice of the rows needs no keys after the slice.
    slices = [(0, len(sees))]
    if queries is None and keys.device.type == "cpu":
        slices = [(i, min(i + SLICE, len(sees))) for i in range(0, len(sees), SLICE)]
    mixed = []
    for start, stop in slices:
        seen = keys.shape[1] - (len(sees) - stop if queries is None else 0)
        mixed.append(
            F.scaled_dot_product_attention(
                q[None, :, start:stop],
                keys[None, :, :seen],
                values[None, :, :seen],
                attn_mask=sees[None, None, start:stop, :seen],
                scale=block.scaling,
            )
        )
    return block.attn_out(torch.cat(mixed, 2).transpose(1, 2).reshape(-1, width)), k, v


def _index(values: Index, model: Model) -> Tensor:
    return torch.from_numpy(values).to(model.device)
