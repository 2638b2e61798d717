"""Benchmarks: ratios of times that were measured side by side in one run (docs/benchmarks.md)."""
