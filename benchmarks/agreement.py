"""Agreement: both sides of a comparison must compute the same numbers before either is timed."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

CAPTURED = 5e-6
"""Largest relative difference between two float32 captures of one vector (theory.md 9)."""


class Disagreement(Exception):
    """The two sides of a comparison computed different numbers."""


@dataclass(frozen=True)
class Update:
    """One layer's weight update ΔW = input ⊗ output.

    Args:
        input: a / ‖a‖², (d_model).
        output: (a_context − a)·W, (d_mlp).
        cancellation: (‖a_context‖ + ‖a‖) / ‖a_context − a‖.
    """

    input: Tensor
    output: Tensor
    cancellation: float

    @classmethod
    def from_activations(cls, a_context: Tensor, a: Tensor, output: Tensor) -> Update:
        """The update from the MLP's input with context and in the baseline run, (d_model) each."""
        n_context, n = a_context.double(), a.double()
        cancellation = (n_context.norm() + n.norm()) / (n_context - n).norm()
        return cls(n / n.square().sum(), output, float(cancellation))

    @property
    def norm(self) -> Tensor:
        """‖ΔW‖, Frobenius, ()."""
        norm: Tensor = self.input.double().norm() * self.output.double().norm()
        return norm


def agree(name: str, one: Tensor, other: Tensor, cancellation: float = 1.0) -> None:
    """Compare two computations of one tensor.

    Args:
        name: Name of the tensor in the error.
        one: First computation, (...).
        other: Second computation, of the same shape.
        cancellation: Factor on the allowed difference, for what is formed from a difference.

    Raises:
        Disagreement: They differ by more than 5e-6 · cancellation, relative to ‖other‖.
    """
    a, b = one.double().cpu(), other.double().cpu()
    error, allowed = float((a - b).norm() / b.norm()), CAPTURED * cancellation
    if not error <= allowed:
        raise Disagreement(f"{name} differs by {error:.1e}; the limit is {allowed:.1e}")


def agree_updates(name: str, one: Update, other: Update) -> None:
    """Compare both factors and the norm of two computations of one update.

    Raises:
        Disagreement: One of them differs.
    """
    agree(f"{name}: input factor", one.input, other.input)
    agree(f"{name}: output factor", one.output, other.output, other.cancellation)
    agree(f"{name}: ‖ΔW‖", one.norm, other.norm, other.cancellation)
