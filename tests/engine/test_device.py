"""The device: its memory by kind, its row budget, and its loss."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from service.engine import Model, Plan, Question, Run, load
from service.engine.device import ROW_BUDGETS, weight_bytes
from service.errors import Draining, SelfCheckFailed
from tests.engine.asked import SECONDS, in_loop, reading, running, sound, until


@pytest.mark.parametrize(("dtype", "width"), [("float32", 4), ("bfloat16", 2)])
def test_weights_have_the_bytes_of_the_checkpoint(
    tiny_folder: Path, dtype: str, width: int
) -> None:
    """The bytes of the weights are those of the stored tensors in the resident dtype."""
    model = load(str(tiny_folder), revision=None, device="cpu", dtype=dtype)  # type: ignore[arg-type]
    numbers = sum(one.numel() for one in load_file(tiny_folder / "model.safetensors").values())
    assert weight_bytes(model) == width * numbers


def test_memory_has_the_kinds_of_the_device(tiny: Model) -> None:
    """On a CPU, an engine reports its weights and its prefix cache once it is loaded."""

    async def main() -> None:
        engine = sound(tiny, prefix_cache_bytes=1 << 20)
        assert engine.memory_bytes == {}
        with running(engine):
            await until(lambda: engine.checked)
            await engine.ask(Plan(reading(1, 2, 3)), SECONDS)
            assert engine.prefixes is not None
            held = {"weights": weight_bytes(tiny), "prefix_cache": engine.prefixes.bytes}
            assert engine.memory_bytes == held
            assert held["prefix_cache"] > 0

    in_loop(main())


@pytest.mark.parametrize(("chosen", "rows"), [(0, ROW_BUDGETS["cpu"]), (7, 7)])
def test_row_budget_is_the_devices_unless_one_is_set(tiny: Model, chosen: int, rows: int) -> None:
    """A row budget of 0 is that of the type of device."""

    async def main() -> None:
        with running(sound(tiny, row_budget=chosen)) as engine:
            await until(lambda: engine.checked and engine._scheduler is not None)
            assert engine._scheduler is not None
            assert engine._scheduler.row_budget == rows

    in_loop(main())


def losing() -> Question[None]:
    """A question in whose computation the device is lost."""
    yield [Run([1], [0], {})]
    raise torch.AcceleratorError("CUDA error: unspecified launch failure")


def test_lost_device_ends_the_engine(tiny: Model) -> None:
    """If the device is lost, no request is answered any more, and the engine names the error."""

    async def main() -> None:
        with running(sound(tiny)) as engine:
            await until(lambda: engine.checked)
            asked = [asyncio.ensure_future(engine.ask(Plan(losing()), SECONDS)) for _ in range(2)]
            for error in await asyncio.gather(*asked, return_exceptions=True):
                assert isinstance(error, Draining)
            await until(lambda: engine.fatal is not None)
            assert isinstance(engine.fatal, torch.AcceleratorError)
            with pytest.raises(SelfCheckFailed, match="AcceleratorError"):
                _ = engine.model

    in_loop(main())
