"""The walk: a pack through the blocks, every hook point a local variable.

    h = x + attn(ln_1(x))                    resid_mid
    n = ln_2(h)                              mlp_in
    x = h + w_out(act(w_in(n))) [+ Δh]       resid_post, W_in + ΔW and Δh on rows of patched runs

Nothing is computed that no run reads: rows leave after their last layer, and there only the rows
that are read become queries. The mask is a bool mask for sdpa alone (under `eager` it would be
added to the scores).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from service.engine.checkpoint import Model
from service.engine.families import Block
from service.engine.pack import Index, Pack, pack
from service.engine.patch import layer_patch
from service.engine.run import STAGE, Activations, HookPoint, Run, Site
from service.errors import NonFiniteActivation


def forward(
    model: Model, runs: Sequence[Run], proceed: Callable[[], None] = lambda: None
) -> Sequence[Activations]:
    """What each run reads, all runs in one pack.

    Args:
        model: The resident model.
        runs: Runs of one dtype.
        proceed: Called before each block; ends the walk by raising.

    Raises:
        NonFiniteActivation: A site that is read holds NaN or infinity.
    """
    dtype = runs[0].dtype or model.dtype
    reading = _Reading(model, pack(runs), len(runs))
    _walk(model, reading, dtype, proceed)
    return reading.activations


class _Reading:
    """A pack under way: the rows still in it, and what was read of them so far."""

    def __init__(self, model: Model, laid_out: Pack, runs: int) -> None:
        self.pack = laid_out
        self.device = model.device
        self.activations: list[dict[Site, Tensor]] = [{} for _ in range(runs)]
        self._row_of = np.arange(len(laid_out.tokens))

    def note(self, layer: int, point: HookPoint, value: Tensor, rows: Index) -> None:
        """Hand out `value`, which holds the pack's `rows`, to the runs that read this site."""
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
            self.activations[run][site] = part


def _walk(model: Model, reading: _Reading, dtype: torch.dtype, proceed: Callable[[], None]) -> None:
    laid_out = reading.pack
    rows = np.arange(len(laid_out.tokens))
    x = model.token_embedding[_index(laid_out.tokens, model)].to(dtype)
    x = x + model.position_embedding[_index(laid_out.positions, model)].to(dtype)
    sees = torch.from_numpy(laid_out.sees).to(model.device)
    for layer in range(min(int(laid_out.depth.max(initial=-1)) + 1, model.n_layers)):
        proceed()
        stay = laid_out.depth[rows] >= layer
        if not stay.all():
            rows, here = rows[stay], _index(np.flatnonzero(stay), model)
            x, sees = x[here], sees[here][:, here]
        block = model.blocks[layer].to(dtype)
        x, rows, sees = _block(block, layer, x, rows, sees, reading)
    if len(rows):
        _unembed(model, x, rows, reading)


def _block(
    block: Block, layer: int, x: Tensor, rows: Index, sees: Tensor, reading: _Reading
) -> tuple[Tensor, Index, Tensor]:
    """One block: the stream behind it, the pack's rows that are left in it, and their mask."""

    def note(point: HookPoint, value: Tensor) -> None:
        reading.note(layer, point, value, rows)

    stage = reading.pack.stage(layer)
    note("resid_pre", x)
    normed = block.ln_1(x)
    note("ln_1_out", normed)
    asked = stage[rows] >= STAGE["attn_out"]
    if not asked.any():
        return x[:0], rows[:0], sees[:0, :0]
    every = None if asked.all() else torch.from_numpy(np.flatnonzero(asked)).to(x.device)
    attended = attention(block, normed, sees, every)
    if every is not None:
        rows, x, sees = rows[asked], x[every], sees[every][:, every]
    note("attn_out", attended)
    x = x + attended
    note("resid_mid", x)
    normed = block.ln_2(x)
    note("mlp_in", normed)
    patch = layer_patch(reading.pack.patched, layer, block, rows, x, normed)
    asked = stage[rows] >= STAGE["mlp_pre"]
    if not asked.all():
        some = torch.from_numpy(np.flatnonzero(asked)).to(x.device)
        rows, x, sees, normed = rows[asked], x[some], sees[some][:, some], normed[some]
    if not len(rows):
        return x, rows, sees
    owner = reading.pack.owner[rows]
    pre = block.w_in(normed) if patch is None else patch.mlp_pre(block, normed, owner)
    note("mlp_pre", pre)
    act = block.act(pre)
    note("mlp_act", act)
    out = block.w_out(act)
    note("mlp_out", out)
    x = x + out
    if patch is not None:
        x = patch.shift(x, owner)
    note("resid_post", x)
    return x, rows, sees


def attention(block: Block, normed: Tensor, sees: Tensor, queries: Tensor | None) -> Tensor:
    """Attention's output for the rows in `queries` (None: all), (queries, d_model).

    Args:
        block: Whose attention.
        normed: ln_1_out, (rows, d_model).
        sees: Which row sees which, bool, (rows, rows).
        queries: Indices into the rows.
    """
    width = normed.shape[1]
    if queries is None:
        q, k, v = torch.split(block.qkv(normed), width, dim=1)
    else:
        q = block.qkv.columns(0, width)(normed[queries])
        k, v = torch.split(block.qkv.columns(width, None)(normed), width, dim=1)
        sees = sees[queries]
    q, k, v = (part.view(1, len(part), block.n_heads, -1).transpose(1, 2) for part in (q, k, v))
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=sees[None, None], scale=block.scaling)
    return block.attn_out(mixed.transpose(1, 2).reshape(-1, width))


def _unembed(model: Model, x: Tensor, rows: Index, reading: _Reading) -> None:
    """Logits for the rows that are read there."""
    readers = reading.pack.reads.get(Site(model.n_layers, "logits"), [])
    if readers:
        wanted = np.unique(np.concatenate([of_run for _, of_run in readers]))
        here = torch.from_numpy(np.flatnonzero(np.isin(rows, wanted))).to(x.device)
        reading.note(model.n_layers, "logits", model.logits(x[here]), wanted)


def _index(values: Index, model: Model) -> Tensor:
    return torch.from_numpy(values).to(model.device)
