"""Static adapters of SmolLM2: the bars on held-out queries, and the controls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from schemas.adapters import StaticAdapterRequest
from service.analysis.adapters.static import plan_static_adapter
from service.engine import Model, drive, load
from tests.real.static_queries import antonyms, capitals, french

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(smollm2: Path) -> Model:
    """SmolLM2, resident in float32 on the CPU."""
    with torch.inference_mode():
        return load(str(smollm2), revision=None, device="cpu", dtype="float32")


@pytest.mark.parametrize(
    ("body_of", "bar", "random"),
    [
        pytest.param(capitals, 0.75, 0.0, id="capitals"),
        pytest.param(antonyms, 0.7, 0.0, id="antonyms"),
        # Here the answer's format is most of the effect, and a random patch may hit a little of it.
        pytest.param(french, 0.95, 0.1, id="french"),
    ],
)
def test_held_out_queries_are_recovered(
    model: Model, body_of: Callable[[], dict[str, Any]], bar: float, random: float
) -> None:
    """The adapter recovers more of the effect on unseen queries than its rivals, random directions
    recover none, and other texts change by 0.25 nats at most. Whole patched runs give the logits of
    the fit."""
    body = StaticAdapterRequest(kind="static", **body_of())
    found = drive(model, plan_static_adapter(model, body))
    held_out, rivals = found.fields["held_out"], found.fields["rivals"]
    assert held_out.recovered >= bar
    assert held_out.recovered > max(rivals.constant, rivals.mean_output)
    assert held_out.beyond_constant > rivals.mean_output_beyond_constant
    assert rivals.random < random
    assert found.fields["in_sample"].recovered > held_out.recovered
    assert found.fields["collateral"].mean <= 0.25
    assert drive(model, found.check(found.updates)) <= 1e-5
