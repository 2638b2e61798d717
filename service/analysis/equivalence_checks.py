"""The plan of an equivalence check: of layers, or of the whole model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

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
from service.analysis.adapters.made import LoadedAdapter, token_adapter_id
from service.analysis.block_checks import Procedure, block_checks
from service.analysis.inputs import refuse, resolve_layers
from service.analysis.model_checks import model_checks
from service.analysis.pairs import Pair, resolve_pair
from service.analysis.verdicts import worst
from service.engine import AnswerSize, Model, Plan, Question, plan
from service.errors import NotSupported

LOGITS_ENTRIES = 3
"""Checks that are about as large in JSON as the check of one position's logits."""


def plan_equivalence_checks(
    model: Model, request: EquivalenceChecksRequest, adapter: LoadedAdapter | None = None
) -> Plan[EquivalenceChecksAnswer]:
    """Plan an equivalence check.

    Args:
        model: The resident model.
        request: The request.
        adapter: The adapter that its patch names; None: it names none.

    Raises:
        Refused: An input does not fit.
    """
    layers = resolve_layers(model, request.layers)
    stream = checked_stream(request)
    projects = request.scope == "projection" and request.form == "weights"
    refuse(projects, "Scope `projection` needs the form `bias`.", "form")
    pair = resolve_pair(model, request.context, request.query, request.baseline, request.positions)
    if request.patch is not None:
        check_patch(model, request, pair, adapter)
    entries = len(layers) + (LOGITS_ENTRIES if request.scope == "model" else 0)
    size = AnswerSize(entries * len(pair.positions), pair.echoed_tokens)
    question = equivalence_checks(model, pair, layers, stream, request, adapter)
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


def check_patch(
    model: Model, request: EquivalenceChecksRequest, pair: Pair, adapter: LoadedAdapter | None
) -> None:
    """Refuse a patch that the request's runs do not belong to.

    Raises:
        NotSupported: The scope is not `model`, the adapter is not exact at the positions, or it was
            made for another context, query, baseline or form.
    """
    at = ("patch", "adapter")
    refuse(request.scope != "model", "`patch` needs the scope `model`.", "patch")
    refuse(
        request.precision == "float64",
        "The numbers of an adapter are float32. Choose the precision `float32`.",
        "precision",
    )
    if adapter is None:
        raise NotSupported("The service has no adapters.", at=at)
    record = adapter.record
    refuse(
        record.kind != "token",
        "The adapter is fitted to many queries and exact for none. Its own figures say how good it "
        "is.",
        *at,
    )
    refuse(
        "form" in request.model_fields_set and request.form != record.form,
        f"The adapter has the form `{record.form}`.",
        "form",
    )
    positions = tuple(record.positions or ())
    made_for = replace(pair, positions=positions)
    refuse(
        token_adapter_id(model, made_for, record.form) != adapter.id,
        "The adapter was made for another context, query or baseline, and is exact for its own "
        "alone.",
        *at,
    )
    refuse(
        not set(pair.positions) <= set(positions),
        f"The adapter is exact at {list(positions)} alone. Choose from these positions.",
        "positions",
    )


def equivalence_checks(
    model: Model,
    pair: Pair,
    layers: Sequence[int],
    stream: Stream,
    request: EquivalenceChecksRequest,
    adapter: LoadedAdapter | None = None,
) -> Question[EquivalenceChecksAnswer]:
    """Check the equivalence that a request asks for.

    Args:
        model: The resident model.
        pair: The run with context and its baseline.
        layers: Layers from 0.
        stream: Whether the layers below a checked one are patched too.
        request: How the equivalence is checked.
        adapter: The adapter whose patch is checked in scope `model`; None forms patches.
    """
    form = request.form if adapter is None else adapter.record.form
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
            form=form,
            controls=request.controls,
        )
        updates = None if adapter is None else adapter.updates
        checks, logits = yield from model_checks(model, pair, layers, procedure, updates)
    else:
        procedure = Procedure(
            scope=request.scope,
            dtype=dtype,
            stream=stream,
            tolerance=request.tolerance,
            apply=request.apply,
            form=request.form,
            controls=request.controls,
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
        form=form,
        checks=checks,
        logits=logits,
        adapter=UNSET if adapter is None else adapter.id,
    )
