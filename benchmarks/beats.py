"""`python -m benchmarks.beats PORT PATH COUNT SECONDS`: how soon a path answers, asked at a beat.

Each question is timed from when it was due, so that one slow answer does not hide the questions
that would have come behind it. A process of its own: where the clients that make the load share
the interpreter, their work would be measured too.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from http.client import HTTPConnection

ANSWER_SECONDS = 60.0


def beats(port: int, path: str, count: int, beat: float) -> list[float]:
    """Seconds from when each of `count` questions was due, every `beat` seconds, until it was
    answered."""
    command = [sys.executable, "-m", "benchmarks.beats", str(port), path, str(count), str(beat)]
    told = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    taken: list[float] = json.loads(told)
    return taken


def main() -> None:
    """Ask, and write the list as JSON."""
    port, path, count, beat = sys.argv[1:]
    connection = HTTPConnection("127.0.0.1", int(port), timeout=ANSWER_SECONDS)
    connection.connect()
    begun, taken = time.perf_counter(), []
    for i in range(int(count)):
        due = begun + i * float(beat)
        time.sleep(max(0.0, due - time.perf_counter()))
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        if response.status != 200:
            raise SystemExit(f"{path}: {response.status}")
        taken.append(time.perf_counter() - due)
    json.dump(taken, sys.stdout)


if __name__ == "__main__":
    main()
