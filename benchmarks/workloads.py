"""The workloads by their names in performance.md: a further one is a module and a line here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from benchmarks import (
    all_layers,
    client,
    clients,
    known_prefix,
    memory,
    one_layer,
    optimisations,
    own_share,
    responsive,
    start,
    whole_way,
)
from benchmarks.bench import Bench
from benchmarks.table import Row

WORKLOADS: Mapping[str, Callable[[Bench], Iterator[Row]]] = {
    "W1": one_layer.rows,
    "W2": all_layers.rows,
    "W3": known_prefix.rows,
    "W4": whole_way.rows,
    "W5": clients.rows,
    "W6": own_share.rows,
    "W7": responsive.rows,
    "W8": start.rows,
    "memory": memory.rows,
    "one": optimisations.rows,
    "own": client.rows,
}
