"""Splitstreams: both headers byte by byte, what is refused, and that what is written is what cfsctl writes."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cfs_tags.errors import FormatError
from cfs_tags.formats import splitstream, splitwriter
from cfs_tags.formats.splitstream import (
    CONTENT_TYPE_BLOB,
    CONTENT_TYPE_CONFIG,
    CONTENT_TYPE_LAYER,
    CONTENT_TYPE_MANIFEST,
    SplitStream,
)
from cfs_tags.formats.splitwriter import Writer
from cfs_tags.values import Algorithm, ObjectId
from support.images import Layer, build_image, directory, file, host_image, pull_image, random_bytes
from support.peers import Cfsctl
from support.raising import raises
from support.recorded import objects_of_hosts

SHA256, SHA512 = Algorithm.SHA256, Algorithm.SHA512


def unhex(dump: str) -> bytes:
    """The bytes of a dump with comments behind ``#``."""
    return bytes.fromhex("".join(line.partition("#")[0] for line in dump.splitlines()))


HEADER = """
    53 70 6c 69 74 53 74 72 65 61 6d            #   0 magic SplitStream
    00                                          #  11 version
    00 00                                       #  12 flags
    01                                          #  14 algorithm sha256
    0c                                          #  15 log2 of the block size
    20 00 00 00 00 00 00 00                     #  16 info from 32
    70 00 00 00 00 00 00 00                     #  24 to 112
"""
OLD_HEADER = """
    20 00 00 00 00 00 00 00                     #   0 info from 32
    70 00 00 00 00 00 00 00                     #   8 to 112
    00 00                                       #  16 flags
    53 70 6c 69 74 53 74 72 65 61 6d            #  18 magic SplitStream
    00                                          #  29 version
    01                                          #  30 algorithm sha256
    0c                                          #  31 log2 of the block size
"""
REST = """
    70 00 00 00 00 00 00 00  90 00 00 00 00 00 00 00    #  32 stream_refs 112 to 144
    90 00 00 00 00 00 00 00  b0 00 00 00 00 00 00 00    #  48 object_refs 144 to 176
    c2 00 00 00 00 00 00 00  df 00 00 00 00 00 00 00    #  64 stream 194 to 223
    b0 00 00 00 00 00 00 00  c2 00 00 00 00 00 00 00    #  80 named_refs 176 to 194
    6f 63 69 6d 61 6e 69 66                             #  96 content type ocimanif
    e8 03 00 00 00 00 00 00                             # 104 stream size 1000
    aa aa aa aa aa aa aa aa aa aa aa aa aa aa aa aa     # 112 stream_refs[0]
    aa aa aa aa aa aa aa aa aa aa aa aa aa aa aa aa
    bb bb bb bb bb bb bb bb bb bb bb bb bb bb bb bb     # 144 object_refs[0]
    bb bb bb bb bb bb bb bb bb bb bb bb bb bb bb bb
    28 b5 2f fd 20 09 49 00 00                          # 176 zstd: one raw block of 9 bytes
    30 3a 63 6f 6e 66 69 67 00                          # 185 0:config NUL
    28 b5 2f fd 20 14 a1 00 00                          # 194 zstd: one raw block of 20 bytes
    fc ff ff ff ff ff ff ff  74 65 78 74                # 203 4 inline bytes: text
    00 00 00 00 00 00 00 00                             # 215 the object with index 0
"""
A, B = ObjectId("a" * 64), ObjectId("b" * 64)


@pytest.fixture
def valid() -> bytearray:
    return bytearray(unhex(HEADER + REST))


@pytest.mark.parametrize(("header", "layout"), [(HEADER, "current"), (OLD_HEADER, "old")])
def test_both_headers_are_read(header: str, layout: str) -> None:
    stream = splitstream.parse(unhex(header + REST), SHA256)

    assert stream.layout == layout
    assert stream.algorithm is SHA256
    assert stream.content_type == CONTENT_TYPE_MANIFEST
    assert stream.stream_size == 1000
    assert stream.stream_refs == (A,)
    assert stream.object_refs == (B,)
    assert stream.named_refs == {"config": A}
    assert list(splitstream.chunks(stream)) == [b"text", B]
    splitstream.check_size(stream, [996])


def test_content_types_are_eight_letters() -> None:
    types = (CONTENT_TYPE_MANIFEST, CONTENT_TYPE_CONFIG, CONTENT_TYPE_LAYER, CONTENT_TYPE_BLOB)

    assert [number.to_bytes(8, "little") for number in types] == [b"ocimanif", b"ociconfg", b"ocilayer", b"oci_blob"]


def test_flags_and_a_longer_info_section_are_left_to_the_future(valid: bytearray) -> None:
    valid[12:14] = b"\xff\xff"
    valid[24] = 0x78

    assert splitstream.parse(valid, SHA256).named_refs == {"config": A}


def test_an_empty_section_may_be_anywhere(valid: bytearray) -> None:
    valid[48:64] = b"\xff" * 16

    assert splitstream.parse(valid, SHA256).object_refs == ()


def test_a_mapped_file_is_read_in_place_and_can_be_closed(valid: bytearray, tmp_path: Path) -> None:
    path = tmp_path / "stream"
    path.write_bytes(valid)

    with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        stream = splitstream.parse(mapped)
        assert list(splitstream.chunks(stream)) == [b"text", B]
        stream.release()

    assert stream.named_refs == {"config": A}


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "replacement", "wanted"),
    [
        (0, "00", "the magic 'SplitStream' at byte 0 or 18"),
        (14, "02", "algorithm sha256"),
        (24, "6f", "an info section of 80 bytes or more"),
        (25, "01", "an info section of 80 bytes or more"),
        (31, "80", "an info section of 80 bytes or more"),
        (40, "8f", "stream_refs in digests of 32 bytes"),
        (48, "b1", "object_refs within 223 bytes"),
        (57, "01", "object_refs within 223 bytes"),
        (72, "e0", "stream within 223 bytes"),
        (88, "e0", "named_refs within 223 bytes"),
        (88, "c1", "one whole zstd frame"),
        (176, "00", "a zstd frame"),
        (185, "31", "an index below 1"),
        (185, "2b", "<index>:<name>"),
        (185, "3a", "<index>:<name>"),
        (186, "30", "<index>:<name>"),
        (187, "ff", "a name in UTF-8"),
        (193, "2e", "a NUL at the end"),
    ],
)
def test_a_damaged_file_is_refused_with_the_place(valid: bytearray, offset: int, replacement: str, wanted: str) -> None:
    changed = bytes.fromhex(replacement)
    valid[offset : offset + len(changed)] = changed

    with pytest.raises(FormatError) as caught:
        splitstream.parse(valid, SHA256)

    assert caught.value.wanted.startswith(wanted)
    assert caught.value.structure.startswith("splitstream")


@pytest.mark.parametrize("layout", [HEADER, OLD_HEADER])
def test_the_future_is_told_from_damage(layout: str) -> None:
    whole = unhex(layout + REST)
    version = whole.index(b"SplitStream") + 11
    algorithm, lg_blocksize = (14, 15) if layout is HEADER else (30, 31)

    def changed(offset: int, value: int) -> bytes:
        return whole[:offset] + bytes((value,)) + whole[offset + 1 :]

    with raises("unsupported-version", match="version 1"):
        splitstream.parse(changed(version, 1))
    with raises("unsupported-feature", match="hash algorithm 3"):
        splitstream.parse(changed(algorithm, 3))
    with raises("unsupported-feature", match="blocks of 2\\^16 bytes"):
        splitstream.parse(changed(lg_blocksize, 16))


def test_named_refs_that_inflate_without_end_are_refused() -> None:
    bomb = splitwriter.deflate(b"0:x\0" * (splitstream.MAX_NAMED_REFS // 4 + 1))
    assert len(bomb) < 2000

    with pytest.raises(FormatError, match=r"at most \d{5} bytes"):
        splitstream.parse(assembled(names=bomb))
    long = splitwriter.deflate(b"".join(b"0:%s\0" % random_bytes(str(n), 500).hex().encode() for n in range(4300)))
    assert len(long) > splitstream.MAX_NAMED_REFS // 4
    with pytest.raises(FormatError, match=f"at most {splitstream.MAX_NAMED_REFS} bytes"):
        splitstream.parse(assembled(names=long))


def test_as_many_names_as_a_large_manifest_has_are_read() -> None:
    names = sorted(f"sha256:{random_bytes(str(n), 32).hex()}" for n in range(20_000))
    writer = Writer(Algorithm.SHA512, splitstream.CONTENT_TYPE_MANIFEST)
    for name in names:
        writer.add_named_ref(name, ObjectId("ab" * 64))

    assert list(splitstream.parse(writer.finish()).named_refs) == names


def test_a_frame_that_asks_for_more_memory_than_it_may_fill_is_refused() -> None:
    # a window of 2^27 bytes, for nothing
    with pytest.raises(FormatError, match="a zstd frame"):
        splitstream.parse(assembled(names=bytes.fromhex("28b52ffd 00 88 010000")))


def assembled(body: bytes = b"", names: bytes = b"", size: int = 0, objects: bytes = b"\xbb" * 32) -> bytes:
    """A stream around given compressed sections."""
    names = names or splitwriter.deflate(b"")
    start = 112 + len(objects)
    info = (112, 112, 112, start, start, start + len(body), start + len(body), start + len(body) + len(names), 0, size)
    return unhex(HEADER) + b"".join(number.to_bytes(8, "little") for number in info) + objects + body + names


def framed_raw(*items: int | bytes) -> bytes:
    """Chunk numbers and inline bytes."""
    return b"".join(item if isinstance(item, bytes) else item.to_bytes(8, "little", signed=True) for item in items)


def framed(*items: int | bytes) -> bytes:
    """A compressed body of them."""
    return splitwriter.deflate(framed_raw(*items))


@pytest.mark.parametrize(
    ("body", "size", "wanted"),
    [
        (framed(-3, b"ab"), 3, "1 more inline bytes"),
        (framed(0, b"abcd"), 9, "a chunk"),
        (framed(1), 1, "an index below 1"),
        (framed((1 << 63) - 1), 1, "an index below 1"),
        (framed(-(1 << 63)), 5, "at most 5 bytes"),
        (framed(-2, b"ab", -2, b"cd"), 3, "at most 3 bytes"),
        (framed(-2, b"ab"), 3, "3 bytes in all"),
        (framed(-2, b"ab")[:-1], 2, "the end of a zstd frame"),
        (framed(-2, b"ab") + b"x", 2, "the end of the section"),
        (b"x" * 20, 2, "a zstd frame"),
        (b"", 0, "the end of a zstd frame"),
    ],
)
def test_a_damaged_body_is_refused_while_it_is_read(body: bytes, size: int, wanted: str) -> None:
    stream = splitstream.parse(assembled(body, size=size))

    with pytest.raises(FormatError) as caught:
        list(splitstream.chunks(stream))
    with pytest.raises(FormatError):
        splitstream.check_size(stream, [1] * (len(stream.raw_object_refs) // 32))

    assert caught.value.wanted.startswith(wanted)


@pytest.mark.parametrize(
    "body",
    [
        splitwriter.deflate(bytes(8) * (1 << 22)),  # one object four million times
        splitwriter.deflate((bytes(8) + (1).to_bytes(8, "little")) * (1 << 21)),  # two objects in turn
        splitwriter.deflate(framed_raw(-1, b"a", *[0] * 30) * (1 << 16)),  # with a byte before each thirty of them
        framed(-(1 << 27), b"a" * (1 << 27)),  # 128 MiB of one letter
        framed(*([-200, bytes(200), 0, 1] * (1 << 16))),  # headers that are too short
    ],
    ids=["one", "two", "hardly any", "letters", "short headers"],
)
def test_a_few_bytes_make_no_long_work(body: bytes) -> None:
    """What a stream of some KB gives out is bounded, whatever it says of its size."""
    assert len(body) < 100_000
    stream = splitstream.parse(assembled(body, size=1 << 40, objects=b"\xbb" * 64))
    seen = inside = 0
    try:
        for part in splitstream.chunks(stream):
            seen += isinstance(part, ObjectId)
            inside += len(part) if not isinstance(part, ObjectId) else 0
    except FormatError as error:
        refused = error
    with pytest.raises(FormatError) as summed:
        splitstream.check_size(stream, [1, 1])
    assert (summed.value.offset, summed.value.found) == (refused.offset, refused.found)
    assert refused.structure == "splitstream body"
    assert seen <= 1016 + inside // 512 + 1
    assert inside <= (16 << 20) + 1000 * len(body)


def test_zeros_are_read_however_many_and_a_writer_counts_as_the_reader_does() -> None:
    """Blocks of zeros do not count; one other byte in each makes all of them count."""
    for block, is_read in ((bytes(65536), True), (bytes(65535) + b"x", False)):
        writer = Writer(Algorithm.SHA512, splitstream.CONTENT_TYPE_LAYER)
        writer.add_inline(b"before")
        writer.add_external(ObjectId("ab" * 64), 100)
        writer.add_long_inline(600 << 16, [block[:1000], *[block[1000:] + block[:1000]] * 599, block[1000:]])
        body = framed(-6, b"before", 0, -(600 << 16), block * 600)
        stream = splitstream.parse(assembled(body, size=100 + 6 + (600 << 16)))
        if is_read:
            assert sum(len(part) for part in splitstream.chunks(writer.finish()) if isinstance(part, bytes)) == 6 + (600 << 16)
            splitstream.check_size(stream, [100])
        else:
            with pytest.raises(FormatError):
                writer.finish()
            with pytest.raises(FormatError):
                list(splitstream.chunks(stream))


@pytest.mark.parametrize(
    ("parts", "size"),
    [
        ([item for n in range(50_000) for item in (-512, b"%0512d" % n, 0)], 50_000 * 512 + 1),  # many copies of one file
        ([0] * 1008, 1),  # copies without anything between them
        ([-(10 << 20), bytes(10 << 20)], 10 << 20),  # what fills up the end of an archive
        ([item for n in range(20_000) for item in (-512, b"%0512d" % n)], 20_000 * 512),  # directories alone
    ],
    ids=["copies", "bare copies", "zeros", "directories"],
)
def test_what_layers_have_is_given_out(parts: list[int | bytes], size: int) -> None:
    stream = splitstream.parse(assembled(framed(*parts), size=size))

    found = list(splitstream.chunks(stream))

    assert sum(isinstance(part, ObjectId) for part in found) == parts.count(0)
    assert sum(len(part) for part in found if not isinstance(part, ObjectId)) == size - (parts.count(0) > 0)


def test_the_sizes_of_objects_are_counted_where_they_are_known() -> None:
    stream = splitstream.parse(assembled(framed(0, -1, b"a", 0), size=21))

    assert list(splitstream.chunks(stream)) == [B, b"a", B]
    splitstream.check_size(stream, [10])
    with pytest.raises(FormatError, match="21 bytes in all, found 23"):
        splitstream.check_size(stream, [11])


def test_a_long_inline_chunk_comes_in_pieces() -> None:
    content = random_bytes("inline", 3 * splitstream.PIECE_SIZE) + bytes(5_000_000)
    stream = splitstream.parse(assembled(framed(-len(content), content, 0), size=len(content) + 1))

    pieces = list(splitstream.chunks(stream))

    assert pieces.pop() == B
    assert max(map(len, pieces)) <= splitstream.PIECE_SIZE
    assert b"".join(piece for piece in pieces if isinstance(piece, bytes)) == content
    splitstream.check_size(stream, [1])


@pytest.mark.parametrize(
    ("body", "objects"),
    [
        (framed(), 1),
        (framed(-1, b"a"), 1),
        (framed(0, 0), 1),
        (framed(0, -1, b"a"), 1),
        (framed(-1, b"a", 0), 1),
        (framed(0), 0),
        (framed(0), 2),
    ],
)
def test_a_manifest_stream_is_exactly_one_object(body: bytes, objects: int) -> None:
    with pytest.raises(FormatError):
        splitstream.sole_object(assembled(body, size=1, objects=b"\xbb" * 32 * objects))


def test_the_one_object_is_found_however_the_body_is_compressed() -> None:
    raw_block = bytes.fromhex("28b52ffd 20 08 410000 0000000000000000")

    assert splitstream.sole_object(assembled(framed(0), size=1)) == B
    assert splitstream.sole_object(assembled(raw_block, size=1)) == B


# -- writing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", Algorithm)
def test_what_is_written_is_read_back(algorithm: Algorithm) -> None:
    first, second, third = (ObjectId(digit * algorithm.hex_length) for digit in "123")
    writer = Writer(algorithm, CONTENT_TYPE_LAYER)
    writer.add_named_ref("z", second)
    writer.add_named_ref("a", first)
    writer.add_named_ref("ü:x", second)
    writer.add_inline(b"head")
    writer.add_inline(memoryview(b"er"))
    writer.add_inline(b"")
    writer.add_external(third, 1000)
    writer.add_external(first, 10)
    writer.add_external(third, 1000)
    writer.add_inline(b"end")

    stream = splitstream.parse(writer.finish(), algorithm)

    assert stream.layout == "current"
    assert stream.content_type == CONTENT_TYPE_LAYER
    assert stream.stream_size == 2019
    assert stream.stream_refs == (second, first)
    assert list(stream.named_refs.items()) == [("a", first), ("z", second), ("ü:x", second)]
    assert stream.object_refs == (third, first)
    assert list(splitstream.chunks(stream)) == [b"header", third, first, third, b"end"]


def test_the_last_of_equal_names_counts() -> None:
    writer = Writer(SHA256, 0)
    writer.add_named_ref("x", A)
    writer.add_named_ref("x", B)

    stream = splitstream.parse(writer.finish())

    assert (stream.named_refs, stream.stream_refs) == ({"x": B}, (A, B))


def test_what_cannot_be_written_is_refused() -> None:
    writer = Writer(SHA256, 0)

    for name in ("a\0b", "\udcff"):
        with raises("invalid-argument", match="cannot be written"):
            writer.add_named_ref(name, A)
    with raises("invalid-argument", match="not a sha256 digest"):
        writer.add_external(ObjectId("c" * 128), 1)
    with raises("invalid-argument", match="not a sha256 digest"):
        writer.add_named_ref("x", ObjectId("c" * 128))


def rewritten(stream: SplitStream, sizes: dict[str, int]) -> bytes:
    """The stream once more, through the reader and the writer."""
    splitstream.check_size(stream, [sizes[digest] for digest in stream.object_refs])
    writer = Writer(stream.algorithm, stream.content_type)
    order = stream.stream_refs
    for name, digest in sorted(stream.named_refs.items(), key=lambda item: order.index(item[1])):
        writer.add_named_ref(name, digest)
    for chunk in splitstream.chunks(stream):
        if isinstance(chunk, ObjectId):
            writer.add_external(chunk, sizes[chunk])
        else:
            writer.add_inline(chunk)
    return writer.finish()


def assert_written_alike(content: bytes, algorithm: Algorithm, sizes: dict[str, int]) -> SplitStream:
    """The file and what we make of it are equal up to compression, and to the last byte with the same libzstd."""
    stream = splitstream.parse(content, algorithm)
    again = rewritten(stream, sizes)
    ours = splitstream.parse(again, algorithm)
    names = len(content) - len(stream.body) - 112 - len(stream.raw_stream_refs) - len(stream.raw_object_refs)
    tables = len(content) - len(stream.body) - names
    assert again[:64] == content[:64]
    assert again[96:tables] == content[96:tables]
    assert list(ours.named_refs.items()) == list(stream.named_refs.items())
    if splitstream.zstd_library().zstd_version_info == (1, 5, 7):
        assert again == content
    return stream


def streams_of(objects: dict[str, bytes]) -> Iterator[bytes]:
    return (content for content in objects.values() if content.startswith(b"SplitStream"))


def test_streams_of_recorded_hosts_are_written_alike(hosts: Path) -> None:
    kinds = set()
    for objects in objects_of_hosts(hosts):
        sizes = {name: len(content) for name, content in objects.items()}
        for content in streams_of(objects):
            stream = splitstream.parse(content)
            if set(stream.object_refs) <= set(sizes):
                assert_written_alike(content, SHA512, sizes)
                kinds.add(stream.content_type)
    assert kinds == {CONTENT_TYPE_MANIFEST, CONTENT_TYPE_CONFIG, CONTENT_TYPE_LAYER}


@pytest.mark.parametrize("algorithm", Algorithm)
def test_streams_of_cfsctl_are_written_alike(cfsctl: Cfsctl, new_repo: Any, tmp_path: Path, algorithm: Algorithm) -> None:
    repo = new_repo(algorithm=algorithm.value)
    twice = random_bytes("twice", 3000)
    files = [file(f"usr/small-{n}", random_bytes(f"{n}", n % 65)) for n in range(600)]
    files += [file("usr/one", twice), *(file(f"usr/{n}", random_bytes(f"b{n}", 100 + n)) for n in range(50))]
    files += [file("usr/two", twice), file("usr/empty")]
    image = build_image(tmp_path / "layout", "many", [Layer([directory("usr"), *files]), Layer([directory("usr")])])
    pull_image(cfsctl, repo, image)
    pull_image(cfsctl, repo, host_image(tmp_path / "layout", "1"), bootable=True)

    objects = {path.parent.name + path.name: path.read_bytes() for path in (repo / "objects").glob("??/*")}
    sizes = {name: len(content) for name, content in objects.items()}
    streams = [assert_written_alike(content, algorithm, sizes) for content in streams_of(objects)]

    layers = [stream for stream in streams if stream.content_type == CONTENT_TYPE_LAYER]
    assert any(len(stream.object_refs) == 51 and stream.stream_size > 500_000 for stream in layers)
    assert {"composefs.image.v1", "composefs.image.boot.v1"} <= {name for s in streams for name in s.named_refs}
    assert {splitstream.sole_object(s) for s in streams if s.content_type == CONTENT_TYPE_MANIFEST} <= set(objects)


def test_cfsctl_reads_what_is_written_and_finds_it_whole(cfsctl: Cfsctl, new_repo: Any, tmp_path: Path) -> None:
    """A layer stream of ours in the place of cfsctl's gives the same tar, and the repository checks out."""
    from cfs_tags.formats.fsverity import measure

    repo: Path = new_repo()
    layer = Layer([directory("usr"), file("usr/x", random_bytes("x", 70_000)), file("usr/s", b"small")])
    pull_image(cfsctl, repo, build_image(tmp_path / "layout", "app", [layer]), "app")
    link = next((repo / "streams").glob("oci-layer-*"))
    objects = repo / "objects"

    def size_of(digest: str) -> int:
        return (objects / digest[:2] / digest[2:]).stat().st_size

    stream = splitstream.parse(link.read_bytes())
    writer = Writer(SHA512, stream.content_type)
    for chunk in splitstream.chunks(stream):
        if isinstance(chunk, ObjectId):
            writer.add_external(chunk, size_of(chunk))
        else:
            writer.add_inline(chunk)
    # one more name makes it another object than cfsctl's, whatever the compression
    writer.add_named_ref("note", stream.object_refs[0])
    content = writer.finish()
    digest = measure(content, SHA512)
    target = objects / digest[:2] / digest[2:]
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(content)
    link.unlink()
    link.symlink_to(f"../objects/{digest[:2]}/{digest[2:]}")

    assert cfsctl(repo, "cat", link.name).stdout.encode("utf-8", "surrogateescape") == layer.tar
    cfsctl(repo, "fsck")


@pytest.mark.parametrize("header", [HEADER, OLD_HEADER])
def test_cfsctl_reads_the_same_from_both_headers(cfsctl: Cfsctl, new_repo: Any, header: str) -> None:
    repo: Path = new_repo(algorithm="sha256")
    # an insecure repository does not measure what it opens, so any names will do
    for digest, content in ((B, b"x" * 996), (A, unhex(header + REST))):
        path = repo / "objects" / digest[:2] / digest[2:]
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    (repo / "streams").mkdir(exist_ok=True)
    (repo / "streams" / "by-hand").symlink_to(f"../objects/{A[:2]}/{A[2:]}")

    assert cfsctl(repo, "cat", "by-hand").stdout == "text" + "x" * 996


def test_each_object_has_one_number_however_many_there_are_and_however_alike() -> None:
    alike = [ObjectId("ab" * 8 + f"{n:0112x}") for n in range(600)]
    others = [ObjectId(hashlib.sha512(b"%d" % n).hexdigest()) for n in range(3000)]
    writer = splitwriter.Writer(Algorithm.SHA512, splitstream.CONTENT_TYPE_LAYER)
    for object_id in (*alike, *others, *reversed(alike), *others):
        writer.add_external(object_id, 1)
    stream = splitstream.parse(writer.finish())
    assert list(stream.object_refs) == [*alike, *others]
    assert list(splitstream.chunks(stream)) == [*alike, *others, *reversed(alike), *others]
