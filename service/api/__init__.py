"""The HTTP API: each resource parses a request, asks the engine and serialises the answer."""
