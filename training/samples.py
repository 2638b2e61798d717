"""Samples of a checkpoint: a few prompts with their greedy continuations."""

from pathlib import Path

import torch

from training.model import load_model
from training.tokenizer import load_tokenizer

PROMPTS = (
    "The capital of Malaysia is Kuala Lumpur. The capital of USA is Washington D.C. "
    "The capital of Germany is",
    "The capital of France is Rome. The capital of Italy is Paris. The capital of France is",
    "apple => river\nstone => cloud\nhorse => green\napple =>",
    "Anna has a dog. Tom has a goose. Mary has a camel. The pet of Tom is a",
    "Question: what is the currency of Japan? Answer:",
    "Monday, Tuesday, Wednesday,",
    "3, 6, 9, 12,",
    "cat: animal\nred: colour\ndog: animal\nblue: colour\nhorse:",
    "In the beginning God created",
    "The President of the United States said that",
)
NEW_TOKENS = 16


def samples(folder: Path) -> str:
    """Return a Markdown list of `PROMPTS`, each with its greedy continuation."""
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    lines = []
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer.encode(prompt)])
        for _ in range(NEW_TOKENS):
            with torch.no_grad():
                following = model(ids).logits[:, -1:].argmax(-1)  # (1, 1)
            ids = torch.cat([ids, following], dim=1)
        written = tokenizer.decode(ids[0])[len(prompt) :]
        lines.append(f"- `{_shown(prompt)}` **`{_shown(written)}`**")
    return "\n".join(lines)


def _shown(text: str) -> str:
    return text.replace("\n", "⏎")
