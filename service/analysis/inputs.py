"""Inputs of a request, resolved against the model: prompts to ids, layers and positions to indices.

A prompt given as text begins with the special tokens that the checkpoint's tokenizer adds: none for
GPT-2, <bos> for Gemma. Nothing is added to a prompt given as ids, and no prompt is truncated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from schemas.pairs import Baseline, Stream
from service.engine import Model
from service.errors import (
    EmptyQuery,
    Invalid,
    LayerOutOfRange,
    NotSupported,
    Path,
    PositionOutOfRange,
    PromptTooLong,
    TokenOutOfRange,
)

Text = str | Sequence[int]
"""A prompt as text or as ids."""


def resolve_ids(model: Model, prompt: Text, at: Path) -> tuple[int, ...]:
    """The ids of a prompt. A text is tokenised by itself.

    Raises:
        TokenOutOfRange: An id is not in the vocabulary.
        Invalid: The tokenizer returns a token that the model has no embedding for.
    """
    if isinstance(prompt, str):
        ids = model.tokenizer.encode(prompt)
        if max(ids, default=0) >= model.vocab_size:
            raise Invalid("The text has a token that the model has no embedding for.", at=at)
        return ids
    for i, token in enumerate(prompt):
        if not 0 <= token < model.vocab_size:
            raise TokenOutOfRange(
                f"Token ids go from 0 to {model.vocab_size - 1}.",
                at=(*at, i),
                limit=model.vocab_size - 1,
                actual=token,
            )
    return tuple(prompt)


def beginning_of(model: Model, prompt: Text) -> tuple[int, ...]:
    """Ids of the special tokens that the tokenizer puts before a prompt given as text."""
    return model.tokenizer.prefix if isinstance(prompt, str) else ()


def resolve_prompt(model: Model, prompt: Text, at: Path) -> tuple[int, ...]:
    """The ids of a prompt that is a run of its own.

    Raises:
        EmptyQuery: It has no tokens.
        PromptTooLong: It has more tokens than the model has positions.
    """
    ids = resolve_ids(model, prompt, at)
    if not ids:
        raise EmptyQuery("The prompt has no tokens.", at=at)
    ids = beginning_of(model, prompt) + ids
    check_length(model, len(ids), at)
    return ids


def check_length(model: Model, positions: int, at: Path) -> None:
    """Refuse a prompt that needs more positions than the model has.

    Raises:
        PromptTooLong: It does.
    """
    if positions > model.n_positions:
        raise PromptTooLong(
            f"The prompt has {positions:,} tokens; the model's limit is {model.n_positions:,}. "
            "Shorten it.",
            at=at,
            limit=model.n_positions,
            actual=positions,
        )


def resolve_layers(model: Model, layers: Literal["all"] | Sequence[int]) -> tuple[int, ...]:
    """Layers from 0. Negative indices count from the end.

    Raises:
        LayerOutOfRange: A layer does not exist.
        Invalid: The list is empty, or names a layer twice.
    """
    if layers == "all":
        return tuple(range(model.n_layers))
    count = model.n_layers
    for i, layer in enumerate(layers):
        if not -count <= layer < count:
            raise LayerOutOfRange(
                f"Layers go from {-count} to {count - 1}.",
                at=("layers", i),
                limit=count - 1,
                actual=layer,
            )
    return _distinct(tuple(int(layer) % count for layer in layers), "layers")


def resolve_positions(
    positions: Literal["last", "all"] | Sequence[int], count: int
) -> tuple[int, ...]:
    """Indices into `count` tokens. Negative indices count from the end.

    Raises:
        PositionOutOfRange: A position does not exist.
        Invalid: The list is empty, or names a position twice.
    """
    if positions == "last":
        return (count - 1,)
    if positions == "all":
        return tuple(range(count))
    for i, position in enumerate(positions):
        if not -count <= int(position) < count:
            raise PositionOutOfRange(
                f"Positions go from {-count} to {count - 1}.",
                at=("positions", i),
                limit=count - 1,
                actual=int(position),
            )
    return _distinct(tuple(int(position) % count for position in positions), "positions")


def _distinct(values: tuple[int, ...], field: str) -> tuple[int, ...]:
    if not values:
        raise Invalid(f"`{field}` is empty. Name at least one.", at=(field,))
    if len(set(values)) < len(values):
        raise Invalid(f"`{field}` names the same index twice.", at=(field,))
    return values


def refuse(wrong: bool, detail: str, *at: str | int) -> None:
    """Refuse a combination that has no answer.

    Raises:
        NotSupported: It is one.
    """
    if wrong:
        raise NotSupported(detail, at=at)


def require_reading_in_parts(baseline: Baseline, stream: Stream) -> None:
    """Refuse baselines and streams that are not defined where the context is read in parts.

    Raises:
        NotSupported: The baseline is not `matched` or `anchored`, or the stream is not `free`.
    """
    refuse(
        baseline not in ("matched", "anchored"),
        "This resource supports the baselines `matched` and `anchored`.",
        "baseline",
    )
    refuse(stream != "free", "This resource supports the stream `free`.", "stream")
