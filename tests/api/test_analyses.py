"""The tables of resources: the lists that tests go through cover all of them."""

from __future__ import annotations

from service.api.analyses import ANALYSES
from service.api.completions import COMPLETIONS
from tests.analysis.subjects import PLANS
from tests.analysis.test_plans import REQUESTS as PLANNED
from tests.api.test_bodies import PATHS
from tests.api.test_openapi import MAY_OCCUR, RESOURCES
from tests.client.test_mirrors import REQUESTS as MIRRORED
from tests.schemas.test_common import REQUESTS as READ


def test_lists_of_the_tests_cover_every_resource() -> None:
    """A resource that a list does not name would not be tested for what the list is for."""
    resources = (*ANALYSES, COMPLETIONS)
    paths = {resource.path for resource in resources}
    requests = {resource.request for resource in resources}
    assert paths <= set(PATHS.values())
    assert paths <= RESOURCES.keys()
    assert paths <= MAY_OCCUR.keys()
    assert requests == set(PLANS)
    assert requests <= {type(request) for request in PLANNED}
    assert requests <= set(MIRRORED.values())
    assert requests <= {model for model, _ in READ}
