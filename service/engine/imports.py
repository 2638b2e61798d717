"""Load transformers' modelling code without torch's compiler.

The modelling code imports torch's compiler, its distributed tensors and sympy. deltaw uses none of
them; together they take half a second of the start and 70 MB.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

# It keeps the original functions of `nn.init`, so it is imported before they are replaced.
import transformers.initialization
import transformers.utils.import_utils
from torch import Tensor, nn

COMPILER = "torch._dynamo"
MARKS = ("allow_in_graph", "assume_constant_result", "disable")
"""Decorators of the compiler that change nothing where nothing is compiled."""


class _Compiler(ModuleType):
    """A stand-in for the compiler's package, whose submodules are the real ones.

    Any name that is not one of `MARKS` imports the real package.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in MARKS:
            return _unchanged
        if sys.modules.get(COMPILER) is self:
            del sys.modules[COMPILER]
        return getattr(import_module(COMPILER), name)


@contextmanager
def without_compiler() -> Iterator[None]:
    """Keep the compiler, distributed tensors and sympy out of what the `with` body imports.

    transformers computes the same numbers without them. What is already imported stays as it is.
    """
    with ExitStack() as stack:
        if COMPILER not in sys.modules:
            stack.enter_context(_stand_in())
        # Modules take this function from either of the two.
        for module in (transformers.utils, transformers.utils.import_utils):
            stack.enter_context(_replaced(module, "is_torch_distributed_available", lambda: False))
        for name, fill in tuple(vars(nn.init).items()):
            if name.endswith("_") and not name.startswith("_"):
                stack.enter_context(_replaced(nn.init, name, _not_on_meta(fill)))
        yield


@contextmanager
def _stand_in() -> Iterator[None]:
    compiler = _Compiler(COMPILER)
    spec = find_spec(COMPILER)
    compiler.__path__ = list(spec.submodule_search_locations or ()) if spec is not None else []
    sys.modules[COMPILER] = compiler
    try:
        yield
    finally:
        if sys.modules.get(COMPILER) is compiler:
            del sys.modules[COMPILER]


@contextmanager
def _replaced(module: ModuleType, name: str, value: Any) -> Iterator[None]:
    original = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, original)


def _unchanged(function: Any = None, *_: object, **__: object) -> Any:
    """Decorate a function with nothing; the decorator may have arguments."""
    return _unchanged if function is None else function


def _not_on_meta(fill: Callable[..., Any]) -> Callable[..., Any]:
    """Skip a function of `nn.init` for a tensor without data. torch would import sympy for it."""

    def filled(tensor: Tensor, *args: Any, **options: Any) -> Any:
        return tensor if tensor.is_meta else fill(tensor, *args, **options)

    return filled
