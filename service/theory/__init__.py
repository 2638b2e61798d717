"""The mathematics of implicit weight updates: tensors in, tensors out; it imports only torch.

Each module credits the papers where it uses their ideas:

    Dherin et al., *Learning without training* (arXiv 2507.16003): the theorem, the gradient form.
    Innocenti & Achour (arXiv 2512.11255): residual stream, layer norm, any block, all positions.
    Goldwaser et al. (arXiv 2511.17864): all layers in sequence, weights in place of a bias.
    Mazzawi et al. (arXiv 2510.08734): one static patch for many queries.
"""

from service.theory.comparisons import Comparison, Discrepancy, compare, discrepancy, kl_divergence
from service.theory.equivalence import improvement, tolerance
from service.theory.finite import NonFinite
from service.theory.implicit_update import (
    ImplicitUpdate,
    below_noise,
    concatenated,
    implicit_update,
    is_finite,
    magnitude,
    update_on_base,
)
from service.theory.joint_update import (
    MAX_CONDITION,
    DependentRows,
    JointUpdate,
    joint_update,
    least_norm,
)
from service.theory.output_update import (
    OutputUpdate,
    output_update,
    post_norm_update,
)
from service.theory.projection import Projection
from service.theory.rank_one import RankOne
from service.theory.sampling import choose, gumbel_noise, nucleus
from service.theory.static_update import LowRank, StaticUpdate, static_updates
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
    "OutputUpdate",
    "Projection",
    "RankOne",
    "StaticUpdate",
    "Trajectory",
    "below_noise",
    "choose",
    "compare",
    "concatenated",
    "discrepancy",
    "dot",
    "gumbel_noise",
    "implicit_update",
    "improvement",
    "is_finite",
    "joint_update",
    "kl_divergence",
    "least_norm",
    "magnitude",
    "norm",
    "nucleus",
    "output_update",
    "post_norm_update",
    "static_updates",
    "tolerance",
    "trajectory",
    "update_on_base",
]
