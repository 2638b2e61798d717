"""The documentation, and the code that builds its site: `python -m docs.site`."""
