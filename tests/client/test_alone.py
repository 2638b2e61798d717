"""The client without the packages of the service."""

from __future__ import annotations

import subprocess
import sys

from tests.service_process import Served

SCRIPT = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in REFUSED:
            raise ModuleNotFoundError(f"{name} is not installed here")

REFUSED = set(sys.argv[2:])
sys.meta_path.insert(0, Refuse())

import deltaw_client
with deltaw_client.DeltawClient(sys.argv[1]) as client:
    answer = client.weight_updates([5, 6], [7], layers=[0])
    client.sweep([([5, 6], [7])], out="/dev/null", progress=False)
print(answer.updates[0].input.dtype)
print(sorted(name for name in sys.modules if name in REFUSED))
"""
SERVERS = ["torch", "transformers", "safetensors", "fastapi", "starlette", "typer", "rich"]
SERVERS += ["service", "orjson", "pydantic_settings", "structlog"]


def test_client_works_without_the_packages_of_the_service(tiny_service: Served) -> None:
    """The client asks, reads tensors and sweeps if none of these packages can be imported."""
    command = [sys.executable, "-c", SCRIPT, tiny_service.url, *SERVERS]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert (ended.stdout, ended.stderr) == ("float32\n[]\n", "")
