"""The seed script's computation as it is written: two full forwards with a hook on c_fc.

These are steps 4 to 7 of the script: both passes through the whole model with its unembedding, the
vector from the hook, and the dense matrix of the update. Its verification (step 8) is left out.
Where the MLP is gated, the hook is on gate_proj, and both first weights are multiplied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.agreement import Update


def first_weights(model: Any, layer: int) -> tuple[Any, list[Tensor]]:
    """The first module of a layer's MLP, and all first weights, (d_model, d_mlp) each.

    Args:
        model: A transformers GPT-2 or Llama with its head.
        layer: Layer index, from 0.
    """
    if model.config.model_type == "gpt2":
        first = model.transformer.h[layer].mlp.c_fc
        return first, [first.weight]
    mlp = model.model.layers[layer].mlp
    return mlp.gate_proj, [mlp.gate_proj.weight.T, mlp.up_proj.weight.T]


def seed_update(
    model: Any, layer: int, context: Sequence[int], query: int, start: int | None = None
) -> Update:
    """Compute the update of one layer for a query of one token, and form the matrix ΔW.

    Args:
        model: A transformers GPT-2 or Llama with its head.
        layer: Layer index, from 0.
        context: Token ids of the context.
        query: Token id of the query.
        start: Position of the query in the baseline run. The script gives none, which means 0.
    """
    activations: dict[str, Tensor] = {}

    def hook(_module: Any, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        activations["mlp_input"] = inputs[0].detach()

    first, weights = first_weights(model, layer)
    handle = first.register_forward_hook(hook)
    ids_full = torch.tensor([[*context, query]], device=model.device)
    ids_query = torch.tensor([[query]], device=model.device)
    placed: dict[str, Tensor] = {}
    if start is not None:
        placed["position_ids"] = torch.tensor([[start]], device=model.device)
        # Without a mask, transformers takes a gap in the positions for packed sequences.
        placed["attention_mask"] = torch.ones_like(ids_query)
    with torch.no_grad():
        model(ids_full)
    a_context = activations["mlp_input"][0, -1, :].clone()
    with torch.no_grad():
        model(ids_query, **placed)
    a = activations["mlp_input"][0, -1, :].clone()
    handle.remove()
    output = torch.cat([torch.matmul(a_context - a, weight.detach()) for weight in weights])
    _matrix = torch.outer(a, output) / torch.norm(a) ** 2
    return Update.from_activations(a_context, a, output)
