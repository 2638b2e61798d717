"""Read-backs: the walk never waits for the device, and launches equally many operators for any
number of positions.

On a CPU a read-back dispatches nothing, so it is counted at the tensor's own methods, and looked
for in the code.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import service.engine
from schemas.activations import HookPoint
from service.engine import Follow, Model, Run, Site, load
from service.engine.prefixes import Prefixes
from service.engine.readback import READ_BACKS, Condition, hold, require
from service.engine.walk import forward
from tests.analysis.subjects import Subject
from tests.checkpoints import save_tiny
from tests.engine.made import every_site

ENGINE = Path(service.engine.__path__[0])
FILES = (
    "walk.py",
    "attention.py",
    "graphs.py",
    "route.py",
    "patch.py",
    "rotary.py",
    "block.py",
    "layers.py",
    "pack.py",
    "prefixes.py",
    "indices.py",
    "masks.py",
    "segments.py",
    "patching.py",
)
METHODS = ("item", "tolist", "cpu", "numpy", "nonzero")
CONVERSIONS = ("bool", "float", "int")
ON_HOST = {
    "walk.py": 1,
    "masks.py": 1,
    "route.py": 7,
    "pack.py": 4,
    "patching.py": 3,
    "prefixes.py": 2,
    "segments.py": 1,
}
"""Conversions of NumPy's numbers, which are on the host already."""
MAKERS = {f"torch.{name}" for name in ("from_numpy", "tensor", "as_tensor", "arange")}
SENDERS = {
    ("indices.py", "copy"),
    ("walk.py", "run"),
    ("masks.py", "_as_bias"),
    ("masks.py", "seen"),
}
"""Functions that make tensors on the host: all indices at once, the positions of the rotary
embedding, and the masks."""
POINTS: tuple[HookPoint, ...] = ("mlp_in", "resid_mid")
IDS = tuple(5 + 11 * i % 250 for i in range(20))


def calls(file: str) -> Iterator[tuple[str, str, ast.expr]]:
    """Every call in a file: the function that it stands in, the called name and its expression."""
    tree = ast.parse((ENGINE / file).read_text())
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Call):
                    called = node.func
                    name = called.attr if isinstance(called, ast.Attribute) else ast.unparse(called)
                    yield function.name, name, called


@pytest.mark.parametrize("file", FILES)
def test_the_walk_reads_no_value_back(file: str) -> None:
    """No method that waits for the device is called, and no tensor becomes a number of Python."""
    found = Counter(
        name
        for _, name, called in calls(file)
        if (name in METHODS and isinstance(called, ast.Attribute))
        or (name in CONVERSIONS and isinstance(called, ast.Name))
    )
    assert not set(METHODS) & found.keys()
    assert found.total() <= ON_HOST.get(file, 0), found


def test_indices_reach_the_device_together() -> None:
    """Tensors are made from NumPy in few places; no other function of the walk sends anything."""
    made = {
        (file, function)
        for file in FILES
        for function, _, called in calls(file)
        if ast.unparse(called) in MAKERS
    }
    assert made == SENDERS


def following(model: Model) -> list[Run]:
    """A run with context, and one that follows it in each form and in each way of applying."""
    sites = every_site(model, [19])
    source = Run(IDS, range(20), sites)
    query, places, reads = IDS[-3:], (0, 18, 19), every_site(model, [2])
    patches = (
        Follow(source, 19, 2, "factored", "weights"),
        Follow(source, 19, 2, "materialized", "bias"),
    )
    return [source, *(Run(query, places, reads, patch=patch) for patch in patches)]


@pytest.mark.parametrize("name", ["gpt2", "qwen2-windows", "gemma3", "neox-parallel"])
def test_conditions_of_a_pack_are_read_back_once(
    name: str, variant_of: Callable[[str], Subject]
) -> None:
    """Plain, cached and patched runs read nothing back; their conditions are tested together, and
    only once."""
    model, prefixes = variant_of(name).model, Prefixes(1 << 20)
    cold = Run(IDS, range(20), {Site(1, "resid_post"): [19]})
    warm = Run((*IDS, 7), range(21), {Site(1, "mlp_pre"): [20]})
    for runs in ([cold], [warm], following(model)):
        before = READ_BACKS.total
        found = forward(model, runs, prefixes=prefixes)
        assert READ_BACKS.total == before
        for read in found:
            require(read.conditions)
        assert READ_BACKS.total == before + 1
    assert prefixes.hits > 0


class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operators that reach torch, with and without those that only give a view."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.all = self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        """Count the operator, and run it."""
        self.all += 1
        aliases = [returned.alias_info for returned in func._schema.returns]
        self.count += not any(alias is not None and not alias.is_write for alias in aliases)
        return func(*args, **(kwargs or {}))


def operators(model: Model, runs: Sequence[Run], prefixes: Prefixes | None = None) -> int:
    """The number of operators of a pack."""
    counted = Operators()
    with counted:
        forward(model, runs, prefixes=prefixes)
    return counted.count


BLOCK, AROUND = 18, 24
BLOCK_WITH_VIEWS, AROUND_WITH_VIEWS = 30, 120
"""Maximum operators of a pair's pack in each block that it needs, and outside of the blocks."""


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """A random GPT-2 with twelve layers. Its matrices are not packed, because oneDNN's padding is
    one operator more for some numbers of rows."""
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode(False):
        patch.setattr("service.engine.layers.PACKED", False)
        folder = save_tiny(tmp_path_factory.mktemp("deep"), n_layer=12)
        yield load(str(folder), revision=None, device="cpu", dtype="float32")


def pairs(layers: Sequence[int], positions: int = 1, count: int = 1) -> list[Run]:
    """Runs with a context of 20 tokens and runs without, for queries of some positions."""
    sites = [Site(layer, point) for layer in layers for point in POINTS]
    runs = []
    for i in range(count):
        query = tuple(100 + (i + 7 * j) % 150 for j in range(positions))
        rows, places = range(positions), range(20, 20 + positions)
        runs += [
            Run((*IDS, *query), range(20 + positions), dict.fromkeys(sites, places)),
            Run(query, places, dict.fromkeys(sites, rows)),
        ]
    return runs


@pytest.mark.parametrize("layers", [range(12), [5]], ids=["every layer", "one layer"])
def test_operators_grow_with_blocks_only(deep: Model, layers: Sequence[int]) -> None:
    """A pair's pack has few operators in each block, as many for 16 positions as for one, and for
    64 pairs at most a fifth more."""
    one, blocks = operators(deep, pairs(layers)), 1 + max(layers)
    assert one <= BLOCK * blocks + AROUND
    with Operators() as counted:
        forward(deep, pairs(layers))
    assert counted.all <= BLOCK_WITH_VIEWS * blocks + AROUND_WITH_VIEWS
    assert operators(deep, pairs(layers, positions=16)) == one
    assert one <= operators(deep, pairs(layers, count=64)) <= 1.2 * one


@pytest.mark.parametrize("layers", [range(12), [5]], ids=["every layer", "one layer"])
def test_operators_with_a_cache_grow_with_blocks_only(deep: Model, layers: Sequence[int]) -> None:
    """Keeping the context, and attending to it where it is kept, costs a few operators per block,
    whatever the number of positions and of pairs."""
    counts = []
    for positions, count in ((1, 1), (16, 1), (1, 64)):
        tree = Prefixes(1 << 24)
        runs = pairs(layers, positions, count)
        counts.append([operators(deep, runs, tree) for _ in range(2)])
        assert tree.hits == 20
    (cold, warm), *others = counts
    blocks = 1 + max(layers)
    assert operators(deep, pairs(layers)) < cold <= (BLOCK + 1) * blocks + AROUND
    assert warm <= (BLOCK + 10) * blocks + AROUND
    for more in others:
        assert cold <= more[0] <= 1.2 * cold
        assert warm <= more[1] <= 1.2 * warm


def test_what_does_not_hold_is_still_required() -> None:
    """`hold` raises nothing, so that a condition fails under it does not hide it from `require`."""
    condition = Condition(torch.tensor(torch.nan), ValueError("no"))
    assert not hold([condition])
    with pytest.raises(ValueError, match="no"):
        require([condition])
    require([condition])
