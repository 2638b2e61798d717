"""Devices and dtypes: the same answers on a CPU and, if the machine has one, on a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from schemas.common import DType
from schemas.completions import Capture, CompletionRequest, RecomputedPatch
from service.analysis.activations import activations
from service.analysis.adapters.token import token_adapter
from service.analysis.block_checks import Procedure, block_checks
from service.analysis.completions import plan_completion
from service.analysis.model_checks import model_checks
from service.analysis.self_check import self_check
from service.analysis.weight_updates import weight_updates
from service.engine import Model, Run, drive, load
from service.engine.prefixes import Prefixes
from service.engine.walk import forward
from tests import oracle
from tests.analysis.subjects import CONTEXT, QUERY, Subject, agree
from tests.analysis.test_token_adapters import BAR, logits_error
from tests.engine.made import POINTS, every_site
from tests.oracle import GPT2

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
    ),
]
BOUNDS: dict[DType, float] = {"float32": 5e-6, "bfloat16": 3e-2, "float16": 4e-3}
"""Largest relative error of a captured vector against the float64 oracle's."""


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """The device of the model."""
    name: str = request.param
    return name


def subject(folder: Path, device: str, dtype: DType) -> Subject:
    """The tiny model in a dtype on a device, with its oracle."""
    return Subject(load(str(folder), revision=None, device=device, dtype=dtype), GPT2(folder))


@pytest.mark.parametrize("dtype", BOUNDS)
def test_activations_equal_float64_within_the_dtype(
    tiny_folder: Path, device: str, dtype: DType
) -> None:
    """Every hook point of every layer equals the float64 oracle's within the dtype's rounding."""
    one = subject(tiny_folder, device, dtype)
    ids = one.ids(CONTEXT)
    layers = range(one.model.n_layers)
    rows = tuple(range(len(ids)))
    question = activations(one.model, [ids], [rows], layers, POINTS, "none")
    (found,) = drive(one.model, question).prompts
    assert len(found.activations) == len(layers) * len(POINTS)
    truth = one.oracle.run(ids, range(len(ids)))
    for read in found.activations:
        expected = truth[read.layer, read.hook_point]
        agree(read.values.double().cpu(), expected, BOUNDS[dtype], (read.layer, read.hook_point))


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_checks_hold_in_every_dtype(
    tiny_folder: Path, device: str, dtype: DType, precision: torch.dtype
) -> None:
    """In every resident dtype the checks hold in both precisions and their controls fail."""
    one = subject(tiny_folder, device, dtype)
    pair, layers = one.pair("matched"), range(one.model.n_layers)
    checks = drive(one.model, block_checks(one.model, pair, layers, Procedure(dtype=precision)))
    assert {check.verdict for check in checks} == {"holds"}
    for check in checks:
        assert isinstance(check.bias_only_relative_error, float)
        assert check.bias_only_relative_error <= check.tolerance
        assert check.controls
        errors = check.controls.values()
        assert len(errors) == 4
        assert all(error is not None and error > 100 * check.tolerance for error in errors)
    whole, logits = drive(
        one.model, model_checks(one.model, pair, layers, Procedure(dtype=precision))
    )
    assert {check.verdict for check in whole} == {check.verdict for check in logits} == {"holds"}


def test_updates_cached_prefixes_and_self_check_work_on_each_device(
    tiny_folder: Path, device: str
) -> None:
    """Norms of ΔW equal the oracle's, a cached prefix changes no activation, and the self-check
    holds."""
    one = subject(tiny_folder, device, "float32")
    model: Model = one.model
    assert model.device.type == device
    (found,) = drive(model, weight_updates(model, [one.pair("matched")], [1], {"factors", "bias"}))
    question = one.question("matched")
    norms = [oracle.update(question, 1, position).norm for position in range(len(QUERY))]
    agree([update.norm for update in found.updates], norms, 1e-4)
    prefixes = Prefixes(1 << 24, model.dtype)
    ids = (*one.ids(CONTEXT), *one.ids(QUERY))
    last = [len(ids) - 1]
    run = Run(ids, range(len(ids)), every_site(model, last))
    cold, warm = (forward(model, [run], prefixes=prefixes)[0] for _ in range(2))
    assert prefixes.hits == len(ids) - 1
    for site, value in warm.items():
        agree(value.double().cpu(), cold[site].double().cpu(), 5e-6, site)
    assert drive(model, self_check(model)).verdict == "holds"


@pytest.mark.parametrize("positions", [(2,), (0, 2)])
def test_token_adapters_are_exact_on_each_device(
    tiny_folder: Path, device: str, positions: tuple[int, ...]
) -> None:
    """The numbers of an adapter, copied to the host, are exact in the oracle."""
    one = subject(tiny_folder, device, "float32")
    pair = one.pair("matched", positions)
    found = drive(one.model, token_adapter(one.model, pair, "weights"))
    assert logits_error(one.question("matched"), found.updates, positions) <= BAR


@pytest.mark.parametrize("dtype", BOUNDS)
def test_recomputed_patches_follow_the_context_in_every_dtype(
    tiny_folder: Path, device: str, dtype: DType
) -> None:
    """A sampled completion without the context agrees with the run with context within the
    dtype."""
    model = subject(tiny_folder, device, dtype).model
    patch = RecomputedPatch(context=CONTEXT, recompute="new")
    body = CompletionRequest(
        prompt=QUERY,
        patch=patch,
        agreement=True,
        max_tokens=8,
        seed=1,
        top_p=0.9,
        echo=True,
        capture=Capture(layers=[0]),
    )
    answer = drive(model, plan_completion(model, body))
    assert answer.agreement
    # Near its minimum the divergence grows with the square of an error of the logits.
    assert max(one.kl for one in answer.agreement) <= BOUNDS[dtype] ** 2
