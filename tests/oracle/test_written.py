"""The independent proof, on answers that the oracle writes in the shape of the wire."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.families import VARIANTS
from tests.oracle import Baseline, Decoder, Form, Question, Without, ask, sequential
from tests.oracle.checkpoint import Array
from tests.oracle.written import proof

CONTEXT = [0, 99, 200, 17, 5, 42, 9, 30, 250]
QUERY = [33, 71, 180]


def tensor(values: Array, encoding: str) -> dict[str, Any]:
    """A tensor of the wire, in float32."""
    stored = values.astype(np.float32)
    data = stored.tolist() if encoding == "json" else base64.b64encode(stored.tobytes()).decode()
    return {"dtype": "float32", "shape": [*stored.shape], "encoding": encoding, "data": data}


def answered(name: str, question: Question, position: int, form: Form, encoding: str) -> Any:
    """The answer of weight updates in the sequential stream, from the oracle."""
    family = question.model.family
    updates = []
    for layer, change in enumerate(sequential(question, position, form).updates):
        prefix = ("transformer." if name == "gpt2" else "") + family.block.format(layer)
        outputs = np.split(change.output_factor, len(family.first))
        shape = [len(change.n), len(outputs[0])]
        one: dict[str, Any] = {
            "layer": layer,
            "position": question.row(position),
            "input": tensor(change.input_factor, encoding),
            "weights": [
                {
                    "name": f"{prefix}{first}.weight",
                    "shape": shape if family.stored_in_out else shape[::-1],
                    "output": tensor(output, encoding),
                }
                for first, output in zip(family.first, outputs, strict=True)
            ],
        }
        if form == "bias":
            parameter = VARIANTS[name].bias
            held = parameter and parameter.format(layer)
            one["bias"] = {"values": tensor(change.delta_h, encoding), "parameter": held}
        else:
            carrier = change.carrier
            one["w_out"] = {
                "name": f"{prefix}{family.second}.weight",
                "input": tensor(carrier.input_factor, encoding),
                "output": tensor(carrier.output_factor, encoding),
            }
            if carrier.gain is not None:
                gain = f"{prefix}{family.post_mlp}.weight"
                one["gain"] = {"name": gain, "values": tensor(carrier.gain, encoding)}
        updates.append(one)
    asked: Any = question.baseline
    if isinstance(asked, Without):
        asked = {"without": asked.spans}
    return {
        "baseline": asked,
        "tokens": {
            "context": [{"id": i} for i in question.context],
            "query": [{"id": i} for i in question.query],
        },
        "positions": {"baseline": question.positions_baseline},
        "updates": updates,
    }


WITHOUT = Without(((2, 5), (7, 8)))
CASES: list[tuple[str, Baseline, int, str]] = [
    *((name, "anchored", -1, "json") for name in ("gpt2", "neox-parallel", "opt-bare")),
    *((name, "matched", 1, "base64") for name in ("gpt2", "mistral", "gemma3")),
    *((name, WITHOUT, -1, "json") for name in ("gpt2", "mistral", "gemma3")),
]


@pytest.mark.parametrize(("name", "baseline", "position", "encoding"), CASES)
def test_written_weights_give_the_logits_of_the_full_prompt(
    name: str,
    baseline: Baseline,
    position: int,
    encoding: str,
    folder_of: Callable[[str], Path],
) -> None:
    """transformers with the written weights, without the context, has the full prompt's logits."""
    folder = folder_of(name)
    question = ask(Decoder(folder), CONTEXT, QUERY, baseline, anchor=0)
    forms: tuple[Form, ...] = ("bias", "weights") if VARIANTS[name].bias else ("weights",)
    for form in forms:
        found = proof(folder, answered(name, question, position, form, encoding))
        assert found.relative_error < 1e-5
        assert found.kl_divergence < 1e-8
        assert found.same_top_token
        assert found.unwritten_relative_error > 1e-2


def test_bias_without_a_parameter_is_refused(folder_of: Callable[[str], Path]) -> None:
    """Δh cannot be written as a bias where the block has none at its output."""
    folder = folder_of("llama")
    question = ask(Decoder(folder), CONTEXT, QUERY)
    with pytest.raises(ValueError, match="no parameter holds"):
        proof(folder, answered("llama", question, -1, "bias", "json"))
