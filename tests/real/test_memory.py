"""Memory while a pretrained model is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
MOST = 1.3
"""Private memory while loading, in sizes of the weights."""
MEASURE = """
import json, sys, threading
import torch
import transformers.models.gemma3.modeling_gemma3
import transformers.models.llama.modeling_llama
from service.engine import load
from service.engine.machine import give_back_large_blocks

def private():
    with open("/proc/self/status") as status:
        (line,) = (line for line in status if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024

def watch():
    while not ended.wait(0.002):
        seen.append(private())

give_back_large_blocks()
seen, ended = [private()], threading.Event()
watching = threading.Thread(target=watch)
watching.start()
with torch.inference_mode():
    model = load(sys.argv[1], revision=None, device="cpu", dtype="float32")
ended.set()
watching.join()
print(json.dumps({"before": seen[0], "peak": max(seen), "after": private()}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_loading_needs_1_3_times_the_weights(checkpoint: Path) -> None:
    """Private memory grows by at most 1.3 times the weights in float32, the tokenizer included.
    Libraries are imported before, and the pages of the mapped file are not private."""
    command = [sys.executable, "-c", MEASURE, str(checkpoint)]
    ended = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(ended.stdout)
    weights = sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))
    grown = found["peak"] - found["before"]
    print(f"{grown / weights:.2f} times the weights")
    assert weights < grown <= MOST * weights
