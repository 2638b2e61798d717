"""Every example of README.md and docs/, run as printed, gives the output shown below it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.examples.found import ROOT, Example, documents, examples, not_run
from tests.examples.running import printed
from tests.examples.shown import NotShown, alike, assert_shown, rewritten
from tests.service_process import Served

EXAMPLES = [example for document in documents() for example in examples(document)]
ON_A_CLUSTER = (
    "kubectl create namespace deltaw",
    "key=$(openssl rand -hex 24); scraper=$(openssl rand -hex 24)",
    "kubectl --namespace deltaw create secret generic keys \\",
    """  --from-literal=keys="$key"$'\\n'"$scraper" --from-literal=prometheus="$scraper\"""",
    "kubectl apply --kustomize deploy/kubernetes/overlays/bundled",
)
ELSEWHERE = {
    "make run": "test_makefile runs it",
    "make test": "runs this test",
    "DELTAW_MODEL=gpt2 make run": "needs the hub; test_makefile runs it with a folder",
    "DELTAW_MODEL=HuggingFaceTB/SmolLM2-135M make run": "needs the hub, like gpt2",
    "DELTAW_MODEL=path/to/folder make run": "test_makefile runs it with a folder",
    "docker compose up --build": "needs a container engine",
    "pip install ./deploy/client": "test_distribution builds and installs the client",
    "make .venv/.fleet && . .venv/fleet/bin/activate": "needs the package index",
    "set -a; . deploy/ray/ray.env; set +a": "the tests of tests/fleet read the file",
    "serve run deploy/ray/serve.yaml": "the tests of tests/fleet deploy the file",
    "docker compose --profile fleet up --build": "needs a container engine",
    "docker build --tag deltaw:local .": "needs a container engine",
    **dict.fromkeys(ON_A_CLUSTER, "needs a cluster; test_kubernetes checks the manifests"),
}
"""Commands of the documents that this module does not run, with the reason."""
LONG = ("command-line.md", "cookbook.md")
"""Documents whose examples start many processes."""
SLOW = ("from peft import", 'kind="static"')
"""Code of an example that takes longer than a second: it imports PEFT, or fits an adapter."""
ANSWER = """{
  "updates": [
    {
      "layer": 0,
      "norm": 1.2345678
    },
    {
      "layer": 1,
      "norm": 0.25,
      "text": " Berlin"
    }
  ]
}
""".splitlines()
ELIDED = """      …
      "layer": 1,
      "norm": 0.7,
      "text": " Paris"
…
"""


def takes_long(example: Example) -> bool:
    """Whether an example starts many processes, imports PEFT or fits an adapter."""
    return example.name.startswith(LONG) or any(code in example.script.text for code in SLOW)


def test_documents_have_shell_and_python_examples() -> None:
    """The documents have at least five shell examples with JSON and five Python examples."""
    languages = [(each.script.language, each.shown.language) for each in EXAMPLES]
    assert languages.count(("sh", "json")) >= 5
    assert languages.count(("python", "text")) >= 5


@pytest.mark.parametrize(
    "example",
    [
        pytest.param(
            example,
            id=str(example.name),
            marks=[pytest.mark.slow] if takes_long(example) else [],
        )
        for example in EXAMPLES
    ],
)
def test_example_prints_what_is_shown(
    bundled_service: Served, tmp_path: Path, example: Example
) -> None:
    """An example, run as printed in an empty folder, prints the output that the document shows."""
    assert example.shown.text.strip()
    assert_shown(example.shown.text, printed(example, bundled_service.url, tmp_path))


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_is_run_here_or_elsewhere(document: Path) -> None:
    """`ELSEWHERE` lists every command that has no shown output."""
    assert [line for line in not_run(document) if line not in ELSEWHERE] == []


def test_alike_compares_integers_exactly_and_other_numbers_within_two_per_cent() -> None:
    """Integers must be equal, other numbers within 2 %, rounding errors of the same magnitude."""
    assert alike('"norm": 1.23,', '  "norm": 1.2345678')
    assert not alike('"norm": 1.23,', '"norm": 1.3')
    assert not alike('"layer": 1', '"layer": 2')
    assert alike('"error": 3e-07', '"error": 1.1e-06')
    assert not alike('"error": 3e-07', '"error": 4e-05')
    assert not alike('"norm": 1.23', '"step_norm": 1.23')
    assert alike("share 0.26", "share 0.27")
    assert not alike("share 0.26", "share 0.28")


def test_line_missing_from_the_answer_fails() -> None:
    """Shown lines must occur in the answer in the same order."""
    assert_shown('"layer": 0,\n…\n"norm": 0.25,\n', ANSWER)
    with pytest.raises(NotShown):
        assert_shown('"norm": 0.25,\n…\n"layer": 0,\n', ANSWER)


def test_rewriting_json_replaces_values_and_keeps_elisions() -> None:
    """Rewriting replaces a value under its key and in its entry, with three digits."""
    written = rewritten("json", ELIDED, ANSWER)
    assert written == ELIDED.replace("0.7", "0.25").replace("Paris", "Berlin")
    assert rewritten("json", written, ANSWER) == written
    assert '"norm": 1.23\n' in rewritten("json", '      "layer": 0,\n      "norm": 9.5\n', ANSWER)


def test_rewriting_a_line_whose_key_is_gone_fails() -> None:
    """Rewriting raises `NotShown` if the answer no longer has a shown key."""
    with pytest.raises(NotShown):
        rewritten("json", '      "layer": 2,\n', ANSWER)


def test_rewriting_text_replaces_only_changed_blocks() -> None:
    """A block that still holds stays as it is; otherwise the printed lines replace it."""
    shown = "norm 1.638, from the factors 1.638\nholds\n"
    assert rewritten("text", shown, ["norm 1.638001, from the factors 1.638", "holds"]) == shown
    assert rewritten("text", shown, ["norm 2.0, from", "holds"]) == "norm 2.0, from\nholds\n"
    assert rewritten("text", shown, ["fails"]) == "fails\n"


def test_rewritten_block_comes_from_one_answer() -> None:
    """If one line of a block has changed, all its numbers come from the new answer."""
    assert rewritten("text", "a 1.0\nb 2e-07\n", ["a 1.5 ", "b 9e-07"]) == "a 1.5\nb 9e-07\n"
    shown = '"norm": 9.5,\n"error": 2e-07\n'
    told = ['"norm": 1.5,', '"error": 9e-07']
    assert rewritten("json", shown, told) == '"norm": 1.5,\n"error": 9e-07\n'
    assert rewritten("json", shown.replace("9.5", "1.5"), told) == shown.replace("9.5", "1.5")
