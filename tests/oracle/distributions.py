"""Next-token distributions from logits (vocab), and how far one is from another."""

import numpy as np

from .checkpoint import Array
from .questions import Question


def log_probabilities(logits: Array) -> Array:
    """log softmax (vocab)."""
    shifted = logits - logits.max()
    logs: Array = shifted - np.log(np.exp(shifted).sum())
    return logs


def probabilities(logits: Array) -> Array:
    """softmax (vocab)."""
    return np.exp(log_probabilities(logits))


def likeliest(logits: Array, count: int = 10) -> list[tuple[int, float]]:
    """(id, probability) of the likeliest tokens, the likeliest first, lower id first in a tie."""
    shares = probabilities(logits)
    order = np.argsort(-shares, kind="stable")[:count]
    return [(int(token), float(shares[token])) for token in order]


def kl_divergence(logits: Array, other: Array) -> float:
    """KL(p || q) in nats, p of ``logits`` and q of ``other``."""
    log_p = log_probabilities(logits)
    log_q = log_probabilities(other)
    return float((np.exp(log_p) * (log_p - log_q)).sum())


def next_token_divergence(question: Question, position: int = -1) -> float:
    """KL(with context || baseline) after one query position, nothing patched."""
    return kl_divergence(question.full.logits[position], question.base.logits[position])
