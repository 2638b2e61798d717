"""Benchmarks: the workloads of the engine and the service, each held against something beside it.

`python -m benchmarks` prints the table. The machine may be busy, so what counts are ratios of times
that were taken in turn, in one process, as medians over rounds; before anything is timed, both
sides must have computed the same numbers.
"""
