"""docs/operations.md is true: its tables name what there is, and its examples parse."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import promql_parser
import pytest
import yaml  # type: ignore[import-untyped]
from prometheus_client.parser import text_string_to_metric_families

from schemas.problems import PROBLEMS
from service.settings import Settings
from tests.api.conftest import Heard
from tests.api.test_bodies import PATHS
from tests.api.wire import client_of, log_of
from tests.service_process import Served

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs/operations.md").read_text()
RULES = yaml.safe_load((ROOT / "deploy/alerts.yml").read_text())
EXAMPLES = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.M | re.S)
QUERIES = [text for language, text in EXAMPLES if language == "promql"]
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"]]
SCRAPED = {"up"}
"""What Prometheus itself knows of a target."""
BODY = {"context": "abc", "query": " cd"}


def table(heading: str) -> list[list[str]]:
    """The cells of the table whose first heading this is, row by row."""
    rows = re.search(rf"^\| {heading} \|.*\n\|[-:| ]+\|\n((?:\|.*\n)+)", TEXT, re.M)
    assert rows is not None, heading
    lines = rows.group(1).splitlines()
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def named(heading: str) -> list[str]:
    """What the first column of a table names, in its order."""
    return [name for row in table(heading) for name in re.findall(r"`([^`]+)`", row[0])]


@pytest.fixture
def heard(tiny_service: Served) -> Iterator[Heard]:
    """A server that has answered, and refused."""
    with client_of(tiny_service) as client:
        client.post(PATHS["checks"], json=BODY, headers={"X-Request-ID": "run.1"})
        client.post(PATHS["checks"], json={}, headers={"X-Request-ID": "run.2"})
        yield Heard(tiny_service, client, log_of(tiny_service))


def exported(heard: Heard) -> dict[str, tuple[str, set[str]]]:
    """Type and labels of every metric at `/metrics`, by the name that queries use."""
    found = {}
    for family in text_string_to_metric_families(heard.client.get("/metrics").text):
        if not family.name.endswith("_created"):
            name = family.name + ("_total" if family.type == "counter" else "")
            labels = {label for sample in family.samples for label in sample.labels}
            found[name] = family.type, labels - {"le"}
    return found


def test_settings() -> None:
    """Each setting has one row, and each row is a setting."""
    assert sorted(named("setting")) == sorted(f"DELTAW_{n.upper()}" for n in Settings.model_fields)


def test_problems() -> None:
    """Each problem code has one row in the runbook with its status, those that are retryable are
    marked, and each row is a code."""
    assert sorted(named("code")) == sorted(PROBLEMS)
    for first, status, *_ in table("code"):
        code = first.strip("` ↻")
        assert int(status) == PROBLEMS[code].status
        assert ("↻" in first) == PROBLEMS[code].retryable, code


def test_metrics(heard: Heard) -> None:
    """Each metric that is exported has one row with its type and labels, and each row is
    exported."""
    rows = {
        re.findall(r"`([^`]+)`", name)[0]: (kind, set(re.findall(r"`([^`]+)`", labels)))
        for name, kind, labels, *_ in table("metric")
    }
    assert rows == exported(heard)


def test_reasons_are_there_from_the_start(heard: Heard) -> None:
    """Every problem code is counted from 0, so that its first occurrence is an increase."""
    for code in PROBLEMS:
        assert f'deltaw_rejected_total{{reason="{code}"}}' in heard.client.get("/metrics").text


def test_log_fields(heard: Heard) -> None:
    """An answer's and a refusal's log lines have the fields of the table, and no others."""
    lines = [heard.log.await_request(mark) for mark in ("run.1", "run.2")]
    assert sorted(named("field")) == sorted(set(lines[0]) | set(lines[1]))


def test_server_timing(heard: Heard) -> None:
    """`Server-Timing` has the parts of the table, in its order."""
    header = heard.client.post(PATHS["checks"], json=BODY).headers["server-timing"]
    assert named("part") == [part.partition(";")[0].strip() for part in header.split(",")]


def selectors(query: str) -> list[promql_parser.VectorSelector]:
    """Every vector selector of a query."""
    found: list[promql_parser.VectorSelector] = []

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)
        elif isinstance(node, promql_parser.MatrixSelector):
            found.append(node.vector_selector)

    promql_parser.walk(promql_parser.parse(query), visit)
    return found


@pytest.mark.parametrize("query", [*QUERIES, *(rule["expr"] for rule in ALERTS)])
def test_queries(heard: Heard, query: str) -> None:
    """Each example and each alert parses as PromQL, and asks for what is exported, by labels and
    reasons that there are."""
    known = exported(heard)
    asked = selectors(query)
    assert asked
    for selector in asked:
        if selector.name in SCRAPED:
            continue
        base = re.sub("_(bucket|sum|count)$", "", str(selector.name))
        assert base in known, selector.name
        for matcher in selector.matchers.matchers:
            assert matcher.name in {*known[base][1], "job", "instance"}
            if matcher.name == "reason":
                assert set(matcher.value.split("|")) <= set(PROBLEMS)


def test_alerts() -> None:
    """Each alert has a name of its own, says what happened, and how urgent it is."""
    assert len({rule["alert"] for rule in ALERTS}) == len(ALERTS) >= 5
    for rule in ALERTS:
        assert rule["annotations"]["summary"]
        assert rule["labels"]["severity"] in ("page", "ticket")


@pytest.mark.parametrize("text", [text for language, text in EXAMPLES if language == "yaml"])
def test_yaml(text: str) -> None:
    """Each YAML example is a mapping."""
    assert isinstance(yaml.safe_load(text), dict)
