"""Build backend (PEP 517) of `deltaw-client`: `deltaw_client` with a copy of `schemas` inside.

The service and the client share the definitions in `schemas`. A project that uses the client may
have its own `schemas`, so this backend copies both packages from the checkout into an ordinary
setuptools project in a temporary folder, with `schemas` as `deltaw_client._schemas`. setuptools
then builds that project, so a source distribution needs neither this file nor the checkout.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from setuptools import build_meta  # type: ignore[import-untyped]

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent.parent
UTF8 = "utf-8"
COPIES = {"deltaw_client": "deltaw_client", "schemas": "deltaw_client/_schemas"}
"""Folder in the built project, by package of the checkout."""
NOT_INSTALLED = ("schemas", "service")
"""Packages of the checkout to which the distribution must not refer."""
MODULE_NAME = re.compile(rf"({'|'.join(NOT_INSTALLED)})(\.\w+)+")


def build_wheel(
    wheel_directory: str,
    config_settings: Any = None,
    metadata_directory: str | None = None,
) -> str:
    """Build the wheel (PEP 517)."""
    folder = os.path.abspath(wheel_directory)
    with _project():
        return str(build_meta.build_wheel(folder, config_settings))


def build_sdist(sdist_directory: str, config_settings: Any = None) -> str:
    """Build the source distribution (PEP 517)."""
    folder = os.path.abspath(sdist_directory)
    with _project():
        return str(build_meta.build_sdist(folder, config_settings))


@contextmanager
def _project() -> Iterator[None]:
    """Write the project into a temporary folder, and make that the working directory."""
    with TemporaryDirectory() as name, chdir(name):
        project = Path(name)
        for source, target in COPIES.items():
            _copy(CHECKOUT / source, project / target)
        shutil.copy(HERE / "README.md", project)
        shutil.copy(CHECKOUT / "LICENSE", project)
        (project / "pyproject.toml").write_text(_configuration(), UTF8)
        yield


def _configuration() -> str:
    """Return the project's pyproject.toml: its backend is setuptools, its version the service's."""
    text = (HERE / "pyproject.toml").read_text(UTF8)
    service = (CHECKOUT / "service" / "__init__.py").read_text(UTF8)
    (version,) = re.findall('^__version__ = (".+")$', service, re.M)
    for old, new in {
        'build-backend = "backend"': f'build-backend = "{build_meta.__name__}"',
        'backend-path = ["."]\n': "",
        'dynamic = ["version"]': f"version = {version}",
    }.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def _copy(source: Path, target: Path) -> None:
    """Copy a package and rewrite the imports of its modules."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    for module in target.rglob("*.py"):
        module.write_text(rewritten(module.read_text(UTF8), module.name), UTF8)


def rewritten(source: str, name: str) -> str:
    """Return the source of a module, changed to import `deltaw_client._schemas` for `schemas`.

    Raises:
        ValueError: The result still refers to a package that is not installed.
    """
    lines = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and _top(node.module) == "schemas":
            line = lines[node.lineno - 1]
            lines[node.lineno - 1] = line.replace("schemas", "deltaw_client._schemas", 1)
    result = "".join(lines)
    if left := [found for found in _named(ast.parse(result)) if _top(found) in NOT_INSTALLED]:
        raise ValueError(f"{name} names {left}; write `from schemas.x import y` instead")
    return result


def _named(module: ast.Module) -> Iterator[str]:
    """Yield the names of modules in the imports and in the strings of a module."""
    for node in ast.walk(module):
        match node:
            case ast.Import(names=names):
                yield from (each.name for each in names)
            case ast.ImportFrom(module=str(name), level=0):
                yield name
            case ast.Constant(value=str(text)) if MODULE_NAME.fullmatch(text):
                yield text


def _top(name: str) -> str:
    return name.partition(".")[0]
