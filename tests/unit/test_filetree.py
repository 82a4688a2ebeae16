"""The files of layers that are laid upon each other, and how trees differ."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from cfs_tags.errors import FormatError
from cfs_tags.formats import tarlayer
from cfs_tags.formats.filetree import Change, File, Folder, compare
from cfs_tags.values import ObjectId
from support import tars
from support.images import Entry, Layer, directory, file, hardlink, opaque, symlink, whiteout

OBJECT = ObjectId("ab" * 32)


def stored(layer: Layer) -> Iterable[bytes | ObjectId]:
    """A layer as a repository has it: files of more than 64 bytes are objects."""
    parts: list[bytes | ObjectId] = []

    class Sink:
        def inline(self, data: memoryview) -> None:
            parts.append(bytes(data))

        def external(self, data: memoryview) -> None:
            parts.append(OBJECT)

        def begin(self, size: int) -> None: ...

        def piece(self, data: memoryview) -> None: ...

        def end(self) -> None:
            parts.append(OBJECT)

    tarlayer.split(iter([layer.tar]), Sink())
    return parts


def laid(*layers: Iterable[Entry], **most: int) -> Folder:
    root = Folder()
    for entries in layers:
        root.lay(tarlayer.contents(iter(stored(Layer(entries)))), **most)
    return root


def paths(root: Folder) -> list[str]:
    return [change.path for change in compare(Folder(), root)]


BASE = (directory("a"), directory("a/b"), file("a/b/one", "1"), file("a/b/two", b"2" * 100), file("a/c", "3"))


@pytest.mark.parametrize("order", [1, -1])
def test_a_layer_hides_only_what_is_below_it_whatever_the_order_of_its_entries(order: int) -> None:
    upper = [file("a/b/three", "3"), opaque("a/b")][::order]

    assert paths(laid(BASE, upper)) == ["a", "a/b", "a/b/three", "a/c"]


@pytest.mark.parametrize("order", [1, -1])
def test_a_whiteout_and_a_file_of_one_name_in_one_layer_leave_the_file(order: int) -> None:
    upper = [file("a/c/new", "3"), directory("a/c"), whiteout("a/b")][::order]

    assert paths(laid(BASE, upper)) == ["a", "a/c", "a/c/new"]


def test_a_whiteout_of_what_is_not_there_changes_nothing() -> None:
    assert list(compare(laid(BASE), laid(BASE, [whiteout("a/x"), whiteout("y/z")]))) == [
        Change("y", None, File("directory", 0o755, 0, 0))
    ]


def test_a_directory_that_is_only_implied_keeps_what_it_was() -> None:
    base = laid([directory("a", 0o700), file("a/x", "x")], [file("a/y", "y")])

    assert base.file(b"a")[0].mode == 0o700


def test_a_file_in_the_place_of_a_directory_takes_all_that_is_in_it() -> None:
    assert paths(laid(BASE, [symlink("a", "elsewhere")])) == ["a"]


def test_hard_links_are_the_file_of_their_own_layer_or_of_one_below() -> None:
    root = laid(BASE, [hardlink("own", "a/b/two"), file("x", b"x" * 65), hardlink("y", "x")])

    assert root.file(b"own")[0].content == OBJECT
    assert root.file(b"own")[0].size == 100
    assert root.file(b"y")[0] == root.file(b"x")[0]


def test_numbers_in_pax_headers_go_before_those_of_the_header() -> None:
    root = laid([file("x", "x").owned(3_000_000, 4_000_000)])

    assert root.file(b"x")[0][1:4] == (0o644, 3_000_000, 4_000_000)


@pytest.mark.parametrize(
    "entry",
    [file("../x"), file("a/../../x"), hardlink("x", "nothing"), hardlink("x", "a"), file("n" * 4097), file("a/" * 3000)],
)
def test_what_leads_out_or_to_nothing_is_refused(entry: Entry) -> None:
    with pytest.raises(FormatError):
        laid([directory("a"), entry])


def test_a_layer_of_nothing_but_deep_paths_costs_no_more_than_its_files() -> None:
    deep = [file(f"{number}/" + "d/" * 1000 + "x") for number in range(6)]

    with pytest.raises(FormatError, match="5000 files"):
        laid(deep, most=5000)
    assert len(paths(laid(deep[:4], most=5000))) == 4 * 1002


def test_only_files_below_the_paths_are_compared() -> None:
    changed = laid([*BASE, file("a/b/three", "3"), file("ab", "x"), file("z", "z")])
    old = laid(BASE)

    assert [one.path for one in compare(old, changed, ["/a/b/"])] == ["a/b/three"]
    assert [one.path for one in compare(old, changed, ["a"])] == ["a/b/three"]
    assert [one.path for one in compare(old, changed, ["z", "a/b/three"])] == ["a/b/three", "z"]
    assert [one.path for one in compare(old, changed, ["/"])] == ["a/b/three", "ab", "z"]


def test_names_in_a_tar_that_are_not_utf8_have_surrogates() -> None:
    data = tars.entry(b"caf\xe9", b"x") + tars.END
    root = Folder()
    root.lay(tarlayer.contents(iter([data])))

    assert paths(root) == ["caf\udce9"]
