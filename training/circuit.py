"""Set the initial weights of the positions and of six copying heads, which training then changes.

Three heads of block 0 attend to the token 1, 2 or 3 positions back and write that token. One head
of block 1 finds positions whose previous token equals the current token. Two more find positions
whose token 2 (or 3) back equals the token 1 (or 2) back. All three write the token that they find,
so the model predicts the token that followed before (an induction circuit: Olsson et al. 2022,
arXiv:2209.11895), across separators of up to two tokens.
"""

import torch
from transformers import GPT2LMHeadModel

DEPTH = 3
"""Largest number of tokens that a head looks back, and number of heads in each of two blocks."""
FREQUENCIES, POSITION_BASE = 32, 300.0
"""Number of sinusoids of the position; they turn by 1 to `1 / POSITION_BASE` radians per token."""
POSITION_SIZE, TOKEN_SIZE = 0.1, 0.05
"""Root mean square of an embedding's position channels, and of its token channels."""
SHARPNESS = {"back": 5.0, "match": 3.0}
"""Factor on the queries and keys of the heads of block 0 (`back`) and of block 1 (`match`)."""
STRENGTH = {"back": 0.08, "match": 0.4}
"""Factor on the output of these heads."""


@torch.no_grad()
def plant(model: GPT2LMHeadModel) -> None:
    """Overwrite the embeddings, the positions and six heads of a model that has random weights.

    The first `2 * FREQUENCIES` channels contain sines and cosines of the position, the others the
    token.
    """
    width = model.config.n_embd
    head = width // model.config.n_head
    rates = POSITION_BASE ** -torch.linspace(0, 1, FREQUENCIES)  # (frequencies,)
    angles = torch.arange(model.config.n_positions)[:, None] * rates  # (positions, frequencies)
    places = torch.cat([angles.sin(), angles.cos()], dim=1)  # (positions, 2 * frequencies)
    tokens = model.transformer.wte.weight
    tokens.normal_(std=TOKEN_SIZE)
    tokens[:, : places.shape[1]] *= 0.2
    model.transformer.wpe.weight.zero_()[:, : places.shape[1]] = places * POSITION_SIZE * 2**0.5

    read, written = (_frame(width, places.shape[1], DEPTH * head) for _ in range(2))
    parts = [slice(i * head, (i + 1) * head) for i in range(DEPTH)]
    here = torch.eye(width, head) * SHARPNESS["back"]
    for i, part in enumerate(parts):
        there = torch.zeros(width, head)
        there[: places.shape[1]] = _turned(rates * (i + 1)) * SHARPNESS["back"]
        _set_head(model, 0, i, there, here, read[:, parts[0]], written[:, part] * STRENGTH["back"])
    sharp, strong = SHARPNESS["match"], STRENGTH["match"]
    seen = (
        read[:, parts[0]],
        *(written[:, part] for part in parts),
    )  # the token, 1 back, 2 back, 3 back
    for i, part in enumerate(parts):
        copied = read[:, part]
        _set_head(model, 1, i, seen[i] * sharp, seen[i + 1] * sharp, copied, copied * strong)


def _turned(angles: torch.Tensor) -> torch.Tensor:
    """Return the matrix `(2 n, 2 n)` that turns n sines and n cosines back by n angles."""
    cosine, sine = angles.cos().diag(), angles.sin().diag()
    return torch.cat([torch.cat([cosine, sine], dim=1), torch.cat([-sine, cosine], dim=1)])


def _frame(width: int, taken: int, size: int) -> torch.Tensor:
    """Return a random orthonormal frame `(width, size)` of the channels without positions."""
    frame = torch.zeros(width, size)
    frame[taken:] = torch.linalg.qr(torch.randn(width - taken, width - taken))[0][:, :size]
    return frame


def _set_head(
    model: GPT2LMHeadModel,
    block: int,
    index: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
) -> None:
    """Set a head's four matrices, each `(width, head)`."""
    attention = model.transformer.h[block].attn
    width, head = query.shape
    for i, matrix in enumerate((query, key, value)):
        start = i * width + index * head
        attention.c_attn.weight[:, start : start + head] = matrix
    attention.c_proj.weight[index * head : (index + 1) * head] = output.T
