"""Requests that schemathesis generates from the served OpenAPI document, with all its checks."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import schemathesis
import structlog
from fastapi import FastAPI
from schemathesis import CheckContext, HookContext, Response
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema
from schemathesis.python import asgi

from schemas.common import UNSET, read_answer, write_answer
from schemas.problems import PROBLEMS, Problem
from service.main import create_app
from service.settings import Settings
from tests.api.wire import CANARY

ROOT = Path(__file__).parent.parent.parent
KEY = "open-sesame"
TELLING = 6
"""Minimum length at which a text of the request counts as repeated."""
OURS = "".join(
    file.read_text() for folder in ("service", "schemas") for file in (ROOT / folder).rglob("*.py")
)
"""Texts that an answer may contain anyway; schemathesis takes its constants from them."""
FREE = ("context", "query", "prompts", "probe_queries", "hook_points", "prompt", "stop", "user")
"""Fields that accept any text."""
BOUNDS = {"layers": 3, "positions": 2}
"""Sizes of the tiny model by field; other numbers are token ids, of which it has 263."""


@dataclass
class Tried:
    """The outcome of a run.

    Args:
        cases: Number of requests sent.
        seconds: Duration of the run.
        phases: Number of requests by phase.
        statuses: Number of answers by status.
        checks: Number of checks by name.
        failures: Failed checks, each with its request.
    """

    cases: int = 0
    seconds: float = 0.0
    phases: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    checks: Counter[str] = field(default_factory=Counter)
    failures: dict[str, str] = field(default_factory=dict)


@contextmanager
def running(model: Path, **settings: Any) -> Iterator[FastAPI]:
    """The real app in this process, once its model is loaded."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    app = create_app(Settings(model=str(model), allowed_hosts=(asgi.HOST,), **settings))
    client = asgi.get_client(app)  # type: ignore[arg-type]
    with client:
        while client.get("/readyz").status_code != 200:
            time.sleep(0.02)
        try:
            yield app
        finally:
            asgi.shutdown_lifespans()
            structlog.reset_defaults()


def generate(app: FastAPI, *, examples: int, seed: int, key: str | None = None) -> Tried:
    """Send the requests that schemathesis generates from the app's own document.

    Args:
        app: The running app.
        examples: Maximum number of requests of each operation, in each phase.
        seed: Seed of the generation.
        key: The API key to send, if the app requires one.
    """
    config = SchemathesisConfig.from_dict(
        {
            "seed": seed,
            "headers": {"Authorization": f"Bearer {key}"} if key else {},
            "warnings": False,
            "continue-on-failure": True,
            "generation": {
                "max-examples": examples,
                "database": "none",
                "no-shrink": True,
                "deterministic": True,
            },
            "checks": {
                # The schema cannot state what depends on the loaded model, such as layers, or ids.
                "positive_data_acceptance": {"expected-statuses": ["2xx", 404, 413, 422]},
            },
        }
    )
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, config=config)
    tried = Tried()
    start = time.perf_counter()
    for event in from_schema(schema).execute():
        if isinstance(event, events.ScenarioFinished):
            note(tried, event)
        elif isinstance(event, events.NonFatalError):
            tried.failures[f"{event.label}: {event.info.message}"] = str(event.value)
        elif isinstance(event, events.FatalError):
            raise event.exception
    tried.seconds = time.perf_counter() - start
    return tried


@schemathesis.check
def quiet(_context: CheckContext, response: Response, case: schemathesis.Case[Any]) -> None:
    """A refusal is a problem of the table and repeats no text of the request."""
    if response.status_code < 400:
        return
    problem = read_answer(Problem, response.content)
    assert PROBLEMS[problem.code].status == problem.status == response.status_code
    said = write_answer(replace(problem, errors=UNSET)).decode() + str(response.headers)
    said += "".join(mistake.message for mistake in problem.errors or ())
    said = said.replace(problem.request_id, "")
    for text in texts([case.path_parameters, case.query, case.headers, case.body]):
        assert text not in said or text in OURS, f"the answer repeats {text!r}"


def texts(value: Any) -> Iterator[str]:
    """Every string in a value, field names included, that is too long to occur by chance."""
    if isinstance(value, str) and len(value) >= TELLING:
        yield value
    elif isinstance(value, Mapping):
        yield from texts([*value, *value.values()])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from texts(item)


@schemathesis.hook("before_call")
def narrow(_context: HookContext, case: schemathesis.Case[Any], _kwargs: dict[str, Any]) -> None:
    """Bring half of the valid bodies within the tiny model's bounds, so that they are computed, and
    mark the texts of half of these."""
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    turn = len(repr(case.body)) % 4
    if isinstance(case.body, dict) and turn % 2:
        mark = CANARY if turn == 3 else ""
        case.body = {name: narrowed(name, value, mark) for name, value in case.body.items()}


def narrowed(name: str, value: Any, mark: str) -> Any:
    """A field of a body with its numbers reduced, its free texts marked, and the resident model."""
    if name == "model":
        return None
    if name in ("spans", "without") and isinstance(value, list):
        return [[3 * i, 3 * i + 1 + value[0] % 2] for i, value in enumerate(value[:4])]
    if isinstance(value, list):
        return [narrowed(name, item, mark) for item in value[:24]]
    if isinstance(value, dict):
        return {inner: narrowed(inner, item, mark) for inner, item in value.items()}
    if isinstance(value, str) and name in FREE:
        return value + mark
    if isinstance(value, int) and not isinstance(value, bool):
        return value % BOUNDS.get(name, 263)
    return value


def note(tried: Tried, event: events.ScenarioFinished) -> None:
    """Add the results of a scenario to `tried`."""
    recorder = event.recorder
    for interaction in recorder.interactions.values():
        tried.cases += 1
        tried.phases[event.phase.value] += 1
        tried.statuses[interaction.response.status_code if interaction.response else 0] += 1
    for case, checks in recorder.checks.items():
        for check in checks:
            tried.checks[check.name] += 1
            if (found := check.failure_info) is not None:
                said = f"{found.failure.title}\n{found.failure.message}\n{found.code_sample}"
                response = recorder.interactions[case].response
                if response is not None:
                    said += f"\n{response.status_code} {response.content[:2000]!r}"
                tried.failures.setdefault(
                    f"{recorder.label}: {check.name}: {found.failure.title}", said
                )
