"""Options of the commands that ask: what `--help` says, and what is refused."""

from __future__ import annotations

import re

import pytest
from pydantic import BaseModel

from schemas.activations import ActivationsRequest
from schemas.equivalence_checks import EquivalenceChecksRequest
from schemas.trajectories import TrajectoriesRequest
from schemas.weight_updates import WeightUpdatesRequest
from service.cli.options import parse_option
from tests.service_process import Served
from tests.test_cli_commands import PAIR, deltaw


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("layers", "all", "all"),
        ("positions", "0,3,-1", [0, 3, -1]),
        ("spans", "0:8,8:18", [(0, 8), (8, 18)]),
        ("include", "factors, bias", ["factors", "bias"]),
        ("include", "", []),
        ("baseline", "alone", "alone"),
        ("baseline", '{"without": [[0, 7]]}', {"without": [[0, 7]]}),
    ],
)
def test_option_text_becomes_a_request_field(name: str, text: str, value: object) -> None:
    """Lists, spans and baselines are parsed from the form that `--help` describes."""
    assert parse_option(name, text) == value


@pytest.mark.parametrize(
    ("command", "model", "left_out"),
    [
        ("check", EquivalenceChecksRequest, ()),
        ("updates", WeightUpdatesRequest, ("probe_queries", "encoding")),
        ("trajectory", TrajectoriesRequest, ()),
        ("capture", ActivationsRequest, ("prompts", "encoding")),
        ("sweep", WeightUpdatesRequest, ("probe_queries", "encoding")),
    ],
)
def test_help_describes_each_field(
    command: str, model: type[BaseModel], left_out: tuple[str, ...]
) -> None:
    """`--help` has an option for each field of the request, with its description and default."""
    said = " ".join(re.sub("[│╭╮╰╯─]", " ", deltaw(command, "--help").stdout).split())
    for name, field in model.model_fields.items():
        flag = f"--{name.replace('_', '-')} "
        assert (flag in said) == (name not in left_out), name
        if name not in left_out:
            assert field.description
            assert " ".join(field.description.split()) in said
    assert "--deadline <float range> [x>=0]" in said
    assert "--threads <int>" in said
    assert "[default: 60.0]" in said


UNUSABLE = [
    ("ALL_PROXY", "socks5://127.0.0.1:9"),
    ("NO_PROXY", "localhost,fd07:b51a:cc66:f0::/64"),
    ("HTTPS_PROXY", "http://user:secret@127.0.0.1:99999"),
    ("SSL_CERT_FILE", "/no/such/file"),
]


@pytest.mark.parametrize(("name", "value"), UNUSABLE)
def test_unusable_variable_exits_with_3(tiny_service: Served, name: str, value: str) -> None:
    """A proxy or certificate variable that cannot be used is named in one sentence."""
    ended = deltaw("check", "--url", tiny_service.url, **{name: value})
    assert ended.exit_code == 3
    (sentence,) = ended.stderr.splitlines()
    assert sentence.startswith(f"deltaw: {name} ")
    assert "secret" not in sentence
    assert ended.stdout == ""


@pytest.mark.parametrize(("name", "value"), UNUSABLE)
def test_healthcheck_ignores_proxies_and_certificates(
    tiny_service: Served, name: str, value: str
) -> None:
    """The health check asks the service directly, whatever these variables hold."""
    ended = deltaw("healthcheck", "--url", tiny_service.url, **{name: value})
    assert ended.exit_code == 0


@pytest.mark.parametrize(
    ("url", "variables"),
    [
        ("localhost", {}),
        ("http://[::1", {}),
        ("http://a..b", {}),
        ("http://xn--a", {}),
        ("http://127.0.0.1:9", {"SSLKEYLOGFILE": "/no/such/folder/keys"}),
    ],
)
def test_healthcheck_of_unusable_address_exits_with_1(url: str, variables: dict[str, str]) -> None:
    """An address that cannot be asked is one sentence, not a traceback."""
    ended = deltaw("healthcheck", "--url", url, **variables)
    assert (ended.exit_code, ended.stdout) == (1, "")
    assert ended.stderr.startswith("deltaw: ")


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
        ("updates", *PAIR, "--stream", "sideways"),
        ("updates", *PAIR, "--deadline", "-1"),
        ("model", "--threads", "two"),
        ("capture", "a"),
        ("capture", "a", "--out", "/no/such/folder/a.safetensors"),
    ],
)
def test_wrong_option_exits_with_2(arguments: tuple[str, ...]) -> None:
    """A wrong option is refused before a model is loaded or a service is asked."""
    ended = deltaw(*arguments, DELTAW_MODEL="/no/such/folder")
    assert ended.exit_code == 2, ended.output
