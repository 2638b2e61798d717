"""Hostile input: generated requests, mutated requests and slow senders."""
