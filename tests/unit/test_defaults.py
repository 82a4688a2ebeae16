"""Defaults that commands and the API say for people are those of what they call."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from cfs_tags.api.deployments import Deployments
from cfs_tags.api.fleet import Fleets
from cfs_tags.api.repository import Repository
from cfs_tags.cli import cmd_fleet, cmd_maintain, cmd_retire
from cfs_tags.fleet import view
from cfs_tags.host import refs
from cfs_tags.maintain.run import Budget
from cfs_tags.values import duration


def default(function: Callable[..., Any], name: str) -> float:
    """Of an argument, in seconds."""
    value = inspect.signature(function).parameters[name].default
    if isinstance(value, timedelta):
        return value.total_seconds()
    return float(duration(value) or 0) if isinstance(value, str) else value


@pytest.mark.parametrize(
    ("name", "functions"),
    [
        ("grace", [refs.retire, refs.plan_retire, Deployments.retire, cmd_retire.command]),
        ("unseen", [view.read, Fleets.read, cmd_fleet.command]),
        ("within", [Repository.maintain, cmd_maintain.command]),
        ("check_every", [Budget, Repository.maintain, cmd_maintain.command]),
    ],
)
def test_a_default_is_the_same_wherever_it_stands(name: str, functions: list[Callable[..., Any]]) -> None:
    assert len({default(function, name) for function in functions}) == 1
