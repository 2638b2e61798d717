"""The commands that ask a service over real HTTP, or a model in this process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel
from rich.console import Console
from safetensors.numpy import load_file
from typer.testing import CliRunner, Result

from deltaw_client import DeltawClient
from schemas.common import read_answer
from schemas.equivalence_checks import EquivalenceChecksAnswer
from schemas.model import ModelAnswer
from schemas.trajectories import TrajectoriesAnswer
from schemas.weight_updates import WeightUpdatesAnswer
from service.cli import app
from service.cli.tables import of_updates
from tests.client.conftest import problem, scripted
from tests.service_process import Served, free_port

PAIR = ("--context", "the abc cd", "--query", " the")


def deltaw(*arguments: str, **environment: str) -> Result:
    """Run the command in this process."""
    wide = {"COLUMNS": "250", "TERM": "dumb", **environment}
    return CliRunner().invoke(app, arguments, env=wide)


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (("updates", *PAIR), WeightUpdatesAnswer),
        (("updates", *PAIR, "--include", "factors,bias", "--layers", "-1"), WeightUpdatesAnswer),
        (("trajectory", *PAIR, "--baseline", "anchored"), TrajectoriesAnswer),
        (("check", *PAIR, "--scope", "model"), EquivalenceChecksAnswer),
        (("model",), ModelAnswer),
    ],
)
def test_json_prints_the_answer(
    tiny_service: Served, arguments: tuple[str, ...], answer: type[BaseModel]
) -> None:
    """`--json` prints the service's answer, and nothing else."""
    ended = deltaw(*arguments, "--url", tiny_service.url, "--json")
    assert ended.exit_code == 0, ended.stderr
    read_answer(answer, ended.stdout)


def test_model_in_process_equals_service(tiny_folder: Path, tiny_service: Served) -> None:
    """A model in this process gives the numbers of a service with the same weights."""
    asked = ("updates", *PAIR, "--include", "factors", "--json")
    here = deltaw(*asked, "--model", str(tiny_folder), DELTAW_API_KEYS="k", DELTAW_API_KEY="k")
    there = deltaw(*asked, "--url", tiny_service.url)
    assert here.exit_code == there.exit_code == 0, here.stderr
    mine, theirs = json.loads(here.stdout), json.loads(there.stdout)
    assert mine["model"] == theirs["model"]
    for one, other in zip(mine["updates"], theirs["updates"], strict=True):
        assert one["norm"] == pytest.approx(other["norm"], rel=1e-5)
        a, b = (np.array(told["weights"][0]["output"]["data"]) for told in (one, other))
        assert np.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_check_shows_errors_controls_and_verdict(tiny_service: Served) -> None:
    """A check that holds has a row per layer, its controls and a verdict, and exit code 0."""
    ended = deltaw("check", *PAIR, "--baseline", "alone", "--url", tiny_service.url)
    assert ended.exit_code == 0
    assert ended.stdout.count("holds") == 3 + 1
    for said in ("verdict: holds", "random update", "baseline alone", "positions shifted by"):
        assert said in ended.stdout
    assert "stream free; " in ended.stdout
    assert "float32 on cpu" in ended.stdout


@pytest.mark.parametrize("shown", [(), ("--json",)])
def test_check_that_fails_exits_with_1(tiny_service: Served, shown: tuple[str, ...]) -> None:
    """The exit code is 1 if a check does not hold, with a table and with JSON."""
    strict = ("--tolerance", "1e-12", "--layers", "0,1")
    ended = deltaw("check", *PAIR, *strict, "--url", tiny_service.url, *shown)
    assert ended.exit_code == 1
    assert "fails" in ended.stdout


def test_model_scope_shows_the_logits(tiny_service: Served) -> None:
    """Scope `model` adds tables for the logits."""
    ended = deltaw("check", *PAIR, "--scope", "model", "--layers", "0", "--url", tiny_service.url)
    assert ended.exit_code == 0
    for said in ("logits", "stream sequential", "free stream patches", "divergence"):
        assert said in ended.stdout


def test_self_check_is_that_of_the_service(tiny_service: Served) -> None:
    """Without a context, `check` reports the self-check of the service's start."""
    ended = deltaw("check", "--url", tiny_service.url, "--json")
    with DeltawClient(tiny_service.url) as client:
        found = json.loads(client.model().content)["self_check"]
    assert ended.exit_code == 0
    assert json.loads(ended.stdout) == found
    assert "holds" in deltaw("check", "--url", tiny_service.url).stdout


def test_failed_self_check_exits_with_1() -> None:
    """A failed self-check of the service exits with 1 from `check`, and with 3 elsewhere."""
    with scripted(problem("self_check_failed", Retry_After="60")) as service:
        ended = deltaw("check", "--url", service.url)
        assert ended.exit_code == 1
        assert "fails" in ended.stdout
        assert deltaw("model", "--url", service.url).exit_code == 3


def test_updates_shows_layers_and_next_tokens(tiny_service: Served) -> None:
    """`updates` has a row per layer, and the next tokens with and without the context."""
    ended = deltaw("updates", *PAIR, "--url", tiny_service.url)
    assert ended.exit_code == 0
    for said in ("‖ΔW‖/‖W‖", "with context", "nats", "baseline matched; stream free"):
        assert said in " ".join(ended.stdout.split())


def test_updates_shows_each_first_weight_of_a_gated_model(tiny_service: Served) -> None:
    """An update of several first weights has a row for all of them and one for each."""
    with DeltawClient(tiny_service.url) as client:
        answer = client.weight_updates("the abc", " the", layers=[1], include=[])
    (update,) = answer.updates
    names = [f"model.layers.1.mlp.{module}.weight" for module in ("gate_proj", "up_proj")]
    weights = [replace(update.weights[0], name=name) for name in names]
    gated = replace(answer, updates=[replace(update, weights=weights)])
    console = Console(width=250)
    with console.capture() as captured:
        console.print(of_updates(gated))
    rows = [line.split("│") for line in captured.get().splitlines() if line.startswith("│")]
    assert [row[3].strip() for row in rows] == ["all", "gate_proj", "up_proj"]
    assert {row[4].strip() for row in rows} == {f"{update.norm:.3g}"}
    assert [row[5].strip() == "–" for row in rows] == [True, False, False]


def test_markup_in_a_text_is_shown_as_it_is(tiny_service: Served) -> None:
    """A text that looks like markup is printed unchanged."""
    text = ("--context", "[red]the", "--query", "[/] the", "--layers", "0")
    shown = deltaw("trajectory", *text, "--url", tiny_service.url)
    assert shown.exit_code == 0
    other = ("--baseline", '{"context": "[/bold]"}', "--include", "")
    ended = deltaw("updates", *text, *other, "--url", tiny_service.url)
    assert ended.exit_code == 0, ended.output
    assert "[/bold]" in ended.stdout


def test_trajectory_has_a_row_per_step(tiny_service: Served) -> None:
    """Each token, or each given span, has a row with its text, ‖ΔW‖, the step and the cosine."""
    asked = ("trajectory", "--context", "the abc", "--query", " the", "--url", tiny_service.url)
    shown = deltaw(*asked, "--layers", "0").stdout
    for said in ("'he'", "' '", "'abc'", "‖ΔW‖", "cos to the end", "baseline matched"):
        assert said in shown, shown
    answer = json.loads(deltaw(*asked, "--json").stdout)
    steps = [step for layer in answer["layers"] for step in layer["steps"]]
    rows = [line for line in deltaw(*asked).stdout.splitlines() if line.startswith("│")]
    assert len(rows) == len(steps) == 3 * 4
    for row, step in zip(rows, steps, strict=True):
        assert f"{step['norm']:.3g} │" in row
        assert f"{step['step_norm']:.3g} │" in row
    spanned = deltaw(*asked, "--layers", "0", "--spans", "0:1,1:4", "--json")
    steps = json.loads(spanned.stdout)["layers"][0]["steps"]
    assert [step["span"] for step in steps] == [[0, 1], [1, 4]]


def test_capture_writes_a_safetensors_file(tiny_service: Served, tmp_path: Path) -> None:
    """The safetensors library reads the activations from the file."""
    out = tmp_path / "seen.safetensors"
    asked: tuple[str, ...] = ("capture", "the abc", "cd", "--layers", "0,-1", "--positions", "all")
    asked += ("--hook-points", "mlp_in,mlp_pre", "--out", str(out), "--url", tiny_service.url)
    ended = deltaw(*asked)
    assert ended.exit_code == 0, ended.stderr
    held = load_file(out)
    with DeltawClient(tiny_service.url) as client:
        answer = client.activations(
            ["the abc", "cd"], layers=[0, -1], positions="all", hook_points=["mlp_in", "mlp_pre"]
        )
    assert len(held) == 2 * 2 * 2
    for i, prompt in enumerate(answer.prompts):
        for j, activation in enumerate(prompt.activations):
            name = f"prompts.{i}.activations.{j}.values"
            assert np.allclose(held[name], activation.values, rtol=1e-5, atol=1e-6)
            assert name in ended.stdout
    said = json.loads(deltaw(*asked, "--json").stdout)
    assert said["prompts"][0]["activations"][0]["values"]["tensor"] in held


def test_model_shows_hook_points_limits_and_self_check(tiny_service: Served) -> None:
    """`model` lists the hook points, the limits and the self-check."""
    ended = deltaw("model", "--url", tiny_service.url)
    assert ended.exit_code == 0
    for said in ("resid_post", "max_tokens_per_request", "16,384", "holds", "sha256:"):
        assert said in ended.stdout


def test_key_comes_from_option_or_environment() -> None:
    """`--api-key` and `DELTAW_API_KEY` are sent as a Bearer key."""
    with scripted(problem("wrong_key")) as service:
        deltaw("model", "--url", service.url, "--api-key", "one")
        deltaw("model", "--url", service.url, DELTAW_API_KEY="two")
        keys = [heard["authorization"] for heard in service.heard]
    assert keys == ["Bearer one", "Bearer two"]


def test_problem_or_missing_service_exits_with_3(tiny_service: Served) -> None:
    """A problem, and a service that cannot be reached, print one sentence and exit with 3."""
    refused = deltaw("updates", *PAIR, "--layers", "48", "--url", tiny_service.url)
    assert refused.exit_code == 3
    assert refused.stderr.startswith("deltaw: layer_out_of_range: ")
    assert "48" in refused.stderr
    url = f"http://127.0.0.1:{free_port()}"
    for nowhere in (url, "localhost", "http://[::1"):
        absent = deltaw("model", "--url", nowhere, "--deadline", "0.2")
        assert absent.exit_code == 3
        assert absent.stderr.startswith("deltaw: ")
        assert refused.stdout == absent.stdout == ""


SCRIPT = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "fastapi", "uvicorn", "structlog"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
from service.cli import app
app()
"""


def test_command_works_without_torch(tiny_service: Served) -> None:
    """Without torch the command asks a service; what needs torch says what to install."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        foreign = {n: v for n, v in os.environ.items() if not n.startswith("DELTAW_")}
        command: list[Any] = [sys.executable, "-c", SCRIPT, *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=foreign)

    assert run("--help").returncode == 0
    assert run("check", *PAIR, "--url", tiny_service.url).returncode == 0
    for command in (("updates", *PAIR), ("serve",)):
        ended = run(*command)
        assert ended.returncode == 3
        assert ended.stderr.startswith("deltaw: ")
        assert "deltaw[server]" in ended.stderr
        assert "Traceback" not in ended.stderr
