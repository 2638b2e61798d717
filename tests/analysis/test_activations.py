"""Captured activations, compared with the oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from schemas.activations import Reduce
from service.analysis.activations import activations, hook_points
from service.engine import Model, drive
from service.errors import UnknownHookPoint
from tests.analysis.subjects import CAPTURED, CONTEXT, IDS, Subject, agree, distance
from tests.engine.made import POINTS
from tests.oracle import HOOK_POINTS

PROMPTS = [IDS, CONTEXT[3:], IDS[:1]]
POSITIONS = [(11, 0, 5), tuple(range(6)), (0,)]


def test_hook_points_equal_the_oracles(tiny: Model) -> None:
    """Service and oracle name the same hook points in the same order."""
    assert tiny.hook_points == POINTS == HOOK_POINTS


@pytest.mark.parametrize("reduce", ["none", "norm", "mean"])
def test_activations_equal_the_oracles_at_every_site(subject: Subject, reduce: Reduce) -> None:
    """Vectors, norms and means over positions equal the oracle's in three prompts."""
    model = subject.model
    ids = [subject.ids(prompt) for prompt in PROMPTS]
    layers = list(range(model.n_layers))[::-1]
    answer = drive(model, activations(model, ids, POSITIONS, layers, POINTS, reduce))
    assert answer.model == model.summary
    for prompt, rows, found in zip(ids, POSITIONS, answer.prompts, strict=True):
        trace = subject.oracle.run(prompt)
        assert tuple(token.id for token in found.tokens) == prompt
        places = [(one.layer, one.hook_point) for one in found.activations]
        assert places == [(layer, point) for layer in layers for point in POINTS]
        for one in found.activations:
            values = trace[one.layer, one.hook_point][list(rows)]
            lengths = np.linalg.norm(values, axis=-1)
            assert one.positions == rows
            expected = {"none": values, "norm": lengths, "mean": values.mean(0)}[reduce]
            scale = lengths.mean() / np.linalg.norm(expected) if reduce == "mean" else 1.0
            agree(one.values, expected, CAPTURED * max(1.0, scale), (one.layer, one.hook_point))
            assert one.values.dtype == (torch.float32 if reduce == "none" else torch.float64)


def test_no_neighbouring_site_or_position_agrees(subject: Subject) -> None:
    """A vector of another hook point, layer or position is far from the captured one, so the test
    above would see a mistake."""
    ids, layer = subject.ids(IDS), 1
    trace = subject.oracle.run(ids)
    question = activations(subject.model, [ids], [(4,)], [layer], POINTS, "none")
    (found,) = drive(subject.model, question).prompts
    for one in found.activations:
        values, point = one.values[0].double().numpy(), one.hook_point
        wrong = [trace[layer, point][5], trace[layer, point][3], trace[2, point][4]]
        wrong += [trace[layer, other][4] for other in POINTS if other != point]
        alike = [vector for vector in wrong if vector.shape == values.shape]
        assert distance(values, trace[layer, point][4]) <= CAPTURED
        assert min(distance(values, vector) for vector in alike) > 100 * CAPTURED


def test_hook_points_are_given_once_in_the_requested_order(tiny: Model) -> None:
    """Repeated names count once, at their first place."""
    assert hook_points(tiny, ["mlp_out", "mlp_in", "mlp_out"]) == ("mlp_out", "mlp_in")


@pytest.mark.parametrize("unknown", ["mlp_hidden", "mlp_pre_linear"])
def test_unknown_hook_point_is_refused_with_its_path(tiny: Model, unknown: str) -> None:
    """The refusal names the path of the first hook point that the model does not have, and lists
    those that it has. A model without a gate has no `mlp_pre_linear`."""
    with pytest.raises(UnknownHookPoint, match="resid_mid") as refused:
        hook_points(tiny, ["mlp_in", unknown, ""])
    assert refused.value.at == ("hook_points", 1)
