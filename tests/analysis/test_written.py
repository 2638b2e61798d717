"""The independent proof: answers of the service, written into transformers' own modules.

transformers then runs the anchor and the query alone, and has the logits of the full prompt.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from schemas.pairs import Baseline, Form, WithoutSpans
from schemas.weight_updates import WeightUpdatesRequest
from service.api.tensors import serialize
from service.engine import drive
from service.settings import Settings
from tests.analysis.subjects import CONTEXT, QUERY, SPANS, Subject, plan_of
from tests.conftest import app_client
from tests.families import VARIANTS
from tests.oracle.written import proof

RELATIVE, KL = 5e-6, 1e-10


def asked(subject: Subject, **options: Any) -> dict[str, Any]:
    """The fields of a request for all sequential updates of the last query position."""
    anchored = subject.model.anchor is not None
    return {
        "context": list(subject.ids(CONTEXT)),
        "query": list(subject.ids(QUERY)),
        "baseline": "anchored" if anchored else "matched",
        "stream": "sequential",
        "include": ["factors", "bias"],
        **options,
    }


def forms(name: str) -> tuple[Form, ...]:
    """The forms that a checkpoint can hold: a bias needs a parameter."""
    return ("bias", "weights") if VARIANTS[name].bias else ("weights",)


def check_proof(folder: Path, answer: Any) -> None:
    """The written model has the logits of the full prompt, and the model as it is has not."""
    found = proof(folder, answer)
    assert found.relative_error <= RELATIVE, found
    assert found.kl_divergence <= KL, found
    assert found.same_top_token
    assert found.unwritten_relative_error > 1e-2
    assert found.unwritten_kl_divergence > 1e-4


def test_written_weights_give_the_logits_of_the_full_prompt(
    variant: Subject, variant_name: str, folder_of: Callable[[str], Path]
) -> None:
    """In every family, in each form that the checkpoint can hold."""
    for form in forms(variant_name):
        request = WeightUpdatesRequest(**asked(variant, form=form))
        answer = drive(variant.model, plan_of(variant.model, request))
        body = serialize(answer, "application/json", "json")
        check_proof(folder_of(variant_name), json.loads(body))


@pytest.mark.parametrize("name", ["opt", "mistral", "gemma3", "neox-serial"])
def test_it_holds_for_other_baselines(
    name: str, variant_of: Callable[[str], Subject], folder_of: Callable[[str], Path]
) -> None:
    """Without context, and without spans of it, where gaps count in a window."""
    subject = variant_of(name)
    baselines: tuple[Baseline, ...] = ("matched", WithoutSpans(without=list(SPANS)))
    for baseline in baselines:
        request = WeightUpdatesRequest(
            **asked(subject, form="weights", baseline=baseline, encoding="base64")
        )
        answer = drive(subject.model, plan_of(subject.model, request))
        body = serialize(answer, "application/json", "base64")
        check_proof(folder_of(name), json.loads(body))


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["qwen3", "gemma3"])
async def test_it_holds_over_http(
    name: str, variant_of: Callable[[str], Subject], folder_of: Callable[[str], Path]
) -> None:
    """The service's own JSON, with text that begins with a special token, in a gated family and in
    one with norms after the MLP."""
    fields = {"context": "the cat abcd", "query": " the", "baseline": None, "form": "weights"}
    body = asked(variant_of(name), **fields)
    async with app_client(Settings(model=str(folder_of(name)))) as client:
        answer = await client.post("/v1/weight-updates", json=body)
    assert answer.status_code == httpx.codes.OK, answer.text
    assert answer.json()["baseline"] == "anchored"
    check_proof(folder_of(name), answer.json())
