"""The walk: a pack through the blocks, every hook point a local variable.

Only what some run reads is computed: rows leave after their last layer, and in that layer only rows
that are read become queries. The masks are added to attention's scores. Nothing is read back from
the device. That what was read is finite, and that updates could be formed, are conditions, which
are tested with whatever is read back first.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from schemas.activations import HookPoint
from service.engine.attention import Attended, Before, attention
from service.engine.block import Block, Note
from service.engine.graphs import STREAM, Graphs
from service.engine.indices import Indices, copied
from service.engine.masks import own_bias, seen
from service.engine.model import Model
from service.engine.pack import Filling, Pack, pack
from service.engine.patch import PatchedRows
from service.engine.prefixes import Prefixes
from service.engine.readback import Condition
from service.engine.rotary import Rotary, Table
from service.engine.route import Step, route
from service.engine.run import Activations, Run, Site
from service.engine.segments import Placed
from service.errors import NonFiniteActivation
from service.theory import NonFinite


def forward(
    model: Model,
    runs: Sequence[Run],
    proceed: Callable[[], None] = lambda: None,
    prefixes: Prefixes | None = None,
) -> list[Activations]:
    """Run all runs in one pack for each kind, and return the activations of each.

    Args:
        model: The resident model.
        runs: The runs.
        proceed: Called before each block. It may raise to end the walk.
        prefixes: The tree with the prefix cache to read and write.

    The activations have conditions, which `fetch` tests: `NonFiniteActivation` if a site that is
    read holds NaN or infinity, and `NonFinite` if a patch cannot be formed.
    """
    tree = Prefixes(dtype=model.dtype) if prefixes is None else prefixes
    tree.verify()
    placed = tree.place(runs)
    try:
        fillings: dict[Hashable, Filling] = {}
        for one in placed:
            fillings.setdefault(kind_of(one.run, model), Filling()).add(one)
        read: dict[Placed, Activations] = {}
        for filling in fillings.values():
            read |= zip(filling.placed, walk(model, filling, tree, proceed), strict=True)
        return [read[one] for one in placed]
    finally:
        tree.release(placed)


def kind_of(run: Run, model: Model) -> Hashable:
    """What the runs of a pack have in common: the dtype and the first layer."""
    return run.dtype or model.dtype, run.first_layer


def walk(
    model: Model,
    filling: Filling,
    prefixes: Prefixes,
    proceed: Callable[[], None] = lambda: None,
    graphs: Graphs | None = None,
) -> list[Activations]:
    """Compute a filled pack, as `forward` does, and keep the keys and values that are needed again.

    Args:
        model: The resident model.
        filling: The runs.
        prefixes: The tree in which they were placed.
        proceed: Called before each block. It may raise to end the walk.
        graphs: Replays blocks of static shapes; None: shapes are exact.
    """
    dtype = filling.placed[0].run.dtype or model.dtype
    # Weights in another dtype are cast for one use, so a graph would read freed memory.
    replays = graphs is not None and dtype == model.dtype
    laid_out = pack(filling, prefixes.keeps, static=replays)
    passing = _Walk(model, laid_out, graphs)
    passing.run(dtype, proceed)
    prefixes.misses += filling.rows
    conditions = tuple(passing.conditions)
    for kept, layers in zip(laid_out.kept, passing.kept, strict=True):
        # In the last block, keys and values may not have been needed.
        if layers is not None and (
            layers is not kept.segment.layers or passing.attended >= len(layers)
        ):
            known = kept.start + kept.rows.stop - kept.rows.start
            prefixes.keep(kept.segment, layers[: passing.attended], known, conditions)
    return [
        Activations(read, conditions, patched)
        for read, patched in zip(passing.activations, passing.patched, strict=True)
    ]


@dataclass(frozen=True)
class _Rows:
    """The rows that remain in the pack.

    Args:
        x: Their residual stream, (rows, d_model).
        bias: For each window, 0 where a row sees another and −∞ elsewhere, (groups, width, width).
        tables: Their cosines and sines for each rotary embedding.
    """

    x: Tensor
    bias: Mapping[int | None, Tensor]
    tables: Mapping[Rotary | None, Table]


class _Walk:
    """The state of a walk."""

    def __init__(self, model: Model, laid_out: Pack, graphs: Graphs | None) -> None:
        self.activations: list[dict[Site, Tensor]] = [{} for _ in laid_out.placed]
        self.patched = [0] * len(laid_out.placed)
        self.conditions: list[Condition] = []
        self.kept: list[Tensor | None] = [None] * len(laid_out.kept)
        self.attended = 0
        self._model = model
        self._pack = laid_out
        self._graphs = graphs if laid_out.static else None
        self._at = Indices()
        self._norms: list[Tensor] = []
        self._sites: list[tuple[Site, int]] = []

    def run(self, dtype: torch.dtype, proceed: Callable[[], None]) -> None:
        """Walk through the blocks that the runs need."""
        at, device, ends = self._at, self._model.device, self._model.ends
        tokens, positions = at.add(self._pack.tokens), at.add(self._pack.positions)
        begun = at.add(self._pack.begun)
        steps = route(self._pack, at)
        at.copy(device)
        x = ends.token_embedding[at[tokens]].to(dtype)
        if ends.embedding_scale is not None:
            x = x * ends.embedding_scale.to(dtype)
        if ends.position_embedding is not None:
            x = x + ends.position_embedding[at[positions]].to(dtype)
        if streams := [begin.stream for one in self._pack.placed if (begin := one.run.begin)]:
            x = x.index_copy(0, at[begun], torch.cat(streams))
        first = self._pack.first
        blocks = self._model.blocks[first : first + len(steps)]
        where = torch.from_numpy(self._pack.positions)
        tables: dict[Rotary | None, Table] = {
            block.rotary: Table(*copied(block.rotary.turns(where, dtype), device))
            for block in {block.rotary: block for block in blocks}.values()
            if block.rotary is not None
        }
        windows = {block.window for block in blocks}
        bias = {window: own_bias(self._pack, window, dtype, device) for window in windows}
        self._known = {
            window: [seen(self._pack, one, window, dtype, device) for one in self._pack.known]
            for window in windows
        }
        rows = _Rows(x, bias, tables)
        if self._graphs is not None:
            self._shape = self._graphs.shape((dtype, *self._pack.sees.shape))
            rows = self._static(rows)
        for layer, (step, block) in enumerate(zip(steps, blocks, strict=True), first):
            proceed()
            last = layer + 1 == first + len(steps)
            here = None if step.stay is None else self._at[step.stay]
            rows = self._staying(rows, here, last=False)
            compute = self._block if self._graphs is None else self._replayed
            rows = compute(block.to(dtype), layer, step, rows, last)
        self._note_finite()

    def _static(self, rows: _Rows) -> _Rows:
        """The rows in the static tensors of their shape."""
        values: dict[Hashable, Tensor] = {STREAM: rows.x}
        values |= {("bias", window): bias for window, bias in rows.bias.items()}
        for turn, table in rows.tables.items():
            values |= {("cos", turn): table.cos, ("sin", turn): table.sin}
        static = self._shape.load(values)
        return _Rows(
            static[STREAM],
            {window: static["bias", window] for window in rows.bias},
            {turn: Table(static["cos", turn], static["sin", turn]) for turn in rows.tables},
        )

    def _replayed(self, block: Block, layer: int, step: Step, rows: _Rows, last: bool) -> _Rows:
        """`_block`, replayed by its graph if it has one. Its output is the static stream."""
        points, keeps = sorted(step.reads), len(step.kept) > 0
        queries = None if step.queries is None else self._at[step.queries]
        count = -1 if queries is None else len(queries)
        if queries is not None:
            queries = self._shape.load({("queries", count): queries})["queries", count]

        def work() -> Sequence[Tensor]:
            seen: dict[HookPoint, Tensor] = {}
            found: list[Attended] = []

            def note(point: HookPoint, value: Tensor) -> None:
                # The block's output replaces the static stream.
                seen[point] = value.clone() if value is rows.x else value

            after = self._passed(block, step, rows, queries, (), last, note, found.append)
            if not last:
                rows.x.copy_(after.x)
            kept = [*found[0][1:]] if keeps else []
            return [*(seen[point] for point in points), *kept]

        assert self._graphs is not None
        key = layer, tuple(points), keeps, count, step.attends, step.transforms
        results = self._graphs.run(self._shape, key, work)
        for point, value in zip(points, results, strict=False):
            self._read(layer, step, point, value)
        if keeps:
            self._keep(layer, step, *results[len(points) :])
        return rows

    def _read(self, layer: int, step: Step, point: HookPoint, value: Tensor) -> None:
        """Give each run that reads this site its rows of `value`."""
        reading = step.reads.get(point)
        if reading is None:
            return
        site, read = Site(layer, point), value[self._at[reading.rows]]
        self._norms.append(torch.linalg.vector_norm(read, torch.inf, -1))
        self._sites.append((site, len(read)))
        parts = torch.split(read, [count for _, count in reading.runs])
        for (run, _), part in zip(reading.runs, parts, strict=True):
            reduce = self._pack.placed[run].run.reduce
            self.activations[run][site] = part if reduce is None else reduce(part)

    def _note_finite(self) -> None:
        """The condition that all that was read is finite."""
        if self._norms:
            self.conditions.append(_Finite(torch.cat(self._norms), self._sites))

    def _block(self, block: Block, layer: int, step: Step, rows: _Rows, last: bool) -> _Rows:
        """Compute one block, and return the rows that remain, with the stream after it."""
        return self._passed(
            block,
            step,
            rows,
            None if step.queries is None else self._at[step.queries],
            list(self._before(block.window, layer, step)),
            last,
            partial(self._read, layer, step),
            lambda found: self._keep(layer, step, found.keys, found.values),
            partial(self._require_formed, layer),
        )

    def _passed(
        self,
        block: Block,
        step: Step,
        rows: _Rows,
        queries: Tensor | None,
        known: Sequence[Before],
        last: bool,
        note: Note,
        keep: Callable[[Attended], None],
        require_formed: Callable[[PatchedRows], None] = lambda _patch: None,
    ) -> _Rows:
        """The rows after a block.

        Args:
            block: The block.
            step: The part of it that is computed.
            rows: The rows before it.
            queries: Indices of the rows that become queries; None: all.
            known: Known rows that queries see.
            last: Whether it is the pack's last block.
            note: Receives the vectors of each hook point.
            keep: Receives keys and values.
            require_formed: Receives the patch when more of it was formed.
        """
        note("resid_pre", rows.x)
        normed = block.pre_attn(rows.x)
        note("ln_1_out", normed)
        if not step.attends:
            return rows
        table = rows.tables.get(block.rotary)
        found = attention(block, normed, rows.bias[block.window], queries, known, table)
        keep(found)
        note("attn_out", found.out)
        rows = self._staying(rows, queries, last)
        h = rows.x + found.out
        note("resid_mid", h)
        normed = block.pre_mlp(rows.x if block.parallel else h)
        note("mlp_in", normed)
        patch = None
        if step.patching is not None:
            patch = PatchedRows(block, self._at, step.patching, h, normed)
            require_formed(patch)
        rows = _Rows(h, rows.bias, rows.tables)
        if not step.transforms:
            return rows
        if step.mlp is not None:
            through = self._at[step.mlp]
            normed = normed[through]
            rows = self._staying(rows, through, last)
        post = block.mlp(rows.x, normed, note, patch)
        if patch is not None and step.patching is not None:
            require_formed(patch)
            for run, count in step.patching.counts:
                self.patched[run] = max(self.patched[run], count)
        return _Rows(post, rows.bias, rows.tables)

    def _staying(self, rows: _Rows, here: Tensor | None, last: bool) -> _Rows:
        """The rows at these indices; None: all. After the last block nothing needs their masks."""
        if here is None:
            return rows
        if last:
            return _Rows(rows.x[here], {}, {})
        return _Rows(
            rows.x[here],
            {window: bias[:, here][:, :, here] for window, bias in rows.bias.items()},
            {turn: table.rows(here) for turn, table in rows.tables.items()},
        )

    def _before(self, window: int | None, layer: int, step: Step) -> Iterable[Before]:
        """The known rows of a layer."""
        for number, queries, mask in step.known:
            sight, known = self._known[window][number], self._pack.known[number]
            bias, blind = (
                part if part is None or mask is None else part[self._at[mask]]
                for part in (sight.bias, sight.blind)
            )
            yield Before(
                known.layers[layer, :, :, : known.counts.max()],
                None if queries is None else self._at[queries],
                bias,
                blind,
            )

    def _keep(self, layer: int, step: Step, keys: Tensor, values: Tensor) -> None:
        """Write the keys and values of rows that are kept into the storage of their segment."""
        self.attended = layer + 1
        to: list[Tensor] = []
        kept: list[Tensor] = []
        for number, rows in step.kept:
            segment, where, start = self._pack.kept[number]
            layers = self.kept[number]
            if layers is None:
                depth = int(self._pack.depth[where.start]) + 1
                if start:
                    layers = segment.layers
                else:
                    heads, _, width = keys.shape
                    shape = depth, 2, heads, segment.capacity or len(segment.rows), width
                    layers = keys.new_empty(shape)
                self.kept[number] = layers
            if layers is not None and layer < len(layers):
                stop = start + rows.stop - rows.start
                to += [layers[layer, 0, :, start:stop], layers[layer, 1, :, start:stop]]
                kept += [keys[:, rows], values[:, rows]]
        if to:
            torch._foreach_copy_(to, kept)

    def _require_formed(self, layer: int, patch: PatchedRows) -> None:
        if patch.formed is None:
            return
        error = NonFinite(
            f"an update of layer {layer} does not exist: a vector that it divides by has norm 0 or "
            "is not finite"
        )
        self.conditions.append(Condition(patch.formed, error))


class _Finite(Condition):
    """The condition that everything that a pack reads is finite.

    Args:
        value: The greatest absolute value of each row that is read.
        sites: Each site that is read, and its number of rows.
    """

    def __init__(self, value: Tensor, sites: Sequence[tuple[Site, int]]) -> None:
        super().__init__(value, NonFiniteActivation("an activation holds NaN or infinity"))
        self._sites = sites

    def failure(self, value: Tensor) -> Exception | None:
        """The error of the first site that is not finite."""
        if self.holds(value):
            return None
        start = 0
        for (layer, point), count in self._sites:
            if not self.holds(value[start : start + count]):
                return NonFiniteActivation(f"{point} of layer {layer} holds NaN or infinity")
            start += count
        return self.error
