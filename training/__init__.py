"""How the bundled GPT-2 was made: from installable packages to `service/checkpoints/bundled/`."""
