"""The service under Ray Serve, for tests that otherwise use `deltaw serve`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from benchmarks.cluster.ray import configuration, running_fleet
from tests.service_process import Served, await_ready

ONE = {"num_replicas": 1}


@contextmanager
def served_by_ray(variables: Mapping[str, str], settings: Mapping[str, object]) -> Iterator[Served]:
    """Run the application of `deploy/ray/serve.yaml` with one front and one replica. Stop it when
    the block ends.

    Args:
        variables: Further environment variables.
        settings: Settings by name.
    """
    written = {name: str(value) for name, value in settings.items()}
    with running_fleet(variables=variables) as fleet:
        fleet.deploy(configuration(model=ONE, front=ONE, settings=written))
        log = fleet.folder / "ray/session_latest/logs/worker-*.err"
        running = Served(fleet.url, fleet.process, Path(log))
        await_ready(running)
        yield running
