"""Sizes of answers: the bytes of an answer are at most what its plan lets the service expect."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import starlette.requests
import torch
from fastapi import FastAPI

from schemas.activations import ActivationsRequest
from schemas.attributions import AttributionsRequest
from schemas.common import Encoding, Request
from schemas.completions import Capture, CompletionRequest, RecomputedPatch
from schemas.equivalence_checks import EquivalenceChecksRequest
from schemas.pairs import AnotherContext, WithoutSpans
from schemas.trajectories import TrajectoriesRequest
from schemas.weight_updates import WeightUpdatesRequest
from service.api.exchange import Exchange
from service.api.heads import JSON, SAFETENSORS
from service.api.tensors import serialize
from service.engine import Model, Plan, drive, load
from service.errors import NeverFits
from service.main import create_app
from service.settings import Settings
from tests.analysis.subjects import Subject, plan_of
from tests.checkpoints import save_tiny
from tests.oracle import HOOK_POINTS

CONTEXT = [5, 6, 7, 8, 9, 10]
LONG = [1 + i for i in range(40)]
PAIR: dict[str, Any] = {"context": CONTEXT, "query": [11, 12, 13]}
ALL: dict[str, Any] = {**PAIR, "positions": "all"}
SHORT: dict[str, Any] = {"context": [5], "query": [6], "layers": [0]}
POINTS: list[str] = list(HOOK_POINTS)
FORMS: list[tuple[str, Encoding]] = [(JSON, "json"), (JSON, "base64"), (SAFETENSORS, "json")]

REQUESTS: dict[str, Request] = {
    "updates": WeightUpdatesRequest(**PAIR),
    "updates with everything": WeightUpdatesRequest(
        **ALL, baseline="alone", include=["factors", "bias", "next_tokens", "split"]
    ),
    "updates of the sequential stream": WeightUpdatesRequest(**ALL, stream="sequential"),
    "updates without tensors": WeightUpdatesRequest(**SHORT, include=[]),
    "tokens of one byte": WeightUpdatesRequest(
        context="\x01\x02\x03", query="\x04", layers=[0], include=["next_tokens"]
    ),
    "updates with probes": WeightUpdatesRequest(**ALL, probe_queries=[[30], [31, 32]]),
    "updates without many spans": WeightUpdatesRequest(
        context=LONG,
        query=[6],
        layers=[0],
        include=[],
        baseline=WithoutSpans(without=[(i, i + 1) for i in range(1, 40, 2)]),
    ),
    "checks": EquivalenceChecksRequest(**ALL),
    "a check without controls": EquivalenceChecksRequest(**SHORT, controls=False),
    "model checks": EquivalenceChecksRequest(**ALL, scope="model"),
    "a model check of one layer": EquivalenceChecksRequest(**SHORT, scope="model"),
    "trajectories": TrajectoriesRequest(**ALL),
    "a short trajectory": TrajectoriesRequest(**SHORT),
    "a long trajectory": TrajectoriesRequest(context=LONG, query=[6]),
    "attributions": AttributionsRequest(**ALL, spans=[(0, 1), (2, 4)]),
    "a short attribution": AttributionsRequest(**SHORT),
    "attributions of tokens": AttributionsRequest(
        context=LONG, query=[6], spans=[(i, i + 1) for i in range(40)]
    ),
    "activations": ActivationsRequest(prompts=[CONTEXT, CONTEXT, [5]], positions="all"),
    "every hook point": ActivationsRequest(prompts=[[5]], hook_points=POINTS),
    "norms": ActivationsRequest(prompts=[[5]], hook_points=POINTS, reduce="norm"),
    "norms of many positions": ActivationsRequest(prompts=[LONG], positions="all", reduce="norm"),
    "means": ActivationsRequest(prompts=[CONTEXT, [5]], reduce="mean"),
    "a completion of one token": CompletionRequest(prompt=[5], max_tokens=1, seed=1),
    "a completion with everything": CompletionRequest(
        prompt="the \x01\x02",
        max_tokens=20,
        seed=1,
        logprobs=20,
        patch=RecomputedPatch(context="a", recompute="new"),
        agreement=True,
        capture=Capture(hook_points=["mlp_in", "mlp_act", "resid_post"]),
    ),
    "an echoed prompt": CompletionRequest(
        prompt="\x01" * 40, max_tokens=2, seed=1, logprobs=20, echo=True
    ),
    "captured norms": CompletionRequest(
        prompt=[5],
        max_tokens=9,
        seed=1,
        capture=Capture(reduce="norm", hook_points=["mlp_in", "resid_post"]),
    ),
}


@pytest.fixture(scope="module")
def app(tiny_folder: Path) -> FastAPI:
    """The application, whose limit of an answer is 1 MiB."""
    return create_app(Settings(model=str(tiny_folder), max_response_bytes=1 << 20))


def exchange(app: FastAPI, media: str, encoding: Encoding) -> Exchange:
    """An exchange whose answer has this form."""
    scope = {"type": "http", "app": app, "headers": []}
    return Exchange(starlette.requests.Request(scope), media, encoding=encoding)


def sizes(
    app: FastAPI, model: Model, request: Request, media: str, encoding: Encoding
) -> tuple[int, int]:
    """The bytes of the answer to a request, and the bytes that the service expected."""
    asked = exchange(app, media, encoding)
    made: Plan[Any] = plan_of(model, request)
    asked.check_size(made.size)
    return len(serialize(drive(model, made), media, encoding)), asked.size


@pytest.mark.parametrize(("media", "encoding"), FORMS)
@pytest.mark.parametrize("name", REQUESTS)
def test_answer_has_at_most_the_expected_bytes(
    app: FastAPI, tiny: Model, name: str, media: str, encoding: Encoding
) -> None:
    """The answer is no larger than the service expects from its plan, in every form."""
    actual, expected = sizes(app, tiny, REQUESTS[name], media, encoding)
    assert actual <= expected


def test_answer_with_a_long_baseline_context_has_at_most_the_expected_bytes(
    app: FastAPI, tmp_path: Path
) -> None:
    """The answer repeats the context of the baseline, so the expected bytes include it."""
    with torch.inference_mode(False):
        folder = save_tiny(tmp_path / "long", n_positions=1024, n_layer=1)
    model = load(str(folder), revision=None, device="cpu", dtype="float32")
    baseline = AnotherContext(context="\x01" * 1000)
    request = WeightUpdatesRequest(**SHORT, baseline=baseline, include=[])
    actual, expected = sizes(app, model, request, JSON, "json")
    assert actual <= expected


@pytest.mark.parametrize(
    ("request_", "numbers"),
    [
        (WeightUpdatesRequest(**PAIR, include=[]), 0),
        (WeightUpdatesRequest(**PAIR), 3 * (32 + 128)),
        (WeightUpdatesRequest(**ALL, include=["bias"]), 9 * 32),
        (WeightUpdatesRequest(**ALL, baseline="alone", include=["split"]), 9 * 2 * (32 + 128)),
        (ActivationsRequest(prompts=[CONTEXT, [5]], positions="all"), 3 * 7 * 32),
        (ActivationsRequest(prompts=[CONTEXT], hook_points=["mlp_in", "mlp_pre"]), 3 * 160),
        (ActivationsRequest(prompts=[CONTEXT], positions="all", reduce="norm"), 3 * 6 * 2),
        (ActivationsRequest(prompts=[CONTEXT, [5]], reduce="mean"), 3 * 2 * 32 * 2),
    ],
)
def test_plan_announces_the_numbers_of_its_tensors(
    tiny: Model, request_: Request, numbers: int
) -> None:
    """Numbers count as float32, and a float64 number counts twice: the safetensors file of the
    answer holds four bytes for each."""
    made = plan_of(tiny, request_)
    assert made.size.numbers == numbers
    file = serialize(drive(tiny, made), SAFETENSORS, "json")
    header = int.from_bytes(file[:8], "little")
    assert len(file) - 8 - header == 4 * numbers


OF_FAMILIES: dict[str, Request] = {
    "weights": WeightUpdatesRequest(
        **ALL, baseline="alone", include=["factors", "bias", "split"], form="weights"
    ),
    "bias": WeightUpdatesRequest(**ALL, include=["factors", "bias", "next_tokens"]),
    "the second weight alone": WeightUpdatesRequest(**SHORT, include=["bias"], form="weights"),
    "checks": EquivalenceChecksRequest(**ALL, form="weights"),
    "projections": EquivalenceChecksRequest(**SHORT, scope="projection", stream="sequential"),
    "activations": ActivationsRequest(
        prompts=[CONTEXT, "abc"], hook_points=[*POINTS, "mlp_pre_linear"], reduce="mean"
    ),
}


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "neox-parallel"])
@pytest.mark.parametrize("asked", OF_FAMILIES)
def test_plans_of_other_families_announce_their_numbers_and_bytes(
    app: FastAPI, name: str, asked: str, variant_of: Callable[[str], Subject]
) -> None:
    """Two first weights, a second one that carries Δh, and a gain count as they are written."""
    model, request = variant_of(name).model, OF_FAMILIES[asked]
    if isinstance(request, ActivationsRequest) and not model.gated:
        request = request.model_copy(update={"hook_points": POINTS})
    made = plan_of(model, request)
    file = serialize(drive(model, made), SAFETENSORS, "json")
    header = int.from_bytes(file[:8], "little")
    assert len(file) - 8 - header == 4 * made.size.numbers
    for media, encoding in FORMS:
        actual, expected = sizes(app, model, request, media, encoding)
        assert actual <= expected, (media, encoding)


def test_answer_above_the_limit_is_refused_before_it_is_computed(app: FastAPI, tiny: Model) -> None:
    """A plan whose answer would exceed the limit is refused with the expected bytes."""
    request = ActivationsRequest(prompts=[LONG] * 2, positions="all", hook_points=POINTS)
    asked = exchange(app, JSON, "json")
    with pytest.raises(NeverFits) as refused:
        asked.check_size(plan_of(tiny, request).size)
    assert refused.value.limit == 1 << 20
    assert refused.value.actual == asked.size > 1 << 20
