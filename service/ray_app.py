"""The service as an application of Ray Serve: `serve run deploy/ray/serve.yaml`."""

# No `from __future__ import annotations` here: Ray Serve needs the type of `build`'s argument.

import os
from typing import Any

# A replica's torch reads this variable at import. Without it, waiting OpenMP threads spin.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from pydantic import BaseModel, ConfigDict, Field, field_validator
from ray import serve

HASH = "ray.serve.experimental.consistent_hash_router:ConsistentHashRouter"
"""Router that sends requests about one context to the same replica; if it is full, to the next."""


class Served(BaseModel):
    """One model: its name, and settings of the service by name (`queue_size: 32`)."""

    model_config = ConfigDict(extra="allow")

    name: str = Field("", pattern="^[A-Za-z0-9._-]*$")
    """Name of the model in the header `X-Deltaw-Model`."""

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the service."""
        return self.model_extra or {}


class Args(BaseModel):
    """Arguments of the application: `args` in `serve.yaml`."""

    model_config = ConfigDict(extra="forbid")

    models: list[Served] = Field([Served()], min_length=1)
    """Models to serve. The first one answers requests that name no model."""

    @field_validator("models")
    @classmethod
    def _names_differ(cls, models: list[Served]) -> list[Served]:
        names = {model.name for model in models}
        if len(models) > 1 and (len(names) < len(models) or "" in names):
            raise ValueError("each of several models needs a name of its own")
        return models


class FrontDeployment:
    """The deployment `front`.

    Args:
        models: Settings and handle of each model, by name.
    """

    def __init__(self, models: dict[str, tuple[dict[str, Any], Any]]) -> None:
        from service.fleet.logs import log_to_stderr
        from service.fleet.targets import Target
        from service.settings import read_settings

        log_to_stderr()
        self._targets = {}
        for name, (settings, handle) in models.items():
            chosen = read_settings(**settings)
            self._targets[name] = Target(chosen, handle, chosen.keys)

    def __serve_build_asgi_app__(self) -> Any:
        from service.fleet.front import Front

        return Front(self._targets)


def build(args: Args) -> serve.Application:
    """Build the application: the deployment `front`, and one deployment for each model.

    A single model's deployment is `model`; those of several models are `model-NAME`. The options
    here are defaults; `serve.yaml` sets the others (replicas, autoscaling, resources).
    """
    from service.fleet.replica import Replica

    models = {}
    for served in args.models:
        name = "model" if len(args.models) == 1 else f"model-{served.name}"
        model = serve.deployment(
            name=name,
            max_ongoing_requests=32,
            max_queued_requests=256,
            request_router_config={"request_router_class": HASH},
            graceful_shutdown_timeout_s=40,
            health_check_period_s=5,
        )(Replica)
        models[served.name] = (served.settings, model.bind(served.settings))
    front = serve.deployment(
        name="front",
        max_ongoing_requests=1000,
        ray_actor_options={"num_cpus": 0},
    )(serve.ingress()(FrontDeployment))
    return front.bind(models)
