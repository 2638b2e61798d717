"""The plan of an equivalence check: of layers, or of the whole model."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from schemas.common import UNSET, Unset
from schemas.equivalence_checks import (
    Check,
    EquivalenceChecksAnswer,
    EquivalenceChecksRequest,
    LogitsCheck,
    Precision,
)
from schemas.pairs import Stream
from service.analysis.block_checks import Procedure, block_checks
from service.analysis.inputs import refuse, require_form, resolve_layers
from service.analysis.model_checks import model_checks
from service.analysis.pairs import Pair, resolve_pair
from service.analysis.verdicts import worst
from service.engine import AnswerSize, Model, Plan, Question, plan

LOGITS_ENTRIES = 3
"""Checks that are about as large in JSON as the check of one position's logits."""


def plan_equivalence_checks(
    model: Model, request: EquivalenceChecksRequest
) -> Plan[EquivalenceChecksAnswer]:
    """Plan an equivalence check. Raises `Refused` if an input does not fit."""
    layers = resolve_layers(model, request.layers)
    stream = checked_stream(request)
    projects = request.scope == "projection" and request.form == "weights"
    refuse(projects, "Scope `projection` needs the form `bias`.", "form")
    require_form(model, request.form, request.joint)
    pair = resolve_pair(model, request.context, request.query, request.baseline, request.positions)
    if request.joint:
        refuse(len(pair.positions) < 2, "`joint` needs two positions or more.", "joint")
        refuse(stream != "free", "`joint` needs the stream `free`.", "joint")
    entries = len(layers) + (LOGITS_ENTRIES if request.scope == "model" else 0)
    size = AnswerSize(entries * len(pair.positions), pair.echoed_tokens)
    question = equivalence_checks(model, pair, layers, stream, request)
    # The control of scope `model` runs the baseline of each position once more.
    again = len(pair.positions) * len(pair.baseline.ids)
    later_rows = again if request.scope == "model" and request.controls else 0
    return plan(model, question, size, later_rows)


def checked_stream(request: EquivalenceChecksRequest) -> Stream:
    """The stream of a check. Scope `model` implies `sequential`.

    Raises:
        NotSupported: The request asks for `free` in scope `model`.
    """
    if request.scope != "model":
        return request.stream
    asked = "stream" in request.model_fields_set and request.stream == "free"
    refuse(asked, "Scope `model` needs the stream `sequential`.", "stream")
    return "sequential"


def equivalence_checks(
    model: Model,
    pair: Pair,
    layers: Sequence[int],
    stream: Stream,
    request: EquivalenceChecksRequest,
) -> Question[EquivalenceChecksAnswer]:
    """Check the equivalence that a request asks for.

    Args:
        model: The resident model.
        pair: The run with context and its baseline.
        layers: Layers from 0.
        stream: Whether the layers below a checked one are patched too.
        request: How the equivalence is checked.
    """
    relation = pair.relation(model, stream)
    precision: Precision = "float64" if request.precision == "float64" else "float32"
    dtype = torch.float64 if precision == "float64" else torch.float32
    checks: Sequence[Check]
    logits: Sequence[LogitsCheck] | Unset = UNSET
    if request.scope == "model":
        procedure = Procedure(
            dtype=dtype,
            tolerance=request.tolerance,
            apply=request.apply,
            form=request.form,
            controls=request.controls,
        )
        checks, logits = yield from model_checks(model, pair, layers, procedure)
    else:
        procedure = Procedure(
            scope=request.scope,
            dtype=dtype,
            stream=stream,
            tolerance=request.tolerance,
            apply=request.apply,
            form=request.form,
            controls=request.controls,
            joint=request.joint,
        )
        checks = yield from block_checks(model, pair, layers, procedure)
    verdicts = [check.verdict for check in checks] + [check.verdict for check in logits or ()]
    verdict = worst(verdicts)
    return EquivalenceChecksAnswer(
        *relation,
        holds=verdict == "holds",
        verdict=verdict,
        scope=request.scope,
        precision=precision,
        apply=request.apply,
        form=request.form,
        joint=request.joint,
        checks=checks,
        logits=logits,
    )
