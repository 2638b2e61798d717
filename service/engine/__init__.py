"""The resident model: the only code that touches modules, tokenizers, caches and threads."""

from service.engine.block import Block
from service.engine.checkpoint import load
from service.engine.engine import Engine
from service.engine.model import FirstWeight, Model
from service.engine.patch import patched_block, patched_product, second_update
from service.engine.question import (
    AnswerSize,
    Plan,
    Question,
    Work,
    distinct_rows,
    drive,
    plan,
    together,
)
from service.engine.run import Activations, Fixed, Follow, Run, Site
from service.engine.scheduler import Timings

__all__ = [
    "Activations",
    "AnswerSize",
    "Block",
    "Engine",
    "FirstWeight",
    "Fixed",
    "Follow",
    "Model",
    "Plan",
    "Question",
    "Run",
    "Site",
    "Timings",
    "Work",
    "distinct_rows",
    "drive",
    "load",
    "patched_block",
    "patched_product",
    "plan",
    "second_update",
    "together",
]
