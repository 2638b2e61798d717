"""The resident model: the only code that touches modules, tokenizers, caches and threads."""

from service.engine.checkpoint import DTYPES, Model, load
from service.engine.engine import Engine
from service.engine.patch import Apply, patched_mlp_pre, patched_resid_post
from service.engine.run import Activations, HookPoint, Run, Site
from service.engine.scheduler import Question, Timings, drive
from service.engine.text import Token

__all__ = [
    "DTYPES",
    "Activations",
    "Apply",
    "Engine",
    "HookPoint",
    "Model",
    "Question",
    "Run",
    "Site",
    "Timings",
    "Token",
    "drive",
    "load",
    "patched_mlp_pre",
    "patched_resid_post",
]
