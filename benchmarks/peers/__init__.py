"""The peers, nnsight and TransformerLens: each in an environment and a process of its own.

What the service is built on and what a peer is built on need not agree on versions, so the
benchmark makes each peer's environment from its pins (`*.txt` here), starts one process in it,
which loads the weights once, and tells it line by line what to compute.
"""
