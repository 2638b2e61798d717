"""Fixtures of the analysis tests: each subject is the random GPT-2, then the bundled one."""

from __future__ import annotations

import pytest

from tests.analysis.subjects import Subject


@pytest.fixture(scope="session", params=["tiny", "bundled"])
def subject(request: pytest.FixtureRequest) -> Subject:
    """A model with its oracle."""
    name: str = request.param
    return Subject(request.getfixturevalue(name), request.getfixturevalue(f"{name}_oracle"))
