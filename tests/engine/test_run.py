"""The depth of a run and the order of its stages."""

from __future__ import annotations

import pytest

from service.engine import Run, Site
from service.engine.run import STAGE
from tests.oracle import HOOK_POINTS


@pytest.mark.parametrize(
    ("sites", "depth"),
    [
        ([], -1),
        ([Site(0, "resid_pre")], 0),
        ([Site(2, "mlp_in"), Site(0, "resid_post")], 2),
    ],
)
def test_depth_is_the_last_layer_read(sites: list[Site], depth: int) -> None:
    """A run is as deep as the last layer it reads, and −1 if it reads nothing."""
    assert Run([1], [0], {site: [0] for site in sites}).depth == depth


def test_stages_follow_the_order_of_computation() -> None:
    """Stages ascend from the block's input to its output, because the walk stops by comparing
    them."""
    stages = sorted(STAGE, key=lambda point: STAGE[point])
    assert stages.index("mlp_pre_linear") == stages.index("mlp_pre") + 1
    assert [point for point in stages if point != "mlp_pre_linear"] == list(HOOK_POINTS)
