"""Answers: the models of `schemas`, with tensors as NumPy arrays and with what came beside them.

An answer is validated from its JSON in one pass, in which each tensor's place takes its array; the
numbers themselves are not looked at. A field of a later service is passed over.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, PlainSerializer, PlainValidator, PrivateAttr, ValidationInfo
from typing_extensions import TypeAliasType

from schemas.activations import ActivationsAnswer
from schemas.attributions import AttributionsAnswer
from schemas.equivalence_checks import EquivalenceChecksAnswer
from schemas.model import ModelAnswer
from schemas.tokenize import TokenizeAnswer
from schemas.trajectories import TrajectoriesAnswer
from schemas.weight_updates import JointUpdate, Update, WeightUpdatesAnswer


def _array(value: Any, info: ValidationInfo) -> NDArray[Any]:
    """A tensor in any of its forms: a path into a safetensors file, base64, or nested lists."""
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
    """The wire's form, in which every bit is kept."""
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    data = base64.b64encode(little.tobytes()).decode()
    name = array.dtype.name
    return {"dtype": name, "shape": array.shape, "encoding": "base64", "data": data}


DURATION = re.compile(r"([\w-]+)\s*;(?:[^,;]*;)*?\s*dur=(\d+(?:\.\d+)?)")
"""An entry of `Server-Timing` that says how long, whatever else it says."""
Array = TypeAliasType(
    "Array", Annotated[NDArray[Any], PlainValidator(_array), PlainSerializer(_tensor)]
)
"""A tensor in a program: float32 or float64, read-only where it is a view of what came."""


@dataclass(frozen=True)
class Reply:
    """What came over HTTP.

    Args:
        status: Of the answer.
        headers: By lower-case name.
        content: The body's bytes.
    """

    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def media(self) -> str:
        """The media type, without its parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def server_timing(self) -> dict[str, float]:
        """`Server-Timing` as seconds by name; entries that only describe are passed over."""
        found = DURATION.findall(self.headers.get("server-timing", ""))
        return {name: round(float(ms) / 1000, 6) for name, ms in found}


class Received(BaseModel):
    """An answer with what came beside it."""

    _reply: Reply = PrivateAttr()

    def attach(self, reply: Reply) -> None:
        """Keep what the answer was read from."""
        self._reply = reply

    @property
    def request_id(self) -> str:
        """Under which the service's log has it."""
        return self._reply.headers.get("x-request-id", "")

    @property
    def server_timing(self) -> dict[str, float]:
        """The service's own seconds: `queue`, `tokenize`, `forward`, `compute`, `serialize`."""
        return self._reply.server_timing

    @property
    def content(self) -> bytes:
        """The bytes as the service gave them: JSON, or a safetensors file."""
        return self._reply.content


class Activations(ActivationsAnswer[Array], Received):
    """The answer of `activations`."""


class WeightUpdates(WeightUpdatesAnswer[Array], Received):
    """The answer of `weight_updates`: an entry a layer and position."""

    updates: list[Update[Array]]


class JointUpdates(WeightUpdatesAnswer[Array], Received):
    """The answer of `weight_updates(joint=True)`: an entry a layer."""

    updates: list[JointUpdate[Array]]


class EquivalenceChecks(EquivalenceChecksAnswer, Received):
    """The answer of `equivalence_checks`."""


class Trajectories(TrajectoriesAnswer, Received):
    """The answer of `trajectories`."""


class Attributions(AttributionsAnswer, Received):
    """The answer of `attributions`."""


class Tokenized(TokenizeAnswer, Received):
    """The answer of `tokenize`."""


class LoadedModel(ModelAnswer, Received):
    """The answer of `model`."""
