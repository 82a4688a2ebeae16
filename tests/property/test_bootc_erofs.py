"""What holds for any bytes that bootc, a boot loader or mkcomposefs might have left, and for any that they would not."""

from __future__ import annotations

import tarfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cfs_tags.errors import ExpectationFailed, FormatError
from cfs_tags.formats import erofs, erofstree
from cfs_tags.formats.boot.bls import BootEntry, parse_boot_entry
from cfs_tags.formats.boot.cmdline import composefs_arguments
from cfs_tags.formats.boot.grub import GrubMenu, parse_grub_environment, parse_grub_script
from cfs_tags.formats.boot.order import GRUB, SYSTEMD_BOOT, boot_order, compare_versions
from cfs_tags.formats.boot.origin import origin_with_manifest_digest, parse_imginfo, parse_origin, parse_staged
from cfs_tags.formats.boot.uki import uki_cmdline
from cfs_tags.values import Algorithm, Digest
from support.crafted_erofs import FIRST, Xattr, crafted, directory_block, image_with, inode
from support.peers import Cfsctl
from support.scanning import scanned_refs

HOSTS = Path(__file__).parents[1] / "data" / "hosts"
ID = "ab" * 64

algorithms = st.sampled_from(Algorithm)


# -- any bytes ---------------------------------------------------------------------------------------------------------


def uki(data: bytes) -> None:
    def read(offset: int, length: int) -> bytes:
        return data[offset : offset + length]

    uki_cmdline(read, len(data))


def all_of_an_image(data: bytes) -> None:
    erofs.check_image(data)
    for path in ("/", "usr/lib/os-release", "usr/bin", "etc/os-release"):
        erofstree.listdir(data, path)
        erofstree.read_path(data, path)
    for algorithm in Algorithm:
        exact = erofs.object_refs(data, algorithm)
        assert exact <= scanned_refs(data, algorithm)


def grub(data: bytes) -> None:
    script = parse_grub_script(data)
    menu = GrubMenu((script,), {}, "/grub2", whole=True)
    menu.entries(script)
    list(menu.sources(script))


PARSERS: list[Callable[[bytes], object]] = [
    parse_origin,
    parse_imginfo,
    parse_staged,
    parse_boot_entry,
    grub,
    parse_grub_environment,
    composefs_arguments,
    uki,
    all_of_an_image,
]


def value_or_refusal(parse: Callable[[bytes], object], data: bytes) -> None:
    try:
        parse(data)
    except FormatError as refused:
        str(refused).encode()


@given(st.sampled_from(PARSERS), st.binary(max_size=300))
def test_any_bytes_give_a_value_or_a_refusal(parse: Callable[[bytes], object], data: bytes) -> None:
    value_or_refusal(parse, data)


WORDS = [
    *("[origin]", "[boot]", "[image]", "[", "container-image-reference", "boot_type", "manifest_digest", "="),
    *("sha256:" + "0" * 64, "title", "version 1", "linux /x/y", "options", "efi", "sort-key", "composefs=", "?", ID),
    *("composefs.digest=", "v1-sha512-12:", "menuentry", '"a"', "'b'", "{", "}", "\\", "chainloader", '"', "#", ";"),
    *(f"/EFI/Linux/bootc/bootc_composefs-{ID}.efi", " ", "\t", "\n", "\n", "\r\n", "\0", "é"),
]


@given(st.sampled_from(PARSERS), st.lists(st.sampled_from(WORDS), max_size=40))
def test_any_words_give_a_value_or_a_refusal(parse: Callable[[bytes], object], words: list[str]) -> None:
    value_or_refusal(parse, "".join(words).encode())


@pytest.mark.parametrize("parse", [parse_imginfo, parse_staged])
@pytest.mark.parametrize("data", [b"[" * 50_000, b'{"a":' * 10_000, b'{"depl_id": ' + b"9" * 9000 + b"}", b'"\\ud800"'])
def test_hostile_json_is_refused(parse: Callable[[bytes], object], data: bytes) -> None:
    with pytest.raises(FormatError):
        parse(data)


# -- origins -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from(WORDS[:9] + WORDS[-8:]), max_size=30))
@example(["[image]", "\n", "manifest_digest", "=", "x"])
@example(["[image]", "\r\n", "\r\n", "[boot]", "\r\n"])
@example([])
def test_a_digest_is_added_and_nothing_else_changes(words: list[str]) -> None:
    data = "".join(words).encode()
    digest = Digest("sha256:" + "1" * 64)
    try:
        before = parse_origin(data)
        after = origin_with_manifest_digest(data, digest)
    except (FormatError, ExpectationFailed):
        return

    origin = parse_origin(after)
    assert origin.manifest_digest == digest
    # the same when asked again
    assert origin_with_manifest_digest(after, digest) == after
    # one piece was put in; before and after it stands what stood there
    piece = len(after) - len(data)
    assert any(after[:at] + after[at + piece :] == data for at in range(len(data) + 1))
    # and it says one thing more than before
    sections = {name: dict(section) for name, section in origin.sections.items()}
    del sections["image"]["manifest_digest"]
    assert {name: keys for name, keys in sections.items() if keys} == before.sections


# -- order -------------------------------------------------------------------------------------------------------------

versions = st.text("012aA~-^. +", max_size=8)


@given(versions, versions, versions)
def test_versions_have_one_order(first: str, second: str, third: str) -> None:
    assert compare_versions(first, first) == 0
    assert compare_versions(first, second) == -compare_versions(second, first)
    if compare_versions(first, second) <= 0 and compare_versions(second, third) <= 0:
        assert compare_versions(first, third) <= 0


@given(st.lists(st.tuples(st.text("ab01.-", max_size=6), versions, st.sampled_from([None, "a", "b"])), max_size=8))
def test_entries_have_the_same_order_however_they_are_listed(listed: list[tuple[str, str, str | None]]) -> None:
    entries = [
        (name, BootEntry(version=version, sort_key=key or "x"))
        for name, (version, key) in {name: (version, key) for name, version, key in listed}.items()
    ]
    for loader in (GRUB, SYSTEMD_BOOT):
        order = boot_order(entries, loader)
        assert boot_order(entries[::-1], loader) == order
        assert sorted(name for name, _ in order) == sorted(name for name, _ in entries)
    for (_, first), (_, second) in pairwise(boot_order(entries, SYSTEMD_BOOT)):
        assert (first.sort_key or "") <= (second.sort_key or "")


# -- images that composefs made, damaged -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images(cfsctl: Cfsctl, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """One of each layout and algorithm, small enough to be damaged many times, and one of a recorded host."""
    root = tmp_path_factory.mktemp("root")
    (root / "usr/lib").mkdir(parents=True)
    (root / "usr/lib/os-release").write_text("ID=fake\n")
    (root / "etc").mkdir()
    (root / "etc/os-release").symlink_to("../usr/lib/os-release")
    for number in range(3):
        (root / f"usr/lib/{number}").write_text(f"{number}" * 100)
    found = []
    for version, algorithm in ((1, "sha256"), (2, "sha512")):
        repo = tmp_path_factory.mktemp("repo") / "composefs"
        flags = ("--insecure", "--algorithm", f"fsverity-{algorithm}-12", "--erofs-version", f"{version}")
        cfsctl(None, "init", *flags, repo)
        name = cfsctl(repo, "create-image", "--no-propagate-usr-to-root", root).stdout.strip().partition(":")[2]
        found.append((repo / "images" / name).read_bytes())
    with tarfile.open(HOSTS / "a.tar.gz") as archive:
        ids = [Path(member.name).name for member in archive if "/images/" in member.name and member.issym()]
        recorded = min(ids)
        file = next(member for member in archive if member.name.endswith(f"objects/{recorded[:2]}/{recorded[2:]}"))
        content = archive.extractfile(file)
        assert content is not None
        found.append(content.read())
    return found


@settings(max_examples=300)
@given(
    which=st.integers(0, 2), places=st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=12), cut=st.integers(0)
)
def test_a_damaged_image_gives_a_value_or_a_refusal(
    images: list[bytes], which: int, places: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(images[which])
    interesting = [offset for offset, byte in enumerate(data) if byte]
    for place, value in places:
        # nine in ten bytes are padding: damage what says something, or its neighbour
        data[min(interesting[place // 2 % len(interesting)] + place % 2, len(data) - 1)] = value
    whole = bytes(data)

    value_or_refusal(all_of_an_image, whole)
    if cut % 8 == 0:
        value_or_refusal(all_of_an_image, whole[: cut % len(whole)])


# -- images that no program makes ---------------------------------------------------------------------------------------


@st.composite
def xattrs(draw: st.DrawFn, algorithm: Algorithm) -> Xattr:
    digest = draw(st.sampled_from([b"\1", b"\n", b"\xff", b"overlay."])) * 64
    text = digest[: algorithm.size].hex()
    if draw(st.booleans()):
        text = text.upper()
    path = f"{text[:2]}/{text[2:]}".encode()
    head = bytes((0, 4 + algorithm.size, 0, algorithm.number))
    metacopy = (
        head + digest[: algorithm.size],
        head + digest[: algorithm.size - 1],
        head + digest[: algorithm.size] + b"x",
        b"\1" + head[1:] + digest[: algorithm.size],
        b"overlay.metacopy" + head + digest[: algorithm.size],
        b"",
    )
    redirect = (b"/" + path, path, b"/objects/" + path, b"/" + path + b"/" + path, b"/" + path + b"x", b"/" + path[:-1], b"")
    name, values = draw(
        st.sampled_from([(b"overlay.metacopy", metacopy), (b"overlay.redirect", redirect), (b"overlay.opaque", (b"y",))])
    )
    return Xattr(draw(st.sampled_from([4, 4, 4, 1])), name, draw(st.sampled_from(values)))


def expected(all_of_them: list[Xattr], algorithm: Algorithm) -> Iterator[str]:
    """The rules of composefs-rs (reader.rs, hashvalue.rs), said once more."""
    for index, name, value in all_of_them:
        if (index, name) == (4, b"overlay.metacopy") and len(value) == 4 + algorithm.size:
            if value[:4] == bytes((0, len(value), 0, algorithm.number)):
                yield value[4:].hex()
        elif (index, name) == (4, b"overlay.redirect"):
            tail = value[-algorithm.hex_length - 1 :].decode("latin-1").lower()
            digits = tail[:2] + tail[3:]
            if tail[2:3] == "/" and len(digits) == algorithm.hex_length and set(digits) <= set("0123456789abcdef"):
                yield digits


# the scan goes part by part: a reference may begin in one and end in the next
parts = st.sampled_from([64, 1000, 1 << 22])


@given(st.data(), algorithms, parts)
def test_every_reference_is_found_and_the_scan_misses_none(data: st.DataObject, algorithm: Algorithm, part: int) -> None:
    local = data.draw(st.lists(xattrs(algorithm), max_size=4))
    pooled = data.draw(st.lists(xattrs(algorithm), max_size=4))
    used = data.draw(st.lists(st.sampled_from(range(len(pooled))), max_size=3)) if pooled else []
    offsets = [sum(len(each.pack()) for each in pooled[:number]) for number in range(len(pooled))]
    image = image_with(local, [offsets[number] // 4 for number in used], b"".join(each.pack() for each in pooled))

    exact = erofs.object_refs(image, algorithm)
    with patch.object(erofs, "_PART", part):
        scanned = scanned_refs(image, algorithm)

    assert exact == set(expected([*local, *(pooled[number] for number in used)], algorithm))
    assert exact <= scanned


@given(st.data(), algorithms, st.lists(st.integers(0, 200), min_size=1, max_size=6), parts)
def test_the_scan_misses_nothing_where_xattrs_overlap(
    data: st.DataObject, algorithm: Algorithm, ids: list[int], part: int
) -> None:
    pool = b"".join(each.pack() for each in data.draw(st.lists(xattrs(algorithm), min_size=1, max_size=6)))
    image = image_with([], ids, pool)

    try:
        exact = erofs.object_refs(image, algorithm)
    except FormatError:
        return
    with patch.object(erofs, "_PART", part):
        assert exact <= scanned_refs(image, algorithm)


def test_a_directory_that_contains_itself_ends() -> None:
    block = directory_block([(b".", FIRST), (b"..", FIRST), (b"again", FIRST)])
    image = crafted((FIRST * 32, inode(0o040755, 2, len(block)) + block))

    assert erofs.object_refs(image, Algorithm.SHA512) == set()
    assert erofstree.listdir(image, "/again/again/again") == ("again",)


def bomb() -> bytes:
    """Directories by the thousand that all have the same blocks, which name all of them."""
    nids = range(FIRST, FIRST + 7 * 270)
    directories = [(nid * 32, inode(0o040755, 0, 7 * 4096, 16)) for nid in nids]
    blocks = [
        (at * 4096, directory_block([(b"%03x" % nid, nid) for nid in nids[number * 270 : (number + 1) * 270]]))
        for number, at in enumerate(range(16, 23))
    ]
    return crafted(*directories, *blocks)


def test_directories_that_share_their_blocks_are_refused_before_they_take_long() -> None:
    image = bomb()
    start = time.process_time()

    with pytest.raises(FormatError, match="more data than the image has"):
        erofs.object_refs(image, Algorithm.SHA512)
    with pytest.raises(FormatError, match="more data than the image has"):
        erofstree.read_path(image, "".join(f"/{nid:03x}" for nid in range(FIRST, FIRST + 100)))

    assert time.process_time() - start < 1


def test_a_directory_larger_than_the_image_is_refused() -> None:
    image = crafted((FIRST * 32, inode(0o040755, 0, 0xFFFFFFFF, 1)))

    with pytest.raises(FormatError, match="wanted data within 4096 bytes"):
        erofs.object_refs(image, Algorithm.SHA512)


def test_a_name_that_would_lead_elsewhere_is_refused() -> None:
    block = directory_block([(b".", FIRST), (b"..", FIRST), (b"a/b", FIRST)])
    image = crafted((FIRST * 32, inode(0o040755, 2, len(block)) + block))

    with pytest.raises(FormatError, match="slash"):
        erofstree.listdir(image, "/")


def test_links_that_grow_without_end_are_given_up() -> None:
    # the link's target is the link, many times over
    target = (b"link/" * 800)[:-1]
    block = directory_block([(b".", FIRST), (b"..", FIRST), (b"link", 256)])
    link = inode(0o120777, 2, len(target)) + target
    image = crafted((FIRST * 32, inode(0o040755, 2, len(block)) + block), (256 * 32, link))
    start = time.process_time()

    assert erofstree.read_path(image, "/link/" * 1000) is None
    assert time.process_time() - start < 1
