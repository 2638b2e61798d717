"""Token adapters of SmolLM2 through real PEFT."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.adapters import TokenAdapterRequest
from service.engine import load
from tests.adapters.test_verify import errors_of

pytestmark = pytest.mark.slow
EXACT = 1e-5


@pytest.mark.parametrize("baseline", ["anchored", "alone"])
def test_token_adapter_is_exact_in_peft_on_a_pretrained_model(
    smollm2: Path, tmp_path: Path, baseline: str
) -> None:
    """PEFT without the context gives transformers' logits with it, also merged; without the adapter
    they are far from them."""
    model = load(str(smollm2), revision=None, device="cpu", dtype="float32")
    body = TokenAdapterRequest.model_validate(
        {
            "kind": "token",
            "context": "France: Paris\nJapan: Tokyo\nEgypt: Cairo\n",
            "query": "Italy:",
            "baseline": baseline,
        }
    )
    found = errors_of(model, str(smollm2), body, tmp_path)
    assert found.loaded <= EXACT
    assert found.merged is not None
    assert found.merged <= EXACT
    assert found.without > 0.1
