"""The seed script's computation, as it is written: two full forwards, and a hook on c_fc.

Steps 4 to 7 of `shared/seed/`: both passes through the whole model with its unembedding, the vector
taken from the hook, and the dense matrix of the update. Its verification (step 8) is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class SeedUpdate:
    """What the script has in hand after its step 7.

    Args:
        a_context: The MLP's input with context, (d_model).
        a: The same in the baseline run, (d_model).
        output: (a_context − a)·W, (d_mlp).
        matrix: ΔW, (d_model, d_mlp).
    """

    a_context: Tensor
    a: Tensor
    output: Tensor
    matrix: Tensor


def seed_update(
    model: Any, layer: int, full: Sequence[int], query: Sequence[int], start: int | None = None
) -> SeedUpdate:
    """The update of one layer for the query's last token.

    Args:
        model: A transformers GPT-2 with its head.
        layer: From 0 up.
        full: Ids of context and query.
        query: Ids of the query alone.
        start: The query's first position in the baseline run; None as the script has it, which is
            position 0 without saying so.
    """
    activations: dict[str, Tensor] = {}

    def hook(_module: Any, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        activations["mlp_input"] = inputs[0].detach()

    c_fc = model.transformer.h[layer].mlp.c_fc
    handle = c_fc.register_forward_hook(hook)
    ids_full = torch.tensor([full], device=model.device)
    ids_query = torch.tensor([query], device=model.device)
    with torch.no_grad():
        model(ids_full)
    a_context = activations["mlp_input"][0, -1, :].clone()
    with torch.no_grad():
        model(ids_query, **_positions(ids_query, start))
    a = activations["mlp_input"][0, -1, :].clone()
    handle.remove()
    w = c_fc.weight.detach()
    output = torch.matmul(a_context - a, w)
    matrix = torch.outer(a, output) / torch.norm(a) ** 2
    return SeedUpdate(a_context, a, output, matrix)


def _positions(ids: Tensor, start: int | None) -> dict[str, Tensor]:
    """Positions with an explicit mask: without one, transformers reads gaps as packed sequences."""
    if start is None:
        return {}
    positions = torch.arange(start, start + ids.shape[1], device=ids.device)
    return {"position_ids": positions[None], "attention_mask": torch.ones_like(ids)}
