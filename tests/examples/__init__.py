"""The examples of README.md and docs/: found, run, held against what is shown, written anew.

An example is a fence of `sh` or `python` with a fence of `json` or `text` right behind it, which
shows what it prints.
`python -m tests.examples` says which of them no longer print that; with `--write` it corrects the
documents.
"""
