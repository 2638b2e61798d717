"""Prompts, layers and positions of a request, resolved against a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import pytest

from service.analysis.inputs import (
    check_length,
    resolve_ids,
    resolve_layers,
    resolve_positions,
    resolve_prompt,
)
from service.engine import Model
from service.errors import (
    EmptyQuery,
    Invalid,
    LayerOutOfRange,
    PositionOutOfRange,
    PromptTooLong,
    Refused,
    TokenOutOfRange,
)

AT = ("prompts", 1)


def test_text_becomes_its_tokens_and_ids_stay(tiny: Model) -> None:
    """Nothing is added to a text. Ids pass unchanged, and an empty prompt has no ids."""
    assert resolve_ids(tiny, "abc the", AT) == tiny.tokenizer.encode("abc the")
    assert tiny.tokenizer.text(resolve_ids(tiny, "abc the", AT)) == "abc the"
    last = tiny.vocab_size - 1
    assert resolve_ids(tiny, [0, last, 5, 5], AT) == (0, last, 5, 5)
    assert resolve_ids(tiny, "", AT) == resolve_ids(tiny, [], AT) == ()


@pytest.mark.parametrize("bad", [-1, 263, 10**12])
def test_id_outside_the_vocabulary_is_refused_with_its_index(tiny: Model, bad: int) -> None:
    """The refusal names the path of the first such id, and the largest valid id."""
    with pytest.raises(TokenOutOfRange) as refused:
        resolve_ids(tiny, [0, 1, bad, -7], AT)
    assert (refused.value.at, refused.value.limit, refused.value.actual) == (
        (*AT, 2),
        tiny.vocab_size - 1,
        bad,
    )


@pytest.mark.parametrize(
    ("prompt", "kind"),
    [("", EmptyQuery), ([], EmptyQuery), ([1] * 65, PromptTooLong), ("x" * 65, PromptTooLong)],
)
def test_empty_or_too_long_prompt_is_refused(
    tiny: Model, prompt: str | list[int], kind: type[Refused]
) -> None:
    """A prompt of no tokens, or of one more than the model has positions, is refused."""
    with pytest.raises(kind) as refused:
        resolve_prompt(tiny, prompt, AT)
    assert refused.value.at == AT
    if kind is PromptTooLong:
        assert (refused.value.limit, refused.value.actual) == (tiny.n_positions, 65)


def test_prompt_may_fill_every_position(tiny: Model) -> None:
    """A prompt with as many tokens as the model has positions is accepted and not cut."""
    assert resolve_prompt(tiny, [1] * tiny.n_positions, AT) == (1,) * tiny.n_positions
    check_length(tiny, tiny.n_positions, AT)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [("all", (0, 1, 2)), ([1], (1,)), ([2, 0], (2, 0)), ([-1, -3], (2, 0)), ([0, -1], (0, 2))],
)
def test_layers_resolve_in_the_requested_order(
    tiny: Model, layers: Literal["all"] | list[int], expected: tuple[int, ...]
) -> None:
    """Layers count from 0, negative ones from the end, and keep the requested order."""
    assert resolve_layers(tiny, layers) == expected


@pytest.mark.parametrize(
    ("positions", "expected"),
    [("last", (3,)), ("all", (0, 1, 2, 3)), ([-1, 0], (3, 0)), ([2], (2,)), ([-4, 3], (0, 3))],
)
def test_positions_resolve_in_the_requested_order(
    positions: Literal["last", "all"] | list[int], expected: tuple[int, ...]
) -> None:
    """Positions count from 0, negative ones from the end, and keep the requested order."""
    assert resolve_positions(positions, 4) == expected


Resolve = Callable[[Model, Sequence[int]], tuple[int, ...]]
LAYERS: Resolve = resolve_layers
POSITIONS: Resolve = lambda _model, values: resolve_positions(values, 3)  # noqa: E731


@pytest.mark.parametrize(
    ("resolve", "field", "kind"),
    [(LAYERS, "layers", LayerOutOfRange), (POSITIONS, "positions", PositionOutOfRange)],
)
@pytest.mark.parametrize("bad", [3, -4, 99])
def test_index_out_of_range_is_refused_with_its_path(
    tiny: Model, resolve: Resolve, field: str, kind: type[Refused], bad: int
) -> None:
    """The refusal names the path of the index, the index, and the largest valid one."""
    with pytest.raises(kind) as refused:
        resolve(tiny, [0, bad])
    assert (refused.value.at, refused.value.limit, refused.value.actual) == ((field, 1), 2, bad)


@pytest.mark.parametrize(("resolve", "field"), [(LAYERS, "layers"), (POSITIONS, "positions")])
@pytest.mark.parametrize("values", [[], [1, 1], [0, -3], [2, 0, -1]])
def test_empty_or_repeated_indices_are_refused(
    tiny: Model, resolve: Resolve, field: str, values: list[int]
) -> None:
    """An empty list is refused, and so is the same index twice, even counted from both ends."""
    with pytest.raises(Invalid) as refused:
        resolve(tiny, values)
    assert refused.value.at == (field,)
