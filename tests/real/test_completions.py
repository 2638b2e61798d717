"""Completions of SmolLM2: its tokens are transformers', and recomputed patches are exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from schemas.completions import CompletionRequest, Recompute, RecomputedPatch
from service.analysis.completions import plan_completion
from service.engine import Model, drive, load

pytestmark = pytest.mark.slow
EXACT = 1e-10
"""Bound of the KL divergence of a recomputed patch, in nats."""
COUNT = 24
CASES = {
    "capitals": ("France: Paris\nJapan: Tokyo\nEgypt: Cairo\n", "Italy:"),
    "a system prompt": (
        "<|im_start|>system\nYou are a pirate. Always talk like a pirate.<|im_end|>\n",
        "<|im_start|>user\nWhere do penguins live?<|im_end|>\n<|im_start|>assistant\n",
    ),
}
"""Context and prompt."""


@pytest.fixture(scope="module")
def model(smollm2: Path) -> Model:
    """SmolLM2, resident in float32 on the CPU."""
    return load(str(smollm2), revision=None, device="cpu", dtype="float32")


@pytest.mark.parametrize("recompute", ["all", "new"])
@pytest.mark.parametrize("case", CASES)
def test_recomputed_patches_are_exact_on_a_pretrained_model(
    model: Model, case: str, recompute: Recompute
) -> None:
    """Each token, greedy and sampled, is that of the run with context, to 1e-10 nats; without the
    patch the tokens differ."""
    context, prompt = CASES[case]
    patch = RecomputedPatch(context=context, recompute=recompute)
    for temperature in (0.0, 1.0):
        options: dict[str, Any] = {"max_tokens": COUNT, "temperature": temperature, "seed": 5}
        body = CompletionRequest(prompt=prompt, patch=patch, agreement=True, **options)
        answer = drive(model, plan_completion(model, body))
        assert answer.agreement
        assert max(one.kl for one in answer.agreement) <= EXACT
        assert all(one.same_token for one in answer.agreement)
        alone = drive(model, plan_completion(model, CompletionRequest(prompt=prompt, **options)))
        assert alone.tokens != answer.tokens


def test_greedy_tokens_are_those_of_transformers(model: Model, smollm2: Path) -> None:
    """Greedy tokens equal `generate(do_sample=False)`, and both stop at the same end token."""
    theirs: Any = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    for prompt in ("".join(CASES["capitals"]), CASES["a system prompt"][1]):
        ids = torch.tensor([model.tokenizer.encode(prompt)])
        count = 60
        expected = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count
        )
        body = CompletionRequest(prompt=prompt, max_tokens=count, temperature=0)
        answer = drive(model, plan_completion(model, body))
        assert answer.tokens == expected[0, ids.shape[1] :].tolist()
    assert theirs.generation_config.eos_token_id in model.end_tokens
