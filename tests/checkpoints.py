"""Real GPT-2 checkpoints for tests, made and saved here and loaded by the service's own loader."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

ENDOFTEXT = "<|endoftext|>"


def save_tiny(
    folder: Path,
    *,
    seed: int = 0,
    n_layer: int = 3,
    n_embd: int = 32,
    n_head: int = 4,
    n_positions: int = 64,
    special: bool = True,
    dtype: torch.dtype = torch.float32,
    **config: object,
) -> Path:
    """Save a random GPT-2 with activations of ordinary size, and a byte-level tokenizer.

    Args:
        folder: Folder to save to.
        seed: Seed of the weights.
        n_layer: Number of blocks.
        n_embd: d_model.
        n_head: Number of attention heads.
        n_positions: Number of positions.
        special: Whether the tokenizer has <|endoftext|>.
        dtype: Dtype of the stored weights.
        config: Further fields of GPT2Config.
    """
    tokenizer = byte_tokenizer(special)
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(
        GPT2Config(
            n_positions=n_positions,
            n_embd=n_embd,
            n_layer=n_layer,
            n_head=n_head,
            bos_token_id=0,
            eos_token_id=0,
            **{"vocab_size": len(tokenizer), **config},
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
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def byte_tokenizer(
    special: bool = True, *, token: str = ENDOFTEXT, prepended: bool = False
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with 256 bytes and six merges.

    Args:
        special: Whether it has a special token, which is then its BOS and EOS token, with id 0.
        token: Text of the special token.
        prepended: Whether the tokenizer begins each text with the special token by itself.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [token] if special else []
    merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("a", "b"), ("ab", "c"), ("c", "d")]
    vocabulary = {
        piece: i
        for i, piece in enumerate([*pieces, *alphabet, *("".join(merge) for merge in merges)])
    }
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if not special:
        return PreTrainedTokenizerFast(tokenizer_object=backend)
    if prepended:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{token} $A", pair=f"{token} $A $B", special_tokens=[(token, 0)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=token, eos_token=token)
