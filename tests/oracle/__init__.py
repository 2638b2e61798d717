"""The tests' oracle: the formulas of docs/theory.md in float64 NumPy, in the most direct form.

It shares no code with the service. It has its own checkpoint reader and its own decoder of every
family, makes a separate full run for everything, and forms dense matrices. Read in this order:
checkpoint, rotary, decoder, questions, updates, distributions, sequential, checks, joints,
trajectories, attributions.
"""

from .attributions import Attribution, Share, attribution
from .checks import (
    Check,
    block_check,
    controls,
    free_stream_patches,
    logits_check,
    model_check,
    projection_check,
    relative_error,
    tolerance,
)
from .decoder import HOOK_POINTS, Block, Decoder, Patch, Trace
from .distributions import (
    kl_divergence,
    likeliest,
    log_probabilities,
    next_token_divergence,
    probabilities,
)
from .joints import Joint, Reuse, Solution, joint, reuse, sequential_joints
from .questions import Another, Baseline, Prompt, Question, Span, Without, ask
from .sequential import Sequential, sequential
from .trajectories import Step, Trajectory, token_spans, trajectory
from .updates import (
    Carrier,
    Difference,
    Form,
    Part,
    Update,
    between,
    cancellation,
    cosine,
    norm,
    on_base,
    split,
    update,
)

GPT2 = Decoder
"""The decoder, where a test is about a checkpoint of GPT-2."""

__all__ = [
    "GPT2",
    "HOOK_POINTS",
    "Another",
    "Attribution",
    "Baseline",
    "Block",
    "Carrier",
    "Check",
    "Decoder",
    "Difference",
    "Form",
    "Joint",
    "Part",
    "Patch",
    "Prompt",
    "Question",
    "Reuse",
    "Sequential",
    "Share",
    "Solution",
    "Span",
    "Step",
    "Trace",
    "Trajectory",
    "Update",
    "Without",
    "ask",
    "attribution",
    "between",
    "block_check",
    "cancellation",
    "controls",
    "cosine",
    "free_stream_patches",
    "joint",
    "kl_divergence",
    "likeliest",
    "log_probabilities",
    "logits_check",
    "model_check",
    "next_token_divergence",
    "norm",
    "on_base",
    "probabilities",
    "projection_check",
    "relative_error",
    "reuse",
    "sequential",
    "sequential_joints",
    "split",
    "token_spans",
    "tolerance",
    "trajectory",
    "update",
]
