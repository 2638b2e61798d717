"""Shared fixtures: session-wide checkpoints, models from the real loader, and the real app."""

from __future__ import annotations

import asyncio
import atexit
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import httpx
import pytest
import torch

from service.engine import Model, load
from service.main import create_app
from service.settings import Settings
from service.tracing import Tracing
from tests.analysis.subjects import Subject
from tests.checkpoints import save_tiny
from tests.families import SERVED, save
from tests.oracle import GPT2, Decoder
from tests.service_process import Served, served

# No test writes to the folders of the user who runs it.
os.environ["XDG_DATA_HOME"] = tempfile.mkdtemp(prefix="deltaw-")
atexit.register(shutil.rmtree, os.environ["XDG_DATA_HOME"], ignore_errors=True)

BUNDLED = Path(__file__).parent.parent / "service" / "checkpoints" / "bundled"


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    """Run each test in inference mode, like the compute thread."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint folder of a random GPT-2 with three layers and d_model 32."""
    with torch.inference_mode(False):
        return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> Model:
    """The random GPT-2, resident in float32 on the CPU."""
    return load(str(tiny_folder), revision=None, device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def tiny_oracle(tiny_folder: Path) -> GPT2:
    """The random GPT-2 in float64 NumPy."""
    return GPT2(tiny_folder)


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The checkpoint folder of each variant of a family, saved at its first use."""

    @cache
    def folder(name: str) -> Path:
        with torch.inference_mode(False):
            return save(name, tmp_path_factory.mktemp(name))

    return folder


@pytest.fixture(scope="session")
def variant_of(folder_of: Callable[[str], Path]) -> Callable[[str], Subject]:
    """Each variant of a family with its oracle, loaded at its first use."""

    @cache
    def subject(name: str) -> Subject:
        folder = folder_of(name)
        model = load(str(folder), revision=None, device="cpu", dtype="float32")
        return Subject(model, Decoder(folder))

    return subject


@pytest.fixture(scope="session", params=SERVED)
def variant_name(request: pytest.FixtureRequest) -> str:
    """The name of each served variant in turn."""
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def variant(variant_name: str, variant_of: Callable[[str], Subject]) -> Subject:
    """Each served variant of a family in turn."""
    return variant_of(variant_name)


@pytest.fixture(scope="session")
def bundled() -> Model:
    """The bundled GPT-2, resident in float32 on the CPU."""
    return load("bundled", revision=None, device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def bundled_oracle() -> GPT2:
    """The bundled GPT-2 in float64 NumPy."""
    return GPT2(BUNDLED)


@asynccontextmanager
async def app_client(
    settings: Settings, tracing: Tracing | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the real app in this process, once the app is ready."""
    app = create_app(settings, tracing)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        while (await client.get("/readyz")).status_code != httpx.codes.OK:
            await asyncio.sleep(0.02)
        yield client


@pytest.fixture(scope="session")
def tiny_service(tiny_folder: Path) -> Iterator[Served]:
    """The random GPT-2, served over real HTTP."""
    with served(model=tiny_folder) as running:
        yield running


@pytest.fixture(scope="session")
def bundled_service() -> Iterator[Served]:
    """The bundled GPT-2, served over real HTTP."""
    with served(model="bundled") as running:
        yield running


@pytest.fixture
def tiny_client(tiny_service: Served) -> Iterator[httpx.Client]:
    """A client of the service with the random GPT-2."""
    with httpx.Client(base_url=tiny_service.url, timeout=60.0) as client:
        yield client


@pytest.fixture
def bundled_client(bundled_service: Served) -> Iterator[httpx.Client]:
    """A client of the service with the bundled GPT-2."""
    with httpx.Client(base_url=bundled_service.url, timeout=60.0) as client:
        yield client
