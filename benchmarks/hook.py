"""A plain hook that stops early: the peer that needs nothing but torch and transformers.

Two forwards of transformers, each ended by an exception in a hook as soon as the input of the
layer's first MLP weight is known; then the factors. No matrix is formed.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from benchmarks.agreement import Update
from benchmarks.seed import first_weights


class _Read(Exception):
    """Ends a forward, because the vector is known."""


def hook_update(model: Any, layer: int, context: Sequence[int], query: int) -> Update:
    """Compute the update of one layer for a query of one token; the baseline run has it at 0.

    Args:
        model: A transformers GPT-2 or Llama with its head.
        layer: Layer index, from 0.
        context: Token ids of the context.
        query: Token id of the query.
    """
    read: list[Tensor] = []

    def hook(_module: Any, inputs: tuple[Tensor, ...]) -> None:
        read.append(inputs[0][0, -1])
        raise _Read

    first, weights = first_weights(model, layer)
    handle = first.register_forward_pre_hook(hook)
    with torch.no_grad():
        for ids in ([*context, query], [query]):
            with suppress(_Read):
                model.base_model(torch.tensor([ids], device=model.device), use_cache=False)
        handle.remove()
        a_context, a = read
        output = torch.cat([torch.matmul(a_context - a, weight) for weight in weights])
        _input_factor = a / a.square().sum()
    return Update.from_activations(a_context, a, output)
