"""The command `deltaw`. Nothing here imports torch before a model is loaded.

Exit codes: 0, success, and the check holds; 1, the check does not hold, or the service is not
ready; 2, the command line or a setting is wrong; 3, there is no answer.
"""

try:
    from service.cli.app import app
except ModuleNotFoundError as error:
    raise SystemExit(f"deltaw: {error.name} is not installed: install deltaw[cli]") from error

__all__ = ["app"]
