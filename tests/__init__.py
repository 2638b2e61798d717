"""Tests, by module; `oracle` is a second GPT-2, in NumPy."""
