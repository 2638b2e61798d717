"""The engine: one compute thread behind a bounded queue, asked from an event loop."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
import torch

from service.engine import Activations, Engine, Model, Question, Run, Site, Work, drive
from service.engine.engine import ACTIVE
from service.engine.scheduler import Ticket
from service.errors import (
    CannotLoad,
    DeadlineExceeded,
    Draining,
    Loading,
    QueueFull,
    SelfCheckFailed,
)
from tests.engine.asked import SECONDS, in_loop, occupied, raises, reading, running, sound, until


def test_an_answer_is_that_of_the_question_driven_alone(tiny: Model) -> None:
    """`ask` gives what the five-line loop gives, with its timings."""
    expected = drive(tiny, reading(1, 2, 3))

    async def main() -> None:
        with running(sound(tiny)) as engine:
            answer, timings = await engine.ask(reading(1, 2, 3), SECONDS)
            assert torch.equal(answer, expected)
            assert timings.forward > 0.0
            assert engine.model is tiny
            assert (engine.waiting, engine.fatal) == (0, None)
            await until(lambda: engine.idle)

    in_loop(main())


def test_a_question_is_never_written_out(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text of its tensors would hold the event loop for longer than the answer took; also the
    message of an error that is suppressed would be such a text."""

    def refuse(_ticket: Ticket) -> str:
        raise AssertionError("a question was written out")

    async def main() -> None:
        with running(sound(tiny)) as engine:
            await engine.ask(reading(1, 2, 3), SECONDS)
            left = asyncio.create_task(engine.ask(reading(1, 2, 3), SECONDS))
            await asyncio.sleep(0)
            left.cancel()
            with pytest.raises(asyncio.CancelledError):
                await left

    monkeypatch.setattr(Ticket, "__repr__", refuse)
    in_loop(main())


@pytest.mark.parametrize("batching", [True, False])
def test_questions_asked_at_once_are_each_answered_right(tiny: Model, batching: bool) -> None:
    """Forty at once never mix their answers; with batching they share forwards."""
    expected = {i: drive(tiny, reading(1, 2, i)) for i in range(3, 43)}
    shared: list[int] = []

    async def main() -> None:
        engine = sound(tiny, batching=batching, observe=lambda _seconds, runs: shared.append(runs))
        with running(engine):
            answers = await asyncio.gather(
                *(engine.ask(reading(1, 2, i), SECONDS) for i in expected)
            )
            for (answer, _), right in zip(answers, expected.values(), strict=True):
                torch.testing.assert_close(answer, right, rtol=5e-6, atol=5e-6)

    in_loop(main())
    assert sum(shared) == 40
    assert (max(shared) > 1) == batching


def test_while_it_loads_it_says_so(tiny: Model) -> None:
    """Before the model is there it is `Loading`; a question asked meanwhile waits for it."""
    release = threading.Event()

    def load() -> Model:
        assert release.wait(SECONDS)
        return tiny

    async def main() -> None:
        with running(Engine(load, lambda _model: True, threads=1)) as engine:
            with pytest.raises(Loading):
                engine.model
            asked = asyncio.create_task(engine.ask(reading(1, 2), SECONDS))
            await until(lambda: engine.waiting == 1)
            release.set()
            answer, _ = await asked
            assert torch.equal(answer, drive(tiny, reading(1, 2)))
            assert engine.model is tiny

    in_loop(main())


def test_a_check_that_does_not_hold_gives_no_model_out(tiny: Model) -> None:
    """Then it is `SelfCheckFailed`, to be asked again later, and the thread lives."""

    async def main() -> None:
        with running(Engine(lambda: tiny, lambda _model: False, threads=1)) as engine:
            await until(lambda: raises(engine, SelfCheckFailed))
            with pytest.raises(SelfCheckFailed) as refused:
                engine.model
            assert refused.value.retry_after >= 1.0
            assert engine.fatal is None

    in_loop(main())


@pytest.mark.parametrize("part", ["load", "check"])
def test_a_model_that_cannot_be_loaded_is_fatal(tiny: Model, part: str) -> None:
    """The error is kept, what waited is refused, and so is what comes."""
    error = CannotLoad("no such model")
    release = threading.Event()

    def failing(*_arguments: object) -> Any:
        assert release.wait(SECONDS)
        raise error

    async def main() -> None:
        load = failing if part == "load" else lambda: tiny
        with running(Engine(load, failing, threads=1)) as engine:
            asked = asyncio.create_task(engine.ask(reading(1), SECONDS))
            await until(lambda: engine.waiting == 1)
            release.set()
            with pytest.raises(Draining):
                await asked
            await until(lambda: engine.fatal is error)
            with pytest.raises(Draining):
                await engine.ask(reading(1), SECONDS)
            with pytest.raises(SelfCheckFailed, match="no such model"):
                engine.model

    in_loop(main())


def test_a_full_queue_refuses_and_says_when_to_come_again(tiny: Model) -> None:
    """One runs, `queue_size` wait, the next is refused; when they are done it is taken."""

    async def main() -> None:
        with running(sound(tiny, queue_size=2, batching=False)) as engine:
            held, release = await occupied(engine)
            waiting = [asyncio.create_task(engine.ask(reading(i), SECONDS)) for i in (1, 2)]
            await until(lambda: engine.waiting == 2)
            assert not engine.idle
            with pytest.raises(QueueFull) as refused:
                await engine.ask(reading(3), SECONDS)
            assert refused.value.retry_after >= 1.0
            assert refused.value.retry_after == int(refused.value.retry_after)
            release.set()
            assert (await held)[0] == "released"
            for i, task in zip((1, 2), waiting, strict=True):
                assert torch.equal((await task)[0], drive(tiny, reading(i)))
            await engine.ask(reading(3), SECONDS)

    in_loop(main())


def test_what_cannot_be_answered_in_time_is_refused_at_once(tiny: Model) -> None:
    """At the measured pace the work before it takes longer than it may wait: refused with the
    seconds after which it will not, while a more patient question is taken; its leaving counts."""

    async def main() -> None:
        with running(sound(tiny, batching=False)) as engine:
            await engine.ask(reading(1), SECONDS, Work(rows=1))
            held, release = await occupied(engine)
            large = Work(rows=1_000_000, layers=1000)
            waits = asyncio.create_task(engine.ask(reading(2), SECONDS, large))
            await until(lambda: engine.waiting == 1)
            wait = engine.outstanding_seconds
            assert wait > 1.0
            with pytest.raises(QueueFull) as refused:
                await engine.ask(reading(3), wait / 2, Work(rows=1))
            assert wait / 2 <= refused.value.retry_after <= wait / 2 + 1
            patient = asyncio.create_task(engine.ask(reading(3), 2 * wait, Work(rows=1)))
            await until(lambda: engine.waiting == 2)
            waits.cancel()
            await until(lambda: engine.waiting == 1)
            assert engine.outstanding_seconds < wait / 100
            release.set()
            await asyncio.gather(held, patient)
            await until(lambda: engine.idle)
            assert engine.outstanding_seconds == 0.0

    in_loop(main())


def test_a_thread_that_does_not_move_is_told(tiny: Model) -> None:
    """Seconds without a sign of life grow while one question keeps the thread, and are none while
    it has nothing to do."""

    async def main() -> None:
        with running(sound(tiny)) as engine:
            await until(lambda: engine.checked)
            await asyncio.sleep(0.05)
            assert engine.stuck_for == 0.0
            held, release = await occupied(engine)
            await until(lambda: engine.stuck_for > 0.1)
            release.set()
            await held
            await until(lambda: engine.stuck_for == 0.0)

    in_loop(main())


def test_with_batching_several_are_under_way(tiny: Model) -> None:
    """Up to the number under way nothing waits, so a queue of none takes as many at once."""

    async def main() -> None:
        with running(sound(tiny, queue_size=0)) as engine:
            held, release = await occupied(engine)
            tasks: list[asyncio.Task[Any]] = [held]
            tasks += [
                asyncio.create_task(engine.ask(reading(i), SECONDS)) for i in range(ACTIVE - 1)
            ]
            await asyncio.sleep(0.01)
            with pytest.raises(QueueFull):
                await engine.ask(reading(1), SECONDS)
            release.set()
            await asyncio.gather(*tasks)

    in_loop(main())


def test_who_waits_too_long_expires(tiny: Model) -> None:
    """A question whose time ends in the queue gets that error and never runs."""

    async def main() -> None:
        forwards: list[int] = []
        engine = sound(tiny, batching=False, observe=lambda _seconds, runs: forwards.append(runs))
        with running(engine):
            held, release = await occupied(engine)
            late = asyncio.create_task(engine.ask(reading(1), 0.02))
            await until(lambda: engine.waiting == 1)
            await asyncio.sleep(0.05)
            release.set()
            with pytest.raises(DeadlineExceeded):
                await late
            await held
            assert forwards == []

    in_loop(main())


def test_a_caller_who_leaves_costs_nothing(tiny: Model) -> None:
    """A cancelled question that waits is dropped unbegun; the next one is answered."""
    started: list[int] = []

    def noting() -> Question[None]:
        started.append(1)
        yield []

    async def main() -> None:
        with running(sound(tiny, batching=False)) as engine:
            held, release = await occupied(engine)
            gone = asyncio.create_task(engine.ask(noting(), SECONDS))
            await until(lambda: engine.waiting == 1)
            gone.cancel()
            with pytest.raises(asyncio.CancelledError):
                await gone
            release.set()
            await held
            answer, _ = await engine.ask(reading(1, 2), SECONDS)
            assert torch.equal(answer, drive(tiny, reading(1, 2)))
            assert started == []

    in_loop(main())


def test_draining_ends_what_runs_and_takes_no_more(tiny: Model) -> None:
    """What is under way is still answered, a later question is refused, closing twice is fine."""

    async def main() -> None:
        engine = sound(tiny)
        engine.start()
        held, release = await occupied(engine)
        engine.draining = True
        with pytest.raises(Draining) as refused:
            await engine.ask(reading(1), SECONDS)
        assert refused.value.retry_after >= 1.0
        release.set()
        assert (await held)[0] == "released"
        for _ in range(2):
            await asyncio.to_thread(engine.close)
        assert engine.idle
        with pytest.raises(Draining):
            await engine.ask(reading(1), SECONDS)

    in_loop(main())


def test_close_refuses_what_runs_and_what_waits(tiny: Model) -> None:
    """Before its next block the thread ends; nobody is left without an answer."""
    begun, release = threading.Event(), threading.Event()
    forwards: list[int] = []

    def long() -> Question[None]:
        begun.set()
        assert release.wait(SECONDS)
        yield [Run([1, 2], [0, 1], {Site(2, "resid_post"): [1]})]

    async def main() -> None:
        engine = sound(tiny, batching=False, observe=lambda _seconds, runs: forwards.append(runs))
        engine.start()
        runs = asyncio.create_task(engine.ask(long(), SECONDS))
        await until(begun.is_set)
        waits = asyncio.create_task(engine.ask(reading(1), SECONDS))
        await until(lambda: engine.waiting == 1)
        closing = asyncio.create_task(asyncio.to_thread(engine.close))
        await until(lambda: engine.draining)
        await asyncio.sleep(0.05)
        release.set()
        await closing
        for task in (runs, waits):
            with pytest.raises((Draining, DeadlineExceeded)):
                await task
        assert engine.idle
        assert forwards == []

    in_loop(main())


def test_the_thread_computes_in_inference_mode(tiny: Model) -> None:
    """Inference mode is a thread's own, and the compute thread has entered it."""

    def question() -> Question[tuple[bool, str]]:
        answers: list[Activations] = list((yield []))
        assert answers == []
        return torch.is_inference_mode_enabled(), threading.current_thread().name

    async def main() -> None:
        with running(sound(tiny)) as engine:
            assert (await engine.ask(question(), SECONDS))[0] == (True, "compute")

    in_loop(main())


def test_an_error_of_a_question_climbs_to_its_caller(tiny: Model) -> None:
    """As it is, and the next question is answered."""
    error = ArithmeticError("mine")

    def question() -> Question[None]:
        yield []
        raise error

    async def main() -> None:
        with running(sound(tiny)) as engine:
            with pytest.raises(ArithmeticError) as climbed:
                await engine.ask(question(), SECONDS)
            assert climbed.value is error
            assert torch.equal((await engine.ask(reading(7), SECONDS))[0], drive(tiny, reading(7)))

    in_loop(main())
