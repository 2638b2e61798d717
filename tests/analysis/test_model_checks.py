"""Scope `model`: every block of one patched run and the logits, compared with the oracle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from schemas.common import UNSET
from schemas.equivalence_checks import Apply, Check, LogitsCheck
from schemas.pairs import AnotherContext
from service.analysis.block_checks import Procedure
from service.analysis.model_checks import CONTROL, model_checks
from service.analysis.pairs import resolve_pair
from service.engine import Model, drive, load
from tests import oracle
from tests.analysis.subjects import BASELINES, CONTEXT, QUERY, Subject, agree
from tests.checkpoints import save_tiny
from tests.engine.made import resident, unchanged

only_tiny = pytest.mark.parametrize("subject", ["tiny"], indirect=True)
GATES = {torch.float32: (2e-5, 1e-5, 1e-8), torch.float64: (1e-12, 1e-12, 1e-12)}
"""Gates of the block, the logits and KL."""
AGREES = {torch.float32: 1e-4, torch.float64: 1e-9}
"""Relative bound within which large relative errors agree with the oracle's."""


def both(checks: Sequence[Check], logits: Sequence[LogitsCheck]) -> list[Check | LogitsCheck]:
    """All checks of an answer."""
    return [*checks, *logits]


def asked(
    subject: Subject, baseline: str, procedure: Procedure
) -> tuple[list[Check], list[LogitsCheck]]:
    """The checks of all layers and logits at all query positions."""
    model = subject.model
    pair = subject.pair(baseline)
    return drive(model, model_checks(model, pair, range(model.n_layers), procedure))


@only_tiny
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("apply", ["factored", "materialized"])
@pytest.mark.parametrize("baseline", BASELINES)
def test_block_outputs_equal_the_oracles(
    subject: Subject, baseline: str, apply: Apply, dtype: torch.dtype
) -> None:
    """Each block's error is within its tolerance. Its magnitude, unpatched error and control of
    free-stream patches equal those of the oracle's whole runs."""
    question, agrees = subject.question(baseline), AGREES[dtype]
    checks, _ = asked(subject, baseline, Procedure(dtype=dtype, apply=apply))
    places = [(layer, j) for layer in range(3) for j in range(len(QUERY))]
    assert [(check.layer, check.position) for check in checks] == places
    for check in checks:
        what = (check.layer, check.position)
        theirs = oracle.model_check(question, check.layer, check.position)
        change = oracle.sequential(question, check.position).updates[check.layer]
        allowed = oracle.tolerance(GATES[dtype][0], change, theirs.expected)
        agree(check.tolerance, allowed, 1e-4, what)
        assert (check.relative_error or 0.0) <= allowed, what
        assert check.holds, what
        agree(check.magnitude, theirs.magnitude, 5e-6, what)
        agree(check.unpatched_relative_error, theirs.unpatched_relative_error, agrees, what)
        together = oracle.free_stream_patches(question, check.position)["layers"]
        assert isinstance(together, list)
        assert check.controls
        assert check.bias_only_relative_error is UNSET
        if check.layer == 0:
            assert check.controls == {CONTROL: None}
            assert set(check.control_reasons or {}) == {CONTROL}
            assert together[0] <= 1e-12
        else:
            assert check.control_reasons is UNSET
            agree(check.controls[CONTROL], together[check.layer], agrees, what)
            assert together[check.layer] > 100 * allowed


@only_tiny
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("baseline", BASELINES)
def test_logits_equal_the_oracles(subject: Subject, baseline: str, dtype: torch.dtype) -> None:
    """Error and KL are within their gates and the top token is the same. Unpatched error and
    control equal the oracle's and are far larger."""
    question, agrees = subject.question(baseline), AGREES[dtype]
    _, gate, kl_gate = GATES[dtype]
    _, logits = asked(subject, baseline, Procedure(dtype=dtype))
    assert [check.position for check in logits] == list(range(len(QUERY)))
    for check in logits:
        theirs = oracle.logits_check(question, check.position)
        assert gate <= check.tolerance <= 100 * gate
        assert (check.relative_error or 0.0) <= check.tolerance
        assert check.kl_tolerance == kl_gate
        assert 0 <= check.kl_divergence <= kl_gate
        assert check.max_abs_error <= check.tolerance * theirs.magnitude
        assert check.same_top_token
        assert check.verdict == "holds"
        agree(check.unpatched_relative_error, theirs.unpatched_relative_error, agrees)
        apart = oracle.next_token_divergence(question, check.position)
        agree(check.unpatched_kl_divergence, apart, agrees)
        together = oracle.free_stream_patches(question, check.position)["logits"]
        assert isinstance(together, float)
        assert check.controls
        agree(check.controls[CONTROL], together, agrees)
        assert together > 100 * check.tolerance
        top = check.top_tokens
        for tokens, row in (
            (top.with_context, theirs.expected),
            (top.patched, theirs.expected),
            (top.without_context, theirs.unpatched),
        ):
            best = oracle.likeliest(row)
            assert [token.id for token in tokens] == [id for id, _ in best]
            agree([token.probability for token in tokens], [share for _, share in best], agrees)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_checks_hold_on_both_models(subject: Subject, dtype: torch.dtype) -> None:
    """Every check holds, in float64 to 1e-12, and the resident weights stay bit-equal."""
    before = resident(subject.model)
    pair = subject.pair("matched", "last")
    layers = range(subject.model.n_layers)
    checks, logits = drive(
        subject.model, model_checks(subject.model, pair, layers, Procedure(dtype=dtype))
    )
    assert len(checks) == subject.model.n_layers
    for check in both(checks, logits):
        assert check.verdict == "holds", check
        assert (check.relative_error or 0.0) <= check.tolerance
        assert check.tolerance <= 10 * GATES[dtype][0]
    assert unchanged(subject.model, before)
    truth = oracle.logits_check(subject.question("matched"))
    agree(logits[0].unpatched_relative_error, truth.unpatched_relative_error, 1e-4)


@only_tiny
def test_only_the_requested_layers_are_reported(subject: Subject) -> None:
    """All blocks are patched even so: the entries equal those of a request for every layer."""
    model, pair = subject.model, subject.pair("without")
    every, logits = asked(subject, "without", Procedure(dtype=torch.float64))
    some, again = drive(model, model_checks(model, pair, [1], Procedure(dtype=torch.float64)))
    assert some == [check for check in every if check.layer == 1]
    assert again == logits


@only_tiny
def test_requested_tolerance_decides_every_verdict(subject: Subject) -> None:
    """Below rounding every check fails. Above the unpatched error every check is vacuous."""
    for tolerance, verdict in ((1e-30, "fails"), (1e3, "vacuous")):
        procedure = Procedure(dtype=torch.float64, tolerance=tolerance, controls=False)
        checks, logits = asked(subject, "matched", procedure)
        assert {check.verdict for check in both(checks, logits)} == {verdict}
        assert {check.tolerance for check in both(checks, logits)} == {tolerance}
        assert all(check.controls is UNSET for check in both(checks, logits))
        assert not any(check.holds for check in both(checks, logits))


@only_tiny
def test_checks_of_equal_contexts_are_vacuous(subject: Subject) -> None:
    """If the baseline reads the same context, every check is vacuous and none holds."""
    model = subject.model
    context, query = subject.ids(CONTEXT), subject.ids(QUERY)
    pair = resolve_pair(model, context, query, AnotherContext(context=list(context)), "all")
    checks, logits = drive(model, model_checks(model, pair, range(3), Procedure()))
    assert {check.verdict for check in both(checks, logits)} == {"vacuous"}
    assert max(check.unpatched_relative_error or 0.0 for check in both(checks, logits)) == 0.0


def test_model_of_one_layer_has_no_free_stream_control(tmp_path: Path) -> None:
    """Both streams are the same with one layer, so the control is null with a reason, also for the
    logits."""
    with torch.inference_mode(False):
        folder = save_tiny(tmp_path / "one", n_layer=1)
    model: Model = load(str(folder), revision=None, device="cpu", dtype="float32")
    pair = resolve_pair(model, [5, 6, 7, 8], [9, 10], "matched", "all")
    checks, logits = drive(model, model_checks(model, pair, [0], Procedure()))
    assert len(checks) == len(logits) == 2
    for check in both(checks, logits):
        assert check.verdict == "holds"
        assert check.controls == {CONTROL: None}
        assert check.control_reasons
        assert "below the first" in check.control_reasons[CONTROL]
