"""docs/conformance.md: its generator finds planted faults, and the document covers every family."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from docs.conformance import activations
from docs.conformance.__main__ import FILE
from docs.conformance.activations import (
    BOUNDS,
    COLUMNS,
    LOGITS,
    Measured,
    errors,
    least,
    measure,
    planted,
    status,
)
from docs.conformance.checks import PRECISIONS, SCOPES, check
from docs.conformance.page import Entry, groups, number, page
from docs.conformance.subjects import Subject, random_subject
from service.analysis.factors import layer_update
from service.engine import Activations, Block, Model, Run, Site, load
from service.engine.families import FAMILIES
from service.engine.walk import forward
from service.theory import ImplicitUpdate, RankOne
from tests.families import VARIANTS
from tests.oracle.decoder import Decoder

DOCUMENT = FILE.read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (.+) \|$", DOCUMENT, re.M)
Fault = Callable[[dict[Site, Tensor]], dict[Site, Tensor]]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """A random Llama."""
    with torch.inference_mode(False):
        return random_subject("llama", tmp_path_factory.mktemp("conformance"))


def test_model_without_fault_is_supported(llama: Subject, tmp_path: Path) -> None:
    """Float32 and float64 are SUPPORTED and half precision is DEGRADED at every hook point."""
    found = measure(llama, "cpu", tmp_path)
    assert found.refused == {}
    assert found.columns.keys() == COLUMNS.keys()
    for column, points in found.columns.items():
        expected = "SUPPORTED" if column in ("float32", "float64") else "DEGRADED"
        assert points.keys() == found.effects.keys()
        assert {found.status(column, point) for point in points} == {expected}


def test_error_of_four_bounds_makes_a_hook_point_unsupported(
    llama: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An MLP output that is wrong by 2e-5 is UNSUPPORTED in float32 and float64, and the page says
    so; bfloat16 cannot show it."""
    right = Block.out
    monkeypatch.setattr(Block, "out", lambda block, act: right(block, act) * (1 + 2e-5))
    found = measure(llama, "cpu", tmp_path)
    assert found.status("float32", "mlp_out") == found.status("float64", "mlp_out") == "UNSUPPORTED"
    assert found.status("bfloat16", "mlp_out") == "DEGRADED"
    row = next(
        line for line in page([Entry(found, {})], []).splitlines() if "| `llama`, cpu |" in line
    )
    assert row.count("UNSUPPORTED") == 2


def token_off(read: dict[Site, Tensor]) -> dict[Site, Tensor]:
    """Each row is that of the token before."""
    return {site: values.roll(1, 0) for site, values in read.items()}


def layer_off(read: dict[Site, Tensor]) -> dict[Site, Tensor]:
    """Each layer is the other one of two."""
    return {site: read[Site(1 - site.layer, site.point)] for site in read}


def site_off(read: dict[Site, Tensor]) -> dict[Site, Tensor]:
    """Each hook point is the next one of its width."""
    wrong = {}
    for site, values in read.items():
        alike = [
            other
            for other in read
            if other.layer == site.layer and read[other].shape == values.shape
        ]
        wrong[site] = read[alike[(alike.index(site) + 1) % len(alike)]]
    return wrong


@pytest.mark.parametrize("fault", [token_off, layer_off, site_off])
def test_planted_fault_makes_every_hook_point_unsupported(
    llama: Subject, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    """Vectors of another token, layer or site are beyond the bound in every column, at every hook
    point, by at least the effect that the oracle says."""
    model = load(str(llama.folder), revision=None, device="cpu", dtype="float32")
    oracle = Decoder(llama.folder)
    truth = oracle.run(llama.ids)
    effects = planted(oracle, llama.ids, truth)

    def wrong(model: Model, runs: Sequence[Run]) -> list[Activations]:
        return [Activations(fault(dict(read))) for read in forward(model, runs)]

    monkeypatch.setattr(activations, "forward", wrong)
    for column in ("float32", "float64"):
        found = errors(llama, model, truth, column, effects)
        assert not any(measured.within for measured in found.values())
        named = fault.__name__.replace("_", " ")
        for point, measured in found.items():
            if point != LOGITS:
                assert measured.error >= 0.99 * least(effects)[point][named]


def test_patch_off_by_a_thousandth_fails_the_checks(
    llama: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All checks of all scopes hold, but not with a patch whose ΔW is off by 1e-3."""
    model = load(str(llama.folder), revision=None, device="cpu", dtype="float32")
    found = check(llama, model)
    assert {scope for scope, _ in found} == set(SCOPES)
    for one in found.values():
        assert set(one.verdicts) == {"holds"}
        assert one.error <= one.tolerance < one.control / 1000

    def wrong(*runs: Any) -> ImplicitUpdate:
        update = layer_update(*runs)
        weight = update.weight
        return replace(update, weight=RankOne(weight.input, weight.output * 1.001))

    monkeypatch.setattr("service.analysis.block_checks.layer_update", wrong)
    broken = check(llama, model)
    for precision in PRECISIONS:
        for scope in SCOPES[:3]:
            assert set(broken[scope, precision].verdicts) == {"fails"}


@pytest.mark.parametrize(
    ("column", "within", "clearance", "expected"),
    [
        ("float32", True, 10.0, "SUPPORTED"),
        ("float32", True, 9.9, "DEGRADED"),
        ("float32", False, 1e4, "UNSUPPORTED"),
        ("float64", True, 10.0, "SUPPORTED"),
        ("bfloat16", True, 1e4, "DEGRADED"),
        ("float16", False, 1e4, "UNSUPPORTED"),
    ],
)
def test_status_needs_ten_bounds_between_rounding_and_planted_errors(
    column: activations.Column, within: bool, clearance: float, expected: str
) -> None:
    """From an effect of ten bounds float32 and float64 are SUPPORTED; half precision never is."""
    assert status(column, Measured(0.0, BOUNDS[column], within, clearance)) == expected


def test_refused_checkpoint_is_unsupported_with_its_reason(tmp_path: Path) -> None:
    """Gemma 3 in float16 is refused, and the page gives the reason and no figure."""
    with torch.inference_mode(False):
        subject = random_subject("gemma3", tmp_path)
    entry = Entry(measure(subject, "cpu", tmp_path), {})
    assert entry.activations.columns.keys() == {"float32", "float64", "bfloat16"}
    assert "float16 | UNSUPPORTED | its residual stream exceeds float16" in page([entry], [])
    (group,) = groups([entry], "random")
    assert group.worst.status("float16", "mlp_in") == "UNSUPPORTED"


def test_numbers_are_short() -> None:
    """Exponents have no zeros and no plus sign."""
    assert [number(2.54e-6), number(1e-12, 0), number(3.0, 0), number(2e11)] == [
        "2.5e-6",
        "1e-12",
        "3e0",
        "2.0e11",
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_committed_document_has_every_family(family: str) -> None:
    """Each family has a row in the summary, one with its checks, and a table of hook points."""
    summary = [row for row in ROWS if row.startswith(f"`{family}`, cpu | SUPPORTED")]
    assert len(summary) == 1
    assert len([row for row in ROWS if row.startswith(f"`{family}`, cpu | projection | ")]) == 1
    assert f"### `{family}`, random weights, cpu\n" in DOCUMENT


def test_committed_document_has_every_variant_and_no_failure() -> None:
    """Every variant is named, no check fails, and UNSUPPORTED are refusals and absent points."""
    for name in VARIANTS:
        assert re.search(rf"(?<![\w-]){name}(?![\w-])", DOCUMENT), name
    assert "FAIL" not in DOCUMENT
    unsupported = [row for row in ROWS if "UNSUPPORTED" in row]
    named = ("refused", "no gate", "its residual stream exceeds", "its norms have no")
    for row in unsupported:
        assert any(reason in row for reason in named) or row.startswith("hook point"), row
