"""`deltaw adapter` and `deltaw generate`: what they ask, print and refuse."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from rich.console import Console

from deltaw_client import Adapter
from schemas.adapters import StaticAdapterRequest, TokenAdapterRequest
from schemas.common import read_answer, write_answer
from schemas.completions import AdapterPatch, CompletionRequest, RecomputedPatch
from service.cli.adapter_tables import PeftErrors, of_adapter
from service.cli.generation import PRINTED, SHOWN
from tests.client.conftest import Scripted, problem, scripted
from tests.client.made import FEW, STATIC, TOKEN, answered
from tests.client.test_adapters import CONFIG, WEIGHTS
from tests.client.test_events import DONE, event, problem_event, stream_of
from tests.service_process import Served
from tests.test_cli_commands import deltaw

TOKEN_ANSWER = read_answer(Adapter, write_answer(TOKEN))
AGREED = {"token": 5, "same_token": True, "kl": 2e-12, "margin": 0.5, "rows_patched": 3}


def sent(service: Scripted, at: int = 0) -> dict[str, Any]:
    """Return the fields of a request."""
    fields: dict[str, Any] = json.loads(service.asked[at][1])
    return fields


def test_token_adapter_is_made_and_written(tmp_path: Path) -> None:
    """`--query` makes a token adapter; `--out` writes the PEFT folder."""
    context, out = tmp_path / "context.txt", tmp_path / "out"
    context.write_bytes(b"one\r\ntwo \n")
    with scripted(answered(TOKEN), WEIGHTS, CONFIG) as service:
        asked = ("--context-file", str(context), "--query", " is", "--positions", "0,-1")
        ended = deltaw("adapter", *asked, "--out", str(out), "--url", service.url)
        fields = sent(service)
    assert ended.exit_code == 0, ended.output
    assert fields == {
        "kind": "token",
        "context": "one\r\ntwo \n",
        "query": " is",
        "positions": [0, -1],
    }
    assert {path.name for path in out.iterdir()} == {
        "adapter_model.safetensors",
        "adapter_config.json",
    }
    for said in ("a1b2", "exact but for rounding", "64,512", "8.5e-07", f"written to {out}"):
        assert said in ended.stdout
    assert "held out" not in ended.stdout


def test_static_adapter_shows_honest_figures(tmp_path: Path) -> None:
    """Held-out figures stand beside the rivals, the collateral and those in sample."""
    queries, keep = tmp_path / "queries.txt", tmp_path / "keep.txt"
    queries.write_text("cow:\n\n pink:\nnaïve:\r\n")
    keep.write_text("A sentence.\n")
    with scripted(answered(STATIC)) as service:
        asked = ("--context", "a: b", "--queries", str(queries), "--keep", str(keep))
        ended = deltaw("adapter", *asked, "--rank", "8", "--ridge", "0.5", "--url", service.url)
        fields = sent(service)
    assert ended.exit_code == 0, ended.output
    assert fields == {
        "kind": "static",
        "context": "a: b",
        "queries": ["cow:", " pink:", "naïve:"],
        "keep": ["A sentence."],
        "rank": 8,
        "ridge": 0.5,
    }
    said = ended.stdout
    for words in ("fitted; see", "16 queries, 320 rows, 240 rows to keep", "mean, context itself"):
        assert words in said
    rows = {
        cells[0]: cells[1:]
        for line in said.splitlines()
        if len(cells := [cell.strip() for cell in line.strip("│┃").split("│")]) == 3
    }
    assert rows["recovered"] == ["0.98", "0.999"]
    assert rows["mean output"] == ["0.81", "-0.5"]
    assert rows["random"] == ["-0.32", "–"]
    assert rows["1"] == ["–", "0.75"]
    assert "exact" not in said


def test_static_adapter_without_held_out_figures_says_so() -> None:
    """With fewer than eight held-out queries the held-out column has dashes and a reason."""
    with scripted(answered(FEW)) as service:
        asked = ("--context", "a", "--queries", __file__, "--url", service.url)
        said = deltaw("adapter", *asked).stdout
    assert "Held-out figures need eight queries." in said
    assert "rivals" not in said


@pytest.mark.parametrize("command", ["adapter", "generate"])
def test_json_prints_the_answer_as_it_was_sent(command: str) -> None:
    """`--json` prints the body of the answer, and asks for no stream."""
    body = event(" one", 5).removeprefix(b"data: ").strip()
    whole = (200, {"Content-Type": "application/json"}, body)
    reply = answered(TOKEN) if command == "adapter" else whole
    asked = ("--context", "a", "--query", " b") if command == "adapter" else ("a prompt",)
    with scripted(reply) as service:
        ended = deltaw(command, *asked, "--json", "--url", service.url)
        assert "stream" not in sent(service)
    assert ended.exit_code == 0, ended.output
    assert ended.stdout.encode().strip() == reply[2]


def test_generate_prints_tokens_and_agreement() -> None:
    """The text is printed as it arrives; the agreement of each token and the end come below."""
    finished = event(" tw\x1b[31mo", 6, agreement=[AGREED | {"token": 6, "same_token": False}])
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    replies = stream_of(
        event(" one", 5, seed=7, agreement=[AGREED], one_set_of_weights=False),
        finished.replace(b'"finish_reason": null', b'"finish_reason": "stop"'),
        event("", 0, choices=[], usage=usage),
        DONE,
    )
    with scripted(replies) as service:
        asked = ("--context", "ab", "--recompute", "new", "--agreement", "--seed", "7")
        ended = deltaw("generate", " c", *asked, "--temperature", "0.5", "--url", service.url)
        fields = sent(service)
    assert ended.exit_code == 0, ended.output
    assert fields["patch"] == {"context": "ab", "recompute": "new"}
    assert (fields["prompt"], fields["agreement"], fields["seed"]) == (" c", True, 7)
    assert fields["stream"] is True
    text, *below = ended.stdout.splitlines()
    assert text == " one tw�[31mo"
    said = "\n".join(below)
    assert re.search(r"' one' +│ +5 │ yes +│ 2e-12 │ +0.5 │ +3 ", said)
    assert "finish reason stop; 2 tokens after a prompt of 3; no single set of weights" in said
    assert "gives this text; seed 7" in said
    assert "\x1b[31m" not in ended.stdout


def test_generate_with_an_adapter_sends_its_scale() -> None:
    """`--adapter` and `--scale` are the patch; a context is there for the agreement."""
    with scripted(stream_of(event(" one", 5), DONE)) as service:
        asked = ("--adapter", "a1b2", "--scale", "0.5", "--url", service.url)
        assert deltaw("generate", " c", *asked).exit_code == 0
        assert deltaw("generate", " c", *asked, "--context", "ab").exit_code == 0
        assert deltaw("generate", " c", "--url", service.url).exit_code == 0
        patches = [sent(service, at).get("patch") for at in range(3)]
    adapted = {"adapter": "a1b2", "scale": 0.5}
    assert patches == [adapted, adapted | {"context": "ab"}, None]


def test_generate_in_process_equals_service(tiny_folder: Path, tiny_service: Served) -> None:
    """A model in this process and a service print the same text, in a stream and as JSON."""
    asked: tuple[str, ...] = (
        "generate",
        "the abc cd",
        "--seed",
        "7",
        "--max-tokens",
        "5",
        "--context",
        "the",
    )
    asked += ("--recompute", "new", "--agreement")
    here = deltaw(*asked, "--model", str(tiny_folder))
    there = deltaw(*asked, "--url", tiny_service.url)
    assert here.exit_code == there.exit_code == 0, here.output
    assert here.stdout.count(" yes ") == there.stdout.count(" yes ") == 5
    whole = json.loads(deltaw(*asked, "--url", tiny_service.url, "--json").stdout)
    text: str = whole["choices"][0]["text"]
    for ended in (here, there):
        assert ended.stdout.startswith(text.translate(PRINTED))


@pytest.mark.slow
def test_adapter_is_compared_with_peft_in_process(tiny_folder: Path, tmp_path: Path) -> None:
    """`--verify-peft` loads the adapter with PEFT; without `--out` it leaves no files."""
    asked = ("adapter", "--context", "the abc cd", "--query", " the", "--verify-peft")
    ended = deltaw(*asked, "--model", str(tiny_folder), DELTAW_ADAPTERS=str(tmp_path))
    assert ended.exit_code == 0, ended.output
    assert re.search(r"verdict +│ holds", ended.stdout)
    assert re.search(r"without the adapter +│ 0\.\d", ended.stdout)
    assert ended.stderr == ""


@pytest.mark.slow
def test_peft_comparison_needs_the_weights_of_the_adapter() -> None:
    """An adapter of a service with other weights cannot be compared here: exit code 3."""
    with scripted(answered(TOKEN), WEIGHTS, CONFIG) as service:
        asked = ("--context", "a", "--query", " b", "--verify-peft", "--url", service.url)
        ended = deltaw("adapter", *asked)
    assert ended.exit_code == 3
    assert ended.stdout == ""
    assert ended.stderr.startswith("deltaw: 'bundled' has other weights")


@pytest.mark.parametrize(
    ("errors", "holds"),
    [(PeftErrors(1e-6, None, 0.9), True), (PeftErrors(1e-6, 1e-3, 0.9), False)],
)
def test_peft_errors_beyond_rounding_fail(errors: PeftErrors, holds: bool) -> None:
    """The verdict says whether both errors are rounding errors; a missing one has a dash."""
    console = Console(width=150)
    with console.capture() as captured:
        console.print(of_adapter(TOKEN_ANSWER, None, errors))
    assert errors.hold is holds
    assert re.search(rf"verdict +│ {'holds' if holds else 'fails'}", captured.get())
    assert (re.search("merged +│ –", captured.get()) is not None) is (errors.merged is None)


def test_stream_that_breaks_ends_its_line_and_exits_with_3() -> None:
    """After a problem the text so far stays, and one sentence on stderr names the problem."""
    with scripted(stream_of(event(" one", 5), problem_event("out_of_memory"))) as service:
        ended = deltaw("generate", " c", "--url", service.url)
    assert ended.exit_code == 3
    assert ended.stdout == " one\n"
    assert ended.stderr.startswith("deltaw: out_of_memory: ")
    with scripted(problem("never_fits")) as service:
        ended = deltaw("generate", " c", "--url", service.url)
    assert (ended.exit_code, ended.stdout) == (3, "")


@pytest.mark.parametrize(
    ("command", "models", "left_out"),
    [
        ("adapter", (TokenAdapterRequest, StaticAdapterRequest), {"kind"}),
        (
            "generate",
            (CompletionRequest, RecomputedPatch, AdapterPatch),
            CompletionRequest.model_fields.keys() - {*SHOWN},
        ),
    ],
)
def test_help_describes_each_field(
    command: str, models: tuple[type[BaseModel], ...], left_out: set[str]
) -> None:
    """`--help` has an option for each field, described by the first request that has it."""
    said = " ".join(re.sub("[│╭╮╰╯─]", " ", deltaw(command, "--help").stdout).split())
    described: set[str] = set()
    for model in models:
        for name, field in model.model_fields.items():
            assert name in left_out or f"--{name.replace('_', '-')} " in said, name
            if name not in left_out | described:
                assert field.description
                assert " ".join(field.description.split()) in said
                described.add(name)
    assert "--context-file <path>" in said


@pytest.mark.parametrize(
    "arguments",
    [
        ("adapter", "--context", "a"),
        ("adapter", "--query", "a"),
        ("adapter", "--context", "a", "--query", "b", "--queries", __file__),
        ("adapter", "--context", "a", "--query", "b", "--rank", "3"),
        ("adapter", "--context", "a", "--queries", __file__, "--form", "bias"),
        ("adapter", "--context", "a", "--queries", "/no/such/file"),
        ("adapter", "--context-file", "/no/such/file", "--query", "b"),
        ("adapter", "--context", "a", "--context-file", __file__, "--query", "b"),
        ("adapter", "--context", "a", "--query", "b", "--out", __file__),
        ("generate",),
        ("generate", "a", "--scale", "2"),
        ("generate", "a", "--recompute", "all"),
        ("generate", "a", "--recompute", "some", "--context", "b"),
        ("generate", "a", "--adapter", "b", "--recompute", "all"),
        ("generate", "a", "--max-tokens", "many"),
    ],
)
def test_wrong_option_exits_with_2(arguments: tuple[str, ...]) -> None:
    """A wrong option is refused before a model is loaded or a service is asked."""
    ended = deltaw(*arguments, DELTAW_MODEL="/no/such/folder")
    assert ended.exit_code == 2, ended.output
