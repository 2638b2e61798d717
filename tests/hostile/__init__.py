"""Hostile input: what a generator, a mutilated request and a slow hand can send."""
