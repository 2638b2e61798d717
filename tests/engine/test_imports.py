"""Imports of transformers' modelling code without torch's compiler."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from service.engine.imports import COMPILER, without_compiler

LOAD = """
import sys
from service.engine import load
load("bundled", revision=None, device="cpu", dtype="float32")
unwanted = {"torch._dynamo", "torch.distributed.tensor", "sympy"} & set(sys.modules)
assert not unwanted, unwanted
import torch
assert torch.compiler.disable(len) is not len
"""


@pytest.mark.slow
def test_a_load_imports_no_compiler() -> None:
    """A load imports neither the compiler nor sympy, and the compiler still works afterwards."""
    subprocess.run([sys.executable, "-c", LOAD], check=True, timeout=120)


def test_decorators_of_the_stand_in_return_the_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decorator of the stand-in returns the function itself, with and without arguments."""
    monkeypatch.delitem(sys.modules, COMPILER, raising=False)
    with without_compiler():
        compiler = sys.modules[COMPILER]
        assert compiler.disable(len) is len
        assert compiler.disable(recursive=False)(len) is len
    assert sys.modules.get(COMPILER) is not compiler


def test_random_initialisation_is_skipped_only_without_data() -> None:
    """A tensor on the meta device is not initialised; a tensor with data is."""
    with without_compiler():
        assert nn.init.ones_(torch.zeros(2)).tolist() == [1.0, 1.0]
        assert nn.Embedding(3, 2, device="meta").weight.is_meta
        assert nn.Linear(3, 2).weight.count_nonzero() > 0


def test_functions_are_restored() -> None:
    """After the block, torch and transformers have their own functions again."""
    from transformers.utils import is_torch_distributed_available

    before = nn.init.normal_
    with without_compiler():
        assert nn.init.normal_ is not before
    assert nn.init.normal_ is before
    assert is_torch_distributed_available() == torch.distributed.is_available()
