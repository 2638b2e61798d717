"""The walk: a pack through the blocks, every hook point a local variable.

Only what some run reads is computed: rows leave after their last layer, and in that layer only rows
that are read become queries. The masks are boolean, as sdpa needs them; `eager` would add them to
scores. Nothing is read back from the device before the end of the pack.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from schemas.activations import HookPoint
from service.engine.block import Block
from service.engine.model import Model
from service.engine.pack import Index, Pack, pack
from service.engine.patch import PatchedRows
from service.engine.prefixes import Prefixes, stacked
from service.engine.readback import Condition, require
from service.engine.rotary import Rotary, Table
from service.engine.route import Indices, Keep, Step, copied, route
from service.engine.run import Activations, Run, Site
from service.errors import NonFiniteActivation
from service.theory import NonFinite

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
        NonFinite: A patch cannot be formed.
    """
    kept = prefixes if prefixes is not None and any(map(prefixes.keeps, runs)) else Prefixes()
    laid_out = pack(runs, kept.find)
    walk = _Walk(model, runs, laid_out, kept.budget > 0)
    walk.run(runs[0].dtype or model.dtype, proceed)
    require(walk.conditions)
    for run, cached, path in zip(runs, laid_out.begins, laid_out.paths, strict=True):
        kept.keep(run, cached, partial(walk.node, path))
    return walk.activations


@dataclass(frozen=True)
class _Rows:
    """The rows that remain in the pack.

    Args:
        x: Their residual stream, (rows, d_model).
        sees: Their mask for each window, bool, (rows, cached + rows).
        tables: Their cosines and sines for each rotary embedding.
    """

    x: Tensor
    sees: Mapping[int | None, Tensor]
    tables: Mapping[Rotary | None, Table]


class _Walk:
    """The state of a walk: the activations, keys and values computed so far."""

    def __init__(self, model: Model, runs: Sequence[Run], laid_out: Pack, keeps: bool) -> None:
        self.activations: list[dict[Site, Tensor]] = [{} for _ in runs]
        self.conditions: list[Condition] = []
        self._model = model
        self._runs = runs
        self._pack = laid_out
        self._keeps = keeps
        self._computed: list[tuple[Index, Tensor, Tensor]] = []
        self._at = Indices()

    def run(self, dtype: torch.dtype, proceed: Callable[[], None]) -> None:
        """Walk through the blocks that the runs need."""
        at, device, ends = self._at, self._model.device, self._model.ends
        tokens, positions = at.add(self._pack.tokens), at.add(self._pack.positions)
        steps = route(self._pack, at)
        at.copy(device)
        x = ends.token_embedding[at[tokens]].to(dtype)
        if ends.embedding_scale is not None:
            x = x * ends.embedding_scale.to(dtype)
        if ends.position_embedding is not None:
            x = x + ends.position_embedding[at[positions]].to(dtype)
        blocks = self._model.blocks[: len(steps)]
        where = torch.from_numpy(self._pack.positions)
        tables: dict[Rotary | None, Table] = {
            block.rotary: Table(*copied(block.rotary.turns(where, dtype), device))
            for block in {block.rotary: block for block in blocks}.values()
            if block.rotary is not None
        }
        masks = self._masks({block.window for block in blocks}, device)
        rows = _Rows(x, masks, tables)
        for layer, (step, block) in enumerate(zip(steps, blocks, strict=True)):
            proceed()
            if step.stay is not None:
                rows = self._kept(rows, step.stay)
            if step.columns is not None:
                columns = at[step.columns]
                sees = {window: mask[:, columns] for window, mask in rows.sees.items()}
                rows = _Rows(rows.x, sees, rows.tables)
            rows = self._block(block.to(dtype), layer, step, rows)

    def node(self, path: Index, start: int, stop: int) -> Tensor | None:
        """Keys and values of a run's rows in the form of a node; None if there are none."""
        wanted, layers, places = path[start:stop], [], []
        for rows, keys, values in self._computed:
            place = rows.searchsorted(wanted).clip(max=len(rows) - 1)
            if not np.array_equal(rows[place], wanted):
                break
            layers.append((keys, values))
            places.append(torch.from_numpy(place).to(self._model.device))
        return stacked(layers, places) if layers else None

    def _masks(self, windows: set[int | None], device: torch.device) -> dict[int | None, Tensor]:
        """The mask of each window. Windows count positions and not rows, so that gaps stay gaps."""
        sees, own = self._pack.sees, self._pack.positions.astype(np.int32)
        seen = [position for part in self._pack.cached for position in part.positions]
        keys = np.concatenate([np.asarray(seen, np.int32), own])
        masks = {
            window: sees if window is None else sees & (own[:, None] - keys < window)
            for window in windows
        }
        return {window: copied(torch.from_numpy(mask), device) for window, mask in masks.items()}

    def _kept(self, rows: _Rows, keep: Keep | None) -> _Rows:
        """The rows of `keep`; None: all."""
        if keep is None:
            return rows
        here, columns = self._at[keep.rows], self._at[keep.columns]
        return _Rows(
            rows.x[here],
            {window: mask[here][:, columns] for window, mask in rows.sees.items()},
            {turn: table.rows(here) for turn, table in rows.tables.items()},
        )

    def _note(self, layer: int, step: Step, point: HookPoint, value: Tensor) -> None:
        """Give each run that reads this site its rows of `value`."""
        reading = step.reads.get(point)
        if reading is None:
            return
        site, read = Site(layer, point), value[self._at[reading.rows]]
        error = NonFiniteActivation(f"{point} of layer {layer} holds NaN or infinity")
        self.conditions.append(Condition(torch.isfinite(read).all(), error))
        parts = torch.split(read, [count for _, count in reading.runs])
        for (run, _), part in zip(reading.runs, parts, strict=True):
            reduce = self._runs[run].reduce
            self.activations[run][site] = part if reduce is None else reduce(part)

    def _block(self, block: Block, layer: int, step: Step, rows: _Rows) -> _Rows:
        """Compute one block, and return the rows that remain, with the stream after it."""
        note = partial(self._note, layer, step)
        note("resid_pre", rows.x)
        normed = block.pre_attn(rows.x)
        note("ln_1_out", normed)
        if not step.attends:
            return rows
        queries = None if step.queries is None else self._at[step.queries.rows]
        table = rows.tables.get(block.rotary)
        cached = [part.node.layers[layer, :, :, : part.rows] for part in step.cached]
        sees = rows.sees[block.window]
        attended, keys, values = attention(block, normed, sees, queries, cached, table)
        if self._keeps:
            self._computed.append((step.rows, keys.clone(), values.clone()))
        rows = self._kept(rows, step.queries)
        note("attn_out", attended)
        h = rows.x + attended
        note("resid_mid", h)
        normed = block.pre_mlp(rows.x if block.parallel else h)
        note("mlp_in", normed)
        patch = None
        if step.patching is not None:
            patch = PatchedRows(block, self._at, step.patching, h, normed)
            self._require_formed(layer, patch)
        rows = self._kept(_Rows(h, rows.sees, rows.tables), step.mlp)
        if step.mlp is not None:
            normed = normed[self._at[step.mlp.rows]]
        if not step.transforms:
            return rows
        post = block.mlp(rows.x, normed, note, patch)
        if patch is not None:
            self._require_formed(layer, patch)
        return _Rows(post, rows.sees, rows.tables)

    def _require_formed(self, layer: int, patch: PatchedRows) -> None:
        error = NonFinite(
            f"an update of layer {layer} does not exist: a vector that it divides by has norm 0 or "
            "is not finite"
        )
        self.conditions.append(Condition(patch.formed, error))


def attention(
    block: Block,
    normed: Tensor,
    sees: Tensor,
    queries: Tensor | None = None,
    cached: Sequence[Tensor] = (),
    table: Table | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The output of attention for some rows, (queries, d_model), and the keys and values of all
    rows, (kv_heads, rows, d_head) each.

    Args:
        block: The block.
        normed: ln_1_out, (rows, d_model).
        sees: The mask of visible rows, bool, (rows, cached + rows).
        queries: Indices of the rows that become queries; None: all.
        cached: Keys and values of cached rows, (2, kv_heads, rows, d_head) each, keys rotated.
        table: Cosine and sine of the rows; None: no rotation.
    """
    k, v = block.keys_values(normed).chunk(2, dim=1)
    q = block.queries(normed if queries is None else normed[queries])
    if queries is not None:
        sees = sees[queries]
    q, k, v = (part.view(len(part), -1, block.d_head) for part in (q, k, v))
    if block.query_norm is not None and block.key_norm is not None:
        q, k = block.query_norm(q), block.key_norm(k)
    q, k, v = (part.transpose(0, 1) for part in (q, k, v))
    if table is not None:
        q, k = table.rows(queries).rotate(q), table.rotate(k)
    keys = torch.cat([*(kept[0] for kept in cached), k], 1)
    values = torch.cat([*(kept[1] for kept in cached), v], 1)
    # No row sees a later row, so a slice of the rows needs no keys after the slice.
    grouped, on_cpu = len(q) != len(k), keys.device.type == "cpu"
    if grouped and not on_cpu:
        # With a mask and grouped heads, sdpa has no fused kernel on a GPU.
        keys, values = (part.repeat_interleave(len(q) // len(k), 0) for part in (keys, values))
    slices = [(0, len(sees))]
    if queries is None and on_cpu:
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
                enable_gqa=grouped and on_cpu,
            )
        )
    attended = block.attn_out(torch.cat(mixed, 2)[0].transpose(0, 1).flatten(1))
    return attended if block.post_attn is None else block.post_attn(attended), k, v
