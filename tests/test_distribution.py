"""The built distributions: deltaw with all packages, and deltaw-client with one."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from collections.abc import Iterable, Mapping
from email import message_from_bytes
from email.message import Message
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from service import __version__
from tests.client.own_project import OWN_MODULE, PRINTED, PROGRAM
from tests.service_process import Served

ROOT = Path(__file__).parent.parent
PACKAGES = ("deltaw_client", "schemas", "service")
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
BUILD = [*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir"]
INSTALL = ["install", "--no-index", "--no-compile"]
LARGEST_CLIENT = 200_000
"""Maximum bytes of the client's wheel. The wheel of the service has a model and takes 12 MB."""


def sources(package: str) -> set[str]:
    """Return the paths of a package's files, relative to the package."""
    folder = ROOT / package
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(file.relative_to(folder)) for file in files if file.parent.name != "__pycache__"}


def contents(wheel: Path) -> dict[str, bytes]:
    """Return the contents of a wheel's files, by path."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def metadata(wheel: Path) -> Message:
    """Return the metadata of a wheel."""
    (text,) = (each for name, each in contents(wheel).items() if name.endswith("/METADATA"))
    return message_from_bytes(text)


def run(
    *command: object,
    status: int = 0,
    cwd: Path = ROOT,
    variables: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command. The checkout is not on its Python path unless `variables` put it there.

    Args:
        command: Program and arguments.
        status: Expected exit status.
        cwd: Working directory.
        variables: Further environment variables.
    """
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ended = subprocess.run(
        [str(each) for each in command],
        cwd=cwd,
        env={**inherited, **(variables or {})},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == status, ended.stdout + ended.stderr
    return ended


@pytest.fixture(scope="module")
def service_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of deltaw, built from a copy of its sources."""
    folder = tmp_path_factory.mktemp("service")
    source = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    run(*BUILD, folder, source)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def client_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of deltaw-client, built by `make client` without an index."""
    folder = tmp_path_factory.mktemp("client")
    binaries = folder / "venv" / "bin"
    binaries.mkdir(parents=True)
    (binaries.parent / ".venv").touch()
    (binaries / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (binaries / "python").chmod(0o755)
    # pip reads this variable as the value of `build-isolation`, so "false" switches it off.
    offline = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "false"}
    run("make", "client", f"VENV={binaries.parent}", f"DIST={folder}", variables=offline)
    (wheel,) = folder.glob("*.whl")
    return wheel


def environment(folder: Path) -> Path:
    """Create an empty environment, and return the path of its Python."""
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    return folder / "bin" / "python"


def site_packages(folder: Path) -> Path:
    """Return the folder of an environment's packages."""
    (packages,) = folder.glob("lib/python3*/site-packages")
    return packages


def without_extras(requirements: Iterable[str] | None) -> list[Requirement]:
    """Return the requirements that apply here without an extra."""
    read = map(Requirement, requirements or ())
    return [each for each in read if each.marker is None or each.marker.evaluate({"extra": ""})]


def needed(waiting: list[Requirement]) -> set[str]:
    """Return the names of these distributions and of all their dependencies."""
    found: set[str] = set()
    while waiting:
        name = canonicalize_name(waiting.pop().name)
        if name not in found:
            found.add(name)
            waiting += without_extras(distribution(name).requires)
    return found


@pytest.fixture(scope="module")
def client_python(client_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment in which pip installed the client, without an index.

    Before the installation it has only links to the packages that the client needs.
    """
    folder = tmp_path_factory.mktemp("environment")
    python = environment(folder)
    packages = site_packages(folder)
    for name in needed(without_extras(metadata(client_wheel).get_all("Requires-Dist"))):
        found = distribution(name)
        tops = {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}
        for top in tops:
            (packages / top).symlink_to(str(found.locate_file(top)))
    run(*PIP, "--python", python, *INSTALL, client_wheel)
    run(*PIP, "--python", python, "check")
    return python


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with a program and its own modules `schemas` and `service`."""
    (tmp_path / "service").mkdir()
    for name in ("schemas.py", "service/__init__.py"):
        (tmp_path / name).write_text(OWN_MODULE)
    (tmp_path / "program.py").write_text(PROGRAM)
    return tmp_path


@pytest.mark.slow
def test_wheel_holds_every_file_of_the_packages(service_wheel: Path) -> None:
    """The wheel, which the image installs, has the same files as the sources."""
    built = {name for name in contents(service_wheel) if ".dist-info/" not in name}
    assert built == {f"{package}/{file}" for package in PACKAGES for file in sources(package)}


@pytest.mark.slow
def test_client_wheel_holds_one_package(client_wheel: Path) -> None:
    """The client's wheel is small, and has its modules and those of `schemas` in one package."""
    files = contents(client_wheel)
    own = {f"deltaw_client/{file}" for file in sources("deltaw_client")}
    copied = {f"deltaw_client/_schemas/{file}" for file in sources("schemas")}
    assert {name for name in files if ".dist-info/" not in name} == own | copied
    assert {"deltaw_client/py.typed", "deltaw_client/_schemas/py.typed"} <= files.keys()
    tops = {name.partition("/")[0] for name in files}
    assert tops == {"deltaw_client", f"deltaw_client-{__version__}.dist-info"}
    size = client_wheel.stat().st_size
    print(f"{client_wheel.name}: {size:,} bytes, {len(files)} files")
    assert size < LARGEST_CLIENT


@pytest.mark.slow
def test_client_wheel_imports_no_other_package_of_deltaw(client_wheel: Path) -> None:
    """No module imports `schemas` or `service`; otherwise each has the imports of its source."""
    modules = {name: text for name, text in contents(client_wheel).items() if name.endswith(".py")}
    for name, text in modules.items():
        source = name.replace("deltaw_client/_schemas", "schemas")
        before = imported((ROOT / source).read_bytes())
        after = imported(text)
        assert not after & {"schemas", "service"}, name
        assert "schemas" not in before or "deltaw_client" in after, name
        assert after - {"deltaw_client"} == before - {"deltaw_client", "schemas"}, name
    assert len(modules) > 20


def imported(source: bytes) -> set[str]:
    """Return the top-level packages that a module imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level
            names.add(node.module or "")
    return {name.partition(".")[0] for name in names}


@pytest.mark.slow
def test_client_needs_what_deltaw_needs_without_extras(client_wheel: Path) -> None:
    """The client has the version of the service, and deltaw's own requirements."""
    described = metadata(client_wheel)
    with (ROOT / "pyproject.toml").open("rb") as file:
        deltaw = tomllib.load(file)["project"]
    wanted = {str(Requirement(each)) for each in deltaw["dependencies"]}
    assert set(map(str, without_extras(described.get_all("Requires-Dist")))) == wanted
    names = sorted(Requirement(each).name for each in wanted)
    assert names == ["httpx", "numpy", "pydantic", "typing-extensions"]
    assert described["Version"] == __version__
    assert described["Requires-Python"] == deltaw["requires-python"]
    assert "deltaw_client" in str(described.get_payload())


@pytest.mark.slow
def test_source_distribution_builds_the_same_wheel(client_wheel: Path, tmp_path: Path) -> None:
    """The wheel from the source distribution, built without the checkout, is the same."""
    hook = f"import backend; print(backend.build_sdist({str(tmp_path)!r}))"
    run(sys.executable, "-c", hook, cwd=ROOT / "deploy" / "client")
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        names = {Path(name).parts[-1] for name in packed.getnames()}
    assert "backend.py" not in names
    run(*BUILD, tmp_path / "built", archive, cwd=tmp_path)
    (wheel,) = (tmp_path / "built").glob("*.whl")
    assert contents(wheel) == contents(client_wheel)


@pytest.mark.slow
def test_client_works_beside_modules_of_the_same_names(
    client_python: Path, project: Path, tiny_service: Served
) -> None:
    """A program with its own `schemas` and `service` asks, sweeps, pickles and catches errors.

    As a control, the checkout is on the path. The client then looks for its definitions in the
    project's `schemas`, and the import fails.
    """
    program = [client_python, "program.py", tiny_service.url]
    assert json.loads(run(*program, cwd=project).stdout) == PRINTED
    checkout = {"PYTHONPATH": str(ROOT)}
    failed = run(*program, status=1, cwd=project, variables=checkout)
    assert "deltaw was looked up in the project" in failed.stderr
    (project / "schemas.py").write_text('OWN = "a plain module"')
    failed = run(*program, status=1, cwd=project, variables=checkout)
    assert re.search(r"(ModuleNotFound|Import)Error: .*'schemas", failed.stderr)


@pytest.mark.slow
def test_client_is_typed(client_python: Path, project: Path) -> None:
    """mypy knows the types of the installed client, and finds two type errors in the control."""
    wrong = (
        "client = DeltawClient()\nclient.model().n_layers + ''\nclient.weight_updates(1.5, '')\n"
    )
    (project / "wrong.py").write_text(f"from deltaw_client import DeltawClient\n\n{wrong}")
    check = [sys.executable, "-m", "mypy", "--strict", "--python-executable", client_python]
    run(*check, "program.py", cwd=project)
    found = run(*check, "wrong.py", status=1, cwd=project).stdout
    codes = re.findall(r"wrong.py:(\d): error: .*\[([\w-]+)\]", found)
    assert codes == [("4", "operator"), ("5", "arg-type")]


@pytest.mark.slow
@pytest.mark.parametrize("last", ["the client", "the service"])
def test_command_works_beside_the_client_distribution(
    service_wheel: Path, client_wheel: Path, tmp_path: Path, tiny_service: Served, last: str
) -> None:
    """If both distributions are installed, the command works with the last `deltaw_client`."""
    python = environment(tmp_path)
    packages = site_packages(tmp_path)
    (packages / "developer.pth").write_text(sysconfig.get_path("purelib"))
    wheels = [client_wheel, service_wheel]
    for wheel in wheels if last == "the service" else reversed(wheels):
        run(*PIP, "--python", python, *INSTALL, "--no-deps", "--ignore-installed", wheel)
    answers = (packages / "deltaw_client" / "answers.py").read_text()
    assert ("deltaw_client._schemas" in answers) == (last == "the client")
    arguments = ["--context", "the abc", "--query", " cd", "--url", tiny_service.url]
    printed = run(python, "-m", "service.cli", "adapter", *arguments, cwd=tmp_path).stdout
    assert "exact but for rounding" in printed
    assert "Unset" not in printed
