"""Fixtures of the analysis tests: each subject is the random GPT-2, then the bundled one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.analysis.subjects import Subject
from tests.families import SERVED

ROTARIES = {"linear", "yarn", "llama3", "proportional", "partial"}
WALK_ALONE = {name for name in SERVED if name.split("-")[-1] in ROTARIES} | {"llama-tied"}
"""Variants that only the walk tells from another one, which the engine's tests cover."""


@pytest.fixture(scope="session", params=["tiny", "bundled"])
def subject(request: pytest.FixtureRequest) -> Subject:
    """A model with its oracle."""
    name: str = request.param
    return Subject(request.getfixturevalue(name), request.getfixturevalue(f"{name}_oracle"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark these tests slow for variants that only the walk tells from another one."""
    for item in items:
        named = getattr(item, "callspec", None)
        here = Path(__file__).parent in item.path.parents
        if here and named is not None and named.params.get("variant_name") in WALK_ALONE:
            item.add_marker(pytest.mark.slow)
