"""Read-backs: the walk waits for the device once a pack, and launches as much for any positions.

On a CPU a read-back dispatches nothing, so it is counted at the tensor's own methods, and looked
for in the code.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import service.engine
from service.engine import Follow, Model, Run, Site
from service.engine.prefixes import Prefixes
from service.engine.walk import forward
from tests.analysis.subjects import Subject
from tests.engine.made import every_site

ENGINE = Path(service.engine.__path__[0])
FILES = ("walk.py", "route.py", "patch.py", "rotary.py", "block.py", "layers.py", "pack.py")
METHODS = ("item", "tolist", "cpu", "numpy", "nonzero")
CONVERSIONS = ("bool", "float", "int")
ON_HOST = {"route.py": 3, "pack.py": 3}
"""Conversions of NumPy's numbers, which are on the host already."""
MAKERS = {f"torch.{name}" for name in ("from_numpy", "tensor", "as_tensor", "arange")}
SENDERS = {
    ("route.py", "copy"),
    ("walk.py", "run"),
    ("walk.py", "_masks"),
    ("walk.py", "node"),
}
"""Functions that make tensors on the host: all indices at once, the positions of the rotary
embedding, the masks, and the rows that are cached when the pack is done."""
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


@pytest.fixture
def read_back(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], Counter[str]]:
    """Counts what a function reads back, by the method of the tensor."""
    names = ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__")

    def counted(work: Callable[[], object]) -> Counter[str]:
        found: Counter[str] = Counter()

        def counting(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
            def call(tensor: torch.Tensor, *args: Any) -> Any:
                found[name] += 1
                return method(tensor, *args)

            return call

        for name in names:
            monkeypatch.setattr(torch.Tensor, name, counting(name, getattr(torch.Tensor, name)))
        try:
            work()
        finally:
            monkeypatch.undo()
        return found

    return counted


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
def test_a_pack_has_one_read_back(
    name: str,
    variant_of: Callable[[str], Subject],
    read_back: Callable[[Callable[[], object]], Counter[str]],
) -> None:
    """Plain, cached and patched runs read one list of conditions back, at the end."""
    model, prefixes = variant_of(name).model, Prefixes(1 << 20)
    cold = Run(IDS, range(20), {Site(1, "resid_post"): [19]})
    warm = Run((*IDS, 7), range(21), {Site(1, "mlp_pre"): [20]})
    for runs in ([cold], [warm], following(model)):
        found = read_back(lambda runs=runs: forward(model, runs, prefixes=prefixes))  # type: ignore[misc]
        assert found == {"tolist": 1}, found
    assert prefixes.hits > 0


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


def operators(model: Model, runs: list[Run]) -> int:
    """The number of operators of a pack."""
    counted = Operators()
    with counted:
        forward(model, runs)
    return counted.count


@pytest.mark.parametrize("name", ["gpt2", "qwen2-windows", "gemma3", "neox-parallel"])
def test_operators_do_not_depend_on_positions(
    name: str, variant_of: Callable[[str], Subject]
) -> None:
    """A pack has as many operators for 16 positions as for one, and for 64 runs at most a tenth
    more than for one."""
    model = variant_of(name).model
    last = model.n_layers - 1
    sites = [Site(0, "mlp_in"), Site(last, "mlp_in"), Site(last, "resid_mid")]

    def run(ids: tuple[int, ...], rows: list[int]) -> Run:
        # Without oneDNN's padding, which is one operator more where rows lack.
        return Run(ids, range(len(ids)), dict.fromkeys(sites, rows), torch.float64)

    one = operators(model, [run(IDS, [19])])
    assert operators(model, [run(IDS, list(range(4, 20)))]) == one
    many = operators(model, [run((*IDS, i), [20]) for i in range(1, 65)])
    assert one <= many <= 1.1 * one
