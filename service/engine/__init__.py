"""The resident model: the only code that touches modules, tokenizers, caches and threads."""

from service.engine.checkpoint import DTYPES, load
from service.engine.engine import Engine
from service.engine.families import Block
from service.engine.model import Model
from service.engine.patch import patched_block, patched_mlp_pre
from service.engine.run import Activations, Apply, Fixed, Follow, HookPoint, Run, Site
from service.engine.scheduler import Question, Timings, drive
from service.engine.text import Token
from service.engine.work import Work

__all__ = [
    "DTYPES",
    "Activations",
    "Apply",
    "Block",
    "Engine",
    "Fixed",
    "Follow",
    "HookPoint",
    "Model",
    "Question",
    "Run",
    "Site",
    "Timings",
    "Token",
    "Work",
    "drive",
    "load",
    "patched_block",
    "patched_mlp_pre",
]
