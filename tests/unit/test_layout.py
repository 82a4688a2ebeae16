"""Where things stand, and what names in a repository mean."""

from __future__ import annotations

import pytest

from cfs_tags.repo import layout


def test_a_lease_runs_out_at_the_time_in_the_name_of_its_directory() -> None:
    assert layout.expiry_of("20261125T131400Z.0") == layout.expiry_of("20261125T131400Z.17") == "20261125T131400Z"


@pytest.mark.parametrize(
    "name", ["", "20261125T131400Z", "20261125T131400Z.", "20261125T131400.0", "2026-11-25.0", "٢0261125T131400Z.0"]
)
def test_any_other_name_is_no_expiry(name: str) -> None:
    assert layout.expiry_of(name) is None
