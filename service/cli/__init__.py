"""The command `deltaw`. Nothing here imports torch before a model is to be loaded.

Exit codes: 0, done, and what was checked holds; 1, it does not hold, or the service is not ready;
2, the command was not understood; 3, there is no answer: a problem, no service, or no model.
"""

try:
    from service.cli.app import app
except ModuleNotFoundError as error:
    raise SystemExit(f"deltaw: {error.name} is not installed: install deltaw[cli]") from error

__all__ = ["app"]
