"""The tables of docs/operations.md match the service, and its examples parse."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import promql_parser
import pytest
import yaml  # type: ignore[import-untyped]
from prometheus_client.parser import text_string_to_metric_families

from schemas.problems import PROBLEMS
from service.settings import Settings
from service.tracing import ATTRIBUTES
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
CONDITIONAL = {"key", "trace_id"}
"""Fields that are present only with API keys or with traces. `tests/api/test_keys.py` and
`tests/test_tracing.py` test them."""
SCRAPED = {"up"}
"""Metrics that Prometheus itself adds for a target."""
BODY = {"context": "abc", "query": " cd"}


def table(heading: str) -> list[list[str]]:
    """Return the cells of the table with this first heading, row by row."""
    rows = re.search(rf"^\| {heading} \|.*\n\|[-:| ]+\|\n((?:\|.*\n)+)", TEXT, re.M)
    assert rows is not None, heading
    lines = rows.group(1).splitlines()
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def named(heading: str) -> list[str]:
    """Return the names in the first column of a table, in order."""
    return [name for row in table(heading) for name in re.findall(r"`([^`]+)`", row[0])]


@pytest.fixture
def heard(tiny_service: Served) -> Iterator[Heard]:
    """A server that has answered one request, refused one, and answered one of lines."""
    with client_of(tiny_service) as client:
        client.post(PATHS["checks"], json=BODY, headers={"X-Request-ID": "run.1"})
        client.post(PATHS["checks"], json={}, headers={"X-Request-ID": "run.2"})
        lines = {"Content-Type": "application/x-ndjson", "X-Request-ID": "run.3"}
        client.post(PATHS["checks"], content=json.dumps(BODY), headers=lines)
        yield Heard(tiny_service, client, log_of(tiny_service))


def exported(heard: Heard) -> dict[str, tuple[str, set[str]]]:
    """Return type and labels of every metric at `/metrics`, by the name that queries use."""
    found = {}
    for family in text_string_to_metric_families(heard.client.get("/metrics").text):
        if not family.name.endswith("_created"):
            name = family.name + ("_total" if family.type == "counter" else "")
            labels = {label for sample in family.samples for label in sample.labels}
            found[name] = family.type, labels - {"le"}
    return found


def test_table_of_settings_lists_every_setting() -> None:
    """The table has one row for each setting and no other rows."""
    assert sorted(named("setting")) == sorted(f"DELTAW_{n.upper()}" for n in Settings.model_fields)


def test_runbook_lists_every_problem_code() -> None:
    """The runbook has one row for each code, with its status and the mark ↻ if it is retryable."""
    assert sorted(named("code")) == sorted(PROBLEMS)
    for first, status, *_ in table("code"):
        code = first.strip("` ↻")
        assert int(status) == PROBLEMS[code].status
        assert ("↻" in first) == PROBLEMS[code].retryable, code


def test_table_of_metrics_lists_every_exported_metric(heard: Heard) -> None:
    """The table has one row for each exported metric, with its type and labels, and no others."""
    rows = {
        re.findall(r"`([^`]+)`", name)[0]: (kind, set(re.findall(r"`([^`]+)`", labels)))
        for name, kind, labels, *_ in table("metric")
    }
    assert rows == exported(heard)


def test_rejected_total_exports_every_code_from_the_start(heard: Heard) -> None:
    """Every problem code starts at 0, so that its first occurrence is an increase."""
    for code in PROBLEMS:
        assert f'deltaw_rejected_total{{reason="{code}"}}' in heard.client.get("/metrics").text


def test_table_of_log_fields_lists_every_field(heard: Heard) -> None:
    """The log lines of an answer, a problem and an NDJSON request have the fields of the table
    and no others."""
    lines = [heard.log.await_request(mark) for mark in ("run.1", "run.2", "run.3")]
    found = {name for line in lines for name in line}
    assert not found & CONDITIONAL
    assert sorted(named("field")) == sorted(found | CONDITIONAL)


def test_table_of_attributes_lists_every_attribute() -> None:
    """The table has one row for each attribute of a request's span and no other rows."""
    assert sorted(named("attribute")) == sorted(
        {*ATTRIBUTES.values(), "deltaw.model", "error.type"}
    )


def test_table_of_server_timing_lists_every_part(heard: Heard) -> None:
    """`Server-Timing` has the parts of the table, in the same order."""
    header = heard.client.post(PATHS["checks"], json=BODY).headers["server-timing"]
    assert named("part") == [part.partition(";")[0].strip() for part in header.split(",")]


def selectors(query: str) -> list[promql_parser.VectorSelector]:
    """Return every vector selector of a query."""
    found: list[promql_parser.VectorSelector] = []

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)
        elif isinstance(node, promql_parser.MatrixSelector):
            found.append(node.vector_selector)

    promql_parser.walk(promql_parser.parse(query), visit)
    return found


@pytest.mark.parametrize("query", [*QUERIES, *(rule["expr"] for rule in ALERTS)])
def test_queries_parse_and_use_exported_metrics(heard: Heard, query: str) -> None:
    """Each example and each alert parses as PromQL and uses only exported metrics, labels and
    reasons."""
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


def test_alerts_have_unique_names_summaries_and_severities() -> None:
    """Each alert has a unique name, a summary, and the severity `page` or `ticket`."""
    assert len({rule["alert"] for rule in ALERTS}) == len(ALERTS) >= 5
    for rule in ALERTS:
        assert rule["annotations"]["summary"]
        assert rule["labels"]["severity"] in ("page", "ticket")


@pytest.mark.parametrize("text", [text for language, text in EXAMPLES if language == "yaml"])
def test_yaml_examples_parse(text: str) -> None:
    """Each YAML example parses as a mapping."""
    assert isinstance(yaml.safe_load(text), dict)
