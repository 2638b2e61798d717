"""A block with changed weights, compared with NumPy on the dense changed weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from schemas.equivalence_checks import Apply
from service.engine import Model, Site, patched_block, patched_product
from service.engine.block import Block
from service.engine.walk import forward
from service.theory import ImplicitUpdate, RankOne, implicit_update
from tests.engine.made import everything, relative, resident, unchanged
from tests.oracle import GPT2, Patch

LAYER = 1
CONTEXT, QUERY = [9, 99, 200, 17, 5, 42, 77], [3, 150, 31]
APPLIES: tuple[Apply, ...] = ("factored", "materialized")
BOUNDS = [(torch.float32, 5e-6), (torch.float64, 1e-12)]

Readings = dict[str, Tensor]


def readings(model: Model, dtype: torch.dtype) -> tuple[Readings, Readings]:
    """Layer 1's values at the query's rows, without the context (positions kept) and with it."""
    ids = CONTEXT + QUERY
    places = range(len(CONTEXT), len(ids))
    runs = [everything(model, QUERY, places, dtype), everything(model, ids, None, dtype)]
    baseline, context = (
        {site.point: tensor[-len(QUERY) :] for site, tensor in read.items() if site.layer == LAYER}
        for read in forward(model, runs)
    )
    return baseline, context  # type: ignore[return-value]


def update_of(block: Block, baseline: Readings, context: Readings) -> ImplicitUpdate:
    """The service's update, in the dtype of the readings."""
    update = implicit_update(
        baseline["mlp_in"],
        context["mlp_in"],
        baseline["resid_mid"],
        context["resid_mid"],
        block.w_in,
    )
    return update.to(baseline["mlp_in"].dtype)


@pytest.mark.parametrize("apply", APPLIES)
@pytest.mark.parametrize(("dtype", "bound"), BOUNDS)
def test_patched_block_equals_numpys_with_changed_weights(
    tiny: Model, tiny_oracle: GPT2, dtype: torch.dtype, bound: float, apply: Apply
) -> None:
    """With one W + ΔW and Δh per row, mlp_pre and resid_post equal NumPy's for random updates."""
    block = tiny.blocks[LAYER].to(dtype)
    generator = torch.Generator().manual_seed(3)

    def draw(width: int) -> Tensor:
        return torch.randn(4, width, generator=generator, dtype=torch.float64).to(dtype)

    h, weight, bias = draw(32), RankOne(draw(32), draw(128)), draw(32)
    pre, post = patched_block(block, h, block.pre_mlp(h), ImplicitUpdate(weight, bias), apply)
    for i in range(4):
        row = h[i].double().numpy()
        change = np.outer(weight.input[i].double(), weight.output[i].double())
        changed = Patch(w_in=change, output_bias=bias[i].double().numpy())
        n = tiny_oracle.blocks[LAYER].pre_mlp(row)
        expected = tiny_oracle.second_half(LAYER, row, n, changed)
        assert relative(pre[i], torch.from_numpy(expected["mlp_pre"])) <= bound
        assert relative(post[i], torch.from_numpy(expected["resid_post"])) <= bound


@pytest.mark.parametrize(("dtype", "bound"), BOUNDS)
def test_both_ways_of_applying_agree(tiny: Model, dtype: torch.dtype, bound: float) -> None:
    """`factored` and `materialized` agree to rounding for a real update."""
    baseline, context = readings(tiny, dtype)
    block = tiny.blocks[LAYER].to(dtype)
    weight = update_of(block, baseline, context).weight
    factored, materialized = (
        patched_product(block.w_in, baseline["mlp_in"], weight, apply) for apply in APPLIES
    )
    assert factored.dtype == materialized.dtype == dtype
    assert relative(factored, materialized) <= bound
    plain = block.w_in(baseline["mlp_in"])
    assert relative(plain, materialized) > 0.1


@pytest.mark.parametrize("apply", APPLIES)
@pytest.mark.parametrize(("dtype", "bound"), BOUNDS)
def test_update_gives_the_block_with_context(
    tiny: Model, dtype: torch.dtype, bound: float, apply: Apply
) -> None:
    """From the baseline's h the patched mlp_pre and resid_post equal those of the run with
    context."""
    baseline, context = readings(tiny, dtype)
    block = tiny.blocks[LAYER].to(dtype)
    update = update_of(block, baseline, context)
    pre, post = patched_block(block, baseline["resid_mid"], baseline["mlp_in"], update, apply)
    assert relative(pre, context["mlp_pre"]) <= bound
    assert relative(post, context["resid_post"]) <= bound


def weight_of(given: Tensor, moved: Tensor, block: Block) -> RankOne:
    """The rank-1 matrix given ⊗ (moved·W)."""
    return RankOne(given, moved @ block.w_in.weight)


Planted = Callable[[Block, Readings, Readings, ImplicitUpdate], ImplicitUpdate]
PLANTED: dict[str, Planted] = {
    "ε in the denominator": lambda _block, base, _context, right: ImplicitUpdate(
        RankOne(
            base["mlp_in"] / (base["mlp_in"].pow(2).sum(-1, keepdim=True) + 1e-6),
            right.weight.output,
        ),
        right.bias,
    ),
    "Δn for Δh": lambda _block, base, context, right: ImplicitUpdate(
        right.weight, context["mlp_in"] - base["mlp_in"]
    ),
    "Δh for Δn": lambda block, base, context, right: ImplicitUpdate(
        weight_of(right.weight.input, context["resid_mid"] - base["resid_mid"], block), right.bias
    ),
    "no Δh": lambda _block, _base, _context, right: ImplicitUpdate(
        right.weight, torch.zeros_like(right.bias)
    ),
    "no ΔW": lambda _block, _base, _context, right: ImplicitUpdate(
        RankOne(right.weight.input, torch.zeros_like(right.weight.output)), right.bias
    ),
    "readings before ln_2": lambda block, base, context, right: ImplicitUpdate(
        weight_of(
            base["resid_mid"] / base["resid_mid"].pow(2).sum(-1, keepdim=True),
            context["resid_mid"] - base["resid_mid"],
            block,
        ),
        right.bias,
    ),
    "readings at ln_1": lambda block, base, context, right: ImplicitUpdate(
        weight_of(
            base["ln_1_out"] / base["ln_1_out"].pow(2).sum(-1, keepdim=True),
            context["ln_1_out"] - base["ln_1_out"],
            block,
        ),
        right.bias,
    ),
    "shifted positions": lambda _block, _base, _context, right: ImplicitUpdate(
        RankOne(right.weight.input.roll(1, 0), right.weight.output.roll(1, 0)),
        right.bias.roll(1, 0),
    ),
    "one norm for all rows": lambda _block, _base, _context, right: ImplicitUpdate(
        RankOne(right.weight.input / len(QUERY), right.weight.output), right.bias
    ),
}


@pytest.mark.parametrize("apply", APPLIES)
@pytest.mark.parametrize("plant", PLANTED.values(), ids=PLANTED)
def test_wrong_updates_miss_the_bound(tiny: Model, plant: Planted, apply: Apply) -> None:
    """With the model's own activations each wrong update misses resid_post by 100 bounds."""
    baseline, context = readings(tiny, torch.float64)
    block = tiny.blocks[LAYER].to(torch.float64)
    wrong = plant(block, baseline, context, update_of(block, baseline, context))
    _, post = patched_block(block, baseline["resid_mid"], baseline["mlp_in"], wrong, apply)
    for i in range(len(QUERY)):
        assert relative(post[i], context["resid_post"][i]) > 1e-10


@pytest.mark.parametrize("apply", APPLIES)
def test_patches_do_not_change_resident_weights(tiny: Model, apply: Apply) -> None:
    """Patched products in both dtypes leave every resident weight and their input bit-equal."""
    before = resident(tiny)
    for dtype in (torch.float32, torch.float64):
        baseline, context = readings(tiny, dtype)
        block = tiny.blocks[LAYER].to(dtype)
        update = update_of(block, baseline, context)
        kept = baseline["resid_mid"].clone()
        patched_block(block, baseline["resid_mid"], baseline["mlp_in"], update, apply)
        assert torch.equal(baseline["resid_mid"], kept)
    assert unchanged(tiny, before)
    assert Site(LAYER, "resid_post") in forward(tiny, [everything(tiny, QUERY)])[0]
