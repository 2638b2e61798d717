"""Source of a project that uses the client and has modules named like deltaw's packages."""

from __future__ import annotations

OWN_MODULE = '''"""A module of the project, named like one of deltaw's packages."""

OWN = "the project's own"


def __getattr__(name: str) -> str:
    # The import system asks a module for names such as `__path__`.
    error = AttributeError if name.startswith("__") else SystemExit
    raise error(f"{name} of deltaw was looked up in the project")
'''
PROGRAM = '''"""A program that uses the client, and modules named like deltaw's packages."""

import asyncio
import json
import pickle
import sys

import numpy as np
import schemas
import service
from deltaw_client import UNSET, AsyncDeltawClient, DeltawClient, problems

CONTEXT, QUERY = "the abc cd", " the"


async def both(url: str) -> list[int]:
    async with AsyncDeltawClient(url) as client:
        calls = (client.weight_updates(CONTEXT, QUERY, layers=[i]) for i in range(2))
        return [answer.updates[0].layer for answer in await asyncio.gather(*calls)]


def main(url: str) -> None:
    with DeltawClient(url) as client:
        answer = client.weight_updates(CONTEXT, QUERY, layers=[0])
        again = pickle.loads(pickle.dumps(answer))
        factor, pickled = answer.updates[0].input, again.updates[0].input
        assert factor is not UNSET and pickled is not UNSET
        swept = client.sweep([(CONTEXT, QUERY), ("abc", QUERY)], out="swept.jsonl", layers=[0])
        kinds = [type(line.answer).__name__ for line in swept]
        try:
            client.weight_updates(CONTEXT, QUERY, layers=[48])
        except problems.LayerOutOfRange as error:
            limit = error.limit
    result = {
        "dtype": factor.dtype.name,
        "bias": answer.updates[0].bias is UNSET,
        "pickled": type(again) is type(answer) and np.array_equal(factor, pickled),
        "async": asyncio.run(both(url)),
        "swept": kinds,
        "limit": limit,
        "own": [schemas.OWN, service.OWN],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1])
'''
PRINTED = {
    "dtype": "float32",
    "bias": True,
    "pickled": True,
    "async": [0, 1],
    "swept": ["WeightUpdates", "WeightUpdates"],
    "limit": 2,
    "own": ["the project's own"] * 2,
}
"""Expected output of the program."""
