"""The wire: every request, answer and problem, with the names of their fields. Needs no torch."""
