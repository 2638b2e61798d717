"""Adapters through real PEFT, compared with transformers' run with context or with the walk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schemas.adapters import StaticAdapterRequest, TokenAdapterRequest
from service.adapters.verify import PeftErrors, verify_peft
from service.analysis.adapters.token import plan_token_adapter
from service.engine import Model, drive
from service.errors import OtherWeights
from tests.adapters.made import random_updates, write_folder
from tests.analysis.subjects import CONTEXT, OTHER, QUERY, Subject

EXACT = 5e-6
EXACT_GEMMA = 1e-5
"""Its gain is stored minus 1, which rounds the small entries of a replaced gain."""
STATIC = StaticAdapterRequest(kind="static", context=CONTEXT, queries=[QUERY, OTHER])
FAR = 1e-2


def token(**options: Any) -> TokenAdapterRequest:
    """A request for a token adapter."""
    fields = {"kind": "token", "context": CONTEXT, "query": QUERY, **options}
    return TokenAdapterRequest.model_validate(fields)


def errors_of(model: Model, name: str, body: TokenAdapterRequest, folder: Path) -> PeftErrors:
    """The errors of a token adapter through PEFT."""
    made = drive(model, plan_token_adapter(model, body))
    write_folder(model, made.updates, folder)
    return verify_peft(name, None, folder, body, model.weights_digest)


@pytest.mark.parametrize("baseline", [None, pytest.param("alone", marks=pytest.mark.slow)])
def test_token_adapters_are_exact_in_peft(
    variant: Subject,
    variant_name: str,
    baseline: str | None,
    folder_of: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    """In each form, PEFT without the context gives the logits of transformers with it, also merged.
    Without the adapter they are far from them."""
    model, name = variant.model, str(folder_of(variant_name))
    bound = EXACT_GEMMA if model.post_norms else EXACT
    for form in ("weights", "bias")[: 1 + (model.bias_parameter(0) is not None)]:
        found = errors_of(model, name, token(form=form, baseline=baseline), tmp_path / form)
        assert found.loaded <= bound
        assert found.merged is not None
        assert found.merged <= bound
        assert found.without > FAR


def test_several_positions_are_exact_in_peft(
    variant_of: Callable[[str], Subject], folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """An adapter for all positions of the query is exact at each of them."""
    name = str(folder_of("llama-biases"))
    found = errors_of(variant_of("llama-biases").model, name, token(positions="all"), tmp_path)
    assert found.loaded <= 2e-5
    assert found.without > FAR


def test_bundled_token_adapter_is_exact_in_peft(bundled: Model, tmp_path: Path) -> None:
    """The seed's context and query on the bundled model."""
    body = token(
        context="The capital of Malaysia is Kuala Lumpur. The capital of USA is Washington D.C. "
        "The capital of Germany is",
        query=" Berlin",
    )
    found = errors_of(bundled, "bundled", body, tmp_path)
    assert found.loaded <= EXACT
    assert found.merged is not None
    assert found.merged <= EXACT
    assert found.without > FAR


def test_static_adapter_is_compared_with_the_walk(
    variant: Subject, variant_name: str, folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """PEFT gives the logits of the walk under the same updates, at each query's last token."""
    model = variant.model
    write_folder(model, random_updates(model, bias=False), tmp_path)
    name, digest = str(folder_of(variant_name)), model.weights_digest
    found = verify_peft(name, None, tmp_path, STATIC, digest)
    assert found.loaded <= EXACT
    assert found.merged is not None
    assert found.merged <= EXACT
    assert found.without > FAR


def test_wrong_adapter_has_a_large_error(
    variant_of: Callable[[str], Subject], folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """The error of an adapter for another query is large, so the check can fail."""
    model, name = variant_of("gpt2").model, str(folder_of("gpt2"))
    made = drive(model, plan_token_adapter(model, token(query=OTHER)))
    write_folder(model, made.updates, tmp_path)
    found = verify_peft(name, None, tmp_path, token(), model.weights_digest)
    assert found.loaded > FAR


def test_bias_that_peft_cannot_merge_is_null(
    variant_of: Callable[[str], Subject], folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """Where the base model has no bias, the adapter is loaded and its merged error is null."""
    model, name = variant_of("llama").model, str(folder_of("llama"))
    write_folder(model, random_updates(model, bias=True), tmp_path)
    found = verify_peft(name, None, tmp_path, STATIC, model.weights_digest)
    assert found.loaded <= EXACT
    assert found.merged is None


def test_checkpoint_with_other_weights_is_refused(
    folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """The check refuses a checkpoint that the adapter was not made for."""
    with pytest.raises(OtherWeights):
        verify_peft(str(folder_of("gpt2")), None, tmp_path, STATIC, "sha256:0")
