"""The mathematics of implicit weight updates: tensors in, tensors out; torch and nothing else."""

from service.theory.comparisons import Comparison, Discrepancy, compare, discrepancy, kl_divergence
from service.theory.equivalence import improvement, tolerance
from service.theory.implicit_update import (
    ImplicitUpdate,
    NonFinite,
    below_noise,
    implicit_update,
    update_on_base,
)
from service.theory.joint_update import (
    MAX_CONDITION,
    DependentRows,
    JointUpdate,
    LowRank,
    joint_update,
)
from service.theory.rank_one import RankOne
from service.theory.trajectory import Trajectory, trajectory
from service.theory.vectors import dot, norm

__all__ = [
    "MAX_CONDITION",
    "Comparison",
    "DependentRows",
    "Discrepancy",
    "ImplicitUpdate",
    "JointUpdate",
    "LowRank",
    "NonFinite",
    "RankOne",
    "Trajectory",
    "below_noise",
    "compare",
    "discrepancy",
    "dot",
    "implicit_update",
    "improvement",
    "joint_update",
    "kl_divergence",
    "norm",
    "tolerance",
    "trajectory",
    "update_on_base",
]
