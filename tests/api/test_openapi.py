"""The OpenAPI document: valid, complete, and its examples run."""

from __future__ import annotations

import json
from typing import Any, get_args

import httpx
import pytest
from openapi_spec_validator import validate
from pydantic import BaseModel

from schemas.activations import ActivationsAnswer, ActivationsRequest, HookPoint
from schemas.attributions import AttributionsAnswer, AttributionsRequest
from schemas.common import read_answer
from schemas.completions import Completion, CompletionRequest
from schemas.equivalence_checks import EquivalenceChecksAnswer, EquivalenceChecksRequest
from schemas.model import ModelAnswer
from schemas.tokenize import TokenizeAnswer, TokenizeRequest
from schemas.trajectories import TrajectoriesAnswer, TrajectoriesRequest
from schemas.weight_updates import WeightUpdatesAnswer, WeightUpdatesRequest
from tests.api.conftest import Heard
from tests.api.wire import SAFETENSORS, STATUS

RESOURCES: dict[str, tuple[type[BaseModel], type[Any]]] = {
    "/v1/activations": (ActivationsRequest, ActivationsAnswer),
    "/v1/weight-updates": (WeightUpdatesRequest, WeightUpdatesAnswer),
    "/v1/equivalence-checks": (EquivalenceChecksRequest, EquivalenceChecksAnswer),
    "/v1/trajectories": (TrajectoriesRequest, TrajectoriesAnswer),
    "/v1/attributions": (AttributionsRequest, AttributionsAnswer),
    "/v1/tokenize": (TokenizeRequest, TokenizeAnswer),
    "/v1/completions": (CompletionRequest, Completion),
}
EVERYWHERE = {
    "too_many_lines",
    "malformed_json",
    "missing_key",
    "wrong_key",
    "not_acceptable",
    "body_too_large",
    "unsupported_media_type",
    "validation",
    "token_out_of_range",
    "never_fits",
    "internal",
    "loading",
    "self_check_failed",
}
ASKED = EVERYWHERE | {
    "empty_query",
    "prompt_too_long",
    "layer_out_of_range",
    "position_out_of_range",
    "queue_full",
    "non_finite",
    "draining",
    "out_of_memory",
    "deadline_exceeded",
}
PAIR = ASKED | {"not_supported", "no_anchor_token", "bad_span", "empty_context"}
MAY_OCCUR = {
    "/v1/activations": ASKED | {"too_many_items", "unknown_hook_point"},
    "/v1/weight-updates": PAIR | {"too_many_items"},
    "/v1/equivalence-checks": PAIR,
    "/v1/trajectories": PAIR,
    "/v1/attributions": PAIR,
    "/v1/tokenize": EVERYWHERE | {"too_many_items"},
    "/v1/completions": (PAIR - {"position_out_of_range"})
    | {
        "unknown_hook_point",
        "unknown_model",
        "unknown_adapter",
        "other_weights",
        "no_rows_patched",
    },
    "/v1/models": {
        "missing_key",
        "wrong_key",
        "not_acceptable",
        "internal",
        "loading",
        "self_check_failed",
    },
    "/v1/model": {
        "missing_key",
        "wrong_key",
        "not_acceptable",
        "internal",
        "loading",
        "self_check_failed",
    },
    "/readyz": {"loading", "self_check_failed", "draining"},
    "/health": {"loading", "self_check_failed", "draining"},
    "/metrics": {"missing_key", "wrong_key"},
    "/problems/{code}": {"not_found"},
}
EXAMPLES = [
    (path, i, example)
    for path, (request, _) in RESOURCES.items()
    for i, example in enumerate(request.model_json_schema()["examples"])
]


@pytest.fixture(scope="module")
def document(tiny_heard: Heard) -> dict[str, Any]:
    """The document as it is served."""
    answer: dict[str, Any] = tiny_heard.client.get("/openapi.json").json()
    return answer


def test_document_is_openapi(document: dict[str, Any]) -> None:
    """The document follows the OpenAPI specification."""
    validate(document)


def test_references_resolve(document: dict[str, Any]) -> None:
    """Every reference of the document is to a schema in it."""
    schemas = document["components"]["schemas"]
    text = json.dumps(document)
    for reference in (part.split('"')[0] for part in text.split('"$ref": "')[1:]):
        assert reference.removeprefix("#/components/schemas/") in schemas


def test_schemas_are_the_services_own(document: dict[str, Any]) -> None:
    """FastAPI's own validation errors, which the service never sends, are not in the document."""
    text = json.dumps(document)
    assert "ValidationError" not in text
    assert "Validation Error" not in text
    for methods in document["paths"].values():
        for operation in methods.values():
            for status, said in operation["responses"].items():
                problem = int(status) >= 400
                assert not problem or list(said["content"]) == ["application/problem+json"]


def test_description_credits_each_paper(document: dict[str, Any]) -> None:
    """The description cites the four papers whose ideas the service computes."""
    for paper in ("2507.16003", "2510.08734", "2511.17864", "2512.11255"):
        assert f"arxiv.org/abs/{paper}" in document["info"]["description"]


def test_operations_are_described(document: dict[str, Any]) -> None:
    """Every operation says in words what it does, and the resources are all there."""
    assert {
        *RESOURCES,
        "/v1/model",
        "/v1/models",
        "/livez",
        "/readyz",
        "/health",
        "/metrics",
    } <= set(document["paths"])
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation.get("summary"), (method, path)
            assert operation.get("description"), (method, path)


@pytest.mark.parametrize("path", MAY_OCCUR)
def test_problems_of_each_path_are_documented(document: dict[str, Any], path: str) -> None:
    """Each problem that a path may answer with is named under its status, with its media type."""
    (operation,) = document["paths"][path].values()
    for code in MAY_OCCUR[path]:
        said = operation["responses"][str(STATUS[code])]
        assert f"`{code}`" in said["description"], code
        assert list(said["content"]) == ["application/problem+json"]
        if STATUS[code] in (429, 503):
            assert "Retry-After" in said["headers"]


def test_every_problem_code_is_documented(document: dict[str, Any]) -> None:
    """Every code of the contract's table is somewhere in the document."""
    text = json.dumps(document)
    assert [code for code in STATUS if f"`{code}`" not in text] == []


@pytest.mark.parametrize("path", RESOURCES)
def test_bodies_are_documented(document: dict[str, Any], path: str) -> None:
    """Each resource documents its body with examples, and both kinds of answer where it has
    tensors."""
    operation = document["paths"][path]["post"]
    body = operation["requestBody"]
    schema = body["content"]["application/json"]["schema"]
    assert body["required"] is True
    assert schema["additionalProperties"] is False
    assert schema["examples"]
    answers = operation["responses"]["200"]["content"]
    tensors = path in ("/v1/activations", "/v1/weight-updates", "/v1/completions")
    streams = {"text/event-stream"} if path == "/v1/completions" else set()
    lines = "application/x-ndjson"
    assert lines in body["content"]
    assert set(answers) == {"application/json", lines} | streams | (
        {SAFETENSORS} if tensors else set()
    )
    for name, field in schema["properties"].items():
        assert field.get("description"), name


@pytest.mark.parametrize(("path", "number", "example"), EXAMPLES)
def test_examples_run(
    bundled_client: httpx.Client, path: str, number: int, example: dict[str, Any]
) -> None:
    """Each example runs as it stands on the bundled model, and is answered as documented."""
    response = bundled_client.post(path, json=example)
    assert response.status_code == 200, (number, response.text[:500])
    read_answer(RESOURCES[path][1], response.content)


def test_examples_are_served(document: dict[str, Any]) -> None:
    """The examples that ran are those in the document."""
    served = [
        (path, i, example)
        for path in RESOURCES
        for i, example in enumerate(
            document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"][
                "examples"
            ]
        )
    ]
    assert served == EXAMPLES


def test_model_answer_names_each_hook_point_once(tiny_client: httpx.Client) -> None:
    """`/v1/model` validates, says what is loaded and names each hook point once."""
    answer = read_answer(ModelAnswer, tiny_client.get("/v1/model").content)
    assert (answer.n_layers, answer.d_model, answer.d_mlp) == (3, 32, 128)
    assert (answer.n_positions, answer.vocab_size) == (64, 263)
    assert answer.architecture == "GPT2LMHeadModel"
    assert answer.model.weights_digest.startswith("sha256:")
    assert answer.self_check.verdict == "holds"
    names = [point.name for point in answer.hook_points]
    assert names == [point for point in get_args(HookPoint) if point != "mlp_pre_linear"]
    assert answer.first_weights == ["transformer.h.{layer}.mlp.c_fc.weight"]
    assert (answer.positions, answer.anchor) == ("absolute", "<|endoftext|>")
    assert not answer.parallel
    assert not answer.post_norms
    for point in answer.hook_points:
        assert point.transformer_lens is not None or point.note
    assert {point.name: point.width for point in answer.hook_points if point.width != 32} == {
        "mlp_pre": 128,
        "mlp_act": 128,
    }
