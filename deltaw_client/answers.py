"""Answers: the dataclasses of `schemas`, with tensors as NumPy arrays and with a receipt.

An answer is validated from its JSON in one pass, which puts each array in its tensor's place and
does not look at the numbers. Fields of a later service are ignored.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import PlainSerializer, PlainValidator, ValidationInfo
from typing_extensions import TypeAliasType

from schemas import adapters
from schemas.activations import ActivationsAnswer, PromptActivations
from schemas.attributions import AttributionsAnswer
from schemas.common import UNSET, Asked
from schemas.completions import CapturedActivations, ModelsAnswer
from schemas.completions import Completion as CompletionAnswer
from schemas.equivalence_checks import EquivalenceChecksAnswer
from schemas.model import ModelAnswer
from schemas.tokenize import TokenizeAnswer
from schemas.trajectories import TrajectoriesAnswer
from schemas.weight_updates import Update, WeightUpdatesAnswer


def _array(value: Any, info: ValidationInfo) -> NDArray[Any]:
    """Read a tensor from a path into a safetensors file, from base64, or from nested lists."""
    if isinstance(value, np.ndarray):
        return value
    try:
        if "tensor" in value:
            stored: Mapping[str, NDArray[Any]] = info.context or {}
            return stored[value["tensor"]]
        kind = np.dtype(value["dtype"]).newbyteorder("<")
        if value["encoding"] == "base64":
            flat = np.frombuffer(base64.b64decode(value["data"], validate=True), kind)
            return flat.reshape(value["shape"])
        return np.array(value["data"], kind).reshape(value["shape"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a tensor ({type(error).__name__})") from error


def _tensor(array: NDArray[Any]) -> dict[str, Any]:
    """Write a tensor in base64, which keeps every bit."""
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    data = base64.b64encode(little.tobytes()).decode()
    return {"dtype": array.dtype.name, "shape": array.shape, "encoding": "base64", "data": data}


DURATION = re.compile(r"([\w-]+)\s*;(?:[^,;]*;)*?\s*dur=(\d+(?:\.\d+)?)")
"""An entry of `Server-Timing` that has a duration."""
Array = TypeAliasType(
    "Array", Annotated[NDArray[Any], PlainValidator(_array), PlainSerializer(_tensor)]
)
"""A tensor as an array, float32 or float64. It is read-only if it is a view of the reply."""


@dataclass(frozen=True)
class Reply:
    """An HTTP response: its status, its headers by lower-case name, and the bytes of its body."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def media(self) -> str:
        """The media type, without its parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


@dataclass(frozen=True)
class Receipt:
    """What comes with an answer: the request's id, the service's seconds, and the bytes."""

    request_id: str = ""
    server_timing: Mapping[str, float] = field(default_factory=dict)
    content: bytes = b""


def receipt(reply: Reply) -> Receipt:
    """Return what comes with the answer of a whole response."""
    found = DURATION.findall(reply.headers.get("server-timing", ""))
    seconds = {name: round(float(ms) / 1000, 6) for name, ms in found}
    return Receipt(reply.headers.get("x-request-id", ""), seconds, reply.content)


class Received:
    """An answer with its receipt. An answer that was read from a sweep's file has an empty one."""

    _receipt = Receipt()

    @property
    def request_id(self) -> str:
        """Id of the request in the service's log."""
        return self._receipt.request_id

    @property
    def server_timing(self) -> dict[str, float]:
        """The service's own seconds: `queue`, `tokenize`, `forward`, `compute`, `serialize`."""
        return dict(self._receipt.server_timing)

    @property
    def content(self) -> bytes:
        """The bytes of the answer: JSON, a safetensors file, or the answer's line (NDJSON)."""
        return self._receipt.content


@dataclass(frozen=True)
class Activations(ActivationsAnswer[Array], Received):
    """The answer of `activations`."""

    # pydantic does not carry `Array` from the base class into its fields.
    prompts: Sequence[PromptActivations[Array]]


@dataclass(frozen=True)
class WeightUpdates(WeightUpdatesAnswer[Array], Received):
    """The answer of `weight_updates`: one entry per layer and position."""

    updates: Sequence[Update[Array]]


@dataclass(frozen=True)
class EquivalenceChecks(EquivalenceChecksAnswer, Received):
    """The answer of `equivalence_checks`."""


@dataclass(frozen=True)
class Trajectories(TrajectoriesAnswer, Received):
    """The answer of `trajectories`."""


@dataclass(frozen=True)
class Attributions(AttributionsAnswer, Received):
    """The answer of `attributions`."""


@dataclass(frozen=True)
class Tokenized(TokenizeAnswer, Received):
    """The answer of `tokenize`."""


@dataclass(frozen=True)
class LoadedModel(ModelAnswer, Received):
    """The answer of `model`."""


@dataclass(frozen=True)
class Adapter(adapters.Adapter, Received):
    """The answer of `adapters.create` and `adapters.get`."""


@dataclass(frozen=True)
class AdapterList(adapters.AdaptersAnswer, Received):
    """The answer of `adapters.list`."""


@dataclass(frozen=True)
class Completion(CompletionAnswer[Array], Received):
    """The answer of `completions`, or one event of `stream_completions`."""

    activations: Asked[Sequence[CapturedActivations[Array]]] = UNSET


@dataclass(frozen=True)
class Models(ModelsAnswer, Received):
    """The answer of `models`."""
