"""Train the bundled GPT-2, from installable packages to `service/checkpoints/bundled/`."""
