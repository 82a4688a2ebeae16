"""Every argument of every public method gets wrong types and wrong values: an error of that argument, and nothing is done."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cfs_tags import Repository, WriteRepository
from cfs_tags.api.collection import Collection
from cfs_tags.api.deployments import Deployments
from cfs_tags.api.policy import Retention
from cfs_tags.api.tags import Tags
from cfs_tags.errors import CfsTagsError, RefusedError, UsageError
from cfs_tags.tags.instructions import Instruction
from support.trees import tree

WEB = "quay.io/apps/web:1"
PARTS: dict[str, tuple[type, Callable[[Repository], Any]]] = {
    "repo": (Repository, lambda repo: repo),
    "repo.tags": (Tags, lambda repo: repo.tags),
    "repo.deployments": (Deployments, lambda repo: repo.deployments),
    "repo.gc": (Collection, lambda repo: repo.gc),
    "repo.policy": (Retention, lambda repo: repo.policy),
}
NEEDED = {
    "name": "x",
    "target": WEB,
    "old": WEB,
    "new": "quay.io/apps/db:2",
    "deployment": "@booted",
    "destination": "oci:/nowhere:x",
    "source": "oci:/nowhere:x",
    "instructions": [Instruction("create", "x", WEB)],
    "state": "@booted",
    "part": "manifest",
    "path": "/nowhere",
    "place": "localhost:1/os",
}
"""A value for each argument that has no default."""
OWN = ("open", "tags", "deployments", "gc", "policy", "writable", "note", "close", "locked")
"""What is no method of the API's own, or is looked at apart."""


class Case(NamedTuple):
    place: str
    method: str
    argument: str
    value: object

    def __str__(self) -> str:
        return f"{self.place}.{self.method}({self.argument}={self.value!r:.40})"


def methods(kind: type) -> Iterator[tuple[str, inspect.Signature]]:
    for name, member in vars(kind).items():
        if not name.startswith("_") and name not in OWN and callable(member):
            yield name, inspect.signature(member)


def wrong(annotation: str) -> Iterator[object]:
    """What an argument of that annotation may not be."""
    yield from (object(), 1.5j, b"bytes")
    if "bool" in annotation:
        yield from (1, "yes", None)
        return
    yield True
    if "None" not in annotation:
        yield None
    if "str" not in annotation and "Literal" not in annotation and annotation not in ("Owner", "Home | None", "Compression"):
        yield "7d"
    if "timedelta" in annotation:
        yield from (7, 7.0, timedelta(days=-1), timedelta.max)
    if "datetime" in annotation:
        yield from (datetime(2100, 1, 1), datetime(2020, 1, 1, tzinfo=UTC), timedelta(0))
    if "int |" in annotation:
        yield from (0, -1, 1 << 70)
    if annotation in ("str", "str | None", "str | os.PathLike[str]"):
        yield from ("a\0b", "\ud800", 7)
    if annotation in ("Home | None", "Compression") or annotation.startswith("Literal"):
        yield "nonsense"
    if "Sequence[" in annotation or "Iterable[" in annotation:
        yield from ([7], [None], ["a\0b"], [b"x"], 7)
        if "str |" not in annotation:
            yield "text"
    if "Sequence[Owner]" in annotation:
        yield ["nobody"]
    if "Mapping" in annotation:
        yield from ({7: "x"}, {"x": 7}, [("x", "y")])


def cases() -> Iterator[Case]:
    for place, (kind, _) in PARTS.items():
        for name, signature in methods(kind):
            for argument in signature.parameters.values():
                if argument.name != "self":
                    for value in wrong(str(argument.annotation)):
                        if argument.name == "keep_for" and value == timedelta(0):
                            continue  # not at all, whatever a policy says
                        yield Case(place, name, argument.name, value)


@pytest.fixture(scope="module")
def example(request: pytest.FixtureRequest) -> Path:
    """The example host, only to be read."""
    return Path(request.getfixturevalue("_example"))


@pytest.fixture(scope="module")
def repo(example: Path) -> Iterator[Repository]:
    """Opened once: what is refused changes nothing."""
    before = tree(example)
    with Repository.open(example / "composefs", write=True, esp="none", run="none") as opened:
        yield opened
    assert tree(example) == before


def call(repo: Repository, case: Case) -> None:
    kind, part = PARTS[case.place]
    parameters = inspect.signature(vars(kind)[case.method]).parameters
    needed = [one for one in parameters.values() if one.default is one.empty and one.name != "self"]
    values = {one.name: NEEDED.get(one.name, ()) for one in needed if one.kind is not one.VAR_POSITIONAL}
    given: tuple[object, ...] = ()
    if parameters[case.argument].kind is inspect.Parameter.VAR_POSITIONAL:
        given = (case.value,)
    else:
        values[case.argument] = case.value
    getattr(part(repo), case.method)(*given, **values)


@pytest.mark.parametrize(("place", "method"), sorted({case[:2] for case in cases()}))
def test_a_wrong_argument_is_an_error_of_that_argument(repo: Repository, place: str, method: str) -> None:
    for case in cases():
        if case[:2] == (place, method):
            with pytest.raises(UsageError) as caught:
                call(repo, case)
            assert caught.value.code == "invalid-argument", case
            assert caught.value.facts()["argument"] == case.argument, case
            str(caught.value).encode()


def test_of_many_values_the_wrong_one_is_named(repo: Repository) -> None:
    with pytest.raises(UsageError) as caught:
        repo.tags.delete(WEB, ["x"])  # type: ignore[arg-type]
    assert caught.value.facts()["value"] == "['x']"


def test_a_dry_run_gives_what_the_run_gives_so_that_programs_need_not_ask_which_it_is() -> None:
    given = {f"{place}.{name}": str(how.return_annotation) for place, (kind, _) in PARTS.items() for name, how in methods(kind)}
    assert [name for name, kind in given.items() if "|" in kind.removesuffix("| None")] == []


def test_every_part_has_methods_with_arguments() -> None:
    assert {place for place, (kind, _) in PARTS.items() if len(list(methods(kind))) < 2} == set()
    assert len(list(cases())) > 400


@pytest.mark.parametrize("argument", ["path", "write", "fd", "sysroot", "boot", "esp", "run", "booted"])
def test_opening_looks_at_its_arguments_too(argument: str, example: Path) -> None:
    for value in (object(), b"x", 1.5, *(("a\0b",) if argument not in ("write", "fd") else ())):
        values: dict[str, Any] = {"path": example / "composefs", argument: value}
        with pytest.raises(UsageError) as caught:
            Repository.open(**values)
        assert caught.value.facts()["argument"] == argument


def changing() -> Iterator[tuple[str, str]]:
    for place, (kind, _) in PARTS.items():
        for name, signature in methods(kind):
            if "reason" in signature.parameters:
                yield place, name


@pytest.mark.parametrize(("place", "method"), list(changing()))
def test_a_repository_that_was_opened_for_reading_says_so(place: str, method: str, example: Path) -> None:
    before = tree(example)
    with Repository.open(example / "composefs", esp="none", run="none") as repo, pytest.raises(CfsTagsError) as caught:
        call(repo, Case(place, method, "reason", "why not"))

    assert isinstance(caught.value, RefusedError)
    assert caught.value.code == "read-only-repository"
    assert tree(example) == before


def test_what_opens_for_writing_is_the_same_and_may_write(example: Path) -> None:
    with Repository.open(example / "composefs", write=True) as repo:
        assert isinstance(repo, WriteRepository)
        assert repo.writable() is repo


def test_a_name_that_no_argument_has_is_pythons_own_error_and_says_which_may_be_meant(repo: Repository) -> None:
    wrong: dict[str, Any] = {"expect": "absent"}

    with pytest.raises(TypeError, match=r"create\(\) got an unexpected keyword argument 'expect': there is expected"):
        repo.tags.create("x:1", "quay.io/apps/web:1", **wrong)
