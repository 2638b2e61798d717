"""Answers of the real service, over real HTTP and in process."""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from deltaw_client import DeltawClient, WeightUpdates
from schemas.common import UNSET, read_answer, write_answer
from schemas.weight_updates import Update
from service.engine import Model
from tests.api.wire import arrays
from tests.client.conftest import CONTEXT, QUERY, async_client
from tests.service_process import Served


def factors(update: Update[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The input factor, and the output factor of the only first weight."""
    (weight,) = update.weights
    assert update.input is not UNSET
    assert weight.output is not UNSET
    return update.input, weight.output


def test_factors_give_the_norm_of_the_update(client: DeltawClient, tiny: Model) -> None:
    """ΔW's factors are float32 arrays of the model's widths; their norms multiply to ‖ΔW‖."""
    answer = client.weight_updates(CONTEXT, QUERY, include=["factors", "bias", "next_tokens"])
    assert [update.layer for update in answer.updates] == list(range(tiny.n_layers))
    for update in answer.updates:
        a, b = factors(update)
        assert update.bias
        assert (a.shape, b.shape) == ((tiny.d_model,), (tiny.d_mlp,))
        assert update.bias.values.shape == (tiny.d_model,)
        assert update.bias.parameter == tiny.bias_parameter(update.layer)
        assert a.dtype == b.dtype == np.float32
        wide = np.linalg.norm(a.astype(float)) * np.linalg.norm(b.astype(float))
        assert wide == pytest.approx(update.norm, rel=1e-5)
        assert update.norm > 0
    assert answer.next_tokens
    assert len(answer.next_tokens[0].with_context) == 10


@pytest.mark.parametrize("encoding", ["json", "base64"])
def test_each_encoding_gives_the_same_bits(
    client: DeltawClient, encoding: Literal["json", "base64"]
) -> None:
    """Tensors have the same bits in JSON, base64 and safetensors."""
    asked: dict[str, Any] = {"context": CONTEXT, "query": QUERY, "include": ["factors", "bias"]}
    one = client.weight_updates(**asked)
    other = client.weight_updates(**asked, encoding=encoding)
    assert one.content[:1] != b"{" == other.content[:1]
    for mine, theirs in zip(one.updates, other.updates, strict=True):
        for a, b in zip(factors(mine), factors(theirs), strict=True):
            assert a.dtype == b.dtype
            assert a.tobytes() == b.tobytes()
    assert len({update.layer for update in one.updates}) == len(one.updates)


def test_answer_has_every_number_of_the_json(client: DeltawClient, tiny_service: Served) -> None:
    """An answer holds each number of the service's JSON in the same place."""
    body: dict[str, Any] = {"context": CONTEXT, "query": QUERY, "layers": [0, -1]}
    body |= {"baseline": "alone"}
    body |= {"include": ["factors", "bias", "split", "next_tokens"]}
    said = httpx.post(f"{tiny_service.url}/v1/weight-updates", json=body).json()
    answer = client.weight_updates(**body)
    dumped = json.loads(write_answer(answer))
    theirs, mine = arrays(said), arrays(dumped)
    assert len(theirs) == 2 * (3 + 4)
    assert theirs.keys() == mine.keys()
    assert all(np.array_equal(theirs[path], mine[path]) for path in theirs)
    assert _without_data(said) == _without_data(dumped)


def _without_data(part: Any) -> Any:
    """Remove the tensors' data and encoding from an answer."""
    if isinstance(part, dict):
        left = part.keys() - {"data", "encoding"}
        return {name: _without_data(part[name]) for name in left}
    return [_without_data(item) for item in part] if isinstance(part, list) else part


def test_dumped_answer_is_read_bit_by_bit(client: DeltawClient) -> None:
    """An answer dumped as JSON and read again has the same bits."""
    answer = client.weight_updates(CONTEXT, QUERY)
    again = read_answer(WeightUpdates, write_answer(answer))
    for mine, theirs in zip(answer.updates, again.updates, strict=True):
        assert factors(mine)[1].tobytes() == factors(theirs)[1].tobytes()
        assert mine.norm == theirs.norm


def test_activations_are_arrays_by_position(client: DeltawClient, tiny: Model) -> None:
    """Activations are arrays [positions, width]; with `reduce="norm"` they are float64 norms."""
    asked: dict[str, Any] = {"prompts": [CONTEXT, [5, 6]], "hook_points": ["mlp_pre"]}
    whole = client.activations(**asked, positions="all", layers=[1])
    norms = client.activations(**asked, positions="all", layers=[1], reduce="norm")
    for prompt, reduced in zip(whole.prompts, norms.prompts, strict=True):
        values, norm = prompt.activations[0].values, reduced.activations[0].values
        assert values.shape == (len(prompt.tokens), tiny.d_mlp)
        assert norm.dtype == np.float64
        assert np.allclose(np.linalg.norm(values, axis=1), norm, rtol=1e-5)


def test_numpy_ids_equal_integers(client: DeltawClient) -> None:
    """Ids in NumPy arrays give the same answer as lists of integers."""
    ids = np.array([5, 6, 7])
    one = client.weight_updates(ids, ids[:1], layers=[ids[0] - 4], include=[])
    other = client.weight_updates([5, 6, 7], [5], layers=[1], include=[])
    assert one.tokens == other.tokens
    # The first request fills the prefix cache, so the second may differ in the last bits.
    assert one.updates[0].norm == pytest.approx(other.updates[0].norm, rel=1e-5)


def test_other_resources_are_typed_by_their_schemas(client: DeltawClient) -> None:
    """Checks, trajectories, attributions, tokens and the model have their schemas' fields."""
    checks = client.equivalence_checks(CONTEXT, QUERY, scope="model", layers=[0])
    assert checks.holds
    assert checks.logits is not None
    way = client.trajectories(CONTEXT, QUERY, layers=[0]).layers[0]
    assert way.steps[-1].cosine_to_final == pytest.approx(1.0)
    spans = [(0, 2), (2, 4)]
    parts = client.attributions(CONTEXT, QUERY, layers=[0], spans=spans).layers[0]
    assert [tuple(part.span) for part in parts.spans] == spans
    border = client.tokenize(context="th", query="e")
    assert border.border_merges
    assert client.tokenize(["the"]).prompts is not None
    model = client.model()
    assert model.n_layers == 3
    assert model.self_check.verdict == "holds"


def test_answer_has_request_id_and_server_timing(client: DeltawClient) -> None:
    """The answer has the given request id, or a new one, and the service's own seconds."""
    answer = client.weight_updates(CONTEXT, QUERY, request_id="mine.1")
    assert answer.request_id == "mine.1"
    timing = answer.server_timing
    assert set(timing) == {"queue", "tokenize", "forward", "compute", "serialize"}
    assert 0 < timing["forward"] < 60
    ids = {client.model().request_id for _ in range(2)}
    assert len(ids - {"", "mine.1"}) == 2


def test_invalid_request_id_is_not_sent(client: DeltawClient) -> None:
    """A request id that the service would refuse raises ValueError before anything is sent."""
    with pytest.raises(ValueError, match="request id"):
        client.model(request_id="two words")


def test_async_client_in_process_equals_sync_client(
    tiny_folder: Path, client: DeltawClient
) -> None:
    """The async client in process gives the numbers of the sync client over HTTP."""

    async def both() -> list[WeightUpdates]:
        async with async_client(tiny_folder) as here:
            calls = (here.weight_updates(CONTEXT, QUERY, layers=[i]) for i in range(3))
            answers = list(await asyncio.gather(*calls))
            assert (await here.equivalence_checks(CONTEXT, QUERY)).holds
            assert (await here.model()).n_layers == 3
            return answers

    for answer in asyncio.run(both()):
        (mine,) = answer.updates
        (theirs,) = client.weight_updates(CONTEXT, QUERY, layers=[mine.layer]).updates
        assert mine.norm == pytest.approx(theirs.norm, rel=1e-5)
        assert np.allclose(factors(mine)[1], factors(theirs)[1], rtol=1e-4, atol=1e-6)


CALLS: dict[str, Callable[[DeltawClient], Any]] = {
    "activations": lambda client: client.activations([QUERY]),
    "weight_updates": lambda client: client.weight_updates(CONTEXT, QUERY, include=["bias"]),
    "equivalence_checks": lambda client: client.equivalence_checks(CONTEXT, QUERY, scope="model"),
    "trajectories": lambda client: client.trajectories(CONTEXT, QUERY),
    "attributions": lambda client: client.attributions(CONTEXT, QUERY),
    "tokenize": lambda client: client.tokenize([QUERY]),
    "model": lambda client: client.model(),
}


@pytest.mark.parametrize("name", CALLS)
def test_answer_can_be_pickled(client: DeltawClient, name: str) -> None:
    """A pickled answer of every method keeps its fields, its reply, and what was not asked for."""
    answer = CALLS[name](client)
    again = pickle.loads(pickle.dumps(answer))
    assert type(again) is type(answer)
    assert write_answer(again) == write_answer(answer)
    assert (again.request_id, again.content) == (answer.request_id, answer.content)
    assert again.request_id
    if name == "weight_updates":
        assert again.updates[0].input is UNSET
        assert again.updates[0].bias


def test_answer_of_a_file_has_no_reply(client: DeltawClient, tmp_path: Path) -> None:
    """The reply's attributes are empty for an answer that was read from a sweep's file."""
    (line,) = client.sweep([(CONTEXT, QUERY)], out=tmp_path / "sweep.jsonl", layers=[0])
    assert (line.answer.request_id, line.answer.server_timing, line.answer.content) == ("", {}, b"")
