"""Adapters on disk: PEFT folders, the store that keeps them, and their check with PEFT itself."""
