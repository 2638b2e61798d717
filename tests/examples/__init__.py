"""Find, run, compare and update the examples of README.md and docs/.

An example is a fence of `sh` or `python`, followed by a fence of `json` or `text` with its output.
`python -m tests.examples` lists the examples whose output has changed; with `--write` it updates
the documents.
"""
