"""The checkpoint that ships with deltaw: GPT-2's architecture, small, trained by us (see
`training/`)."""
