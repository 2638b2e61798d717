"""The shape of the bundled model and its initial weights."""

from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from training.circuit import plant

POSITIONS = 1024


def configuration(vocabulary: int) -> GPT2Config:
    """Return a small GPT-2 configuration: no dropout, tied head, `<|endoftext|>` is token 0."""
    return GPT2Config(
        vocab_size=vocabulary,
        n_positions=POSITIONS,
        n_embd=256,
        n_layer=6,
        n_head=4,
        activation_function="gelu_new",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )


def new_model(vocabulary: int, seed: int) -> GPT2LMHeadModel:
    """Return a model for training, with GPT-2's random weights and planted copying heads."""
    torch.manual_seed(seed)
    config = configuration(vocabulary)
    config.activation_function = "gelu_pytorch_tanh"  # the same function as gelu_new, fused
    config._attn_implementation = "eager"
    model = GPT2LMHeadModel(config)
    plant(model)
    return model


def load_model(folder: Path) -> GPT2LMHeadModel:
    """Load a checkpoint folder's model in float32, without access to the hub."""
    model: GPT2LMHeadModel = GPT2LMHeadModel.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    )
    return model.eval()
