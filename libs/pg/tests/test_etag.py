"""Etags guard against writing over what one has not seen."""

import pytest

from libs.faults import Stale
from libs.pg import check_etag, etag


def test_current_or_none_passes() -> None:
    """The current etag passes, quoted or not, and so does none."""
    for given in (etag(3), "3", 'W/"3"', ""):
        check_etag(given, 3)


def test_another_is_stale() -> None:
    """Any other is refused and told the current one."""
    with pytest.raises(Stale, match='"2" given, "3" is current'):
        check_etag(etag(2), 3)
