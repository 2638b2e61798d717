"""deltaw: what a context does to a language model, as an update of its weights, over HTTP."""

__version__ = "0.1.0"
