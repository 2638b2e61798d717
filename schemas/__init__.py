"""The wire: pydantic models of every request and answer, and their names. Needs no torch."""
