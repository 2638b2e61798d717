"""The questions: plain generators that yield runs, receive activations and return an answer.

Answers are frozen dataclasses whose fields have the names of the wire; tensors in them are on the
CPU. A field that defaults to None was not asked for; another None is a ratio that does not exist.
"""
