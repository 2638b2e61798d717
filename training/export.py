"""Export the state of a training as a checkpoint folder for transformers."""

import json
from pathlib import Path

import torch
from transformers import GPT2LMHeadModel

from training.model import configuration
from training.tokenizer import load_tokenizer


def export(state: Path | None, tokenizer: Path, target: Path) -> None:
    """Write the float16 weights, the configuration and the tokenizer to `target`.

    Args:
        state: The state of the training (`state.pt`), or None for a random model of the same shape.
        tokenizer: The folder of the tokenizer.
        target: The checkpoint folder; it is created if it does not exist.
    """
    words = load_tokenizer(tokenizer)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(configuration(len(words)))
    if state is not None:
        model.load_state_dict(torch.load(state, weights_only=True)["model"])
    model.half().save_pretrained(target)
    words.save_pretrained(target)
    (target / "model.safetensors").chmod(0o644)
    _strip(target / "tokenizer_config.json", ("is_local", "local_files_only"))


def _strip(path: Path, keys: tuple[str, ...]) -> None:
    """Remove keys that describe the machine that wrote the file."""
    content = json.loads(path.read_text("utf-8"))
    kept = {key: value for key, value in content.items() if key not in keys}
    path.write_text(json.dumps(kept, indent=2) + "\n", "utf-8")
