"""The commands that ask: of a service over real HTTP, and of a model in this process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel
from safetensors.numpy import load_file
from typer.testing import CliRunner, Result

from deltaw_client import DeltawClient
from schemas.equivalence_checks import EquivalenceChecksAnswer
from schemas.model import ModelAnswer
from schemas.trajectories import TrajectoriesAnswer
from schemas.weight_updates import WeightUpdatesAnswer
from service.cli import app
from tests.client.conftest import problem, scripted
from tests.service_process import Served, free_port

PAIR = ("--context", "the abc cd", "--query", " the")


def deltaw(*arguments: str, **environment: str) -> Result:
    """The command in this process."""
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
def test_json(tiny_service: Served, arguments: tuple[str, ...], answer: type[BaseModel]) -> None:
    """`--json` prints the answer as the service gives it, and nothing else."""
    ended = deltaw(*arguments, "--url", tiny_service.url, "--json")
    assert ended.exit_code == 0, ended.stderr
    answer.model_validate_json(ended.stdout)


def test_same_in_process(tiny_folder: Path, tiny_service: Served) -> None:
    """A model in this process and a service with the same weights give the same numbers."""
    asked = ("updates", *PAIR, "--include", "factors", "--json")
    here = deltaw(*asked, "--model", str(tiny_folder), DELTAW_API_KEYS="k", DELTAW_API_KEY="k")
    there = deltaw(*asked, "--url", tiny_service.url)
    assert here.exit_code == there.exit_code == 0, here.stderr
    mine, theirs = json.loads(here.stdout), json.loads(there.stdout)
    assert mine["model"] == theirs["model"]
    for one, other in zip(mine["updates"], theirs["updates"], strict=True):
        assert one["norm"] == pytest.approx(other["norm"], rel=1e-5)
        a, b = (np.array(told["factors"]["output"]["data"]) for told in (one, other))
        assert np.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_check(tiny_service: Served) -> None:
    """A check is a table with a line a layer, its controls and a verdict; 0 where it holds."""
    ended = deltaw("check", *PAIR, "--baseline", "alone", "--url", tiny_service.url)
    assert ended.exit_code == 0
    assert ended.stdout.count("holds") == 3 + 1
    for said in ("verdict: holds", "random update", "baseline alone", "positions shifted by"):
        assert said in ended.stdout
    assert "stream free; " in ended.stdout
    assert "float32 on cpu" in ended.stdout


@pytest.mark.parametrize("shown", [(), ("--json",)])
def test_check_that_does_not_hold(tiny_service: Served, shown: tuple[str, ...]) -> None:
    """Exit code 1 where a check does not hold, whichever way it is shown."""
    strict = ("--tolerance", "1e-12", "--layers", "0,1")
    ended = deltaw("check", *PAIR, *strict, "--url", tiny_service.url, *shown)
    assert ended.exit_code == 1
    assert "fails" in ended.stdout


def test_check_of_the_model(tiny_service: Served) -> None:
    """In scope `model` the logits have a table of their own."""
    ended = deltaw("check", *PAIR, "--scope", "model", "--layers", "0", "--url", tiny_service.url)
    assert ended.exit_code == 0
    for said in ("logits", "stream sequential", "free stream patches", "divergence"):
        assert said in ended.stdout


def test_self_check_of_a_service(tiny_service: Served) -> None:
    """Without a context the self-check of a service is what it found when it started."""
    ended = deltaw("check", "--url", tiny_service.url, "--json")
    with DeltawClient(tiny_service.url) as client:
        found = client.model().self_check
    assert ended.exit_code == 0
    assert json.loads(ended.stdout) == found.model_dump()
    assert "holds" in deltaw("check", "--url", tiny_service.url).stdout


def test_self_check_that_failed() -> None:
    """A self-check that failed at a service's start is 1 here, and no answer elsewhere."""
    with scripted(problem("self_check_failed", Retry_After="60")) as service:
        ended = deltaw("check", "--url", service.url)
        assert ended.exit_code == 1
        assert "fails" in ended.stdout
        assert deltaw("model", "--url", service.url).exit_code == 3


def test_updates(tiny_service: Served) -> None:
    """Updates are a table with a line a layer, and what comes next with and without the context."""
    ended = deltaw("updates", *PAIR, "--url", tiny_service.url)
    assert ended.exit_code == 0
    for said in ("‖ΔW‖/‖W‖", "with context", "nats", "baseline matched; stream free"):
        assert said in " ".join(ended.stdout.split())


def test_markup(tiny_service: Served) -> None:
    """What looks like markup in a text is shown as it is."""
    text = ("--context", "[red]the", "--query", "[/] the", "--layers", "0")
    shown = deltaw("trajectory", *text, "--url", tiny_service.url)
    assert shown.exit_code == 0
    other = ("--baseline", '{"context": "[/bold]"}', "--include", "")
    ended = deltaw("updates", *text, *other, "--url", tiny_service.url)
    assert ended.exit_code == 0, ended.output
    assert "[/bold]" in ended.stdout


def test_trajectory(tiny_service: Served) -> None:
    """One layer is a bar a token; several are a line each; spans are those that were given."""
    asked = ("trajectory", "--context", "the abc", "--query", " the", "--url", tiny_service.url)
    bars = deltaw(*asked, "--layers", "0")
    assert bars.exit_code == 0
    for said in ("'he'", "' '", "'abc'", "█", "1.00", "baseline matched"):
        assert said in bars.stdout, bars.stdout
    lines = deltaw(*asked).stdout
    assert any(block in lines for block in BLOCKS)
    assert "relative to its own largest" in lines
    spanned = deltaw(*asked, "--layers", "0", "--spans", "0:1,1:4", "--json")
    steps = json.loads(spanned.stdout)["layers"][0]["steps"]
    assert [step["span"] for step in steps] == [[0, 1], [1, 4]]


def test_capture(tiny_service: Served, tmp_path: Path) -> None:
    """A captured file is read by the safetensors library and holds the activations."""
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


def test_model(tiny_service: Served) -> None:
    """The model's table names its hook points, limits and the self-check."""
    ended = deltaw("model", "--url", tiny_service.url)
    assert ended.exit_code == 0
    for said in ("resid_post", "max_tokens_per_request", "16,384", "holds", "sha256:"):
        assert said in ended.stdout


def test_key() -> None:
    """The key comes from an option or the environment."""
    with scripted(problem("wrong_key")) as service:
        deltaw("model", "--url", service.url, "--api-key", "one")
        deltaw("model", "--url", service.url, DELTAW_API_KEY="two")
        keys = [heard["authorization"] for heard in service.heard]
    assert keys == ["Bearer one", "Bearer two"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("updates", "--context", "a"),
        ("check", "--context", "a"),
        ("check", "--scope", "model"),
        ("updates", *PAIR, "--layers", "1,x"),
        ("updates", *PAIR, "--baseline", "{"),
        ("trajectory", *PAIR, "--spans", "0-3"),
        ("model", "--url", "http://127.0.0.1:1", "--model", "bundled"),
        ("capture", "a"),
        ("capture", "a", "--out", "/no/such/folder/a.safetensors"),
    ],
)
def test_not_understood(arguments: tuple[str, ...]) -> None:
    """What cannot be read is refused with 2, before a model is loaded or anybody is asked."""
    ended = deltaw(*arguments, DELTAW_MODEL="/no/such/folder")
    assert ended.exit_code == 2, ended.output


def test_no_answer(tiny_service: Served) -> None:
    """A problem, and a service that is not there, are one sentence and exit code 3."""
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


def test_lists() -> None:
    """Lists, spans and baselines are read as they are meant."""
    assert listed("all") == "all"
    assert listed("0,3,-1") == [0, 3, -1]
    assert spans("0:8,8:18") == [(0, 8), (8, 18)]
    assert baseline("alone") == "alone"
    assert baseline('{"without": [[0, 7]]}') == {"without": [[0, 7]]}


def test_sparkline() -> None:
    """A line has a block for each value, the largest the highest; more than fit are put together
    under the largest of them."""
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert sparkline([0.0, 0.0]) == "▁▁"
    assert sparkline([0.0] * 50 + [1.0] + [0.0] * 49, width=10) == "▁▁▁▁▁█▁▁▁▁"


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


def test_without_torch(tiny_service: Served) -> None:
    """A service elsewhere can be asked where nothing that computes is installed; what needs it
    says what to install."""

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
