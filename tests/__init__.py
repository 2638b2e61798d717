"""Tests, by module; `oracle` is GPT-2 a second time, in NumPy."""
