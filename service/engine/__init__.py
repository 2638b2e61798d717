"""The resident model: the only code that touches modules, tokenizers, caches and threads."""

from service.engine.block import Block
from service.engine.checkpoint import load
from service.engine.engine import Engine
from service.engine.indices import copied
from service.engine.model import FirstWeight, Model
from service.engine.patch import patched_block, patched_product, second_update
from service.engine.question import (
    AnswerSize,
    Batch,
    Plan,
    Question,
    Work,
    distinct_rows,
    drive,
    joined,
    plan,
    together,
)
from service.engine.readback import READ_BACKS, Condition, fetch, numbers, vectors
from service.engine.run import Activations, Begin, Fixed, Follow, History, Run, Site
from service.engine.scheduler import Timings

__all__ = [
    "READ_BACKS",
    "Activations",
    "AnswerSize",
    "Batch",
    "Begin",
    "Block",
    "Condition",
    "Engine",
    "FirstWeight",
    "Fixed",
    "Follow",
    "History",
    "Model",
    "Plan",
    "Question",
    "Run",
    "Site",
    "Timings",
    "Work",
    "copied",
    "distinct_rows",
    "drive",
    "fetch",
    "joined",
    "load",
    "numbers",
    "patched_block",
    "patched_product",
    "plan",
    "second_update",
    "together",
    "vectors",
]
