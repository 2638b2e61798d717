"""Tensors: the same numbers as JSON lists, as base64 and in a safetensors file."""

from __future__ import annotations

import json
from typing import Any

import httpx
import numpy as np
import pytest

from schemas.activations import ActivationsAnswer
from schemas.common import adapter
from schemas.weight_updates import WeightUpdatesAnswer
from tests.api.test_bodies import PATHS
from tests.api.wire import SAFETENSORS, array, arrays, problem, restored, unpack

ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "rows": (
        "activations",
        {
            "prompts": ["abc the", [1, 2, 3, 4]],
            "layers": [0, -1],
            "hook_points": ["mlp_in", "mlp_act", "resid_post"],
            "positions": [0, -1],
        },
    ),
    "norms": ("activations", {"prompts": ["xyz"], "positions": "all", "reduce": "norm"}),
    "means": ("activations", {"prompts": ["xyz"], "positions": "all", "reduce": "mean"}),
    "factors": (
        "updates",
        {
            "context": "abc the",
            "query": " cd ab",
            "positions": "all",
            "include": ["factors", "bias", "next_tokens"],
        },
    ),
    "parts": (
        "updates",
        {"context": "abc the", "query": " cd", "baseline": "alone", "include": ["split"]},
    ),
    "no tensors": ("updates", {"context": "abc the", "query": " cd", "include": []}),
}
SHAPES: dict[str, dict[str, list[tuple[int, ...]]]] = {
    "rows": {"values": [(2, 32), (2, 128)]},
    "norms": {"values": [(3,)]},
    "means": {"values": [(32,)]},
    "factors": {"input": [(32,)], "output": [(128,)], "values": [(32,)]},
    "parts": {"input": [(32,)], "outputs": [(128,)]},
    "no tensors": {},
}


def answer_of(resource: str, answer: Any) -> None:
    """Validate an answer with its schema."""
    kinds = {"activations": ActivationsAnswer, "updates": WeightUpdatesAnswer}
    adapter(kinds[resource]).validate_json(json.dumps(answer))


@pytest.mark.parametrize("name", ASKED)
def test_encodings_hold_the_same_bits(tiny_client: httpx.Client, name: str) -> None:
    """Lists, base64 and safetensors hold the same bits, and the rest of the answer is equal."""
    resource, body = ASKED[name]
    path = PATHS[resource]
    # Bits depend on what the prefix cache holds, so all three requests find the same.
    tiny_client.post(path, json=body)
    plain = tiny_client.post(path, json=body).json()
    coded = tiny_client.post(path, json=body | {"encoding": "base64"}).json()
    filed = tiny_client.post(path, json=body, headers={"Accept": SAFETENSORS})
    assert filed.headers["content-type"] == SAFETENSORS
    response, tensors = unpack(filed.content)
    whole = restored(response, tensors)
    for answer in (plain, coded, whole):
        answer_of(resource, answer)
    expected = arrays(plain)
    assert arrays(coded).keys() == tensors.keys() == expected.keys()
    for where, values in arrays(coded).items():
        assert values.dtype == tensors[where].dtype == expected[where].dtype
        assert values.tobytes() == tensors[where].tobytes() == expected[where].tobytes(), where
    for answer in (plain, coded, whole):
        for where in expected:
            _strip(answer, where)
    assert plain == coded == whole


def _field(where: str) -> str:
    """The last name of a path, without the indices after it."""
    return [step for step in where.split(".") if not step.isdigit()][-1]


@pytest.mark.parametrize("name", ASKED)
def test_tensors_have_the_documented_shapes(tiny_client: httpx.Client, name: str) -> None:
    """Each tensor has the documented shape and is named by its path."""
    resource, body = ASKED[name]
    filed = tiny_client.post(PATHS[resource], json=body, headers={"Accept": SAFETENSORS})
    response, tensors = unpack(filed.content)
    for where, values in tensors.items():
        assert values.shape in SHAPES[name][_field(where)], where
        assert _at(response, where)["tensor"] == where
    assert set(map(_field, tensors)) == set(SHAPES[name])
    if name == "factors":
        paths = {"updates.0.input", "updates.0.weights.0.output", "updates.0.bias.values"}
        assert paths <= tensors.keys()


def test_base64_is_little_endian_float32(tiny_client: httpx.Client) -> None:
    """base64 holds little-endian float32 in C order, equal to the JSON lists."""
    resource, body = ASKED["rows"]
    plain = tiny_client.post(PATHS[resource], json=body).json()
    coded = tiny_client.post(PATHS[resource], json=body | {"encoding": "base64"}).json()
    tensor = coded["prompts"][0]["activations"][0]["values"]
    assert (tensor["dtype"], tensor["encoding"]) == ("float32", "base64")
    values = plain["prompts"][0]["activations"][0]["values"]["data"]
    assert array(tensor).astype("<f4").tobytes() == np.array(values, "<f4").tobytes()
    assert isinstance(values[0][0], float)


def test_safetensors_file_has_no_surplus_bytes(tiny_client: httpx.Client) -> None:
    """A safetensors answer has one metadata entry and no bytes after its tensors."""
    resource, body = ASKED["factors"]
    filed = tiny_client.post(PATHS[resource], json=body, headers={"Accept": SAFETENSORS})
    length = int.from_bytes(filed.content[:8], "little")
    header = json.loads(filed.content[8 : 8 + length])
    assert set(header["__metadata__"]) == {"response"}
    end = max(part["data_offsets"][1] for name, part in header.items() if name != "__metadata__")
    assert len(filed.content) == 8 + length + end


@pytest.mark.parametrize(
    ("accept", "served"),
    [
        (None, "application/json"),
        ("*/*", "application/json"),
        ("application/*", "application/json"),
        ("application/json", "application/json"),
        (SAFETENSORS, SAFETENSORS),
        (f"{SAFETENSORS}, application/json", SAFETENSORS),
        (f"application/json;q=0.5, {SAFETENSORS}", SAFETENSORS),
        (f"{SAFETENSORS};q=0.5, application/json", "application/json"),
        (f"text/html, {SAFETENSORS};q=0.2", SAFETENSORS),
        ("text/html, */*;q=0.1", "application/json"),
        (f"*/*, {SAFETENSORS};q=0", "application/json"),
        ("application/json;q=0, */*", SAFETENSORS),
        ("text/html", None),
        ("image/png, text/*", None),
        ("application/json;q=0", None),
    ],
)
def test_content_type_follows_accept(
    tiny_client: httpx.Client, accept: str | None, served: str | None
) -> None:
    """The content type follows `Accept`, and 406 is returned if none is acceptable."""
    resource, body = ASKED["no tensors"]
    request = tiny_client.build_request("POST", PATHS[resource], json=body)
    del request.headers["accept"]
    if accept is not None:
        request.headers["accept"] = accept
    response = tiny_client.send(request)
    if served is None:
        problem(response, "not_acceptable")
    else:
        assert response.status_code == 200
        assert response.headers["content-type"] == served


@pytest.mark.parametrize("resource", ["tokenize", "checks", "model"])
def test_resource_without_tensors_is_json_only(tiny_client: httpx.Client, resource: str) -> None:
    """A resource without tensors answers safetensors with 406, and JSON where it is accepted
    too."""
    path = PATHS.get(resource, "/v1/model")
    method = "POST" if resource in PATHS else "GET"
    body = {"prompts": ["a"]} if resource == "tokenize" else {"context": "a", "query": "b"}
    content = json.dumps(body) if method == "POST" else None
    headers = {"Content-Type": "application/json", "Accept": SAFETENSORS}
    problem(tiny_client.request(method, path, content=content, headers=headers), "not_acceptable")
    headers["Accept"] = f"{SAFETENSORS}, application/json;q=0.5"
    response = tiny_client.request(method, path, content=content, headers=headers)
    assert response.status_code == 200, response.text[:300]
    assert response.headers["content-type"] == "application/json"


def test_problem_is_json_whatever_is_accepted(tiny_client: httpx.Client) -> None:
    """A problem is JSON even if the client accepts only safetensors."""
    sent = {"context": "", "query": "b"}
    headers = {"Accept": SAFETENSORS}
    response = tiny_client.post(PATHS["updates"], json=sent, headers=headers)
    problem(response, "empty_context", sent)


def _at(answer: Any, path: str) -> Any:
    for step in path.split("."):
        answer = answer[int(step)] if isinstance(answer, list) else answer[step]
    return answer


def _strip(answer: Any, path: str) -> None:
    parent, _, name = path.rpartition(".")
    tensor, holder = _at(answer, path), _at(answer, parent)
    holder[int(name) if isinstance(holder, list) else name] = (tensor["dtype"], tensor["shape"])
