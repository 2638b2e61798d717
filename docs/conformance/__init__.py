"""`python -m docs.conformance` measures every family against the oracle and writes
docs/conformance.md."""
