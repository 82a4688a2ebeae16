"""What is fuzzed: every parser of bytes that others wrote, with the corpus that it starts from.

A target is given any bytes and returns, or raises one of the program's own errors; the work and the memory that it takes
are bounded by the bytes.  The corpora are files of real peers: repositories, boot directories and state directories that
bootc and cfsctl wrote (``tests/data/hosts``, ``examples``), and layouts.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from cfs_tags.apps import platforms
from cfs_tags.errors import CfsTagsError
from cfs_tags.formats import erofs, erofstree, erofswalk, filetree, oci, repometa, splitstream, tarlayer
from cfs_tags.formats.boot import origin, quadlet
from cfs_tags.formats.boot.bls import parse_boot_entry
from cfs_tags.formats.boot.cmdline import composefs_arguments, malformed_arguments, split_cmdline
from cfs_tags.formats.boot.grub import GrubMenu, parse_grub_environment, parse_grub_script
from cfs_tags.formats.boot.order import bootloader, compare_versions
from cfs_tags.formats.boot.uki import uki_cmdline
from cfs_tags.formats.splitwriter import Writer
from cfs_tags.repo import layout
from cfs_tags.repo.transaction.journal import Journal
from cfs_tags.tags.instructions import parse_instructions
from cfs_tags.values import Algorithm, Digest, ObjectId
from support.crafted_erofs import small_images
from support.images import base_layer, build_image, build_index
from support.sysroots import uki as make_uki

__all__ = ["TARGETS", "Target", "corpus", "run"]

ROOT = Path(__file__).parent.parent.parent
HOSTS = [*sorted((ROOT / "tests/data/hosts").glob("*.tar.gz")), ROOT / "examples/host.tar.gz"]
MOST = 64 << 20
"""Bytes of content that a target reads out: the bound is on what is read, not on what could be."""
DIGEST = Digest.parse("sha256:" + "0" * 64)


class Target(NamedTuple):
    """``of`` tells which files of a host, by path and first bytes, are what the function parses; ``made`` adds others.

    ``usual`` is how many bytes the inputs of most runs have: what can be reached in a format is reached in these.
    """

    function: Callable[[bytes], object]
    of: Callable[[str, bytes], bool] = lambda path, data: False
    made: Callable[[Path], Iterator[bytes]] = lambda work: iter(())
    usual: int = 1024


def run(target: Target, data: bytes) -> CfsTagsError | None:
    """Give the bytes to a target; the error that it refuses them with.  Anything else that it raises is a fault."""
    try:
        target.function(data)
    except CfsTagsError as refused:
        str(refused).encode()  # it can be shown, and kept as JSON
        json.dumps(refused.facts())
        return refused
    return None


# -- repositories ------------------------------------------------------------------------------------------------------


def _splitstream(data: bytes) -> None:
    """A stream whose arrays can be read at all is read in all ways, and they agree."""
    for algorithm in Algorithm:
        splitstream.salvage_refs(data, algorithm)
    splitstream.looks_like_one(data[:32])
    stream = splitstream.parse(data)
    streams, objects = splitstream.salvage_refs(data, stream.algorithm)
    assert bytes(stream.raw_stream_refs) in streams
    assert bytes(stream.raw_object_refs) in objects
    known, read = set(stream.object_refs), 0
    for part in splitstream.chunks(stream):
        if isinstance(part, ObjectId):
            assert part in known
        else:
            assert 0 < len(part) <= splitstream.PIECE_SIZE
            read += len(part)
            if read > MOST:
                break
    splitstream.sole_object(stream)


def _erofs(data: bytes) -> None:
    """What is found by walking is found by scanning, and the quick walk finds the same as the plain one."""
    erofs.check_image(data)
    for algorithm in Algorithm:
        exact = {str(one) for one in erofs.object_refs(data, algorithm)}
        quick = {str(one) for one in erofswalk.image_refs(data, algorithm)}
        assert exact <= quick, "the quick walk misses an object"
        raw = erofs.scan_object_refs(data, algorithm)
        scanned = {raw[at : at + algorithm.size].hex() for at in range(0, len(raw), algorithm.size)}
        assert exact <= scanned, "the scan misses an object"
    tree = erofstree.Tree(data)
    for path in ("/", "/usr/lib/os-release", "/usr/lib/bootc/bound-images.d", "/usr/large"):
        nid = tree.resolve(path, follow=True)
        if nid is not None:
            tree.node(nid)
    erofstree.listdir(data, "/boot")
    for count, _ in enumerate(erofstree.stored_files(data)):
        if count > 100_000:
            break
    root = filetree.of_erofs(data)
    assert next(filetree.compare(root, filetree.of_erofs(data)), None) is None, "an image differs from itself"
    for count, change in enumerate(filetree.compare(filetree.Folder(), root)):
        assert change.old is None
        if count > 100_000:
            break


class _Sink:
    """Counts what a tar is cut into, and keeps the parts as a stream has them."""

    def __init__(self) -> None:
        self.bytes = 0
        self.parts: list[bytes | ObjectId] = []

    def inline(self, data: memoryview) -> None:
        self.bytes += len(data)
        self.parts.append(bytes(data))

    def external(self, data: memoryview) -> None:
        self.bytes += len(data)
        self.end()

    def begin(self, size: int) -> None:
        assert size > 0

    def piece(self, data: memoryview) -> None:
        self.bytes += len(data)

    def end(self) -> None:
        self.parts.append(ObjectId(ID))


def _tar(data: bytes) -> None:
    """A tar that is taken is given to the sink byte for byte, in whatever pieces it comes; laid upon itself it is the same."""
    piece = 1 + len(data) % 5000
    sink = _Sink()
    tarlayer.split((data[at : at + piece] for at in range(0, len(data), piece)), sink)
    assert sink.bytes == len(data)
    once, twice = filetree.Folder(), filetree.Folder()
    for root in (once, twice, twice):
        root.lay(tarlayer.contents(iter(sink.parts)))
    changes = list(filetree.compare(once, twice))
    # what a whiteout takes of the lower layer may be what the layer says itself of the directory above
    assert not changes or b".wh." in data, "a layer laid upon itself is another"


def _journal(data: bytes) -> None:
    try:
        journal = Journal.parse(data)
    except ValueError:  # as it says
        return
    if journal is not None:
        assert Journal.parse(journal.to_bytes()) == journal


def _name(data: bytes) -> None:
    """A name that is taken is given back by its encoding."""
    text = data.decode("utf-8", "surrogateescape")
    decoded = layout.decode_name(text)
    layout.encode_name(decoded)


def _is_object(path: str, data: bytes) -> bool:
    return "composefs/objects/" in path


def _is_document(path: str, data: bytes) -> bool:
    return _is_object(path, data) and data[:1] == b"{"


def _streams(work: Path) -> Iterator[bytes]:
    for algorithm in Algorithm:
        writer = Writer(algorithm, splitstream.CONTENT_TYPE_LAYER)
        for number in range(3):
            writer.add_named_ref(f"sha256:{number}", ObjectId(f"{number}" * algorithm.hex_length))
            writer.add_inline(b"some inline bytes " * number)
            writer.add_external(ObjectId(f"{number}" * algorithm.hex_length), 100)
        yield writer.finish()


# -- images ------------------------------------------------------------------------------------------------------------


def _documents(work: Path) -> Iterator[bytes]:
    layout_home = work / "layout"
    images = {
        name: build_image(layout_home, name, [base_layer(name)], labels={"containers.bootc": "1"}, annotations={"a": "b"})
        for name in ("amd64", "arm64")
    }
    build_index(layout_home, "both", images)
    yield (layout_home / "index.json").read_bytes()
    for path in (layout_home / "blobs/sha256").iterdir():
        yield path.read_bytes()


def _json_documents(work: Path) -> Iterator[bytes]:
    return (data for data in _documents(work) if data.startswith(b"{"))


def _tars(work: Path) -> Iterator[bytes]:
    yield from (data for data in _documents(work) if b"ustar" in data[:512])
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        made = io.BytesIO()
        with tarfile.open(fileobj=made, mode="w", format=form) as archive:
            for name, content in (("a", b"x" * 100), ("d" * 130 + "/" + "n" * 120, b"y" * 700), ("ü" * 60, b"")):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            link = tarfile.TarInfo("link")
            link.type, link.linkname = tarfile.SYMTYPE, "t" * 200
            archive.addfile(link)
        yield made.getvalue()


# -- hosts -------------------------------------------------------------------------------------------------------------


def _grub(data: bytes) -> None:
    script = parse_grub_script(data)
    menu = GrubMenu((script,), {}, "/grub2", whole=True)
    for entry in menu.entries(script):
        assert entry.deployments is not None
    list(menu.sources(script))
    menu.expand_options(data[:200].decode("latin-1"))


def _origin(data: bytes) -> None:
    """A digest that is written into an origin is read back, and the rest stays."""
    before = origin.parse_origin(data)
    after = origin.parse_origin(origin.origin_with_manifest_digest(data, DIGEST))
    assert after.manifest_digest == DIGEST
    assert after.image == before.image


def _reference(data: bytes) -> None:
    origin.parse_image_reference(data.decode("utf-8", "replace"))


def _cmdline(data: bytes) -> None:
    split_cmdline(data)
    composefs_arguments(data)
    malformed_arguments(data)


def _uki(data: bytes) -> None:
    found = uki_cmdline(lambda offset, length: data[offset : offset + length], len(data))
    assert found is None or len(found) <= len(data) + len(data) // 40, "more than its bytes, and a line for each header"


def _versions(data: bytes) -> None:
    """An order: the other way round it is the other way round."""
    first, _, second = data.decode("utf-8", "replace").partition("\n")
    bootloader(first)
    assert compare_versions(first, second) == -compare_versions(second, first)
    assert compare_versions(first, first) == 0


def _words(*texts: str) -> Callable[[Path], Iterator[bytes]]:
    return lambda work: (text.encode() for text in texts)


ID = "6c19d984f340e9045b6e6c9f53d2cc13" * 4
GRUB_CONFIG = f"""
set default="0"
if [ -f ${{config_directory}}/user.cfg ]; then source ${{config_directory}}/user.cfg; fi
menuentry "Fake ${{v}}" --class os {{
\tinsmod fat
\tlinux /boot/vmlinuz root=UUID=1 rw composefs={ID} \\
\t  quiet
\tinitrd /boot/initrd
}}
menuentry 'UKI' {{ chainloader /EFI/Linux/bootc/bootc_composefs-{ID}.efi; }}
"""
CHANGE = ["streams/refs/oci/a", None, "../../oci-x", "create"]
JOURNAL = json.dumps({"transaction": "0123456789abcdef", "note": [None, "root"], "changes": [CHANGE], "links": [None]})


# -- the table ---------------------------------------------------------------------------------------------------------


def _instructions(data: bytes) -> None:
    list(parse_instructions(data.decode("utf-8", "surrogateescape").splitlines()))


def _platform(data: bytes) -> None:
    platforms.parse(data.decode("utf-8", "replace"))


TARGETS: dict[str, Target] = {
    "splitstream": Target(_splitstream, lambda path, data: _is_object(path, data) and b"SplitStream" in data[:32], _streams),
    "erofs": Target(
        _erofs,
        lambda path, data: _is_object(path, data) and data[1024:1028] == b"\xe2\xe1\xf5\xe0",
        lambda work: small_images(),
        usual=4096,
    ),
    "tar": Target(_tar, made=_tars, usual=8192),
    "meta": Target(repometa.parse, lambda path, data: path.endswith("meta.json")),
    "journal": Target(_journal, made=_words(JOURNAL)),
    "name": Target(_name, made=_words("quay.io%2Fapps%2Fapp:1", "a%25b", "%", "%2f")),
    "manifest": Target(oci.parse_manifest, _is_document, _json_documents),
    "index": Target(oci.parse_manifest_or_index, _is_document, _json_documents),
    "config": Target(oci.parse_config, _is_document, _json_documents),
    "origin": Target(_origin, lambda path, data: path.endswith(".origin")),
    "image reference": Target(
        _reference, made=_words("ostree-unverified-image:docker://quay.io/a/b:1", "ostree-remote-image:x:oci:/a:b")
    ),
    "imginfo": Target(origin.parse_imginfo, lambda path, data: path.endswith(".imginfo")),
    "staged": Target(origin.parse_staged, lambda path, data: path.endswith("staged-deployment")),
    "aboot record": Target(origin.parse_aboot_record, made=_words(f'{{"depl_id": "{ID}"}}')),
    "aboot slot": Target(origin.parse_aboot_slot, made=_words(ID, f"{ID}\n")),
    "boot entry": Target(parse_boot_entry, lambda path, data: path.endswith(".conf")),
    "grub": Target(_grub, made=_words(GRUB_CONFIG)),
    "grub environment": Target(
        parse_grub_environment, made=_words("# GRUB Environment Block\nsaved_entry=0\nboot_success=1\n" + "#" * 900)
    ),
    "command line": Target(
        _cmdline, made=_words(f'root=UUID=1 rw "a b=c" composefs=?{ID}', f"composefs.digest=v1-sha512-12:{ID}")
    ),
    "uki": Target(_uki, made=lambda work: iter([make_uki(f"root=UUID=1 composefs={ID}")])),
    "quadlet image": Target(
        lambda data: quadlet.bound_image("app.image", data), made=_words("# x\n[Image]\nImage=quay.io/a/b:1\n")
    ),
    "quadlet container": Target(
        lambda data: quadlet.bound_image("app.container", data), made=_words("[Container]\nImage = a:1 \\\n\nExec=run\n")
    ),
    "versions": Target(_versions, made=_words("41.20260101.0\n41.20260201.0", "systemd-boot 255.4\nGRUB 2.06")),
    "instructions": Target(_instructions, made=_words("create a b\nmove 'a b' c absent\n# x\ndelete a\nverify a absent\n")),
    "platform": Target(_platform, made=_words("linux/amd64", "linux/arm64/v8", "windows/amd64")),
}
"""Name to target; a parser that is new has its line here."""


def corpus(name: str, work: Path) -> list[bytes]:
    """What the fuzzer of a target starts from; ``work`` is an empty directory for what has to be made."""
    target = TARGETS[name]
    found = {data for path, data in _files_of_hosts() if target.of(path, data)}
    found |= set(target.made(work))
    assert found, f"{name} has no corpus"
    return sorted(found)


def _files_of_hosts() -> Iterator[tuple[str, bytes]]:
    for host in HOSTS:
        with tarfile.open(host) as archive:
            for member in archive:
                if member.isfile():
                    opened = archive.extractfile(member)
                    assert opened is not None
                    yield member.name, opened.read()
