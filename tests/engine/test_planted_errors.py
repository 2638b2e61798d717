"""Planted errors: each misses the oracle by far, and the comparison at load refuses the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from service.engine import Block, Model, Run, Site, load, walk
from service.engine.attention import Attended, attention
from service.engine.layers import Affine, Norm
from service.engine.prefixes import Prefixes
from service.engine.rotary import Rotary, Table
from service.engine.walk import forward
from service.errors import CannotLoad
from tests.analysis.subjects import Subject
from tests.engine.made import everything
from tests.engine.test_walk import FLOAT32, IDS
from tests.engine.test_walk_families import distances

FAR = 1000 * FLOAT32
"""Relative error that every planted error exceeds."""

Plant = Callable[[Model], Model]


def blocks(change: Callable[[Block], Block]) -> Plant:
    """The same change in every block."""
    return lambda model: replace(model, blocks=tuple(map(change, model.blocks)))


def columns(layer: Affine, order: Tensor) -> Affine:
    """The columns of a layer in another order."""
    return Affine(layer.weight[:, order], None if layer.bias is None else layer.bias[order])


def exchanged(block: Block) -> Block:
    """Gate and up in each other's place."""
    return replace(block, w_in=columns(block.w_in, torch.arange(block.w_in.width).roll(40)))


def half_turned(block: Block) -> Block:
    """Only the first half of each head turned."""
    assert block.rotary is not None
    frequencies = block.rotary.frequencies
    return replace(block, rotary=Rotary(frequencies[: len(frequencies) // 2], block.rotary.scaling))


def unscaled(block: Block) -> Block:
    """Cosine and sine without the factor of their type of rotary embedding."""
    assert block.rotary is not None
    assert block.rotary.scaling != 1.0
    return replace(block, rotary=Rotary(block.rotary.frequencies, 1.0))


def neighbours_turned(block: Block) -> Block:
    """Neighbouring entries turned as pairs, as GPT-J does."""
    within = torch.arange(block.d_head).reshape(-1, 2).T.flatten()

    def order(count: int) -> Tensor:
        return (torch.arange(count)[:, None] * block.d_head + within).flatten()

    width = block.keys_values.width
    keys = torch.cat([order(width // block.d_head // 2), torch.arange(width // 2, width)])
    return replace(
        block,
        queries=columns(block.queries, order(block.n_heads)),
        keys_values=columns(block.keys_values, keys),
    )


def interleaved(block: Block) -> Block:
    """Heads of queries dealt to the heads of keys in turn."""
    heads = torch.arange(block.queries.width).reshape(2, 2, block.d_head)
    order = heads.transpose(0, 1).flatten()
    out = Affine(block.attn_out.weight[order], block.attn_out.bias)
    return replace(block, queries=columns(block.queries, order), attn_out=out)


def stored(name: str) -> Callable[[Block], Block]:
    """The stored gain of one of Gemma's norms in the place of the effective one."""

    def change(block: Block) -> Block:
        norm: Norm = getattr(block, name)
        changed: Any = {name: Norm(norm.gain - 1.0, None, norm.eps, rms=True)}
        return replace(block, **changed)

    return change


def turned_alike(model: Model) -> Model:
    """The rotary embedding of the first layer's type in all layers."""
    return blocks(lambda block: replace(block, rotary=model.blocks[0].rotary))(model)


def shifted(model: Model) -> Model:
    """A position embedding that begins with the two rows before the first position."""
    assert model.ends.position_embedding is not None
    return replace(
        model, ends=replace(model.ends, position_embedding=model.ends.position_embedding.roll(2, 0))
    )


def widened(by: int) -> Callable[[Block], Block]:
    """A window of another length."""
    return lambda block: replace(block, window=None if block.window is None else block.window + by)


PLANTS: Mapping[str, tuple[str, Plant]] = {
    "gate and up exchanged": ("qwen3", blocks(exchanged)),
    "gate and up exchanged after biases": ("llama-biases", blocks(exchanged)),
    "norm after attention left out": ("gemma3", blocks(lambda b: replace(b, post_attn=None))),
    "norm after the MLP left out": ("gemma3", blocks(lambda b: replace(b, post_mlp=None))),
    "half of each head turned": ("llama", blocks(half_turned)),
    "whole heads turned": (
        "neox-partial",
        blocks(lambda b: replace(b, rotary=Rotary(torch.ones(4), 1.0))),
    ),
    "neighbours turned as pairs": ("llama", blocks(neighbours_turned)),
    "no rotation": ("qwen2", blocks(lambda b: replace(b, rotary=None))),
    "cosines that are not scaled": ("llama-yarn", blocks(unscaled)),
    "one rotation for both types of layers": ("gemma3", turned_alike),
    "window one too wide": ("mistral", blocks(widened(1))),
    "window one too narrow": ("qwen2-windows", blocks(widened(-1))),
    "window in the wrong layers": (
        "gemma3",
        blocks(lambda b: replace(b, window=None if b.window else 6)),
    ),
    "1 + w forgotten before attention": ("gemma3", blocks(stored("pre_attn"))),
    "1 + w forgotten after the MLP": ("gemma3", blocks(stored("post_mlp"))),
    "1 + w forgotten in keys": ("gemma3", blocks(stored("key_norm"))),
    "norms of queries and keys left out": (
        "qwen3",
        blocks(lambda b: replace(b, query_norm=None, key_norm=None)),
    ),
    "heads of keys in the wrong order": ("llama", blocks(interleaved)),
    "embedding that is not scaled": (
        "gemma3",
        lambda model: replace(model, ends=replace(model.ends, embedding_scale=None)),
    ),
    "parallel read as serial": ("neox-parallel", blocks(lambda b: replace(b, parallel=False))),
    "serial read as parallel": ("neox-serial", blocks(lambda b: replace(b, parallel=True))),
    "positions two rows early": ("opt", shifted),
    "mean taken away": (
        "llama",
        blocks(lambda b: replace(b, pre_mlp=replace(b.pre_mlp, rms=False))),
    ),
}


@pytest.mark.parametrize("plant", PLANTS)
def test_planted_error_misses_the_oracle(plant: str, variant_of: Callable[[str], Subject]) -> None:
    """The comparison with the oracle, which the model itself passes, fails by 1,000 bounds."""
    name, change = PLANTS[plant]
    subject = variant_of(name)
    run = everything(subject.model, IDS)
    wrong = change(subject.model)
    (found,), (planted,) = forward(subject.model, [run]), forward(wrong, [run])
    assert max(distances(subject, run, found).values()) <= FLOAT32
    apart = distances(replace(subject, model=wrong), run, planted)
    assert max(apart.values()) > FAR
    assert apart["logits"] > FAR


@pytest.mark.parametrize("plant", PLANTS)
def test_planted_error_is_refused_at_load(
    plant: str, folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A walk that computes something else than transformers is refused, whatever the reason."""
    name, change = PLANTS[plant]
    monkeypatch.setattr("service.engine.checkpoint.Model", lambda **parts: change(Model(**parts)))
    with pytest.raises(CannotLoad, match="differ from those of transformers"):
        load(str(folder_of(name)), revision=None, device="cpu", dtype="float32")


@pytest.mark.parametrize("name", ["llama", "gemma3", "neox-partial"])
def test_keys_cached_before_rotation_miss_the_oracle(
    name: str, variant_of: Callable[[str], Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs after a cached prefix are far from the oracle if the cache holds keys as projected."""
    subject = variant_of(name)
    site = Site(subject.model.n_layers - 1, "resid_post")
    first = Run(IDS, range(len(IDS)), {site: [len(IDS) - 1]})
    again = Run((*IDS, 9), range(len(IDS) + 1), {site: [len(IDS)]})

    def unturned(block: Block, normed: Tensor, *others: Any) -> Attended:
        found = attention(block, normed, *others)
        monkeypatch.setattr(Table, "rotate", lambda _table, x: x)
        keys = attention(block, normed, *others).keys
        monkeypatch.undo()
        monkeypatch.setattr(walk, "attention", unturned)
        return found._replace(keys=keys)

    errors = []
    for planted in (False, True):
        if planted:
            monkeypatch.setattr(walk, "attention", unturned)
        prefixes = Prefixes(1 << 20)
        forward(subject.model, [first], prefixes=prefixes)
        (found,) = forward(subject.model, [again], prefixes=prefixes)
        assert prefixes.hits > 0
        errors.append(max(distances(subject, again, found).values()))
    assert errors[0] <= FLOAT32
    assert errors[1] > FAR
