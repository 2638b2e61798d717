"""The walk in every family: each hook point and the logits, compared with the float64 oracle.

The oracle makes a separate run for every run of a pack, with no cache and no shared rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from service.engine import Activations, Model, Run, Site
from service.engine.prefixes import Prefixes
from service.engine.walk import forward
from tests.analysis.subjects import Subject
from tests.engine.made import every_site, everything, logits_of
from tests.engine.test_walk import BOUNDS, FLOAT32, GAPS, IDS, hooked
from tests.families import VARIANTS, WINDOW
from tests.oracle.checkpoint import Array

CONSECUTIVE = tuple(range(len(IDS)))
assert len(IDS) > 2 * WINDOW


def distance(actual: torch.Tensor, expected: Array) -> float:
    """‖actual − expected‖/‖expected‖ of each row, the largest."""
    gap = np.linalg.norm(actual.double().numpy() - expected, axis=-1)
    return float((gap / np.linalg.norm(expected, axis=-1)).max())


def distances(subject: Subject, run: Run, found: Activations) -> dict[Site | str, float]:
    """The distance of each site that a run reads, and of the logits, from the oracle's own run."""
    theirs = subject.oracle.run([*run.tokens], [*run.positions])
    apart: dict[Site | str, float] = {
        site: distance(found[site], theirs[site][list(rows)]) for site, rows in run.reads.items()
    }
    last = Site(subject.model.n_layers - 1, "resid_post")
    if last in found:
        rows = list(run.reads[last])
        apart["logits"] = distance(logits_of(subject.model, found), theirs.logits[rows])
    return apart


def reading(model: Model, ids: Sequence[int], positions: Sequence[int], first: int) -> Run:
    """A run that reads every site at its rows from `first` on."""
    return Run(ids, positions, every_site(model, range(first, len(ids))))


@pytest.mark.parametrize(("dtype", "bound"), BOUNDS)
@pytest.mark.parametrize("positions", [CONSECUTIVE, GAPS], ids=["consecutive", "gaps"])
def test_hook_points_and_logits_equal_the_oracles(
    variant: Subject, positions: Sequence[int], dtype: torch.dtype, bound: float
) -> None:
    """Every hook point of every layer and the logits, beyond windows and with gaps, in each row."""
    run = everything(variant.model, IDS, positions, dtype)
    (found,) = forward(variant.model, [run])
    apart = distances(variant, run, found)
    assert len(apart) == variant.model.n_layers * len(variant.oracle.hook_points) + 1
    assert max(apart.values()) <= bound, apart


@pytest.mark.parametrize(("dtype", "bound"), BOUNDS)
def test_runs_of_a_pack_and_cached_prefixes_equal_the_oracles(
    variant: Subject, dtype: torch.dtype, bound: float
) -> None:
    """Runs that share rows, or begin with cached rows, wholly or in part, are as if alone."""
    model, length = variant.model, len(IDS)
    prefixes = Prefixes(1 << 22, dtype)
    beyond = (*IDS[:9], 7, 8, 9)
    packs = [
        [everything(model, IDS[:10], GAPS[:10]), reading(model, IDS, CONSECUTIVE, length - 1)],
        [
            reading(model, IDS, CONSECUTIVE, length - 2),
            reading(model, beyond, range(12), 11),
            reading(model, beyond, (*range(9), 30, 31, 32), 10),
            reading(model, IDS, GAPS, 12),
            Run(IDS[:5], range(5), {Site(0, "mlp_pre"): [4]}),
        ],
        [reading(model, (*IDS, 3), (*CONSECUTIVE, 40), length)],
    ]
    hits = []
    for runs in packs:
        runs = [Run(run.tokens, run.positions, run.reads, dtype) for run in runs]
        for run, found in zip(runs, forward(model, runs, prefixes=prefixes), strict=True):
            apart = distances(variant, run, found)
            assert max(apart.values()) <= bound, apart
        hits.append(prefixes.hits)
    assert 0 == hits[0] < hits[1] < hits[2]


@pytest.fixture(scope="module")
def theirs(variant_name: str, folder_of: Callable[[str], Path]) -> Any:
    """The variant's model in transformers."""
    with torch.inference_mode(False):
        return AutoModelForCausalLM.from_pretrained(folder_of(variant_name), dtype=torch.float32)


def test_module_paths_name_the_modules_that_hold_the_vectors(variant: Subject, theirs: Any) -> None:
    """A hook on each named module of transformers reads the vector that the walk computes."""
    model = variant.model
    nowhere = {"resid_mid"} if model.parallel else set()
    named = {point: model.module_path(point) for point in model.hook_points}
    assert {point for point, path in named.items() if path is None} == nowhere
    sites = {
        Site(layer, point): (path[0].format(layer=layer), path[1])
        for layer in range(model.n_layers)
        for point, path in named.items()
        if path is not None
    }
    with hooked(theirs, sites) as read:
        logits = theirs(torch.tensor([IDS]), use_cache=False).logits[0]
    (found,) = forward(model, [everything(model, IDS)])
    assert read.keys() == {site for site in found if site.point not in nowhere}
    apart = {site: distance(found[site], value.double().numpy()) for site, value in read.items()}
    assert max(apart.values()) <= FLOAT32, apart
    assert distance(logits_of(model, found), logits.double().numpy()) <= FLOAT32


def in_out(stored: torch.Tensor, model: Model) -> torch.Tensor:
    """A stored weight as (d_in, d_out)."""
    return stored if model.family.fan_in_fan_out else stored.T


def test_names_are_those_of_the_checkpoint(
    variant: Subject, variant_name: str, theirs: Any
) -> None:
    """Each weight, bias and gain has its name in the checkpoint, and the shape it is stored in."""
    stored, about = theirs.state_dict(), VARIANTS[variant_name]
    model = variant.model
    assert (model.gated, model.parallel, model.post_norms, model.absolute_positions) == (
        about.gated,
        about.parallel,
        about.post_norms,
        about.positions == "absolute",
    )
    for layer, block in enumerate(model.blocks):
        first = model.first_weights(layer)
        assert len(first) == 1 + about.gated
        for one in first:
            assert tuple(stored[one.name].shape) == one.shape
            assert torch.equal(in_out(stored[one.name], model), block.w_in.weight[:, one.columns])
        assert torch.equal(in_out(stored[model.second_weight(layer)], model), block.w_out.weight)
        bias = model.bias_parameter(layer)
        assert bias == (about.bias and about.bias.format(layer))
        if bias is not None:
            assert block.w_out.bias is not None
            assert torch.equal(stored[bias], block.w_out.bias)
        gain = model.post_norm_gain(layer)
        assert (gain is not None) == about.post_norms == (block.post_mlp is not None)
        if gain is not None and block.post_mlp is not None:
            assert torch.equal(stored[gain] + 1.0, block.post_mlp.gain)
    assert tuple(block.window for block in model.blocks) == about.windows
