"""The planted heads copy before any training."""

import torch

from training.model import new_model

VOCABULARY = 2000
LENGTH = 32


def test_untrained_model_predicts_repeated_tokens() -> None:
    """The untrained model predicts at least half of the second copy of 32 random tokens."""
    model = new_model(VOCABULARY, seed=0).eval()
    block = torch.randint(1, VOCABULARY, (4, LENGTH), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        foreseen = model(torch.cat([block, block], dim=1)).logits[:, LENGTH:-1].argmax(-1)
    assert (foreseen == block[:, 1:]).float().mean() >= 0.5


def test_planted_heads_attend_to_their_positions() -> None:
    """Heads attend to 1, 2 and 3 tokens back in block 0, and to earlier copies in block 1."""
    model = new_model(VOCABULARY, seed=0).eval()
    block = torch.randint(1, VOCABULARY, (4, LENGTH), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        attentions = model(torch.cat([block, block], dim=1), output_attentions=True).attentions
    for head in range(3):
        back = attentions[0][:, head].diagonal(-head - 1, 1, 2)[:, LENGTH:]
        match = attentions[1][:, head].diagonal(1 - LENGTH, 1, 2)[:, 8:]
        assert back.mean() > 0.6
        assert match.mean() > 0.5
