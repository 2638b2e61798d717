"""Histories: runs that grow by some rows at a time, and compute only the new ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.pairs import Form
from service.engine import (
    Activations,
    Fixed,
    Follow,
    History,
    Model,
    Question,
    Run,
    Site,
    drive,
    fetch,
    load,
    plan,
    scheduler,
)
from service.engine.graphs import Graphs
from service.engine.pack import Filling
from service.engine.prefixes import Prefixes
from service.engine.question import AnswerSize, distinct_rows
from service.engine.scheduler import Ticket
from service.engine.walk import forward
from service.engine.walk import walk as real_walk
from service.errors import NonFiniteActivation, OutOfMemory
from tests.analysis.subjects import Subject
from tests.engine.desk import Desk, asking
from tests.engine.made import every_site, relative, with_nan, worst
from tests.engine.static import updates_of
from tests.engine.test_layouts import padded
from tests.engine.test_read_backs import operators

IDS = tuple(5 + 11 * i % 250 for i in range(20))
PROMPT = 6
FAMILIES = ("gpt2", "llama", "qwen2-windows", "gemma3", "neox-parallel")
BOUNDS = [(torch.float32, 5e-6), (torch.float64, 1e-12)]


def reading(
    model: Model,
    count: int,
    history: History | None = None,
    dtype: torch.dtype | None = None,
    ids: Sequence[int] = IDS,
) -> Run:
    """A run of the first ids that reads every site at its last row."""
    sites = every_site(model, [count - 1])
    return Run(ids[:count], range(count), sites, dtype, history=history)


def short(count: int, history: History | None = None, ids: Sequence[int] = IDS) -> Run:
    """A run of the first ids that reads one site at its last row."""
    return Run(ids[:count], range(count), {Site(2, "resid_post"): [count - 1]}, history=history)


def grown(
    model: Model, counts: Sequence[int], begins: int, dtype: torch.dtype | None, tree: Prefixes
) -> list[int]:
    """Grow a run and compare each step with a run of its own; returns the computed rows."""
    history, computed = History(begins, len(IDS)), []
    bound = 1e-12 if dtype == torch.float64 else 5e-6
    for count in counts:
        before = tree.misses
        (read,) = forward(model, [reading(model, count, history, dtype)], prefixes=tree)
        computed.append(tree.misses - before)
        assert worst(read, forward(model, [reading(model, count, None, dtype)])[0]) <= bound
    tree.forget([history])
    return computed


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_growing_run_equals_runs_of_its_whole_text(
    name: str, dtype: torch.dtype, variant_of: Callable[[str], Subject]
) -> None:
    """With any rows shared, cached or not, each step reads what a run of all rows reads, and
    computes only the new rows."""
    model, counts = variant_of(name).model, (6, 7, 8, 12, 13)
    for budget in (0, 1 << 20):
        for begins in (0, 3, 5):
            tree = Prefixes(budget, model.dtype)
            assert grown(model, counts, begins, dtype, tree) == [6, 1, 1, 4, 1]
            cached = begins if budget and dtype == model.dtype else 0
            assert grown(model, counts, begins, dtype, tree) == [6 - cached, 1, 1, 4, 1]
            assert tree.hits == cached
            assert (tree.bytes > 0) == (cached > 0)
            tree.clear()
            assert tree.bytes == 0


def test_history_is_one_segment_of_its_capacity(tiny: Model) -> None:
    """Memory is allocated once for the capacity, is counted, and is freed when the history is
    forgotten, together with the rows before it."""
    tree, history = Prefixes(0), History(PROMPT, 10)
    row = 3 * 2 * 32 * 4
    for count in range(PROMPT + 1, PROMPT + 11):
        forward(tiny, [short(count, history)], prefixes=tree)
        assert tree.bytes == (PROMPT + 10) * row
        assert tree.clear() == 0
    with pytest.raises(ValueError, match="room for 10"):
        short(PROMPT + 11, history)
    tree.forget([history])
    assert tree.bytes == 0
    assert not tree._kept
    assert not any(tree._roots.values())


def test_cache_evicts_neither_a_history_nor_the_rows_before_it(tiny: Model) -> None:
    """Other runs fill a small cache, and each step still computes one row; what the cache holds
    does not make room for the history."""
    row = 3 * 2 * 32 * 4
    tree, history = Prefixes(12 * row), History(PROMPT, 10)
    forward(tiny, [short(PROMPT + 1, history)], prefixes=tree)
    for step in range(2, 9):
        others = [short(8, ids=[100 + 7 * step + i for i in range(8)])]
        forward(tiny, others, prefixes=tree)
        before = tree.misses
        (read,) = forward(tiny, [short(PROMPT + step, history)], prefixes=tree)
        assert tree.misses == before + 1
        assert worst(read, forward(tiny, [short(PROMPT + step)])[0]) <= 5e-6
        assert tree.bytes == (PROMPT + 10 + 7) * row
    tree.forget([history])
    assert tree.bytes <= 12 * row


def test_static_layout_prefills_a_history(tiny: Model) -> None:
    """In the layout of a GPU, histories are filled in padded groups and then grow."""
    tree = Prefixes(0)
    histories = [History(begins, 14) for begins in (0, 4)]
    for count in (6, 7, 8):
        runs = [reading(tiny, count, history) for history in histories]
        for read in padded(tiny, runs, tree):
            assert worst(read, forward(tiny, [reading(tiny, count)])[0]) <= 5e-6


def patched(model: Model, count: int, form: Form, histories: Sequence[History | None]) -> Run:
    """A run of the last ids whose last row follows that of the run of all ids, float64."""
    mine, theirs = histories
    source = reading(model, count, theirs, torch.float64)
    base = Run(IDS[3:count], range(3, count), every_site(model, [count - 4]), torch.float64)
    return replace(base, patch=Follow(source, count - 1, count - 4, form=form), history=mine)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("form", ["bias", "weights"])
def test_patched_history_keeps_the_rows_of_earlier_patches(
    name: str, form: Form, variant_of: Callable[[str], Subject]
) -> None:
    """A run whose new row follows the run with context has the values with context at every step,
    whatever patches the earlier rows had, and both runs compute one row a step."""
    model, tree = variant_of(name).model, Prefixes(0)
    mine, theirs = History(0, len(IDS)), History(4, len(IDS))
    points = ("mlp_act", "resid_post")
    parted = 0.0
    for count in (9, 10, 11, 14):
        before = tree.misses
        run = patched(model, count, form, (mine, theirs))
        assert isinstance(run.patch, Follow)
        context, read = forward(model, [run.patch.source, run], prefixes=tree)
        assert tree.misses - before == {9: 9 + 6, 14: 6}.get(count, 2)
        for site in [site for site in read if site.point in points]:
            assert relative(read[site], context[site]) <= 1e-12
        # Under one patch for all rows the stream before attention differs.
        (fresh,) = forward(model, [patched(model, count, form, (None, None))])
        deepest = Site(model.n_layers - 1, "attn_out")
        parted = max(parted, relative(read[deepest], fresh[deepest]))
        (alone,) = forward(model, [reading(model, count, None, torch.float64)])
        assert worst(context, alone) <= 1e-12
    assert parted > 1e-6
    tree.forget([mine, theirs])
    assert tree.bytes == 0


def test_static_patch_acts_on_a_history_as_on_the_whole_run(tiny: Model) -> None:
    """Under a constant patch a growing run reads what a patched run of all rows reads, and the
    plain run that comes last in its pack stays plain."""
    patch, tree, history = Fixed(updates_of(tiny, 1)), Prefixes(0), History(0, 20)
    plain = reading(tiny, 4, dtype=torch.float64, ids=IDS[::-1])
    for count in (5, 6, 9):
        run = replace(reading(tiny, count, dtype=torch.float64), patch=patch)
        found = forward(tiny, [replace(run, history=history), plain], prefixes=tree)
        for read, one in zip(found, (run, plain), strict=True):
            assert worst(read, forward(tiny, [one])[0]) <= 1e-12


def test_histories_share_a_pack_with_other_runs(tiny: Model) -> None:
    """Two histories after one prompt, patched ones, one that follows and plain runs grow in one
    pack each step as each does alone."""
    tree = Prefixes(1 << 20, torch.float64)
    others = [(*IDS[:PROMPT], *(40 + i + 9 * j for j in range(14))) for i in range(2)]
    handles = [History(PROMPT, 14), History(PROMPT - 1, 14), History(0, 20), History(0, 20)]
    wide = torch.float64
    for step in range(1, 6):
        count = PROMPT + step
        runs = [
            reading(tiny, count, handles[0], wide, others[0]),
            reading(tiny, count, handles[1], wide, others[1]),
            replace(reading(tiny, count, handles[2], wide), patch=Fixed(updates_of(tiny, 1))),
            replace(
                reading(tiny, step, handles[3], wide, others[1][PROMPT:]),
                patch=Fixed(updates_of(tiny, 2), "materialized"),
            ),
            reading(tiny, count - 1, None, wide, others[0]),
            patched(tiny, count, "bias", (None, None)),
        ]
        for run, read in zip(runs, forward(tiny, runs, prefixes=tree), strict=True):
            assert worst(read, forward(tiny, [replace(run, history=None)])[0]) <= 1e-12
    tree.forget(handles)


steps = st.lists(
    st.tuples(st.sampled_from(["one", "two", "patched", "plain"]), st.integers(1, 4)),
    min_size=1,
    max_size=4,
    unique_by=lambda step: step[0],
)


@settings(derandomize=True, max_examples=15, deadline=None)
@given(st.lists(steps, max_size=6), st.integers(0, 5), st.sampled_from([0, 4, 1000]))
def test_any_growth_reads_the_same_as_whole_runs(
    tiny: Model, packs: list[list[tuple[str, int]]], begins: int, rows: int
) -> None:
    """Histories that grow by any rows in any packs read what whole runs read, compute each row
    once, and leave nothing."""
    tree = Prefixes(rows * 3 * 2 * 32 * 8, torch.float64)
    handles = {"one": History(begins, 40), "two": History(5, 40), "patched": History(0, 40)}
    lengths, text = dict.fromkeys(("one", "two", "patched", "plain"), 6), IDS * 2
    patch = Fixed(updates_of(tiny, 1))
    for pack in packs:
        runs = []
        for name, more in pack:
            lengths[name] += more
            run = reading(tiny, lengths[name], handles.get(name), torch.float64, text)
            runs.append(replace(run, patch=patch if name == "patched" else None))
        found = forward(tiny, runs, prefixes=tree)
        for run, read in zip(runs, found, strict=True):
            assert worst(read, forward(tiny, [replace(run, history=None)])[0]) <= 1e-12
    grown = {name for pack in packs for name, _ in pack} - {"plain"}
    for name in grown:
        before = tree.misses
        run = reading(tiny, lengths[name] + 1, handles[name], torch.float64, text)
        forward(tiny, [replace(run, patch=patch if name == "patched" else None)], prefixes=tree)
        assert tree.misses == before + 1
    tree.forget(handles.values())
    tree.clear()
    assert tree.bytes == 0
    assert not any(tree._roots.values())


def test_runs_that_do_not_continue_their_history_are_refused(tiny: Model) -> None:
    """Other rows, another depth or dtype, and two continuations at once raise `ValueError`, and
    leave the history as it was."""
    tree, history = Prefixes(0), History(3, 10)
    forward(tiny, [short(6, history)], prefixes=tree)
    other = short(7, history, (*IDS[:5], 99, 98))
    shallow = Run(IDS[:7], range(7), {Site(1, "resid_post"): [6]}, history=history)
    wide = Run(IDS[:7], range(7), {Site(2, "resid_post"): [6]}, torch.float64, history=history)
    two = [short(7, history), short(7, history, (*IDS[:6], 99))]
    for runs in ([other], [shallow], [wide], [short(5, history)], two):
        with pytest.raises(ValueError, match="histor"):
            forward(tiny, [short(4), *runs], prefixes=tree)
    before = tree.misses
    forward(tiny, [short(7, history)], prefixes=tree)
    assert tree.misses == before + 1
    tree.forget([history])
    assert tree.bytes == 0
    assert not any(tree._roots.values())


def test_malformed_histories_are_refused(tiny: Model) -> None:
    """A history needs rows of its own, room for them, and attention in the last layer."""
    run = short(6)
    for history in (History(6, 10), History(2, 3)):
        with pytest.raises(ValueError, match="rows of a history"):
            replace(run, history=history)
    with pytest.raises(ValueError, match="unpatched"):
        replace(run, history=History(1, 10), patch=Fixed({}))
    with pytest.raises(ValueError, match="attention"):
        Run(IDS[:6], range(6), {Site(2, "ln_1_out"): [5]}, history=History(0, 10))


def test_distinct_rows_counts_the_rows_of_a_history_once() -> None:
    """The rows before a history are shared, its own are not."""
    one, two = History(3, 10), History(0, 10)
    source = short(6, one)
    follow = replace(short(4, two), patch=Follow(source, 5, 3))
    assert distinct_rows([source, follow, short(6)]) == 3 + 3 + 4 + 3
    assert distinct_rows([short(6, two), short(6)]) == 6 + 6


@pytest.fixture(scope="module")
def deep(tiny_folder: Path) -> Iterator[Model]:
    """The random GPT-2, its matrices not packed: packing pads some numbers of rows."""
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode(False):
        patch.setattr("service.engine.layers.PACKED", False)
        yield load(str(tiny_folder), revision=None, device="cpu", dtype="float32")


def test_operators_of_a_token_do_not_grow_with_the_tokens_before(deep: Model) -> None:
    """Each decoded token takes as many operators as the first, plain and patched."""
    for patch in (None, Fixed(updates_of(deep, 1))):
        tree, history = Prefixes(0), History(0 if patch else PROMPT, 14 + PROMPT)
        forward(deep, [replace(short(PROMPT + 1, history), patch=patch)], prefixes=tree)
        counts = {
            operators(deep, [replace(short(count, history), patch=patch)], tree)
            for count in range(PROMPT + 2, PROMPT + 14)
        }
        assert len(counts) == 1


Growing = Question[list[torch.Tensor]]


def growing(counts: Sequence[int], begins: int = PROMPT, ids: Sequence[int] = IDS) -> Growing:
    """A question that grows a run and returns what each step read."""
    history = History(begins, len(IDS))
    found: list[torch.Tensor] = []
    for count in counts:
        (read,) = yield [short(count, history, ids)]
        found += read.values()
    return found


def alone(model: Model, count: int, ids: Sequence[int] = IDS) -> torch.Tensor:
    """What a run of all rows reads."""
    (values,) = forward(model, [short(count, None, ids)])[0].values()
    return values


STEPS = range(PROMPT + 1, PROMPT + 6)


def test_drive_and_scheduler_grow_runs(tiny: Model) -> None:
    """Both ways of answering a question keep its histories until it ends, and nothing after."""
    answer = drive(tiny, growing(STEPS))
    desk = Desk(tiny)
    desk.admit("a", growing(STEPS))
    desk.admit("b", growing(STEPS, 2))
    desk.turns()
    for found in (answer, desk.ended["a"], desk.ended["b"]):
        for count, values in zip(STEPS, found, strict=True):
            assert relative(values, alone(tiny, count)) <= 5e-6
    tree = desk.scheduler.prefixes
    assert desk.forwards == [2] * 5
    assert tree.misses == PROMPT + 2 * 5 + (PROMPT - 2)
    assert tree.bytes == 0
    assert plan(tiny, growing(STEPS), AnswerSize(), later_rows=4).work.rows == PROMPT + 1 + 4


@pytest.mark.parametrize("end", ["cancelled", "failed", "aborted"])
def test_end_of_a_question_frees_its_histories(tiny: Model, end: str) -> None:
    """A question that is cancelled, fails, or is aborted with the scheduler leaves no memory."""

    def failing() -> Growing:
        yield from growing(STEPS[:2])
        raise LookupError("planted")

    desk = Desk(tiny)
    tree = desk.scheduler.prefixes
    ticket = desk.admit("a", failing() if end == "failed" else growing(STEPS))
    desk.scheduler.turn()
    assert tree.bytes > 0
    ticket.cancelled = end == "cancelled"
    if end == "aborted":
        desk.scheduler.abort(LookupError("planted"))
    desk.turns()
    assert isinstance(desk.ended["a"], Exception)
    assert tree.bytes == 0
    assert not tree._histories
    assert not any(tree._roots.values())


def test_plan_whose_runs_cannot_be_placed_ends_with_its_error(tiny: Model) -> None:
    """A question whose first runs are two continuations of one history ends with `ValueError`."""
    desk, history, ended = Desk(tiny), History(0, 10), []
    question = asking([short(4, history), short(4, history, IDS[1:])])
    made = plan(tiny, question, AnswerSize())
    desk.scheduler.admit(Ticket(made, float("inf"), lambda *end: ended.append(end)))
    assert not desk.scheduler.active
    assert [type(error) for _, error in ended] == [ValueError]
    assert desk.scheduler.prefixes.bytes == 0


@pytest.fixture(scope="module")
def spoilt(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The random GPT-2 with NaN in the embedding of token 0."""
    folder = with_nan(tiny_folder, tmp_path_factory.mktemp("nan") / "it", "transformer.wte.weight")
    return load(str(folder), revision=None, device="cpu", dtype="float32")


def test_nan_of_another_question_does_not_damage_a_history(spoilt: Model) -> None:
    """A question whose rows hold NaN fails in the first, a middle or the last step of another
    question, whose history goes back and is computed again alone."""
    for step in (0, 2, 4):
        desk = Desk(spoilt)
        desk.admit("good", growing(STEPS))
        for _ in range(step):
            desk.scheduler.turn()
        desk.admit("bad", asking([short(3, ids=(0, 7, 8))]))
        desk.turns()
        assert isinstance(desk.ended["bad"], NonFiniteActivation)
        for count, values in zip(STEPS, desk.ended["good"], strict=True):
            assert relative(values, alone(spoilt, count)) <= 5e-6
        assert desk.scheduler.prefixes.bytes == 0


def test_question_goes_on_after_its_own_nan(spoilt: Model) -> None:
    """A history that has read NaN goes back, and its question grows it by other rows."""

    def recovering() -> Growing:
        history = History(3, 10)
        yield [short(6, history)]
        (bad,) = yield [short(7, history, (*IDS[:6], 0))]
        with pytest.raises(NonFiniteActivation):
            fetch(list(bad.values()), bad.conditions)
        (read,) = yield [short(8, history)]
        return list(read.values())

    desk = Desk(spoilt)
    desk.admit("a", recovering())
    desk.turns()
    for found in (desk.ended["a"], drive(spoilt, recovering())):
        assert relative(found[0], alone(spoilt, 8)) <= 5e-6
    assert desk.scheduler.prefixes.misses == 6 + 1 + 2


def test_lack_of_memory_leaves_a_history_as_it_was(
    tiny: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pack of two questions that runs out of memory in its second block is computed again, each
    question alone; neither history is damaged."""
    walks, blocks = [0], [0]

    def walk(
        model: Model,
        filling: Filling,
        tree: Prefixes,
        proceed: Callable[[], None],
        graphs: Graphs | None,
    ) -> list[Activations]:
        walks[0] += 1

        def failing() -> None:
            proceed()
            blocks[0] += walks[0] == 3
            if walks[0] == 3 and blocks[0] == 2:
                raise MemoryError

        return real_walk(model, filling, tree, failing, graphs)

    monkeypatch.setattr(scheduler, "walk", walk)
    desk = Desk(tiny)
    desk.admit("a", growing(STEPS))
    desk.admit("b", growing(STEPS, 0, IDS[2:]))
    desk.turns()
    assert desk.forwards == [2, 2, 1, 1, 2, 2]
    for name, ids in (("a", IDS), ("b", IDS[2:])):
        assert not isinstance(desk.ended[name], OutOfMemory)
        for count, values in zip(STEPS, desk.ended[name], strict=True):
            assert relative(values, alone(tiny, count, ids)) <= 5e-6
    assert desk.scheduler.prefixes.bytes == 0
