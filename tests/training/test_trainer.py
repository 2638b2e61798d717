"""The schedule of the training, and the resuming of a stopped run."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from training.rows import Sampler
from training.tasks import World
from training.tokenizer import load_tokenizer
from training.trainer import (
    CONSTANT_TOKENS,
    LAST_LR,
    TOKENS,
    WARM_UP_STEPS,
    Trainer,
    learning_rate,
)

BUNDLED = Path("service/checkpoints/bundled")
WORLD = World(
    {"capital": {f"Land{i}": f"City{i}" for i in range(12)}},
    tuple(f"word{i}" for i in range(40)),
    ("§", "7", "ly"),
)
ROWS, LENGTH, STEPS = 2, 48, 4


@pytest.fixture(autouse=True)
def with_gradients() -> Iterator[None]:
    """Enable gradients, which the rest of the suite disables."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def trainer(folder: Path) -> Trainer:
    """Return a trainer with batches of two short rows."""
    sampler = Sampler(np.arange(5000), load_tokenizer(BUNDLED), WORLD, seed=3)
    return Trainer(sampler, folder, ROWS, LENGTH)


@pytest.mark.slow
def test_resumed_run_gives_the_weights_of_an_unstopped_run(tmp_path: Path) -> None:
    """Two steps, a stop and two more steps give the same weights as four steps."""
    whole = trainer(tmp_path / "whole")
    whole.run(STEPS * ROWS * LENGTH)
    trainer(tmp_path / "parts").run(2 * ROWS * LENGTH)
    parts = trainer(tmp_path / "parts")
    assert parts.progress.step == 2
    parts.run(STEPS * ROWS * LENGTH)
    assert parts.progress.step == whole.progress.step == STEPS
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, parts.model.state_dict()[name]), name


def test_elapsed_time_does_not_change_the_next_step(tmp_path: Path) -> None:
    """A run with many recorded seconds takes the same next step as a new run."""
    fresh, slow = trainer(tmp_path / "fresh"), trainer(tmp_path / "slow")
    slow.progress.seconds = 1e5
    assert fresh.take_step() == slow.take_step()


def test_learning_rate_warms_up_stays_and_falls() -> None:
    """The rate rises during warm-up, is 1 until `CONSTANT_TOKENS`, and ends at `LAST_LR`."""
    warm = [learning_rate(step, 0) for step in range(WARM_UP_STEPS)]
    assert all(a < b for a, b in pairwise(warm))
    assert learning_rate(WARM_UP_STEPS, CONSTANT_TOKENS) == 1
    assert learning_rate(10_000, TOKENS) == pytest.approx(LAST_LR)
