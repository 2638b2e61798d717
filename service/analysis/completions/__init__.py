"""Completions: text that is generated token by token, with a question of one run per token."""

from service.analysis.completions.generation import Emit
from service.analysis.completions.planned import plan_completion

__all__ = ["Emit", "plan_completion"]
