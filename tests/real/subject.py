"""A pretrained model, served over HTTP, in the float64 oracle, and in transformers in float32.

Pretrained weights amplify the rounding of some rows: those that are about to become an attention
sink carry up to 1,300 ε. So a row of the service is held to `CAPTURED`, or to twice the distance
that transformers in float32 has from the oracle in the same row (docs/theory.md, "Numbers").
transformers multiplies with the service's kernels there: oneDNN's sum in another order than MKL's
and round twice as much, which one row of SmolLM2 amplifies to 1.6e-5 against 2.4e-6.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from service.engine.layers import affine
from tests.analysis.subjects import CAPTURED
from tests.oracle import Decoder, Prompt, Question, Trace, ask, norm
from tests.oracle.checkpoint import Array
from tests.oracle.written import loaded, masks
from tests.service_process import served

PAIRS = {
    "capitals": ("France: Paris. Japan: Tokyo. Spain: Madrid.", " Italy:"),
    "antonyms": ("hot -> cold, big -> small, fast -> slow, up ->", " down, young ->"),
    "one token": ("The quick brown fox jumps over the lazy", " dog"),
}
"""Context and query of each question."""
BASELINES = {"anchored": None, "matched": "matched"}
"""Each baseline as it is asked for. `anchored` is the default of both models."""
Rows = Mapping[tuple[int, str], Array]
"""The values of a run, (rows, width), or a number per row, by layer and hook point."""


@dataclass(frozen=True, eq=False)
class Subject:
    """One model.

    Args:
        folder: Its checkpoint.
        client: A client of its service.
        oracle: The checkpoint in float64 NumPy.
        model: The checkpoint in transformers, in float32.
        tokenizer: Its tokenizer in transformers.
        described: The answer of `GET /v1/model`.
        questions: The oracle's questions so far.
        limits: The bounds of the runs so far.
    """

    folder: Path
    client: httpx.Client
    oracle: Decoder
    model: Any
    tokenizer: Any
    described: Any
    questions: dict[tuple[str, str], Question] = field(default_factory=dict)
    limits: dict[tuple[Prompt, int], Rows] = field(default_factory=dict)

    def ask(self, resource: str, pair: str | None = None, **body: Any) -> Any:
        """The JSON answer of a resource, about one of `PAIRS` if given."""
        if pair is not None:
            body |= dict(zip(("context", "query"), PAIRS[pair], strict=True))
        response = self.client.post(f"/v1/{resource}", json=body)
        assert response.status_code == 200, response.text[:1000]
        return response.json()

    def ids(self, text: str, special: bool = True) -> list[int]:
        """The ids of a text, as transformers begins it, or without special tokens."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=special).input_ids
        return ids

    @property
    def anchor(self) -> int:
        """Id of the token that `anchored` puts first."""
        anchor: int = self.tokenizer.convert_tokens_to_ids(self.described["anchor"])
        return anchor

    @property
    def layers(self) -> list[int]:
        """Five layers, from the first to the last."""
        last = self.oracle.n_layers - 1
        return [last * i // 4 for i in range(5)]

    def question(self, pair: str, baseline: str = "anchored") -> Question:
        """The oracle's question about one of `PAIRS`."""
        if (pair, baseline) not in self.questions:
            context, query = PAIRS[pair]
            self.questions[pair, baseline] = ask(
                self.oracle,
                self.ids(context),
                self.ids(query, special=False),
                baseline,  # type: ignore[arg-type]
                self.anchor,
            )
        return self.questions[pair, baseline]

    def bounds(self, prompt: Prompt, truth: Trace) -> Rows:
        """The largest relative error of each row of the last rows of a run, those of `truth`."""
        count = len(truth.ln_f_out)
        if (prompt, count) not in self.limits:
            theirs = self.transformers_rows(prompt)
            self.limits[prompt, count] = {
                at: np.maximum(CAPTURED, 2 * row_errors(values[-count:], truth[at]))
                for at, values in theirs.items()
            }
        return self.limits[prompt, count]

    def difference_bound(self, question: Question, layer: int, point: str) -> float:
        """The largest relative error of the difference of both runs, at the query's last token."""
        place = (layer, point)
        spread = 0.0
        for prompt in (question.full_prompt, question.baseline_prompt):
            trace = question.trace(prompt)
            spread += self.bounds(prompt, trace)[place][-1] * norm(trace[place][-1])
        return spread / norm(question.full[place][-1] - question.base[place][-1])

    @torch.no_grad()
    def transformers_rows(self, prompt: Prompt) -> Rows:
        """Every hook point in transformers, at the modules that `/v1/model` names."""
        seen: dict[tuple[int, str], Array] = {}
        handles = []
        for layer in range(self.oracle.n_layers):
            for point in self.described["hook_points"]:
                module = self.model.get_submodule(point["module"].format(layer=layer))
                keep = _kept(seen, (layer, point["name"]), point["side"])
                handles.append(module.register_forward_hook(keep, with_kwargs=True))
        places = torch.tensor(prompt.positions)
        try:
            self.model(
                torch.tensor([prompt.ids]),
                attention_mask=masks(self.model, places),
                position_ids=places[None],
                use_cache=False,
            )
        finally:
            for handle in handles:
                handle.remove()
        return seen


def row_errors(actual: Array, truth: Array) -> Array:
    """‖actual − truth‖/‖truth‖ of each row."""
    errors: Array = np.linalg.norm(actual - truth, axis=-1) / np.linalg.norm(truth, axis=-1)
    return errors


def prompt_of(ids: Sequence[int]) -> Prompt:
    """A run of these ids at positions 0, 1, …"""
    return Prompt(tuple(ids), tuple(range(len(ids))))


@contextmanager
def subject_of(folder: Path) -> Iterator[Subject]:
    """Serve a checkpoint, and load it into the oracle and transformers."""
    with (
        torch.inference_mode(False),
        served(model=folder, deadline_seconds=600) as running,
        httpx.Client(base_url=running.url, timeout=600.0) as client,
    ):
        yield Subject(
            folder,
            client,
            Decoder(folder),
            with_kernels(loaded(folder)),
            AutoTokenizer.from_pretrained(folder),
            client.get("/v1/model").json(),
        )


def with_kernels(model: Any) -> Any:
    """A model of transformers whose blocks multiply with the service's kernels."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not name.endswith("head"):
            vars(module)["forward"] = partial(_product, module)
    return model


def _product(module: nn.Linear, x: Tensor) -> Tensor:
    """A linear map of (…, rows, d_in), with the weight that the module has now."""
    product = affine(module.weight.detach().T, module.bias)
    return product(x.flatten(0, -2)).reshape(*x.shape[:-1], -1)


def _kept(seen: dict[tuple[int, str], Array], at: tuple[int, str], side: str) -> Any:
    """A hook that keeps a module's input or output, as rows in float64."""

    def hook(_module: Any, inputs: Any, named: Any, output: Any) -> None:
        value = output
        if side == "input":
            value = inputs[0] if inputs else named["hidden_states"]
        value = value[0] if isinstance(value, tuple) else value
        seen[at] = value.reshape(-1, value.shape[-1]).double().numpy()

    return hook
