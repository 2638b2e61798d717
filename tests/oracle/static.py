"""A static adapter in the most direct form: every run is a full one, and every matrix is dense."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .checkpoint import Array
from .decoder import Decoder, Patch
from .distributions import kl_divergence, log_probabilities, probabilities
from .questions import Prompt

Ids = Sequence[int]


@dataclass(frozen=True, eq=False)
class StaticFit:
    """What a static adapter is fitted to: prompts that end in a query and its answer."""

    with_context: Sequence[Prompt]
    base: Sequence[Prompt]
    fit_rows: Sequence[range]  # the rows to fit, indices into the query with its answer
    lengths: Sequence[int]  # tokens of each query with its answer
    keep: Sequence[Prompt]
    keep_lengths: Sequence[int]


def greedy(
    model: Decoder, prompt: Prompt, count: int, patches: Mapping[int, Patch] | None = None
) -> tuple[int, ...]:
    """The likeliest token, `count` times, with a full run for each."""
    answer: tuple[int, ...] = ()
    for _ in range(count):
        whole = extended(prompt, answer)
        logits = model.run(whole.ids, whole.positions, patches=patches).logits[-1]
        answer = (*answer, int(np.argmax(logits)))
    return answer


def extended(prompt: Prompt, answer: Ids) -> Prompt:
    """The prompt with more tokens at the positions that follow."""
    end = prompt.positions[-1] + 1
    where = tuple(range(end, end + len(answer)))
    return Prompt((*prompt.ids, *answer), (*prompt.positions, *where))


def static_fit(
    model: Decoder,
    asked: StaticFit,
    layers: Sequence[int],
    *,
    rho: float,
    keep_weight: float,
    rank: int,
) -> dict[int, Patch]:
    """ΔW of each layer's second weight, by least squares and the SVD of its action."""
    context = [model.run(one.ids, one.positions) for one in asked.with_context]
    patches: dict[int, Patch] = {}
    for layer in layers:
        rows, goals, roots = [], [], []
        for trace, prompt, wanted, length in zip(
            context, asked.base, asked.fit_rows, asked.lengths, strict=True
        ):
            run = model.run(prompt.ids, prompt.positions, patches=patches)
            here = [row - length for row in wanted]
            rows.append(run[layer, "mlp_act"][here])
            goals.append((trace[layer, "resid_post"][here]) - run[layer, "resid_post"][here])
            roots.append(np.ones(len(here)))
        for prompt, length in zip(asked.keep, asked.keep_lengths, strict=True):
            run = model.run(prompt.ids, prompt.positions, patches=patches)
            rows.append(run[layer, "mlp_act"][-length:])
            goals.append(np.zeros_like(run[layer, "resid_post"][-length:]))
            roots.append(np.full(length, np.sqrt(keep_weight)))
        x, y, root = np.vstack(rows), np.vstack(goals), np.concatenate(roots)[:, None]
        penalty = rho * (x**2).sum(-1).mean()
        gram = (root * x).T @ (root * x) + penalty * np.eye(x.shape[1])
        dense = np.linalg.solve(gram, (root * x).T @ (root * y))
        _, _, v = np.linalg.svd(root * x @ dense, full_matrices=False)
        patches[layer] = Patch(w_out=dense @ v[:rank].T @ v[:rank])
    return patches


@dataclass(frozen=True)
class Divergences:
    """KL of queries in nats at the first answer token."""

    none: Sequence[float]
    patched: Sequence[float]
    constant: Sequence[float]


def divergences(
    model: Decoder,
    with_context: Sequence[Prompt],
    base: Sequence[Prompt],
    fitted: Sequence[Prompt],
    patches: Mapping[int, Patch],
) -> Divergences:
    """Compare queries without and with a patch, and the mean answer of fitted ones with context."""

    def last(prompt: Prompt, changed: Mapping[int, Patch] | None = None) -> Array:
        logits: Array = model.run(prompt.ids, prompt.positions, patches=changed).logits[-1]
        return logits

    mean = np.mean([probabilities(last(one)) for one in fitted], axis=0)
    truth = [last(one) for one in with_context]
    return Divergences(
        none=[kl_divergence(p, last(one)) for p, one in zip(truth, base, strict=True)],
        patched=[kl_divergence(p, last(one, patches)) for p, one in zip(truth, base, strict=True)],
        constant=[
            float((probabilities(p) * (log_probabilities(p) - np.log(mean))).sum()) for p in truth
        ],
    )
