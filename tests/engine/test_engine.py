"""The engine: one compute thread behind a bounded queue, asked from an event loop."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
import torch

from service.engine import Activations, Engine, Model, Plan, Question, Run, Site, Work, drive
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


def test_ask_returns_the_same_answer_as_drive(tiny: Model) -> None:
    """`ask` returns the same answer as `drive`, with its timings."""
    expected = drive(tiny, reading(1, 2, 3))

    async def main() -> None:
        with running(sound(tiny)) as engine:
            answer, timings = await engine.ask(Plan(reading(1, 2, 3)), SECONDS)
            assert torch.equal(answer, expected)
            assert timings.forward > 0.0
            assert engine.model is tiny
            assert (engine.waiting, engine.fatal) == (0, None)
            await until(lambda: engine.idle)

    in_loop(main())


def test_tickets_are_never_formatted(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """No ticket is formatted, not even in a suppressed error, because its tensors' text would block
    the event loop."""

    def refuse(_ticket: Ticket) -> str:
        raise AssertionError("a question was written out")

    async def main() -> None:
        with running(sound(tiny)) as engine:
            await engine.ask(Plan(reading(1, 2, 3)), SECONDS)
            left = asyncio.create_task(engine.ask(Plan(reading(1, 2, 3)), SECONDS))
            await asyncio.sleep(0)
            left.cancel()
            with pytest.raises(asyncio.CancelledError):
                await left

    monkeypatch.setattr(Ticket, "__repr__", refuse)
    in_loop(main())


@pytest.mark.parametrize("batching", [True, False])
def test_concurrent_questions_get_their_own_answers(tiny: Model, batching: bool) -> None:
    """Forty concurrent questions each get their own answer, and only with batching do they share
    forwards."""
    expected = {i: drive(tiny, reading(1, 2, i)) for i in range(3, 43)}
    shared: list[int] = []

    async def main() -> None:
        engine = sound(tiny, batching=batching, observe=lambda _seconds, runs: shared.append(runs))
        with running(engine):
            answers = await asyncio.gather(
                *(engine.ask(Plan(reading(1, 2, i)), SECONDS) for i in expected)
            )
            for (answer, _), right in zip(answers, expected.values(), strict=True):
                torch.testing.assert_close(answer, right, rtol=5e-6, atol=5e-6)

    in_loop(main())
    assert sum(shared) == 40
    assert (max(shared) > 1) == batching


def test_model_raises_loading_until_loaded(tiny: Model) -> None:
    """While the model loads, `model` raises `Loading`, and a question asked meanwhile waits for
    it."""
    release = threading.Event()

    def load() -> Model:
        assert release.wait(SECONDS)
        return tiny

    async def main() -> None:
        with running(Engine(load, lambda _model: True, threads=1)) as engine:
            with pytest.raises(Loading):
                engine.model
            asked = asyncio.create_task(engine.ask(Plan(reading(1, 2)), SECONDS))
            await until(lambda: engine.waiting == 1)
            release.set()
            answer, _ = await asked
            assert torch.equal(answer, drive(tiny, reading(1, 2)))
            assert engine.model is tiny

    in_loop(main())


def test_failed_self_check_withholds_the_model(tiny: Model) -> None:
    """A failed self-check raises `SelfCheckFailed` with a `retry_after`, and the thread goes on."""

    async def main() -> None:
        with running(Engine(lambda: tiny, lambda _model: False, threads=1)) as engine:
            await until(lambda: raises(engine, SelfCheckFailed))
            with pytest.raises(SelfCheckFailed) as refused:
                engine.model
            assert refused.value.retry_after >= 1.0
            assert engine.fatal is None

    in_loop(main())


@pytest.mark.parametrize("part", ["load", "check"])
def test_load_error_is_fatal_and_refuses_questions(tiny: Model, part: str) -> None:
    """The error is kept as `fatal`, and waiting and later questions are refused with `Draining`."""
    error = CannotLoad("no such model")
    release = threading.Event()

    def failing(*_arguments: object) -> Any:
        assert release.wait(SECONDS)
        raise error

    async def main() -> None:
        load = failing if part == "load" else lambda: tiny
        with running(Engine(load, failing, threads=1)) as engine:
            asked = asyncio.create_task(engine.ask(Plan(reading(1)), SECONDS))
            await until(lambda: engine.waiting == 1)
            release.set()
            with pytest.raises(Draining):
                await asked
            await until(lambda: engine.fatal is error)
            with pytest.raises(Draining):
                await engine.ask(Plan(reading(1)), SECONDS)
            with pytest.raises(SelfCheckFailed, match="no such model"):
                engine.model

    in_loop(main())


def test_full_queue_refuses_with_retry_after(tiny: Model) -> None:
    """With `queue_size` questions waiting the next is refused with `retry_after`, and is accepted
    later."""

    async def main() -> None:
        with running(sound(tiny, queue_size=2, batching=False)) as engine:
            held, release = await occupied(engine)
            waiting = [asyncio.create_task(engine.ask(Plan(reading(i)), SECONDS)) for i in (1, 2)]
            await until(lambda: engine.waiting == 2)
            assert not engine.idle
            with pytest.raises(QueueFull) as refused:
                await engine.ask(Plan(reading(3)), SECONDS)
            assert refused.value.retry_after >= 1.0
            assert refused.value.retry_after == int(refused.value.retry_after)
            release.set()
            assert (await held)[0] == "released"
            for i, task in zip((1, 2), waiting, strict=True):
                assert torch.equal((await task)[0], drive(tiny, reading(i)))
            await engine.ask(Plan(reading(3)), SECONDS)

    in_loop(main())


def test_question_is_refused_if_the_wait_exceeds_its_deadline(tiny: Model) -> None:
    """A question is refused if the estimated wait exceeds its deadline, and the estimate shrinks
    when a waiting question is cancelled."""

    async def main() -> None:
        with running(sound(tiny, batching=False)) as engine:
            await engine.ask(Plan(reading(1), work=Work(rows=1)), SECONDS)
            held, release = await occupied(engine)
            large = Work(rows=1_000_000, layers=1000)

            def short() -> Plan[torch.Tensor]:
                return Plan(reading(3), work=Work(rows=1))

            waits = asyncio.create_task(engine.ask(Plan(reading(2), work=large), SECONDS))
            await until(lambda: engine.waiting == 1)
            wait = engine.outstanding_seconds
            assert wait > 1.0
            with pytest.raises(QueueFull) as refused:
                await engine.ask(short(), wait / 2)
            assert wait / 2 <= refused.value.retry_after <= wait / 2 + 1
            patient = asyncio.create_task(engine.ask(short(), 2 * wait))
            await until(lambda: engine.waiting == 2)
            waits.cancel()
            await until(lambda: engine.waiting == 1)
            assert engine.outstanding_seconds < wait / 100
            release.set()
            await asyncio.gather(held, patient)
            await until(lambda: engine.idle)
            assert engine.outstanding_seconds == 0.0

    in_loop(main())


def test_stuck_for_counts_seconds_without_progress(tiny: Model) -> None:
    """`stuck_for` grows while one question occupies the thread and is 0 while the thread is
    idle."""

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


def test_batching_accepts_several_questions_without_a_queue(tiny: Model) -> None:
    """Up to `ACTIVE` questions are accepted at once even with a queue size of 0."""

    async def main() -> None:
        with running(sound(tiny, queue_size=0)) as engine:
            held, release = await occupied(engine)
            tasks: list[asyncio.Task[Any]] = [held]
            tasks += [
                asyncio.create_task(engine.ask(Plan(reading(i)), SECONDS))
                for i in range(ACTIVE - 1)
            ]
            await asyncio.sleep(0.01)
            with pytest.raises(QueueFull):
                await engine.ask(Plan(reading(1)), SECONDS)
            release.set()
            await asyncio.gather(*tasks)

    in_loop(main())


def test_deadline_passed_in_the_queue_raises(tiny: Model) -> None:
    """A question whose deadline passes in the queue raises `DeadlineExceeded` and never runs."""

    async def main() -> None:
        forwards: list[int] = []
        engine = sound(tiny, batching=False, observe=lambda _seconds, runs: forwards.append(runs))
        with running(engine):
            held, release = await occupied(engine)
            late = asyncio.create_task(engine.ask(Plan(reading(1)), 0.02))
            await until(lambda: engine.waiting == 1)
            await asyncio.sleep(0.05)
            release.set()
            with pytest.raises(DeadlineExceeded):
                await late
            await held
            assert forwards == []

    in_loop(main())


def test_cancelled_waiting_question_never_starts(tiny: Model) -> None:
    """A waiting question that is cancelled never starts, and the next one is answered."""
    started: list[int] = []

    def noting() -> Question[None]:
        started.append(1)
        yield []

    async def main() -> None:
        with running(sound(tiny, batching=False)) as engine:
            held, release = await occupied(engine)
            gone = asyncio.create_task(engine.ask(Plan(noting()), SECONDS))
            await until(lambda: engine.waiting == 1)
            gone.cancel()
            with pytest.raises(asyncio.CancelledError):
                await gone
            release.set()
            await held
            answer, _ = await engine.ask(Plan(reading(1, 2)), SECONDS)
            assert torch.equal(answer, drive(tiny, reading(1, 2)))
            assert started == []

    in_loop(main())


def test_draining_answers_active_questions_only(tiny: Model) -> None:
    """While draining the active question is answered and new ones are refused; `close` may be
    called twice."""

    async def main() -> None:
        engine = sound(tiny)
        engine.start()
        held, release = await occupied(engine)
        engine.draining = True
        with pytest.raises(Draining) as refused:
            await engine.ask(Plan(reading(1)), SECONDS)
        assert refused.value.retry_after >= 1.0
        release.set()
        assert (await held)[0] == "released"
        for _ in range(2):
            await asyncio.to_thread(engine.close)
        assert engine.idle
        with pytest.raises(Draining):
            await engine.ask(Plan(reading(1)), SECONDS)

    in_loop(main())


def test_close_refuses_active_and_waiting_questions(tiny: Model) -> None:
    """`close` stops before the next block and raises in the active and the waiting question."""
    begun, release = threading.Event(), threading.Event()
    forwards: list[int] = []

    def long() -> Question[None]:
        begun.set()
        assert release.wait(SECONDS)
        yield [Run([1, 2], [0, 1], {Site(2, "resid_post"): [1]})]

    async def main() -> None:
        engine = sound(tiny, batching=False, observe=lambda _seconds, runs: forwards.append(runs))
        engine.start()
        runs = asyncio.create_task(engine.ask(Plan(long()), SECONDS))
        await until(begun.is_set)
        waits = asyncio.create_task(engine.ask(Plan(reading(1)), SECONDS))
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


def test_compute_thread_is_in_inference_mode(tiny: Model) -> None:
    """The compute thread has entered inference mode, which is per thread."""

    def question() -> Question[tuple[bool, str]]:
        answers: list[Activations] = list((yield []))
        assert answers == []
        return torch.is_inference_mode_enabled(), threading.current_thread().name

    async def main() -> None:
        with running(sound(tiny)) as engine:
            assert (await engine.ask(Plan(question()), SECONDS))[0] == (True, "compute")

    in_loop(main())


def test_error_of_a_question_reaches_its_caller(tiny: Model) -> None:
    """An error raised by a question reaches its caller unchanged, and the next question is
    answered."""
    error = ArithmeticError("mine")

    def question() -> Question[None]:
        yield []
        raise error

    async def main() -> None:
        with running(sound(tiny)) as engine:
            with pytest.raises(ArithmeticError) as climbed:
                await engine.ask(Plan(question()), SECONDS)
            assert climbed.value is error
            assert torch.equal(
                (await engine.ask(Plan(reading(7)), SECONDS))[0], drive(tiny, reading(7))
            )

    in_loop(main())


def test_abandoned_question_does_not_slow_the_estimate(tiny: Model) -> None:
    """The time of a question whose caller left is not counted as that of the next answer."""

    async def main() -> None:
        with running(sound(tiny)) as engine:

            async def estimate() -> float:
                """Seconds for one more question."""
                held, release = await occupied(engine)
                found = engine.outstanding_seconds
                release.set()
                await held
                return found

            for _ in range(5):
                await engine.ask(Plan(reading(1)), SECONDS)
            before = await estimate()
            left, release = await occupied(engine)
            left.cancel()
            await asyncio.sleep(0.5)
            release.set()
            await until(lambda: engine.idle)
            await engine.ask(Plan(reading(1)), SECONDS)
            assert 0.0 < await estimate() < 10 * before

    in_loop(main())
