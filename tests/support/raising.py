"""Errors by their type or code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from cfs_tags import errors
from cfs_tags.errors import CfsTagsError

__all__ = ["Site", "raises", "sites"]

KINDS = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, CfsTagsError)}


class Site(NamedTuple):
    """A place in a module that makes an error; ``facts`` are the names of those that it gives."""

    where: str
    kind: type[CfsTagsError]
    code: str
    facts: tuple[str, ...]


def sites(path: Path) -> Iterator[Site]:
    """Places in a module that make errors.

    Raises:
        AssertionError: a code is no literal, so that it cannot be looked up.
    """
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Name) and node.exc.id in KINDS:
            kind = KINDS[node.exc.id]
            yield Site(f"{path}:{node.lineno}", kind, kind.code, ())
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        if isinstance(called, ast.Attribute) and called.attr == "of" and isinstance(called.value, ast.Name):
            if called.value.id == "SystemFailure":
                yield Site(
                    f"{path}:{node.lineno}", errors.SystemFailure, "system-failure", ("operation", "path", "reason", "errno")
                )
            continue
        name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
        if name in KINDS:
            kind = KINDS[name]
            given = [word.value for word in node.keywords if word.arg == "code"] + node.args
            assert all(isinstance(word, ast.Constant) for word in given), f"{path}:{node.lineno}: a code that is no literal"
            code = str(ast.literal_eval(given[0])) if given else kind.code
            facts = tuple(str(word.arg) for word in node.keywords if word.arg != "code")
            yield Site(f"{path}:{node.lineno}", kind, code, facts)


@contextmanager
def raises(kind: type[CfsTagsError] | str, match: str | None = None) -> Iterator[pytest.ExceptionInfo[CfsTagsError]]:
    """Expect an error of that type, or with that code."""
    with pytest.raises(CfsTagsError if isinstance(kind, str) else kind, match=match) as caught:
        yield caught
    if isinstance(kind, str):
        assert caught.value.code == kind
