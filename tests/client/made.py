"""Adapters as a service describes them, for replies of a scripted service."""

from __future__ import annotations

from dataclasses import replace

from schemas.adapters import (
    Adapter,
    AdapterLayer,
    Collateral,
    Figures,
    Fit,
    Rivals,
    TokenFigures,
)
from schemas.common import ModelSummary, write_answer

MODEL = ModelSummary("bundled", None, "sha256:abc", "float32", "cpu", "sdpa")
TOKEN = Adapter(
    model=MODEL,
    id="a1b2",
    kind="token",
    name=None,
    created="2026-01-02T03:04:05Z",
    exact=True,
    files=("adapter_config.json", "adapter_model.safetensors", "adapter.zip"),
    bytes=64_512,
    baseline="matched",
    position_shift=0,
    form="bias",
    peft_only=False,
    layers=[AdapterLayer(5, 3.25, 1, None)],
    verified=8.5e-7,
    positions=[0],
    condition=1.0,
)
HELD_OUT = Figures(
    n=8,
    kl_none=2.5,
    kl_patched=0.05,
    recovered=0.98,
    recovered_median=0.97,
    beyond_constant=0.89,
    top_1=1.0,
    top_1_none=0.125,
    teacher_forced=[TokenFigures(0, 0.98, 1.0), TokenFigures(1, None, 0.75)],
    free_run=0.9375,
)
STATIC = Adapter(
    model=MODEL,
    id="c3d4",
    kind="static",
    name="labels",
    created="2026-01-02T03:04:05Z",
    exact=False,
    files=TOKEN.files,
    bytes=783_000,
    baseline="matched",
    position_shift=0,
    form="weights",
    peft_only=False,
    layers=[AdapterLayer(2, 4.5, 32, 0.995)],
    verified=1e-6,
    recipe="output_ridge",
    fit=Fit(1.25, 16, 320, 240),
    held_out=HELD_OUT,
    in_sample=replace(HELD_OUT, n=16, recovered=0.999),
    rivals=Rivals(0.88, 0.81, -0.5, -0.32),
    collateral=Collateral(0.17, 1.5, 0.4, 12),
)
FEW = replace(STATIC, held_out=None, rivals=None)
"""A static adapter with fewer than eight held-out queries."""


def answered(
    adapter: Adapter, media: str = "application/json"
) -> tuple[int, dict[str, str], bytes]:
    """Make a reply with an adapter."""
    return 200, {"Content-Type": media, "X-Request-ID": "mine"}, write_answer(adapter)
