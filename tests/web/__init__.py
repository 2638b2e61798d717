"""The explorer page: as it is served, and in a real browser."""
