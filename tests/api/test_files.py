"""Entity tags of files, in process."""

from __future__ import annotations

import pytest

from service.api.files import matches

ETAG = 'W/"1a"'


@pytest.mark.parametrize(
    ("fields", "same"),
    [
        ([], False),
        ([""], False),
        (["*"], True),
        ([" * "], True),
        ([ETAG], True),
        (['"1a"'], True),
        (['"x", W/"1a"'], True),
        (['"x",,\t"1a" ,'], True),
        (['"x"', ETAG], True),
        (['"a,b", "1a"'], True),
        (['"x"'], False),
        (["1a"], False),
        (['w/"1a"'], False),
        (['"*"'], False),
        (['"x", *'], False),
        (['"xW/"1a""'], False),
        (['"1a" "x"'], False),
        (['"1ab", "21a"'], False),
    ],
)
def test_if_none_match_compares_whole_entity_tags(fields: list[str], same: bool) -> None:
    """`*` and a list with the tag match, whether weak or strong. A part of a tag does not."""
    assert matches(fields, ETAG) is same
