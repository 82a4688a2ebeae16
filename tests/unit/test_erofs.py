"""EROFS images that the real cfsctl made, in every version and with both algorithms."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from cfs_tags.errors import FormatError
from cfs_tags.formats import erofs, erofstree
from cfs_tags.values import Algorithm
from support.images import Layer, build_image, directory, file, hardlink, pull, random_bytes, symlink
from support.peers import Cfsctl
from support.scanning import scanned_refs

OS_RELEASE = 'NAME="Fake"\nVERSION_ID=1\n'
LONG = "x" * 65


class Made(NamedTuple):
    """An image, and the repository that has it."""

    repo: Path
    name: str
    data: bytes
    algorithm: Algorithm
    version: int


def tree(root: Path) -> Path:
    """Small and large files, links of every kind, a directory of several blocks, deep directories."""
    lib = root / "usr/lib"
    (lib / "bootc/bound-images.d").mkdir(parents=True)
    (lib / "os-release").write_text(OS_RELEASE)
    (lib / "empty").write_text("")
    (lib / "inline").write_text("x" * 64)
    (lib / "outside").write_text(LONG)
    (lib / "copy").write_text(LONG)
    (lib / "hard").hardlink_to(lib / "outside")
    (lib / "large").write_bytes(random_bytes("large", 20_000))
    (lib / "bootc/bound-images.d/app.image").write_text("[Image]\nImage=quay.io/apps/app:1\n")
    (root / "etc").mkdir()
    (root / "etc/os-release").symlink_to("../usr/lib/os-release")
    (root / "etc/absolute").symlink_to("/usr/lib/os-release")
    (root / "etc/above").symlink_to("../../../../usr/lib/outside")
    (root / "etc/long").symlink_to("/usr/lib/" + "./" * 900 + "os-release")
    (root / "etc/loop").symlink_to("loop")
    (root / "etc/there").symlink_to("back")
    (root / "etc/back").symlink_to("there")
    (root / "etc/nowhere").symlink_to("nothing")
    (root / "lib").symlink_to("usr/lib")
    many = root / "usr/many"
    many.mkdir()
    for number in range(400):
        (many / f"file with a name of some length {number}").write_text(f"{number:03}" * 40)
    (root / "/".join(["usr", *"abcdefgh" * 8])).mkdir(parents=True)
    return root


@pytest.fixture(scope="module")
def make_image(cfsctl: Cfsctl, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Algorithm, int], Made]:
    known: dict[tuple[Algorithm, int], Made] = {}
    root = tree(tmp_path_factory.mktemp("root"))

    def make(algorithm: Algorithm, version: int) -> Made:
        if (algorithm, version) not in known:
            repo = tmp_path_factory.mktemp("repo") / "composefs"
            flags = ["--insecure", "--algorithm", f"fsverity-{algorithm.value}-12", "--erofs-version", f"{version}"]
            cfsctl(None, "init", *flags, repo)
            name = cfsctl(repo, "create-image", "--no-propagate-usr-to-root", root).stdout.strip().partition(":")[2]
            data = (repo / "images" / name).read_bytes()
            known[algorithm, version] = Made(repo, name, data, algorithm, version)
        return known[algorithm, version]

    return make


@pytest.fixture(
    params=[(algorithm, version) for algorithm in Algorithm for version in (0, 1, 2)],
    ids=lambda param: f"{param[0].value}-v{param[1]}",
)
def made(make_image: Callable[[Algorithm, int], Made], request: pytest.FixtureRequest) -> Made:
    return make_image(*request.param)


def objects_by_cfsctl(cfsctl: Cfsctl, repo: Path, name: str) -> set[str]:
    lines = cfsctl(repo, "--no-upgrade", "image-objects", name).stdout.split()
    return {line.partition(":")[2] for line in lines}


# -- references --------------------------------------------------------------------------------------------------------


def test_exactly_the_objects_that_cfsctl_names_are_found(made: Made, cfsctl: Cfsctl) -> None:
    found = erofs.object_refs(made.data, made.algorithm)

    # 400 in one directory, "outside" and its copy as one, the large file
    assert len(found) == 402
    assert found == objects_by_cfsctl(cfsctl, made.repo, made.name)
    assert all((made.repo / "objects" / ref[:2] / ref[2:]).exists() for ref in found)


def test_the_scan_finds_the_same_in_images_that_composefs_makes(made: Made) -> None:
    assert scanned_refs(made.data, made.algorithm) == erofs.object_refs(made.data, made.algorithm)


@pytest.mark.parametrize("part", [4096, 8192, 40960])
def test_so_does_a_scan_in_parts_of_a_mapping(made: Made, monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    def refused(*_: object) -> Iterator[bytes]:
        raise AssertionError("that is for odd ones: it takes ten times as long")

    monkeypatch.setattr(erofs, "_PART", part)
    monkeypatch.setattr(erofs, "_each_redirect", refused)
    with (
        open(made.repo / "images" / made.name, "rb") as file_,
        mmap.mmap(file_.fileno(), 0, prot=mmap.PROT_READ) as mapped,
    ):
        assert scanned_refs(mapped, made.algorithm) == erofs.object_refs(made.data, made.algorithm)


def test_an_image_of_the_other_algorithm_has_no_objects(made: Made) -> None:
    other = Algorithm.SHA256 if made.algorithm is Algorithm.SHA512 else Algorithm.SHA512

    assert erofs.object_refs(made.data, other) == set()
    assert erofs.scan_object_refs(made.data, other) == b""


def test_an_image_may_be_mapped_and_the_mapping_closed_afterwards(made: Made) -> None:
    with (
        open(made.repo / "images" / made.name, "rb") as file_,
        mmap.mmap(file_.fileno(), 0, prot=mmap.PROT_READ) as mapped,
    ):
        erofs.check_image(mapped)
        exact = erofs.object_refs(mapped, made.algorithm)
        scanned = scanned_refs(mapped, made.algorithm)
        names = erofstree.listdir(mapped, "/usr/many")
        node = erofstree.read_path(mapped, "usr/lib/os-release")
        # a view that is still open would make the end of this block fail

    assert len(exact) == len(scanned) == 402
    assert names is not None
    assert len(names) == 400
    assert node is not None


def test_a_refused_image_keeps_no_hold_on_its_mapping(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "damaged"
    # every inode from the second block on is gone
    path.write_bytes(made.data[:4096] + b"\xff" * (len(made.data) - 4096))
    with open(path, "rb") as file_, mmap.mmap(file_.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        with pytest.raises(FormatError) as refused:
            erofs.object_refs(mapped, made.algorithm)
        mapped.close()

    assert refused.value.structure == "EROFS image"


def test_a_view_is_read_like_bytes(made: Made) -> None:
    view = memoryview(made.data)

    assert erofs.object_refs(view, made.algorithm) == erofs.object_refs(made.data, made.algorithm)
    assert erofs.scan_object_refs(view, made.algorithm) == erofs.scan_object_refs(made.data, made.algorithm)
    assert erofstree.listdir(view, "/etc") == erofstree.listdir(made.data, "/etc")


@pytest.mark.parametrize("host", ["a", "e", "life-staged", "w"])
def test_the_images_of_a_recorded_host_need_what_cfsctl_says(
    host: str, bootc_host: Callable[[str], Path], cfsctl: Cfsctl
) -> None:
    repo = bootc_host(host) / "composefs"
    names = [path.name for path in (repo / "images").iterdir() if path.name != "refs"]

    assert names
    for name in names:
        data = (repo / "images" / name).read_bytes()
        exact = erofs.object_refs(data, Algorithm.SHA512)
        assert exact == objects_by_cfsctl(cfsctl, repo, name)
        assert scanned_refs(data, Algorithm.SHA512) == exact


def test_the_images_of_a_pulled_container_need_what_cfsctl_says(cfsctl: Cfsctl, repo: Path, tmp_path: Path) -> None:
    # as in layers: the same content under two names, extended attributes, hard links, a file replaced from below
    big = random_bytes("big", 5000)
    shared = file("usr/bin/a", big, 0o755).with_xattrs(user__note=b"n" * 200, security__capability=b"c" * 20)
    layers = [
        Layer([directory("usr"), directory("usr/bin"), shared, file("usr/bin/b", big), file("usr/bin/c", b"1" * 70)]),
        Layer([hardlink("usr/bin/d", "usr/bin/a"), symlink("usr/bin/e", "a"), file("usr/bin/c", b"2" * 70)]),
    ]
    image = build_image(tmp_path / "layout", "app", layers)
    pull(cfsctl, repo, image.layout, image.ref, "quay.io/apps/app:1")
    plain, _ = cfsctl.images_of(repo, "quay.io/apps/app:1")
    assert plain is not None
    name = plain.rpartition(":")[2]

    data = (repo / "objects" / name[:2] / name[2:]).read_bytes()
    found = erofs.object_refs(data, Algorithm.SHA512)

    assert len(found) == 2
    assert found == objects_by_cfsctl(cfsctl, repo, name)
    assert scanned_refs(data, Algorithm.SHA512) == found


# -- files -------------------------------------------------------------------------------------------------------------


def test_small_files_are_read_out_of_the_image(made: Made) -> None:
    found = erofstree.read_path(made.data, "/usr/lib/os-release")

    assert found is not None
    assert (found.kind, found.size, found.content, found.object) == ("file", 25, OS_RELEASE.encode(), None)
    assert found.mode == 0o644


@pytest.mark.parametrize(("name", "size"), [("empty", 0), ("inline", 64)])
def test_files_of_up_to_64_bytes_are_in_the_image(made: Made, name: str, size: int) -> None:
    found = erofstree.read_path(made.data, f"usr/lib/{name}")

    assert found is not None
    assert found.content == b"x" * size
    assert found.object is None


@pytest.mark.parametrize(("name", "size"), [("outside", 65), ("copy", 65), ("hard", 65), ("large", 20_000)])
def test_larger_files_name_their_object(made: Made, name: str, size: int) -> None:
    found = erofstree.read_path(made.data, f"usr/lib/{name}")

    assert found is not None
    assert found.content is None
    assert found.size == size
    assert found.object is not None
    assert (made.repo / "objects" / found.object[:2] / found.object[2:]).stat().st_size == size


@pytest.mark.parametrize(
    "path",
    [
        "usr/lib/os-release",
        "//usr//lib/./os-release",
        "/etc/os-release",
        "/etc/absolute",
        "/lib/os-release",
        "/etc/long",
        "/etc/../lib/bootc/../os-release",
        "../../usr/lib/os-release",
    ],
)
def test_links_and_dots_are_followed_within_the_image(made: Made, path: str) -> None:
    found = erofstree.read_path(made.data, path)

    assert found is not None
    assert found.content == OS_RELEASE.encode()


def test_a_link_that_leads_above_the_root_stays_in_the_image(made: Made) -> None:
    assert erofstree.read_path(made.data, "/etc/above") == erofstree.read_path(made.data, "/usr/lib/outside")


def test_a_link_itself_is_read_on_demand(made: Made) -> None:
    found = erofstree.read_path(made.data, "/usr/../etc/os-release", follow=False)

    assert found is not None
    assert (found.kind, found.content) == ("symlink", b"../usr/lib/os-release")


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "/usr/nothing/more",
        "/usr/lib/os-release/more",
        "/usr/lib/os-release/",
        "/etc/nowhere",
        "/etc/loop",
        "/etc/there",
        "/etc/loop/more",
        "/" + "x" * 300,
        "/usr/lib/os\0release",
        "/usr/\udcff",
    ],
)
def test_what_is_not_there_is_none(made: Made, path: str) -> None:
    assert erofstree.read_path(made.data, path) is None
    assert erofstree.listdir(made.data, path) is None


def test_directories_list_their_sorted_names(made: Made) -> None:
    assert erofstree.listdir(made.data, "/usr/lib/bootc/bound-images.d") == ("app.image",)
    assert erofstree.listdir(made.data, "/usr/lib/bootc") == ("bound-images.d",)
    assert erofstree.listdir(made.data, "lib/bootc/bound-images.d/") == ("app.image",)
    many = erofstree.listdir(made.data, "/usr/many")
    assert many == tuple(sorted(f"file with a name of some length {number}" for number in range(400)))
    assert erofstree.listdir(made.data, "/" + "/".join(["usr", *"abcdefgh" * 8])) == ()


def test_whiteouts_are_no_files(made: Made) -> None:
    # versions 0 and 1 have 256 of them in the root, to hide the object directories below
    assert erofstree.listdir(made.data, "/") == ("etc", "lib", "usr")
    assert erofstree.read_path(made.data, "/00") is None


def test_a_directory_has_neither_content_nor_object(made: Made) -> None:
    found = erofstree.read_path(made.data, "/usr")

    assert found is not None
    assert (found.kind, found.content, found.object) == ("directory", None, None)


def test_a_file_is_no_directory(made: Made) -> None:
    assert erofstree.listdir(made.data, "/usr/lib/os-release") is None


# -- the superblock ----------------------------------------------------------------------------------------------------


def test_the_version_is_that_of_the_repository(made: Made) -> None:
    found = erofs.superblock(made.data)

    assert found.version == made.version
    assert found.inodes >= 400
    erofs.check_image(made.data)


def changed(data: bytes, offset: int, value: bytes) -> bytes:
    return data[:offset] + value + data[offset + len(value) :]


@pytest.mark.parametrize(
    ("offset", "value", "wanted", "found"),
    [
        (0, b"\0\0\0\0", "composefs magic d078629a", "00000000"),
        (4, struct.pack("<I", 2), "header version 1", "2"),
        (12, struct.pack("<I", 3), "composefs version 0, 1 or 2", "3"),
        (1024, b"\0\0\0\0", "EROFS magic e0f5e1e2", "00000000"),
        (1032, struct.pack("<I", 8), "no unknown compatible feature", "0x8"),
        (1036, b"\x0d", "blocks of 2^12 bytes", "2^13"),
        (1037, b"\x01", "no superblock extensions", "1"),
        (1064, struct.pack("<I", 1), "inodes from block 0 on", "1"),
        (1068, b"\xff\xff\xff\xff", "xattrs within the image", "4294967295"),
        (1104, struct.pack("<I", 2), "no feature but chunked files", "0x2"),
        (1108, b"\x01\0", "no compression", "1"),
        (1110, b"\x01\0", "no other devices", "1"),
        (1115, b"\x01", "no xattr prefixes", "1"),
        (1120, b"\x01", "no packed inode", "1"),
    ],
)
def test_what_composefs_would_not_read_is_refused_by_name(
    make_image: Callable[[Algorithm, int], Made], offset: int, value: bytes, wanted: str, found: str
) -> None:
    data = changed(make_image(Algorithm.SHA512, 1).data, offset, value)

    with pytest.raises(FormatError) as refused:
        erofs.check_image(data)

    assert (refused.value.offset, refused.value.wanted, refused.value.found) == (offset, wanted, found)


@pytest.mark.parametrize("size", [0, 1, 32, 1023, 1024, 1151])
def test_a_cut_off_superblock_is_refused(make_image: Callable[[Algorithm, int], Made], size: int) -> None:
    with pytest.raises(FormatError, match=f"found {size} bytes"):
        erofs.superblock(make_image(Algorithm.SHA512, 1).data[:size])


def test_a_root_that_is_no_directory_is_refused(make_image: Callable[[Algorithm, int], Made]) -> None:
    data = make_image(Algorithm.SHA512, 1).data
    root = erofs.superblock(data).root * 32

    with pytest.raises(FormatError, match="wanted the root directory"):
        erofs.check_image(changed(data, root + 4, struct.pack("<H", 0o100644)))


def test_an_image_cut_off_anywhere_is_refused_by_the_exact_walk(made: Made) -> None:
    # whatever is missing, something reachable lies in it, or it was padding
    whole = erofs.object_refs(made.data, made.algorithm)
    for size in range(1152, len(made.data), 4096):
        cut = made.data[:size]
        try:
            assert erofs.object_refs(cut, made.algorithm) == whole
        except FormatError:
            continue
