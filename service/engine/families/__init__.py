"""Model families: where the tensors of an architecture are.

A family is a row of the table, and a small module that builds its blocks from transformers' own.
Other architectures are refused at load with the reason.
"""

from collections.abc import Mapping

from service.engine.families import gemma3, gpt2, gpt_neox, llama, opt
from service.engine.families.family import Ends, Family

FAMILIES: Mapping[str, Family] = {
    "gpt2": gpt2.GPT2,
    "llama": llama.LLAMA,
    "mistral": llama.MISTRAL,
    "qwen2": llama.QWEN,
    "qwen3": llama.QWEN,
    "gemma3_text": gemma3.GEMMA3,
    "gpt_neox": gpt_neox.GPT_NEOX,
    "opt": opt.OPT,
}
"""Served families, by the `model_type` of their configuration."""

__all__ = ["FAMILIES", "Ends", "Family"]
