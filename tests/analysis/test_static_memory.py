"""Memory of a static fit with the shape of GPT-2 small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.checkpoints import save_tiny

MEASURE = """
import json, sys, time
import torch
from schemas.adapters import StaticAdapterRequest
from service.analysis.adapters.static import plan_static_adapter
from service.analysis.self_check import self_check
from service.engine import drive, load
from service.engine.scheduler import Scheduler, Ticket

def memory(name):
    with open("/proc/self/status") as status:
        (line,) = (line for line in status if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024

def ids(start, count):
    return [7919 * i % model.vocab_size for i in range(start, start + count)]

def settle(answer, error):
    ended.append((answer, error))

torch.set_num_threads(2)
ended = []
with torch.inference_mode():
    model = load(sys.argv[1], revision=None, device="cpu", dtype="float32")
    drive(model, self_check(model))
    before = memory("VmRSS")
    with open("/proc/self/clear_refs", "w") as references:
        references.write("5")  # The peak starts anew, below that of loading.
    body = StaticAdapterRequest(
        kind="static",
        context=ids(1, 100),
        queries=[ids(100 * i, 10) for i in range(2, 27)],
        held_out=[ids(100 * i, 10) for i in range(27, 39)],
        keep=[ids(100 * i, 15) for i in range(40, 60)],
    )
    scheduler = Scheduler(model, row_budget=int(sys.argv[2]), batching=True)
    scheduler.admit(Ticket(plan_static_adapter(model, body), time.monotonic() + 600, settle))
    while scheduler.active:
        scheduler.turn()
    ((made, error),) = ended
    print(json.dumps({
        "error": repr(error),
        "k": made.fields["fit"].k,
        "in_sample": made.fields["in_sample"].recovered,
        "grown": memory("VmHWM") - before,
        "seconds": made.fields["fit"].seconds,
    }))
"""
MB = 1024 * 1024


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_a_fit_of_25_queries_needs_less_than_600_mb(tmp_path: Path) -> None:
    """25 queries, 12 held-out ones and 20 kept texts need less than 600 MB beyond the process after
    the self-check, in packs of 2,048 rows. The fitted queries are recovered, so it was a fit."""
    with torch.inference_mode(False):
        folder = save_tiny(
            tmp_path, n_layer=12, n_embd=768, n_head=12, n_positions=1024, vocab_size=50257
        )
    ended = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder), "2048"],
        check=True,
        capture_output=True,
        text=True,
    )
    found = json.loads(ended.stdout)
    print(found)
    assert found["error"] == "None"
    assert found["k"] == 25
    assert found["in_sample"] > 0.5
    assert 0 < found["grown"] <= 600 * MB
