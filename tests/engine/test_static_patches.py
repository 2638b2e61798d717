"""Static patches: one change of the weights for every row, alike in any pack."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest
import torch

from schemas.equivalence_checks import Apply
from service.engine import Activations, Fixed, Follow, Model, Run, Site, patched_block
from service.engine.prefixes import Prefixes
from service.engine.walk import forward
from service.theory import StaticUpdate
from tests.analysis.subjects import Subject
from tests.engine.made import every_site, relative, resident, unchanged, worst
from tests.engine.static import oracles, updates_of
from tests.engine.test_read_backs import operators
from tests.oracle import Decoder, Patch

APPLIES: tuple[Apply, ...] = ("factored", "materialized")
FAMILIES = ("gpt2", "qwen2-windows", "gemma3", "neox-parallel")
IDS = tuple(5 + 11 * i % 250 for i in range(9))


def run_of(
    model: Model, ids: Sequence[int], patch: Fixed | Follow | None = None, start: int = 0
) -> Run:
    """A run that reads every site at each of its rows, float64."""
    sites = every_site(model, range(len(ids)))
    return Run(ids, range(start, start + len(ids)), sites, torch.float64, patch)


def farthest(oracle: Decoder, run: Run, read: Activations, patches: Mapping[int, Patch]) -> float:
    """The largest relative error of a run's sites against the oracle's run."""
    trace = oracle.run(list(run.tokens), list(run.positions), patches=patches)
    return max(
        relative(values, torch.from_numpy(trace.points[site.layer, site.point]))
        for site, values in read.items()
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_static_patches_share_a_pack_with_other_runs(
    name: str, variant_of: Callable[[str], Subject]
) -> None:
    """Runs with two static patches, each applied in both ways, and plain and following runs in one
    pack equal the oracle's runs in every row; the wrong patch does not."""
    subject = variant_of(name)
    model, oracle = subject.model, subject.oracle
    one, two = (updates_of(model, seed) for seed in (1, 2))
    del two[1]
    source = run_of(model, IDS)
    cases: list[tuple[Run, Mapping[int, StaticUpdate]]] = [(source, {})]
    for apply in APPLIES:
        cases.append((run_of(model, IDS[3:], Fixed(one, apply)), one))
        cases.append((run_of(model, IDS[:4], Fixed(one, apply), 2), one))
        cases.append((run_of(model, IDS, Fixed(two, apply)), two))
    follow = run_of(model, IDS[-2:], Follow(source, 8, 1), 7)
    runs = [run for run, _ in cases]
    *found, followed = forward(model, [*runs, follow], prefixes=Prefixes(1 << 22, torch.float64))
    for (run, updates), read in zip(cases, found, strict=True):
        assert farthest(oracle, run, read, oracles(updates)) <= 1e-10
    assert farthest(oracle, runs[1], found[1], oracles(two)) > 1e-2
    assert worst(followed, forward(model, [follow])[0]) <= 1e-12


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("apply", APPLIES)
def test_patched_block_applies_a_static_update(
    name: str, apply: Apply, variant_of: Callable[[str], Subject]
) -> None:
    """`patched_block` gives what the oracle's block with the dense changes gives."""
    subject = variant_of(name)
    (read,) = forward(subject.model, [run_of(subject.model, IDS)])
    for layer, update in updates_of(subject.model, 3).items():
        block = subject.model.blocks[layer].to(torch.float64)
        h, n = read[Site(layer, "resid_mid")], read[Site(layer, "mlp_in")]
        _, post = patched_block(block, h, n, update, apply)
        patch = oracles({layer: update})[layer]
        truth = subject.oracle.second_half(layer, h.numpy(), n.numpy(), patch)["resid_post"]
        assert relative(post, torch.from_numpy(truth)) <= 1e-10
        assert relative(post, read[Site(layer, "resid_post")]) > 1e-3


@pytest.mark.parametrize("name", ["gpt2", "gemma3"])
def test_scale_interpolates_between_no_patch_and_the_patch(
    name: str, variant_of: Callable[[str], Subject]
) -> None:
    """Scale 1 is the patch, scale 0 none, and half of it is the oracle's run with half of each
    change, the gain halfway from the resident one."""
    subject = variant_of(name)
    model, updates = subject.model, updates_of(subject.model, 4)
    norms = [block.post_mlp and block.post_mlp.to(torch.float64) for block in model.blocks]
    gains = [None if norm is None else norm.gain for norm in norms]

    def patched(scale: float) -> Run:
        scaled = {layer: one.scaled(scale, gains[layer]) for layer, one in updates.items()}
        return run_of(model, IDS, Fixed(scaled))

    scales = (1.0, 0.0, 0.5)
    whole, nothing, half = forward(model, [patched(scale) for scale in scales])
    for read, run in ((whole, run_of(model, IDS, Fixed(updates))), (nothing, run_of(model, IDS))):
        assert worst(read, forward(model, [run])[0]) <= 1e-12
    given = patched(0.5).patch
    assert isinstance(given, Fixed)
    assert farthest(subject.oracle, run_of(model, IDS), half, oracles(given.updates)) <= 1e-10
    for site in (Site(1, "mlp_out"), Site(model.n_layers - 1, "resid_post")):
        assert relative(half[site], whole[site]) > 1e-3
    if gains[0] is not None:
        with pytest.raises(ValueError, match="resident gain"):
            updates[0].scaled(0.5)


def test_static_patches_in_float32_leave_resident_weights_alone(tiny: Model) -> None:
    """float64 updates are rounded to a float32 run, and every resident weight stays bit-equal."""
    before, updates = resident(tiny), updates_of(tiny, 5)
    wide = run_of(tiny, IDS, Fixed(updates))
    (truth,) = forward(tiny, [wide])
    for apply in APPLIES:
        narrow = Run(wide.tokens, wide.positions, wide.reads, patch=Fixed(updates, apply))
        (read,) = forward(tiny, [narrow])
        assert read[Site(0, "mlp_in")].dtype == torch.float32
        assert worst(read, truth) <= 5e-6
    assert unchanged(tiny, before)


def test_operators_do_not_grow_with_runs_of_static_patches(tiny: Model) -> None:
    """Eight runs with one patch, and runs with eight patches, take as many operators as two."""
    several = [updates_of(tiny, seed) for seed in range(8)]

    def count(patches: Sequence[Mapping[int, StaticUpdate]]) -> int:
        fixed = {id(one): Fixed(one) for one in patches}
        sites = {Site(2, "resid_post"): [8]}
        runs = [Run(IDS, range(9), sites, torch.float64, fixed[id(one)]) for one in patches]
        return operators(tiny, runs)

    once, twice = count(several[:1]), count(several[:2])
    assert count(several[:1] * 8) == once
    assert count(several) == twice <= once + 2 * tiny.n_layers * 2


def test_patched_rows_are_counted(tiny: Model) -> None:
    """A run reports how many of its rows passed through a changed block: none under an update that
    is empty, or of a layer that the run does not reach."""
    updates = updates_of(tiny, 1)
    source = run_of(tiny, IDS)
    deep = max(updates)
    cases: list[tuple[Run, int]] = [
        (source, 0),
        (run_of(tiny, IDS[3:], Fixed(updates)), len(IDS[3:])),
        (run_of(tiny, IDS[:4], Fixed({0: StaticUpdate()})), 0),
        (
            Run(
                IDS,
                range(len(IDS)),
                {Site(0, "resid_post"): [0]},
                patch=Fixed({deep: updates[deep]}),
            ),
            0,
        ),
        (run_of(tiny, IDS[-2:], Follow(source, len(IDS) - 1, 1), 7), 2),
    ]
    read = forward(tiny, [run for run, _ in cases])
    assert [one.patched_rows for one in read] == [count for _, count in cases]
