"""The mathematics of implicit weight updates: tensors in, tensors out; torch and nothing else."""

from service.theory.comparisons import Comparison, Discrepancy, compare, discrepancy, kl_divergence
from service.theory.equivalence import Scope, Verdict, improvement, tolerance, verdict
from service.theory.implicit_update import (
    ImplicitUpdate,
    NonFinite,
    below_noise,
    implicit_update,
)
from service.theory.rank_one import RankOne
from service.theory.vectors import dot, norm

__all__ = [
    "Comparison",
    "Discrepancy",
    "ImplicitUpdate",
    "NonFinite",
    "RankOne",
    "Scope",
    "Verdict",
    "below_noise",
    "compare",
    "discrepancy",
    "dot",
    "implicit_update",
    "improvement",
    "kl_divergence",
    "norm",
    "tolerance",
    "verdict",
]
