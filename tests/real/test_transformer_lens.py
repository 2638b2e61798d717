"""Pretrained models in TransformerLens, under the names that `/v1/model` publishes for it.

Needs the development extra: `pip install "transformer-lens==4.3.*"`; skipped without it.
"""

from __future__ import annotations

import pytest

from tests.engine.test_transformer_lens import hooked
from tests.real.subject import PAIRS, Subject, prompt_of, row_errors

pytestmark = pytest.mark.slow


def test_named_vectors_are_the_oracles(subject: Subject) -> None:
    """Every named vector agrees with float64 at every layer and row, and so do the logits."""
    prompt = prompt_of(subject.ids("".join(PAIRS["capitals"])))
    theirs = hooked(subject.folder, prompt.ids)
    truth = subject.oracle.run(prompt.ids)
    bounds = subject.bounds(prompt, truth)
    worst: dict[str, float] = {}
    for point in subject.described["hook_points"]:
        if (name := point["transformer_lens"]) is None:
            continue
        for layer in range(subject.oracle.n_layers):
            found = theirs[name.format(layer=layer)].flatten(1).double().numpy()
            at = (layer, point["name"])
            excess = row_errors(found, truth[at]) / bounds[at]
            worst[name] = max(worst.get(name, 0.0), float(excess.max()))
    print(worst)
    assert len(worst) == len(subject.oracle.hook_points) - 1
    assert max(worst.values()) <= 1
    assert row_errors(theirs["logits"].double().numpy(), truth.logits).max() <= 5e-6
