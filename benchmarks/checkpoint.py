"""Checkpoints of random weights, made once: how long a product takes does not depend on them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils.logging import disable_progress_bar

from tests.checkpoints import byte_tokenizer

SEED = 20251216


@dataclass(frozen=True)
class Shape:
    """How large a GPT-2 is.

    Args:
        name: Of its folder.
        n_layer: Blocks.
        n_embd: d_model.
        n_head: Attention heads.
        vocab_size: Rows of the token embedding.
        n_positions: Positions.
        dtype: Of the stored weights.
    """

    name: str
    n_layer: int
    n_embd: int
    n_head: int
    vocab_size: int
    n_positions: int = 1024
    dtype: torch.dtype = torch.float32


SMALL = Shape("gpt2-small-shaped", 12, 768, 12, 50257)
LIKE_BUNDLED = Shape("bundled-shaped", 6, 256, 4, 5120, dtype=torch.float16)


def random_checkpoint(shape: Shape, cache: Path) -> Path:
    """The folder of a random GPT-2 of this shape, made where it is not there yet.

    Its gains, biases and embeddings are not those of a fresh model, all ones and zeros, so that two
    ways of computing cannot agree by leaving one out.
    """
    folder = cache / shape.name
    if (folder / "tokenizer.json").exists():
        return folder
    disable_progress_bar()
    torch.manual_seed(SEED)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=shape.vocab_size,
            n_positions=shape.n_positions,
            n_embd=shape.n_embd,
            n_layer=shape.n_layer,
            n_head=shape.n_head,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            if "ln_" in name and name.endswith("weight"):
                parameter.copy_(1.0 + 0.3 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.2 * noise)
            elif "wte" in name or "wpe" in name:
                parameter.copy_(0.5 * noise)
            else:
                parameter.copy_(noise / parameter.shape[0] ** 0.5)
    model.to(shape.dtype).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder
