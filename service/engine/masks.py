"""The masks of a pack, as biases of attention's scores."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from service.engine.indices import copied
from service.engine.pack import Known, Mask, Pack


class Seen(NamedTuple):
    """How a pack's rows see known rows.

    Args:
        bias: 0 where a row sees a known row and −∞ elsewhere, (rows that see some, known rows);
            None: they see all.
        blind: True for rows that see none in this window, (rows, 1); None: all see some.
    """

    bias: Tensor | None
    blind: Tensor | None


def own_bias(pack: Pack, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """0 where a row of a pack sees another and −∞ elsewhere, (groups, width, width).

    Windows count positions and not rows, so that gaps stay gaps.
    """
    sees = pack.sees
    if window is not None:
        where = pack.positions.reshape(len(sees), -1)
        sees = sees & np.less(where[:, :, None] - where[:, None, :], window)
    return _as_bias(sees, dtype, device)


def seen(
    pack: Pack, known: Known, window: int | None, dtype: torch.dtype, device: torch.device
) -> Seen:
    """How a pack's rows see known rows of a segment, in a window."""
    most = int(known.counts.max())
    sees: Mask = np.less(np.arange(most), known.counts[:, None])
    if window is not None:
        own = pack.positions[known.rows]
        sees = sees & np.less(own[:, None] - known.positions[:most], window)
    if sees.all():
        return Seen(None, None)
    blind = ~np.any(sees, 1, keepdims=True)
    return Seen(
        _as_bias(sees, dtype, device),
        copied(torch.from_numpy(blind), device) if blind.any() else None,
    )


def _as_bias(sees: Mask, dtype: torch.dtype, device: torch.device) -> Tensor:
    """0 where a mask is true, −∞ elsewhere. The mask is copied, which has fewer bytes."""
    hidden = copied(torch.from_numpy(~sees), device)
    return torch.zeros(sees.shape, dtype=dtype, device=device).masked_fill_(hidden, -torch.inf)
