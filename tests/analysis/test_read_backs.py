"""Read-backs: an analysis waits for the device once, and launches equally many operators for
any number of positions.

On a CPU a read-back dispatches nothing, so it is looked for in the code. Operators are counted
outside inference mode, where a composite operator shows its parts and a cast to the same dtype
shows nothing.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import service.analysis
import service.theory
from schemas.weight_updates import Include
from service.analysis import pieces
from service.analysis.activations import activations
from service.analysis.adapters.token import token_adapter
from service.analysis.attributions import attributions
from service.analysis.block_checks import Procedure, block_checks
from service.analysis.model_checks import model_checks
from service.analysis.pairs import Pair, resolve_pair
from service.analysis.self_check import self_check
from service.analysis.trajectories import trajectories
from service.analysis.weight_updates import weight_updates
from service.engine import Activations, Condition, Model, Question, Run, drive, load
from service.engine.layers import PACKED
from service.engine.readback import READ_BACKS
from service.engine.walk import forward
from service.errors import NonFiniteActivation
from service.theory import NonFinite
from tests.analysis.subjects import Subject
from tests.analysis.test_packs import close
from tests.checkpoints import save_tiny

Positions = Literal["last", "all"] | Sequence[int]
LAYERS = 12
MANY, SOME = 64, tuple(range(16))
QUERY = list(range(20, 40))
SPANS = [(i, i + 1) for i in range(6)]
METHODS = {"item", "tolist", "cpu", "numpy", "nonzero"}
CONVERSIONS = {"bool", "float", "int"}
EXEMPT = {"joint_update.py"}
"""The solver of the joint patch decides on the host."""
ON_HOST = {"inputs.py": 4, "weight_updates.py": 1, "model_checks.py": 1}
"""Conversions of values that are no tensors."""
FILES = [
    path
    for package in (service.analysis, service.theory)
    for path in sorted(Path(package.__path__[0]).glob("*.py"))
    if path.name not in EXEMPT
]


@pytest.mark.parametrize("file", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_nothing_reads_a_value_back_but_fetch(file: Path) -> None:
    """No method that waits for the device is called, and no tensor becomes a number of Python."""
    calls = [
        node.func for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)
    ]
    methods = {call.attr for call in calls if isinstance(call, ast.Attribute)}
    assert not methods & METHODS
    names = Counter(call.id for call in calls if isinstance(call, ast.Name))
    converted = sum(names[name] for name in CONVERSIONS)
    assert converted == ON_HOST.get(file.name, 0)


class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operators that reach torch."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        """Count the operator, and run it."""
        self.count += 1
        return func(*args, **(kwargs or {}))


def counted(model: Model, question: Question[Any]) -> tuple[int, int]:
    """The numbers of operators and of read-backs of a question, without its forwards."""
    operators, before = Operators(), READ_BACKS.total
    received: Sequence[Activations] | None = None
    with torch.inference_mode(False), torch.no_grad():
        while True:
            try:
                with operators:
                    runs = next(question) if received is None else question.send(received)
            except StopIteration:
                return operators.count, READ_BACKS.total - before
            outside = READ_BACKS.total
            received = forward(model, runs) if runs else ()
            before += READ_BACKS.total - outside


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A random GPT-2 with twelve layers, whose weights' norms are known already."""
    with torch.inference_mode(False):
        folder = save_tiny(tmp_path_factory.mktemp("deep"), n_layer=LAYERS)
        model = load(str(folder), revision=None, device="cpu", dtype="float32")
    for layer in range(LAYERS):
        assert model.weight_norms[layer]
        assert model.second_weight_norms[layer]
    return model


def pair(
    model: Model, seed: int, positions: Positions, baseline: Literal["matched", "alone"] = "matched"
) -> Pair:
    """A pair whose context depends on a seed."""
    context = [3 + seed, 50, 9, 120, 77, 10 + seed % 7]
    return resolve_pair(model, context, QUERY, baseline, positions)


@pytest.mark.parametrize("include", [(), ("factors",)])
def test_weight_updates_have_sixty_operators_and_a_product_a_layer(
    deep: Model, include: tuple[Include, ...]
) -> None:
    """All layers of a pair take 60 operators, one product per layer, and one read-back; 16
    positions take as many as one.

    oneDNN's product is three operators: rows are padded to a multiple, and cut off again.
    """
    product = 3 if PACKED else 1
    one = counted(deep, weight_updates(deep, [pair(deep, 0, "last")], range(LAYERS), include))
    assert one[0] <= 60 + LAYERS * product
    assert one[1] == 1
    # Sixteen rows need no padding.
    some = counted(deep, weight_updates(deep, [pair(deep, 0, SOME)], range(LAYERS), include))
    assert some == (one[0] - LAYERS * PACKED, 1)


@pytest.mark.parametrize("form", ["bias", "weights"])
@pytest.mark.parametrize(
    "include", [(), ("factors", "bias"), ("factors", "bias", "next_tokens", "split")]
)
def test_operators_hardly_grow_with_pairs(
    deep: Model, include: tuple[Include, ...], form: Literal["bias", "weights"]
) -> None:
    """64 pairs have at most a fifth more operators than one, and one read-back for all parts."""
    pairs = [pair(deep, seed, "last", "alone") for seed in range(MANY)]
    one, many = (
        counted(deep, weight_updates(deep, asked, range(LAYERS), include, form=form))
        for asked in (pairs[:1], pairs)
    )
    assert many[0] <= 1.2 * one[0]
    assert one[1] == many[1] == 1


QUESTIONS: dict[str, Callable[[Model, Positions], Question[Any]]] = {
    "trajectories": lambda model, positions: trajectories(
        model, pair(model, 0, positions), range(LAYERS), SPANS
    ),
    "attributions": lambda model, positions: attributions(
        model, pair(model, 0, positions), range(LAYERS), SPANS
    ),
    "next tokens": lambda model, positions: weight_updates(
        model, [pair(model, 0, positions)], [3], ["next_tokens"]
    ),
    "split": lambda model, positions: weight_updates(
        model, [pair(model, 0, positions, "alone")], range(LAYERS), ["split"]
    ),
    "reuse": lambda model, positions: weight_updates(
        model,
        [pair(model, 0, positions)],
        range(LAYERS),
        [],
        probes=[[pair(model, 1, "last"), pair(model, 2, "last")]],
    ),
    "block checks": lambda model, positions: block_checks(
        model, pair(model, 0, positions), range(LAYERS), Procedure(apply="factored")
    ),
    "sequential checks": lambda model, positions: block_checks(
        model, pair(model, 0, positions), [0, 5], Procedure(stream="sequential", controls=False)
    ),
    "model checks": lambda model, positions: model_checks(
        model, pair(model, 0, positions), range(LAYERS), Procedure(apply="factored")
    ),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_operators_do_not_depend_on_positions(deep: Model, name: str) -> None:
    """Each analysis launches at most as much for 16 positions as for one, and reads back once.

    Runs of the sequential stream are one for each position, whose vectors are slices.
    """
    one, some = (counted(deep, QUESTIONS[name](deep, positions)) for positions in ([15], SOME))
    assert some[0] <= one[0]
    assert one[1] == some[1] == 1


def test_materialized_checks_have_a_product_for_each_position(deep: Model) -> None:
    """W + ΔW is another matrix at each position: it is unpacked, changed and multiplied by."""
    one, some = (
        counted(deep, block_checks(deep, pair(deep, 0, positions), [3], Procedure()))
        for positions in ([15], SOME)
    )
    assert some[0] <= one[0] + 15 * 10
    assert one[1] == some[1] == 1


def test_activations_and_the_self_check_read_back_once(deep: Model) -> None:
    """All sites of all prompts are fetched together, and so are the checks of all layers."""
    points: list[Any] = ["mlp_in", "resid_mid"]
    prompts = [(5, 6, 7), (8, 9)]
    question = activations(deep, prompts, [(0, 2), (1,)], range(LAYERS), points, "none")
    assert counted(deep, question)[1] == 1
    assert counted(deep, self_check(deep))[1] == 1


def test_update_that_does_not_exist_raises_at_the_read_back(tiny: Model) -> None:
    """A baseline whose mlp_in is zero raises `NonFinite`, whatever is asked."""

    def zeroed(model: Model, runs: Sequence[Run]) -> Sequence[Activations]:
        context, baseline, *others = forward(model, runs)
        zero = {site: torch.zeros_like(value) for site, value in baseline.items()}
        return [context, Activations(zero), *others]

    asked = resolve_pair(tiny, [3, 50, 9], [8, 30], "matched", "all")
    questions: list[Question[Any]] = [
        weight_updates(tiny, [asked], [0, 2], []),
        weight_updates(tiny, [asked], [1], ["split"]),
        attributions(tiny, asked, [1], [(0, 1), (1, 3)]),
        block_checks(tiny, asked, [1], Procedure()),
    ]
    for question in questions:
        with pytest.raises(NonFinite, match="norm 0"):
            drive(tiny, question, zeroed)


def test_conditions_of_the_activations_are_tested_first(tiny: Model) -> None:
    """Every analysis passes on the conditions of what it reads, and their error names the site."""
    asked = resolve_pair(tiny, [3, 50, 9], [8, 30], "alone", "all")
    probe = resolve_pair(tiny, [3, 50, 9], [4], "alone", "last")
    questions: list[Question[Any]] = [
        weight_updates(tiny, [asked], [1], ["split", "next_tokens"], "free", [[probe]]),
        trajectories(tiny, asked, [1], [(0, 1), (1, 3)]),
        attributions(tiny, asked, [1], [(0, 1), (1, 3)]),
        block_checks(tiny, asked, [1], Procedure()),
        model_checks(tiny, asked, [1], Procedure()),
        activations(tiny, [(5, 6)], [(0, 1)], [1], ["mlp_in"], "norm"),
        token_adapter(tiny, asked, "weights"),
        token_adapter(tiny, replace(asked, positions=(1,)), "bias"),
    ]
    for question in questions:
        received = 0

        def spoilt(model: Model, runs: Sequence[Run]) -> Sequence[Activations]:
            nonlocal received
            error = NonFiniteActivation("planted in the last run")
            read = forward(model, runs)
            received += len(read)
            nan = Condition(torch.tensor(float("nan")), error)
            return [*read[:-1], Activations(read[-1], (nan,))]

        with pytest.raises(NonFiniteActivation, match="planted"):
            drive(tiny, question, spoilt)
        assert received


@pytest.mark.parametrize("name", ["gpt2", "gemma3"])
def test_pieces_have_the_figures_of_the_whole(
    name: str, variant_of: Callable[[str], Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut into pieces of one row and one layer, an analysis has the same answer up to rounding."""
    model = variant_of(name).model
    asked = resolve_pair(model, [3, 50, 9], [8, 30, 77], "alone", "all")
    probe = resolve_pair(model, [3, 50, 9], [4], "alone", "last")
    layers, spans = range(model.n_layers), [(0, 1), (1, 3)]
    everything: list[Include] = ["factors", "bias", "split", "next_tokens"]

    def answers() -> list[Any]:
        questions: list[Question[Any]] = [
            weight_updates(model, [asked], layers, everything, "free", [[probe]], "weights"),
            trajectories(model, asked, layers, spans),
            attributions(model, asked, layers, spans),
        ]
        return [drive(model, question) for question in questions]

    whole = answers()
    monkeypatch.setattr(pieces, "MAX_ENTRIES", 1)
    assert all(map(close, answers(), whole))
