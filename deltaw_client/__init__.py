"""A typed client of deltaw, sync and async, with tensors as NumPy arrays. It does not need torch.

    with DeltawClient("http://127.0.0.1:8000") as client:
        answer = client.weight_updates(context="The capital of Germany is", query=" Berlin")
        answer.updates[0].input                  # an array, [d_model]
        answer.updates[0].weights[0].output      # an array, [d_mlp]

Every error is a `DeltawError`; `deltaw_client.problems` has a class for each problem code.
"""

from deltaw_client.answers import (
    Activations,
    Adapter,
    AdapterList,
    Attributions,
    Completion,
    EquivalenceChecks,
    LoadedModel,
    Models,
    Tokenized,
    Trajectories,
    WeightUpdates,
)
from deltaw_client.async_client import AsyncDeltawClient
from deltaw_client.client import DeltawClient
from deltaw_client.errors import (
    ConnectionFailed,
    DeltawError,
    InvalidConfiguration,
    OtherSweep,
    Timeout,
    UnexpectedAnswer,
)
from deltaw_client.lines import Line
from deltaw_client.problems import ProblemError
from deltaw_client.sweep import Sweep, read_sweep
from schemas.common import UNSET

__all__ = ["UNSET", "AsyncDeltawClient", "DeltawClient", "Line", "Sweep", "read_sweep"]
__all__ += ["Adapter", "AdapterList", "Completion", "Models"]
__all__ += ["Activations", "Attributions", "EquivalenceChecks", "LoadedModel"]
__all__ += ["Tokenized", "Trajectories", "WeightUpdates"]
__all__ += ["ConnectionFailed", "DeltawError", "InvalidConfiguration", "OtherSweep", "ProblemError"]
__all__ += ["Timeout", "UnexpectedAnswer"]
