"""Activations of pretrained models, compared with the float64 oracle at every hook point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.oracle import Prompt, Trace
from tests.oracle.checkpoint import Array
from tests.oracle.written import values
from tests.real.subject import PAIRS, Rows, Subject, prompt_of, row_errors

pytestmark = pytest.mark.slow
BEYOND = 88
"""Tokens of the long prompt beyond the windows of the model, if it has any."""
WRONG = 1e-3
"""Least relative error of another token's row."""


def answered(subject: Subject, ids: Sequence[int], positions: list[int]) -> Rows:
    """Every hook point of every layer at these positions, over HTTP."""
    points = [point["name"] for point in subject.described["hook_points"]]
    body: dict[str, Any] = {"hook_points": points, "positions": positions, "encoding": "base64"}
    (prompt,) = subject.ask("activations", prompts=[list(ids)], **body)["prompts"]
    return {
        (one["layer"], one["hook_point"]): values(one["values"]) for one in prompt["activations"]
    }


def compare(subject: Subject, prompt: Prompt, truth: Trace, positions: list[int]) -> None:
    """Assert that each row of every hook point is within its bound, and a neighbour's is not."""
    bounds, found = subject.bounds(prompt, truth), answered(subject, prompt.ids, positions)
    assert found.keys() == bounds.keys()
    assert len(found) == subject.oracle.n_layers * len(subject.oracle.hook_points)
    excess = {
        at: (row_errors(rows, truth[at][positions]) / bounds[at][positions]).max()
        for at, rows in found.items()
    }
    worst = max(excess, key=lambda at: float(excess[at]))
    assert excess[worst] <= 1, worst
    apart = [np.sort(neighbour_errors(truth[at])) for at in found]
    assert min(errors[len(errors) // 2] for errors in apart) > WRONG


def neighbour_errors(rows: Array) -> Array:
    """The relative error of each row where the one before it stands in its place."""
    return row_errors(rows[:-1], rows[1:])


@pytest.mark.parametrize("pair", PAIRS)
def test_every_hook_point_equals_the_oracles(subject: Subject, pair: str) -> None:
    """Each row of each hook point of each layer agrees with float64."""
    prompt = prompt_of(subject.ids("".join(PAIRS[pair])))
    truth = subject.oracle.run(prompt.ids)
    compare(subject, prompt, truth, list(range(len(prompt.ids))))


def test_long_prompts_equal_the_oracles(subject: Subject) -> None:
    """So does a prompt that is longer than Gemma's windows, which then cut off its beginning."""
    text = subject.ids(" ".join(context + query for context, query in PAIRS.values()))
    count = BEYOND + max(block.window or 0 for block in subject.oracle.blocks)
    prompt = prompt_of((text * count)[:count])
    truth = subject.oracle.run(prompt.ids)
    compare(subject, prompt, truth, [0, 1, count // 2, count - 30, count - 2, count - 1])
