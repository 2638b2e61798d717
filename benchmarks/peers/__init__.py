"""The peers nnsight and TransformerLens, each in an environment and a process of its own."""
