"""The fixture `subject`: the random and the bundled GPT-2, each with its oracle."""

from __future__ import annotations

import pytest

from tests.analysis.subjects import Subject


@pytest.fixture(scope="session", params=["tiny", "bundled"])
def subject(request: pytest.FixtureRequest) -> Subject:
    """A model with its oracle."""
    name: str = request.param
    return Subject(request.getfixturevalue(name), request.getfixturevalue(f"{name}_oracle"))
