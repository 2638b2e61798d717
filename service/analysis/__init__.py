"""The questions: generators that yield runs, receive activations and return an answer.

A `plan_…` function makes the plan of one resource from its request: it resolves the inputs, starts
the question, and measures its work. Answers are the dataclasses of `schemas`; their tensors are on
the CPU.
"""
