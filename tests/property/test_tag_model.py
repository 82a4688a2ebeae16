"""Tag names and their file names; random sequences of changes against a dictionary, in one process and in two."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from cfs_tags import Repository
from cfs_tags.errors import UsageError
from cfs_tags.repo import layout
from cfs_tags.repo.store import WriteRepo
from cfs_tags.repo.transaction import run
from cfs_tags.tags import edit, history, rows
from cfs_tags.tags.instructions import Instruction
from cfs_tags.values import MAX_NAME_BYTES, TagName
from support import stock, tagging
from support.peers import Cfsctl
from support.stock import SHARED, dangling, digest_of, error_of, fill, hard_copy, leftovers, link_to

# -- names -------------------------------------------------------------------------------------------------------------

ANY_NAME = st.text(st.sampled_from("/%25F2aé:@.-_ \n\0{}"), max_size=100) | st.text(max_size=300)


def made(text: str) -> TagName:
    try:
        return TagName.parse(text)
    except UsageError:
        assume(False)
        raise


@given(ANY_NAME)
@example("%2F")
@example("%252F")
@example("%%2F")
@example("/" * 85)
@example("x" * 255)
def test_a_name_that_may_be_made_is_one_path_component_and_comes_back(text: str) -> None:
    name = made(text)

    component = layout.encode_name(name)

    assert "/" not in component
    assert "\0" not in component
    assert component not in ("", ".", "..")
    assert 0 < len(os.fsencode(component)) <= MAX_NAME_BYTES
    assert layout.decode_name(component) == name
    assert re.fullmatch(r"(?:[^%/]|%25|%2F)+", component)


@given(st.text(max_size=60), st.text(max_size=60))
def test_two_names_never_share_a_component(one: str, two: str) -> None:
    assert (layout.encode_name(one) == layout.encode_name(two)) is (one == two)


@given(ANY_NAME)
def test_any_text_may_be_made_or_is_refused_with_its_rule(text: str) -> None:
    error = error_of(lambda: TagName.parse(text))
    if error is None:
        assert text.isprintable()
        assert text[0] not in "@-"
    else:
        assert error.code == "invalid-tag-name"
        assert error.rule
        assert str(error).isprintable()


@given(component=st.text(st.sampled_from("%25F2/aé"), max_size=30))
def test_decoding_consumes_each_escape_once_as_cfsctl_does(component: str) -> None:
    expected, rest = "", component
    while rest:
        head, rest = rest[0], rest[1:]
        if head == "%":
            escape, rest = rest[:2], rest[2:]
            expected += {"2F": "/", "25": "%"}.get(escape, f"%{escape}")
        else:
            expected += head

    assert layout.decode_name(component) == expected


def test_decoding_is_that_of_cfsctl(filled_repo, cfsctl: Cfsctl) -> None:  # type: ignore[no-untyped-def]
    """Every string of up to four of the characters that matter, as a file name, listed by both."""
    path = filled_repo("stock", fill)
    target = link_to(digest_of(path, "one"))
    components = {""}
    for _ in range(4):
        components |= {known + added for known in components for added in ("%", "2F", "25", "x")}
    for component in components - {""}:
        (path / SHARED / component).symlink_to(target)

    with Repository.open(path) as repo:
        ours = sorted(tag.name for tag in rows.list_tags(repo))
    assert ours == sorted(row["name"] for row in cfsctl.json(path, "oci", "images", "--json")["images"])


# -- sequences ---------------------------------------------------------------------------------------------------------

NAMES = ("app", "quay.io/org/app:1", "100%", "x" * 255)
IMAGES = st.sampled_from(stock.IMAGES)
EXPIRES = "20990101T000000Z"


class Model:
    """Tags as a dictionary: name to (home, image); what was deleted into the trash, newest last; each tag's past."""

    def __init__(self) -> None:
        self.tags: dict[str, tuple[str, str]] = {}
        self.trash: dict[str, list[str]] = {}
        self.past: dict[str, list[str | None]] = {}

    def put(self, name: str, home: str, image: str) -> None:
        self.tags[name] = (home, image)
        self.past.setdefault(name, []).append(image)

    def drop(self, name: str, *, trashed: bool = False) -> None:
        _, image = self.tags.pop(name)
        self.past.setdefault(name, []).append(None)
        if trashed:
            self.trash.setdefault(name, []).append(image)


Step = tuple[Callable[[WriteRepo, dict[str, str]], object], Callable[[Model], object]]
"""What is done to a repository; the same done to the model, which raises KeyError where it must be refused."""


def create(name: str, image: str, home: str | None, force: bool) -> Step:
    def model(model: Model) -> None:
        before = model.tags.get(name)
        place = home or (before[0] if before else "shared")
        if before == (place, image):
            return
        if before is not None and before[1] != image and not force:
            raise KeyError(name)
        model.put(name, place, image)

    return lambda repo, d: tagging.create(repo, name, f"@{d[image]}", home=home, force=force), model


def move_from(name: str, image: str, expected: str | None) -> Step:
    def model(model: Model) -> None:
        before = model.tags.get(name)
        if (before[1] if before else None) != expected:
            raise KeyError(name)
        if before is None or before[1] != image:
            model.put(name, before[0] if before else "shared", image)

    return (
        lambda repo, d: tagging.create(repo, name, f"@{d[image]}", expected=d[expected] if expected else "absent"),
        model,
    )


def delete(names: list[str], trashed: bool) -> Step:
    def model(model: Model) -> None:
        if any(name not in model.tags for name in names):
            raise KeyError
        for name in names:
            model.drop(name, trashed=trashed)

    return lambda repo, d: tagging.delete(repo, names, expires=EXPIRES if trashed else None), model


def rename(old: str, new: str, force: bool) -> Step:
    def model(model: Model) -> None:
        home, image = model.tags[old]
        if new == old:
            return
        if new in model.tags and not force:
            raise KeyError(new)
        if model.tags.get(new) != (home, image):
            model.put(new, home, image)
        model.drop(old)

    return lambda repo, d: tagging.rename(repo, old, new, force=force), model


def restore(name: str) -> Step:
    def model(model: Model) -> None:
        if name not in model.tags and model.trash.get(name):
            model.put(name, "shared", model.trash[name].pop())
            return
        home, now = model.tags.get(name, ("shared", None))
        earlier = [image for image in model.past.get(name, []) if image is not None and image != now]
        if not earlier:
            raise KeyError(name)
        model.put(name, home, earlier[-1])

    return lambda repo, d: tagging.restore(repo, name), model


def update(lines: list[tuple[str, str, str, str | None]]) -> Step:
    def real(repo: WriteRepo, digest: dict[str, str]) -> object:
        instructions = [
            Instruction(
                verb,
                name,
                f"@{digest[image]}" if verb in ("create", "move") else None,
                digest.get(expected, expected) if expected is not None else ("absent" if verb == "verify" else None),
            )
            for verb, name, image, expected in lines
        ]
        return run.transact(repo, lambda: edit.plan(repo, instructions))

    def model(model: Model) -> None:
        if len({name for _, name, _, _ in lines}) < len(lines):
            raise KeyError
        changes: list[Callable[[], object]] = []
        for verb, name, image, expected in lines:
            before = model.tags.get(name)
            now = before[1] if before else "absent"
            wanted = expected if expected is not None else ("absent" if verb == "verify" else None)
            if wanted is not None and wanted != now:
                raise KeyError
            if verb in ("move", "delete") and before is None:
                raise KeyError
            if verb == "create" and before is not None and before[1] != image and expected is None:
                raise KeyError
            if verb == "delete":
                changes.append(lambda name=name: model.drop(name))  # type: ignore[misc]
            elif verb != "verify" and now != image:
                home = before[0] if before else "shared"
                changes.append(lambda name=name, home=home, image=image: model.put(name, home, image))  # type: ignore[misc]
        for change in changes:
            change()

    return real, model


NAME = st.sampled_from(NAMES)
LINE = st.tuples(
    st.sampled_from(["create", "move", "delete", "verify"]),
    NAME,
    IMAGES,
    st.none() | st.sampled_from([*stock.IMAGES, "absent"]),
)
STEPS: st.SearchStrategy[Step] = st.one_of(
    st.builds(create, NAME, IMAGES, st.sampled_from([None, "shared", "private"]), st.booleans()),
    st.builds(move_from, NAME, IMAGES, st.none() | IMAGES),
    st.builds(delete, st.lists(NAME, min_size=1, max_size=3, unique=True), st.booleans()),
    st.builds(rename, NAME, NAME, st.booleans()),
    st.builds(restore, NAME),
    st.builds(update, st.lists(LINE, min_size=1, max_size=5)),
)


@pytest.fixture
def stocked(filled_repo, ram: Path) -> Path:  # type: ignore[no-untyped-def]
    """In memory; only ever copied."""
    path = ram / "stock"
    return path if path.exists() else filled_repo("stock", fill, path)  # type: ignore[no-any-return]


def play(path: Path, digest: dict[str, str], step: Step) -> bool:
    """Do it; whether it was refused."""
    with Repository.open(path, write=True) as repo:
        error = error_of(lambda: step[0](repo, digest))
    assert error is None or error.status in (2, 3, 4)
    return error is not None


def play_in_child(path: Path, digest: dict[str, str], step: Step) -> bool:
    """The same in a forked process."""
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            status = 1 if play(path, digest, step) else 0
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, 1)
    return bool(status)


def modelled(model: Model, step: Step) -> bool:
    try:
        step[1](model)
    except KeyError:
        return True
    return False


def assert_equal(path: Path, digest: dict[str, str], model: Model) -> None:
    with Repository.open(path) as repo:
        found = {tag.name: (tag.home, tag.digest) for tag in rows.list_tags(repo) if not tag.name.startswith("held/")}
        assert found == {name: (home, digest[image]) for name, (home, image) in model.tags.items()}
        trashed = sorted((tag.name.removeprefix("@trash/"), tag.digest) for tag in rows.trash(repo))
        assert trashed == sorted((name, digest[image]) for name, images in model.trash.items() for image in images)
        for name, past in model.past.items():
            lines = history.log(repo, name)
            assert [line.new for line in reversed(lines)] == [digest[image] if image else None for image in past]
            assert not [line for line in lines if line.entry.action == "found"]
    assert leftovers(path) == []
    assert dangling(path) == []


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(steps=st.lists(STEPS, min_size=1, max_size=25))
def test_any_sequence_of_changes_does_what_a_dictionary_does(stocked: Path, ram: Path, steps: list[Step]) -> None:
    path = hard_copy(stocked, ram / "attempt")
    digest = {name: digest_of(path, name) for name in stock.IMAGES}
    model = Model()
    for step in steps:
        assert play(path, digest, step) is modelled(model, step)
        assert_equal(path, digest, model)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(steps=st.lists(st.tuples(STEPS, st.booleans()), min_size=2, max_size=20))
def test_a_second_process_that_does_half_of_them_makes_no_difference(
    stocked: Path, ram: Path, cfsctl: Cfsctl, steps: list[tuple[Step, bool]]
) -> None:
    path = hard_copy(stocked, ram / "attempt")
    digest = {name: digest_of(path, name) for name in stock.IMAGES}
    model = Model()
    with Repository.open(path, write=True):  # a handle of the parent's that the child inherits
        for step, elsewhere in steps:
            refused = play_in_child(path, digest, step) if elsewhere else play(path, digest, step)
            assert refused is modelled(model, step)
    assert_equal(path, digest, model)
    shown = {name: found for name, found in cfsctl.tags(path).items() if not name.startswith("held/")}
    assert shown == {name: digest[image] for name, (home, image) in model.tags.items() if home == "shared"}


def test_two_processes_at_the_same_time_lose_nothing(stocked: Path, ram: Path) -> None:
    """Each counts its own tags up and both share one: every move of it is in the log, each from the value before."""
    path = hard_copy(stocked, ram / "attempt")
    digest = {name: digest_of(path, name) for name in stock.IMAGES}

    def work(who: int) -> None:
        with Repository.open(path, write=True) as repo:
            for number in range(25):
                tagging.create(repo, f"own/{who}/{number}", f"@{digest['one']}")
                tagging.create(repo, "shared", f"@{digest[stock.IMAGES[(number + who) % 4]]}", force=True)

    pids = []
    for who in range(2):
        pid = os.fork()
        if pid == 0:
            status = 70
            try:
                work(who)
                status = 0
            finally:
                os._exit(status)
        pids.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0, 0]

    with Repository.open(path) as repo:
        names = {tag.name for tag in rows.list_tags(repo)}
        assert {f"own/{who}/{number}" for who in range(2) for number in range(25)} <= names
        lines = history.log(repo, "shared")
    assert not [line for line in lines if line.entry.action == "found"]
    assert all(newer.old == older.new for newer, older in itertools.pairwise(lines))
    assert leftovers(path) == []
