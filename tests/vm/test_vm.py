"""Repositories that need fs-verity, on a kernel that has it: each test of ``guest/`` as it went in the machine.

The machine is booted once, with the tests that were asked for.
"""

from __future__ import annotations

import ast
import tempfile
from pathlib import Path
from xml.etree import ElementTree

import pytest

from support.peers import Cfsctl, no_peer
from vm import machine

pytestmark = [pytest.mark.vm, pytest.mark.slow]

GUEST = Path(__file__).parent / "guest"


def guest_tests() -> list[str]:
    """Names of all guest tests, as pytest wants them there: ``test_tags.py::test_…``."""
    return [
        f"{path.name}::{node.name}"
        for path in sorted(GUEST.glob("test_*.py"))
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]


@pytest.fixture(scope="session")
def outcome(request: pytest.FixtureRequest, cfsctl: Cfsctl) -> machine.Outcome:
    """What became of the tests that were asked for."""
    missing = machine.why_not()
    if missing is not None:
        no_peer(*missing)
    asked = {
        str(item.callspec.params["name"])
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.path == Path(__file__)
    }
    # not pytest's own temporary directory, which would keep the disks of the last runs
    with tempfile.TemporaryDirectory(prefix="cfs-tag-vm-") as work:
        return machine.run(Path(work), cfsctl.program, sorted(asked))


@pytest.mark.parametrize("name", guest_tests())
def test_with_fs_verity(outcome: machine.Outcome, name: str) -> None:
    if outcome.junit is None:
        pytest.fail(
            f"the machine stopped before its tests were done (status {outcome.status}):\n{outcome.console[-8000:]}",
            pytrace=False,
        )
    module, _, function = name.partition(".py::")
    cases = [
        case
        for case in outcome.junit.iter("testcase")
        if case.get("classname", "").split(".")[-1] == module and case.get("name", "").partition("[")[0] == function
    ]
    assert cases, f"{name} was not run\n{outcome.console[-8000:]}"
    failed = [text for case in cases for text in _said(case, "failure", "error")]
    if failed:
        pytest.fail("\n\n".join(failed), pytrace=False)
    skipped = [part.get("message", "") for case in cases for part in case.iter("skipped")]
    if skipped:
        pytest.skip(skipped[0])


def _said(case: ElementTree.Element, *kinds: str) -> list[str]:
    return [f"{case.get('name')}\n{part.text}" for kind in kinds for part in case.iter(kind)]
