"""Next-token distributions from logits (vocab), and the divergence of two of them."""

import numpy as np

from .checkpoint import Array
from .questions import Question


def log_probabilities(logits: Array) -> Array:
    """Log softmax of the logits (vocab)."""
    shifted = logits - logits.max()
    logs: Array = shifted - np.log(np.exp(shifted).sum())
    return logs


def probabilities(logits: Array) -> Array:
    """Softmax of the logits (vocab)."""
    return np.exp(log_probabilities(logits))


def likeliest(logits: Array, count: int = 10) -> list[tuple[int, float]]:
    """(id, probability) of the most likely tokens, in descending order, lower id first in a tie."""
    shares = probabilities(logits)
    order = np.argsort(-shares, kind="stable")[:count]
    return [(int(token), float(shares[token])) for token in order]


def kl_divergence(logits: Array, other: Array) -> float:
    """KL(p || q) in nats, p the softmax of ``logits`` and q that of ``other``."""
    log_p = log_probabilities(logits)
    log_q = log_probabilities(other)
    return float((np.exp(log_p) * (log_p - log_q)).sum())


def next_token_divergence(question: Question, position: int = -1) -> float:
    """KL(with context || baseline) after one query position, without a patch."""
    return kl_divergence(question.full.logits[position], question.base.logits[position])
