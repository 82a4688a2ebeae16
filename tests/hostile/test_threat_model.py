"""The page on threats names a test for each line, and the test is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs/threat-model.md").read_text()
TESTS = re.compile(r"`(tests/[a-z_/]+\.py)(?:::(\w+))?`")


def test_every_line_of_a_table_of_attacks_names_a_test() -> None:
    lines = [line for table in PAGE.split("| test |\n")[1:] for line in table.partition("\n\n")[0].splitlines()[1:]]

    assert len(lines) > 20
    assert [line for line in lines if not TESTS.search(line)] == []


def test_every_test_that_is_named_is_there() -> None:
    named = TESTS.findall(PAGE)

    assert [(file, name) for file, name in named if f"def {name}" not in (ROOT / file).read_text()] == []
