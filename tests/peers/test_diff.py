"""``diff`` beside the truth: images that umoci unpacks, and a plain walk over their files."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cfs_tags import Repository
from cfs_tags.diff import diff
from cfs_tags.formats import filetree, splitstream, tarlayer
from cfs_tags.repo import images
from cfs_tags.tags.names import resolve
from support.images import (
    Layer,
    block_device,
    build_image,
    char_device,
    directory,
    fifo,
    file,
    hardlink,
    opaque,
    pull,
    random_bytes,
    symlink,
    umoci_change,
    umoci_image,
    whiteout,
)
from support.importing import import_image

if TYPE_CHECKING:
    from collections.abc import Callable

    from cfs_tags.repo.store import ReadRepo
    from conftest import NewRepo
    from support.peers import Cfsctl

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners and devices need root")

Truth = dict[str, tuple[object, ...]]


def capability(bits: int) -> bytes:
    """An xattr as the system takes it: version 2, no flags, these capabilities (Linux, ``include/uapi/linux/capability.h``)."""
    return struct.pack("<5I", 0x02000000, bits, 0, 0, 0)


BASE = Layer(
    [
        *(directory(name) for name in ("usr", "usr/bin", "usr/lib", "usr/lib/old", "etc", "opt", "opt/gone")),
        file("usr/bin/tool", random_bytes("tool", 3000), 0o755),
        hardlink("usr/bin/alias", "usr/bin/tool"),
        file("usr/bin/suid", random_bytes("suid", 90), 0o4755),
        file("usr/lib/old/one", random_bytes("one", 700)),
        file("usr/lib/old/two", "two\n"),
        file("etc/small", "small\n"),
        file("etc/owned", random_bytes("owned", 100)).owned(1000, 1000),
        file("etc/marked", "marked\n").with_xattrs(security__capability=capability(1)),
        directory("run"),
        file("run/left-behind", "one\n"),
        symlink("etc/link", "small"),
        char_device("etc/tty", 5, 1),
        block_device("etc/disk", 259, 300),
        fifo("etc/pipe"),
        file("opt/gone/a", "a\n"),
        file("opt/gone/b", random_bytes("b", 5000)),
        file("opt/becomes-a-directory", "x\n"),
        directory("opt/becomes-a-file"),
        file("opt/becomes-a-file/inside", "x\n"),
        file("name with blanks and \x1b[31m", random_bytes("blanks", 70)),
    ]
)
CHANGES = Layer(
    [
        file("usr/bin/tool", random_bytes("tool 2", 3100), 0o755),
        file("usr/bin/suid", random_bytes("suid", 90), 0o755),
        directory("usr/lib/old", 0o700),
        # cfsctl 0.9.4 has it remove what comes before it in its own layer, too, which the specification excludes
        opaque("usr/lib/old"),
        file("usr/lib/old/three", "three\n"),
        file("etc/owned", random_bytes("owned", 100)).owned(0, 70000),
        file("etc/marked", "marked\n").with_xattrs(security__capability=capability(2)),
        file("run/left-behind", "two\n"),
        symlink("etc/link", "owned"),
        char_device("etc/tty", 5, 2),
        whiteout("etc/pipe"),
        whiteout("opt/gone"),
        directory("opt/becomes-a-directory"),
        file("opt/becomes-a-directory/inside", "y\n"),
        whiteout("opt/becomes-a-file"),
        file("opt/becomes-a-file", "y\n"),
        directory("usr/lib/modules"),
        directory("usr/lib/modules/6.12.1"),
        file("usr/lib/modules/6.12.1/vmlinuz", "kernel"),
        directory("usr/share"),
        file(f"usr/share/{'long' * 40}", "a name that needs a PAX header"),
    ]
)


def walked(root: Path) -> Truth:
    """Every file below a directory, as the system shows it; none in ``/run``, which composefs empties."""
    found: Truth = {}
    for parent, directories, names in os.walk(root):
        if Path(parent) == root / "run":
            continue
        for name in (*directories, *names):
            path = Path(parent, name)
            status = path.lstat()
            kind = stat.S_IFMT(status.st_mode)
            mode = 0 if stat.S_ISLNK(kind) else stat.S_IMODE(status.st_mode)
            content: object = None
            if stat.S_ISREG(kind):
                content = hashlib.sha256(path.read_bytes()).hexdigest()
            elif stat.S_ISLNK(kind):
                content = os.readlink(path)
            elif stat.S_ISCHR(kind) or stat.S_ISBLK(kind):
                content = status.st_rdev
            named = os.listxattr(path, follow_symlinks=False)
            xattrs = tuple((key, os.getxattr(path, key, follow_symlinks=False)) for key in sorted(named))
            found[str(path.relative_to(root))] = (kind, content, mode, (status.st_uid, status.st_gid), xattrs)
    return found


def true_changes(old: Truth, new: Truth) -> dict[str, tuple[str, ...]]:
    """What differs, by path: which parts, or whether it came or went."""
    names = ("kind", "content", "mode", "owner", "xattrs")
    found: dict[str, tuple[str, ...]] = {}
    for path in old.keys() | new.keys():
        if path not in old:
            found[path] = ("added",)
        elif path not in new:
            found[path] = ("removed",)
        elif old[path] != new[path]:
            found[path] = tuple(name for name, one, other in zip(names, old[path], new[path], strict=True) if one != other)
    return found


def told(repo: ReadRepo, old: str, new: str) -> dict[str, tuple[str, ...]]:
    found = diff(repo, old, new)
    return {
        change.path: ("added",) if change.old is None else ("removed",) if change.new is None else change.parts
        for change in found.files
    }


def of_kinds(changes: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Changes of which only the kind is told where the kind is another one."""
    return {path: ("kind",) if "kind" in parts else parts for path, parts in changes.items()}


@pytest.fixture
def unpacked(umoci: Path, tmp_path: Path) -> Callable[[Path, str], Truth]:
    def unpack(layout: Path, ref: str) -> Truth:
        target = tmp_path / f"unpacked-{ref}"
        subprocess.run([umoci, "unpack", "--image", f"{layout}:{ref}", target], check=True, capture_output=True, timeout=120)
        return walked(target / "rootfs")

    return unpack


@pytest.fixture
def handmade(tmp_path: Path) -> Path:
    layout = tmp_path / "layout"
    build_image(layout, "old", [BASE], labels={"org.opencontainers.image.version": "1", "gone": "x"})
    build_image(layout, "new", [BASE, CHANGES], labels={"org.opencontainers.image.version": "2"})
    return layout


def pulled(cfsctl: Cfsctl, repo: Path, layout: Path) -> Path:
    for ref in ("old", "new"):
        pull(cfsctl, repo, layout, ref, ref)
    return repo


def laid(repo: ReadRepo, name: str) -> filetree.Folder:
    """The files of an image from its layers."""
    root = filetree.Folder()
    for layer in images.load(repo, resolve(repo, name)).layers:
        assert layer.object is not None
        with repo.map(layer.object, "a layer") as data:
            stream = splitstream.parse(data)
            root.lay(tarlayer.contents(splitstream.chunks(stream)))
            stream.release()
    return root


@pytest.mark.parametrize("way", ["erofs", "layers"])
def test_files_differ_as_a_plain_walk_finds_them(
    way: str, cfsctl: Cfsctl, new_repo: NewRepo, handmade: Path, unpacked: Callable[[Path, str], Truth]
) -> None:
    truth = true_changes(unpacked(handmade, "old"), unpacked(handmade, "new"))
    with Repository.open(pulled(cfsctl, new_repo(), handmade)) as repo:
        if way == "erofs":
            changes = told(repo, "old", "new")
            assert diff(repo, "old", "new").old.files == "erofs"
        else:
            changes = {
                one.path: ("added",) if one.old is None else ("removed",) if one.new is None else one.parts
                for one in filetree.compare(laid(repo, "old"), laid(repo, "new"))
            }

    assert len(truth) > 20
    assert of_kinds(changes) == of_kinds(truth)


def test_layers_and_erofs_images_tell_the_same_files(cfsctl: Cfsctl, new_repo: NewRepo, handmade: Path) -> None:
    with Repository.open(pulled(cfsctl, new_repo(), handmade)) as repo:
        for name in ("old", "new"):
            (target,) = images.load(repo, resolve(repo, name)).erofs.values()
            with repo.map(target, name) as data:
                assert list(filetree.compare(filetree.of_erofs(data), laid(repo, name))) == []


def test_images_that_umoci_made_and_changed(
    umoci: Path, cfsctl: Cfsctl, new_repo: NewRepo, tmp_path: Path, unpacked: Callable[[Path, str], Truth]
) -> None:
    layout = tmp_path / "layout"

    def first(root: Path) -> None:
        (root / "usr/lib").mkdir(parents=True)
        for number in range(40):
            (root / f"usr/lib/file-{number}").write_bytes(random_bytes(f"{number}", 10 * number))

    def second(root: Path) -> None:
        (root / "usr/lib/file-1").unlink()
        (root / "usr/lib/file-20").write_bytes(random_bytes("other", 200))
        (root / "usr/lib/file-30").chmod(0o600)
        (root / "usr/lib/file-31").rename(root / "usr/lib/renamed")

    umoci_image(umoci, layout, "old", first, tmp_path / "first")
    subprocess.run([umoci, "tag", "--image", f"{layout}:old", "new"], check=True, timeout=60)
    umoci_change(umoci, layout, "new", second, tmp_path / "second")
    truth = true_changes(unpacked(layout, "old"), unpacked(layout, "new"))
    with Repository.open(pulled(cfsctl, new_repo(), layout)) as repo:
        changes = told(repo, "old", "new")

    files = {path: parts for path, parts in truth.items() if path != "usr/lib"}
    assert set(files) == {f"usr/lib/{name}" for name in ("file-1", "file-20", "file-30", "file-31", "renamed")}
    assert {path: parts for path, parts in changes.items() if path != "usr/lib"} == files


def test_images_without_an_erofs_image_are_read_from_their_layers(
    new_repo: NewRepo, tmp_path: Path, unpacked: Callable[[Path, str], Truth]
) -> None:
    layout = tmp_path / "layout"
    static = Layer([file("app", random_bytes("app", 2000), 0o755), file("gone", "x")])
    implied = file("implied/parents/of/a/file", random_bytes("implied", 66))
    build_image(layout, "old", [static])
    build_image(layout, "new", [static, Layer([whiteout("gone"), file("more", "y"), implied])])
    home = new_repo()
    for name in ("old", "new"):
        import_image(home, f"oci:{layout}:{name}", name)
    with Repository.open(home) as repo:
        found = diff(repo, "old", "new")

    assert found.old.files == "layers"
    truth = true_changes(unpacked(layout, "old"), unpacked(layout, "new"))
    assert {one.path: ("added",) if one.old is None else ("removed",) for one in found.files} == truth
    assert {"gone", "more", "implied", "implied/parents/of/a/file"} <= set(truth)


def test_layers_config_and_packages(cfsctl: Cfsctl, new_repo: NewRepo, handmade: Path) -> None:
    with Repository.open(pulled(cfsctl, new_repo(), handmade)) as repo:
        found = diff(repo, "old", "new")

    assert [(one.digest, one.where, one.size) for one in found.layers] == [
        (BASE.diff_id, "both", len(BASE.tar)),
        (CHANGES.diff_id, "new", len(CHANGES.tar)),
    ]
    assert {(one.key, one.old, one.new) for one in found.settings if one.field == "label"} == {
        ("gone", "x", None),
        ("org.opencontainers.image.version", "1", "2"),
    }
    assert [one._asdict() for one in found.packages] == [
        {"kind": "kernel", "name": "kernel", "change": "added", "old": None, "new": "6.12.1"}
    ]


def test_the_inspection_of_skopeo_says_the_same_of_labels(
    skopeo: Path, cfsctl: Cfsctl, new_repo: NewRepo, handmade: Path
) -> None:
    def inspected(ref: str) -> Any:
        said = subprocess.check_output([skopeo, "inspect", "--config", f"oci:{handmade}:{ref}"], timeout=60)
        return json.loads(said)["config"]

    old, new = inspected("old")["Labels"], inspected("new")["Labels"]
    with Repository.open(pulled(cfsctl, new_repo(), handmade)) as repo:
        found = {one.key: (one.old, one.new) for one in diff(repo, "old", "new").settings if one.field == "label"}

    assert found == {key: (old.get(key), new.get(key)) for key in old.keys() | new.keys() if old.get(key) != new.get(key)}
