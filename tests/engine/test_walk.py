"""The walk, compared with transformers' own forward, and each run with itself in other packs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from service.engine import Activations, Model, Run, Site, load
from service.engine.readback import require
from service.engine.walk import forward
from service.errors import NonFiniteActivation
from tests.engine.made import (
    POINTS,
    every_site,
    everything,
    logits_of,
    reference,
    relative,
    resident,
    unchanged,
    with_nan,
    worst,
)

FLOAT32, FLOAT64 = 5e-6, 1e-12
BOUNDS = [(torch.float32, FLOAT32), (torch.float64, FLOAT64)]
IDS = tuple(int(i) for i in np.random.default_rng(5).integers(1, 260, 14))
GAPS = (0, 1, 2, 7, 8, 9, 20, 21, 22, 23, 40, 41, 62, 63)


def load_tiny(folder: Path) -> Model:
    """The model of a folder, resident in float32 on the CPU."""
    return load(str(folder), revision=None, device="cpu", dtype="float32")


@contextmanager
def hooked(model: Any, sites: Mapping[Site, tuple[str, str]]) -> Iterator[dict[Site, Tensor]]:
    """Record the inputs and outputs of transformers' modules while a forward runs."""
    read: dict[Site, Tensor] = {}

    def rows(value: Tensor) -> Tensor:
        # OPT's MLP sees rows without the axis of the batch.
        return value.reshape(-1, value.shape[-1]).clone()

    def inward(site: Site) -> Any:
        def hook(_module: Any, args: Any, kwargs: Any) -> None:
            read[site] = rows(args[0] if args else kwargs["hidden_states"])

        return hook

    def outward(site: Site) -> Any:
        def hook(_module: Any, _args: Any, output: Any) -> None:
            read[site] = rows(output[0] if isinstance(output, tuple) else output)

        return hook

    handles = []
    for site, (path, side) in sites.items():
        module = model.get_submodule(path)
        handles.append(
            module.register_forward_pre_hook(inward(site), with_kwargs=True)
            if side == "input"
            else module.register_forward_hook(outward(site))
        )
    try:
        yield read
    finally:
        for handle in handles:
            handle.remove()


def transformers_run(
    model: Any, service: Model, ids: Sequence[int], positions: Sequence[int]
) -> tuple[dict[Site, Tensor], Tensor]:
    """Every hook point and the logits in transformers, with an explicit additive causal mask."""
    sites = {
        Site(layer, point): (path.format(layer=layer), side)
        for layer in range(service.n_layers)
        for point in POINTS
        for path, side in [service.module_path(point) or ("", "")]
    }
    rows = len(ids)
    mask = torch.full((rows, rows), -torch.inf, dtype=model.dtype).triu(1)[None, None]
    with hooked(model, sites) as read:
        output = model(
            input_ids=torch.tensor([ids]),
            position_ids=torch.tensor([positions]),
            attention_mask=mask,
            use_cache=False,
        )
    return read, output.logits[0]


@pytest.mark.parametrize(("dtype", "bound"), BOUNDS)
@pytest.mark.parametrize("positions", [range(len(IDS)), GAPS], ids=["consecutive", "gaps"])
def test_activations_and_logits_equal_transformers(
    tiny: Model,
    tiny_folder: Path,
    dtype: torch.dtype,
    bound: float,
    positions: Sequence[int],
) -> None:
    """Every hook point of every layer and the logits equal those of transformers' forward."""
    expected, logits = transformers_run(reference(tiny_folder, dtype), tiny, IDS, list(positions))
    found = forward(tiny, [everything(tiny, IDS, positions, dtype)])[0]
    assert all(tensor.dtype == dtype for tensor in found.values())
    assert worst(found, expected) <= bound
    assert relative(logits_of(tiny, found), logits) <= bound


def test_parity_holds_without_packed_layout(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are also equal where torch has no packed layout and plain matrices are multiplied."""
    monkeypatch.setattr("service.engine.layers.PACKED", False)
    plain = load_tiny(tiny_folder)
    assert not plain.blocks[0].w_out.matrix.is_mkldnn
    rows = range(len(IDS))
    expected, logits = transformers_run(reference(tiny_folder, torch.float32), plain, IDS, rows)
    found = forward(plain, [everything(plain, IDS, None, torch.float32)])[0]
    assert worst(found, expected) <= FLOAT32
    assert relative(logits_of(plain, found), logits) <= FLOAT32


@pytest.mark.parametrize(("dtype", "bound"), BOUNDS)
def test_wrong_runs_miss_the_parity_bound(
    tiny: Model, tiny_folder: Path, dtype: torch.dtype, bound: float
) -> None:
    """Shifted positions, another id, another row or another hook point miss parity by 1,000
    bounds."""
    expected, _ = transformers_run(reference(tiny_folder, dtype), tiny, IDS, range(len(IDS)))
    shifted = everything(tiny, IDS, range(1, 1 + len(IDS)), dtype)
    other = everything(tiny, (*IDS[:-1], 1 + IDS[-1] % 250), None, dtype)
    for wrong in forward(tiny, [shifted])[0], forward(tiny, [other])[0]:
        assert min(relative(wrong[site], expected[site]) for site in expected) > 1000 * bound
    site, neighbour = Site(1, "mlp_in"), Site(1, "resid_mid")
    assert relative(expected[site].roll(1, 0), expected[site]) > 1000 * bound
    assert relative(expected[neighbour], expected[site]) > 1000 * bound


def company(model: Model, dtype: torch.dtype) -> dict[str, list[Run]]:
    """Other runs: with shared prefixes, of other depths, with reads elsewhere or none."""
    last = [3]
    return {
        "itself": [everything(model, IDS, None, dtype)],
        "a prefix": [everything(model, IDS[:5], None, dtype)],
        "other ids": [everything(model, IDS[::-1], None, dtype)],
        "another position": [everything(model, IDS, range(9, 9 + len(IDS)), dtype)],
        "shallow": [Run(IDS[:4], range(4), {Site(0, "mlp_in"): last}, dtype)],
        "to attention": [Run((*IDS[:3], 9), range(4), {Site(1, "resid_mid"): last}, dtype)],
        "deep": [Run(IDS[3:9], range(6), {Site(2, "resid_post"): [5]}, dtype)],
        "reads nothing": [Run(IDS[2:8], range(6), {}, dtype)],
        "many": [
            Run((*IDS[:k], 7), (*range(k), 30), {Site(k % 3, "mlp_act"): [k]}, dtype)
            for k in range(1, 12)
        ],
    }


@pytest.mark.parametrize(("dtype", "bound"), BOUNDS)
def test_run_is_the_same_in_any_pack(tiny: Model, dtype: torch.dtype, bound: float) -> None:
    """A run reads the same in any pack, first or last, as alone."""
    run = everything(tiny, IDS, None, dtype)
    alone = forward(tiny, [run])[0]
    others = company(tiny, dtype)
    for name, runs in [*others.items(), ("all", [r for rs in others.values() for r in rs])]:
        first = forward(tiny, [run, *runs])[0]
        last = forward(tiny, [*runs, run])[-1]
        assert worst(first, alone) <= bound, name
        assert worst(last, alone) <= bound, name


@pytest.mark.parametrize(("dtype", "bound"), BOUNDS)
def test_single_site_equals_the_full_reading(tiny: Model, dtype: torch.dtype, bound: float) -> None:
    """A site read alone, at rows in any order and repeated, has the values of the full reading."""
    full = forward(tiny, [everything(tiny, IDS, None, dtype)])[0]
    rows = [13, 0, 6, 6]
    for site in full:
        read = forward(tiny, [Run(IDS, range(len(IDS)), {site: rows}, dtype)])[0]
        assert list(read) == [site]
        assert relative(read[site], full[site][rows]) <= bound, site


def test_rows_do_not_see_later_rows(tiny: Model) -> None:
    """Another last token changes no earlier row."""
    rows = range(len(IDS) - 1)
    before = Run(IDS, range(len(IDS)), every_site(tiny, rows), torch.float64)
    changed = (*IDS[:-1], 1 + IDS[-1] % 250)
    after = Run(changed, range(len(IDS)), every_site(tiny, rows), torch.float64)
    assert worst(forward(tiny, [after])[0], forward(tiny, [before])[0]) <= FLOAT64


POISONED = [
    ("transformer.h.2.ln_1.weight", Site(1, "resid_post"), Site(2, "ln_1_out")),
    ("transformer.h.2.attn.c_attn.weight", Site(2, "ln_1_out"), Site(2, "attn_out")),
    ("transformer.h.1.ln_2.weight", Site(1, "resid_mid"), Site(1, "mlp_in")),
    ("transformer.h.1.mlp.c_fc.weight", Site(1, "mlp_in"), Site(1, "mlp_pre")),
    ("transformer.h.1.mlp.c_proj.weight", Site(1, "mlp_act"), Site(1, "mlp_out")),
]


@pytest.mark.parametrize(("name", "fine", "spoilt"), POISONED)
def test_nothing_is_computed_beyond_the_last_read(
    tmp_path: Path, tiny: Model, tiny_folder: Path, name: str, fine: Site, spoilt: Site
) -> None:
    """A NaN weight does not affect reads before it; a read after it has a condition that raises and
    names the layer."""
    model = load_tiny(with_nan(tiny_folder, tmp_path / "nan", name))
    run = Run(IDS, range(len(IDS)), {fine: range(len(IDS))})
    (found,), (expected,) = forward(model, [run]), forward(tiny, [run])
    require(found.conditions)
    assert torch.equal(found[fine], expected[fine])
    bad = Run(IDS, range(len(IDS)), {spoilt: [5]})
    (spoilt_read,) = forward(model, [bad])
    with pytest.raises(NonFiniteActivation) as refused:
        require(spoilt_read.conditions)
    assert spoilt.point in refused.value.detail
    assert f"layer {spoilt.layer}" in refused.value.detail


def test_proceed_is_called_before_each_needed_block(tiny: Model) -> None:
    """`proceed` is called before each block down to the deepest read, and may stop the walk by
    raising."""
    calls: list[int] = []
    run = Run(IDS, range(len(IDS)), {Site(1, "resid_pre"): [0]})
    forward(tiny, [run], lambda: calls.append(1))
    assert len(calls) == 2

    class Enough(Exception):
        pass

    def enough() -> None:
        raise Enough

    with pytest.raises(Enough):
        forward(tiny, [run], enough)


def test_runs_do_not_change_resident_weights(tiny: Model) -> None:
    """Runs in both dtypes, alone and packed, leave every resident weight bit-equal."""
    before = resident(tiny)
    for dtype in (torch.float32, torch.float64):
        runs = [run for runs in company(tiny, dtype).values() for run in runs]
        answers: Sequence[Activations] = forward(tiny, runs)
        for answer in answers:
            for tensor in answer.values():
                tensor.add_(1.0)
    assert unchanged(tiny, before)
