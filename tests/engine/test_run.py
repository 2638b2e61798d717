"""Runs."""

from __future__ import annotations

import pytest

from service.engine import Run, Site
from service.engine.run import STAGE
from tests.engine.made import POINTS


@pytest.mark.parametrize(
    ("sites", "depth"),
    [
        ([], -1),
        ([Site(0, "resid_pre")], 0),
        ([Site(2, "mlp_in"), Site(0, "resid_post")], 2),
    ],
)
def test_depth_is_the_last_layer_that_is_read(sites: list[Site], depth: int) -> None:
    """A run that reads nothing needs no layer."""
    assert Run([1], [0], {site: [0] for site in sites}).depth == depth


def test_stages_are_in_the_order_of_computation() -> None:
    """The walk stops by comparing stages, so they follow the block from top to bottom."""
    assert sorted(STAGE, key=lambda point: STAGE[point]) == list(POINTS)
