"""Opening a repository: what is one, who may write to it, and that reading leaves no trace."""

from __future__ import annotations

import ast
import errno
import inspect
import json
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cfs_tags import Repository
from cfs_tags.errors import CfsTagsError, FormatError, MissingObject, NotALink, RepositoryNotFound, SystemFailure
from cfs_tags.repo import directory as directory_module
from cfs_tags.repo import images, reflog, refs
from cfs_tags.repo import store as store_module
from cfs_tags.repo.object_store import ObjectStore
from cfs_tags.repo.store import ReadRepo, WriteRepo
from cfs_tags.repo.transaction import run
from cfs_tags.tags import edit, history, instructions
from cfs_tags.tags.names import resolve
from cfs_tags.tags.rows import expiry, facts, find, list_tags, referrers, trash
from cfs_tags.values import OWNERS, Algorithm, ContentId, Digest, ObjectId
from support import stock, tagging
from support.interrupt import count_calls
from support.peers import Cfsctl
from support.stock import digest_of, fill, make_tag
from support.trees import copy_tree, tree

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def change_meta(repo: Path, **changes: object) -> None:
    path = repo / "meta.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def caught(function: Callable[[], object]) -> CfsTagsError:
    with pytest.raises(CfsTagsError) as found:
        function()
    return found.value


# -- what is a repository ----------------------------------------------------------------------------------------------


def test_nothing_is_no_repository(tmp_path: Path) -> None:
    error = caught(lambda: Repository.open(tmp_path / "absent"))

    assert isinstance(error, RepositoryNotFound)
    assert (error.code, error.status, error.reason) == ("repository-not-found", 3, "nothing is there")


def test_a_file_is_no_repository(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    error = caught(lambda: Repository.open(tmp_path / "file"))

    assert (error.code, error.facts()["reason"]) == ("repository-not-found", "it is not a directory")


def test_a_directory_with_something_else_in_it_is_no_repository(tmp_path: Path) -> None:
    (tmp_path / "streams").mkdir()

    error = caught(lambda: Repository.open(tmp_path))

    assert (error.code, error.status) == ("repository-not-found", 3)
    assert "neither meta.json nor objects/" in str(error)


def test_without_meta_and_without_any_object_nothing_tells_the_algorithm(new_repo) -> None:  # type: ignore[no-untyped-def]
    error = caught(lambda: Repository.open(new_repo(meta=False)))

    assert error.code == "repository-not-found"
    assert "algorithm" in str(error)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_the_algorithm_is_that_of_meta_json(new_repo, algorithm: str) -> None:  # type: ignore[no-untyped-def]
    with Repository.open(new_repo(algorithm=algorithm)) as mine:
        assert mine.algorithm is Algorithm(algorithm)
        assert mine.meta is not None


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_without_meta_json_the_algorithm_is_that_of_the_objects(filled_repo, algorithm: str) -> None:  # type: ignore[no-untyped-def]
    path = filled_repo("stock", fill, algorithm=algorithm)
    (path / "meta.json").unlink()

    with Repository.open(path) as mine:
        assert mine.algorithm is Algorithm(algorithm)
        assert mine.meta is None
        assert resolve(mine, "held/one") == digest_of(path, "one")


def test_without_meta_json_tags_are_written_and_meta_json_stays_absent(stocked: Path, cfsctl: Cfsctl) -> None:
    (stocked / "meta.json").unlink()

    with Repository.open(stocked, write=True) as mine:
        tagging.create(mine, "app", f"@{digest_of(stocked, 'one')}")

    assert not (stocked / "meta.json").exists()
    assert cfsctl.tags(stocked)["app"] == digest_of(stocked, "one")


def test_a_version_from_the_future_is_refused(repo: Path) -> None:
    change_meta(repo, version=2)

    error = caught(lambda: Repository.open(repo))

    assert error.code == "unsupported-version"
    assert (error.code, error.status, error.found) == ("unsupported-version", 7, "2")


def test_an_incompatible_feature_from_the_future_is_refused(repo: Path) -> None:
    change_meta(repo, features={"incompatible": ["encrypted"]})

    error = caught(lambda: Repository.open(repo))

    assert error.code == "unsupported-feature"
    assert (error.code, error.status, error.features) == ("unsupported-feature", 7, ("encrypted",))


def test_an_unknown_read_only_compatible_feature_lets_read_and_not_write(stocked: Path) -> None:
    change_meta(stocked, features={"read-only-compatible": ["v1_erofs", "v9_erofs"]})
    before = tree(stocked)

    with Repository.open(stocked) as mine:
        assert len(list_tags(mine)) == 4
    error = caught(lambda: Repository.open(stocked, write=True))

    assert error.code == "read-only-repository"
    assert (error.code, error.status) == ("read-only-repository", 4)
    assert "v9_erofs" in error.reason
    assert tree(stocked) == before


def test_an_algorithm_from_the_future_is_refused(repo: Path) -> None:
    change_meta(repo, algorithm="fsverity-blake3-12")

    assert caught(lambda: Repository.open(repo)).status == 7


def test_a_malformed_meta_json_is_damage_at_its_path(repo: Path) -> None:
    (repo / "meta.json").write_bytes(b'{"version": 1')

    error = caught(lambda: Repository.open(repo))

    assert isinstance(error, FormatError)
    assert (error.code, error.status, error.path) == ("malformed", 6, f"{repo}/meta.json")


@pytest.mark.parametrize("kind", ["link", "pipe", "directory", "huge"])
def test_a_meta_json_that_is_no_small_file_is_damage_and_blocks_no_reader(repo: Path, kind: str) -> None:
    path = repo / "meta.json"
    if kind == "link":
        path.rename(repo.parent / "meta.json")
        path.symlink_to("../meta.json")
    elif kind == "pipe":
        path.unlink()
        os.mkfifo(path)
    elif kind == "directory":
        path.unlink()
        path.mkdir()
    else:
        with path.open("ab") as file:
            file.truncate(1 << 40)

    error = caught(lambda: Repository.open(repo))

    assert (error.code, error.facts()["path"]) == ("malformed", str(path))


@pytest.mark.parametrize("name", ["objects", "streams", "images", "cfs-tags", "streams/refs", "images/refs"])
@pytest.mark.parametrize("write", [False, True])
def test_a_part_of_the_repository_that_is_a_link_leading_away_is_refused(stocked: Path, name: str, write: bool) -> None:
    away = stocked.parent / "away"
    part = stocked / name
    if part.exists():
        part.rename(away)
    else:
        away.mkdir()
    part.symlink_to(away)
    before = tree(away), tree(stocked)

    error = caught(lambda: Repository.open(stocked, write=write))  # type: ignore[call-overload]

    assert isinstance(error, FormatError)
    assert (error.status, error.path, error.found) == (6, f"{stocked}/{name}", "a link")
    assert (tree(away), tree(stocked)) == before


@pytest.mark.parametrize("act", ["move", "delete", "create"])
@pytest.mark.parametrize(
    ("name", "home"),
    [
        *((f"cfs-tags/{name}", "shared") for name in ("tmp", "journal", "reflog")),
        ("streams/refs/oci", "shared"),
        ("streams/refs/cfs-tags", "private"),
        ("streams/refs/cfs-tags/tags", "private"),
    ],
)
def test_a_deeper_directory_that_is_a_link_leading_away_is_not_written_through(
    stocked: Path, name: str, home: str, act: str
) -> None:
    one, two = digest_of(stocked, "one"), digest_of(stocked, "two")
    with Repository.open(stocked, write=True) as mine:
        tagging.create(mine, "app", f"@{one}", home=home)
    away = stocked.parent / "away"
    (stocked / name).rename(away)
    (stocked / name).symlink_to(away)
    before = tree(away)

    with Repository.open(stocked, write=True) as mine:
        error = caught(
            lambda: (
                tagging.delete(mine, ["app"])
                if act == "delete"
                else tagging.create(mine, "app" if act == "move" else "new", f"@{two}", force=True, home=home)
            )
        )

    assert error.status == 6
    assert tree(away) == before


def test_a_path_with_a_directory_where_a_link_should_be_is_damage(stocked: Path) -> None:
    content_id = ContentId.manifest(Digest.parse(digest_of(stocked, "one")))
    (stocked / "streams" / content_id).unlink()
    (stocked / "streams" / content_id).mkdir()

    with Repository.open(stocked) as mine:
        error = caught(lambda: mine.stream_object(content_id))

    assert isinstance(error, NotALink)
    assert (error.code, error.status, error.found) == ("not-a-link", 6, "a directory")


@pytest.mark.parametrize(
    "target",
    [
        "/etc/passwd",
        "../objects/ab/cd",
        "../../objects/ab/" + "0" * 126,
        "../objects/ab/" + "0" * 62,
        "../objects/AB/" + "0" * 126,
        "../objects/ab/" + "0" * 125 + "/",
    ],
)
def test_a_stream_link_that_leads_to_no_object_is_damage(stocked: Path, target: str) -> None:
    content_id = ContentId.manifest(Digest.parse(digest_of(stocked, "one")))
    (stocked / "streams" / content_id).unlink()
    (stocked / "streams" / content_id).symlink_to(target)

    with Repository.open(stocked) as mine:
        error = caught(lambda: mine.stream_object(content_id))

    assert isinstance(error, FormatError)
    assert (error.status, error.found) == (6, target)


# -- objects -----------------------------------------------------------------------------------------------------------


def test_an_absent_object_says_who_needs_it(repo: Path) -> None:
    absent = ObjectId.parse("ab" * 64)
    with Repository.open(repo) as mine:
        assert not mine.has_object(absent)
        error = caught(lambda: mine.read_object(absent, 100, "manifest x"))

    assert isinstance(error, MissingObject)
    assert (error.code, error.status, error.object, error.needed_by) == ("missing-object", 6, absent, "manifest x")


@pytest.mark.parametrize("kind", ["pipe", "directory", "link"])
def test_an_object_that_is_no_file_is_damage_and_blocks_no_reader(repo: Path, kind: str) -> None:
    object_id = ObjectId.parse("ab" * 64)
    path = repo / "objects" / "ab" / object_id[2:]
    path.parent.mkdir(parents=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("/etc/passwd")

    with Repository.open(repo) as mine:
        assert not mine.has_object(object_id)
        assert caught(lambda: mine.read_object(object_id, 100, "x")).code == "malformed"
        assert caught(lambda: mine.open_object(object_id, "x")).code == "malformed"


def test_each_directory_of_objects_is_opened_once_and_none_stays_open(repo: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with Repository.open(repo, write=True) as mine:
        made = [ObjectStore(mine).add(b"%d" % number) for number in range(2000)]
        assert all(mine.has_object(one) for one in made)
        assert len(os.listdir("/proc/self/fd")) <= before + 2 + 256
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_object_larger_than_was_allowed_is_not_read(repo: Path) -> None:
    with Repository.open(repo, write=True) as mine:
        object_id = ObjectStore(mine).add(b"x" * 101)
        error = caught(lambda: mine.read_object(object_id, 100, "x"))
        assert mine.read_object(object_id, 101, "x") == b"x" * 101

    assert (error.code, error.facts()["wanted"], error.facts()["found"]) == ("malformed", "at most 100 bytes", "101 bytes")


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("size", [0, 1, 64, 4096, 4097, 3_000_000])
def test_an_object_that_we_add_has_the_name_that_cfsctl_measures(  # type: ignore[no-untyped-def]
    new_repo, cfsctl: Cfsctl, algorithm: str, size: int
) -> None:
    path = new_repo(algorithm=algorithm)
    with Repository.open(path, write=True) as mine:
        object_id = ObjectStore(mine).add(b"\xa5" * size)
        assert ObjectStore(mine).add(b"\xa5" * size) == object_id
        assert mine.read_object(object_id, size, "x") == b"\xa5" * size

    assert "objects: 1/1 ok" in cfsctl(path, "fsck").stdout


def test_an_object_is_named_only_when_it_is_whole(repo: Path) -> None:
    with Repository.open(repo, write=True) as mine, stock.before_call("write", _no_space):
        assert caught(lambda: ObjectStore(mine).add(b"x" * 100)).code == "system-failure"

    assert [name for name, node in tree(repo).items() if node.kind == "file"] == ["meta.json"]


def _no_space() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# -- reading leaves no trace -------------------------------------------------------------------------------------------


def trace(path: Path) -> dict[str, tuple[int, ...]]:
    """Everything that a write would change: inode, link count, mode, owner, size, time of change of every entry."""
    found: dict[str, tuple[int, ...]] = {}
    for parent, directories, files in os.walk(path):
        for name in [".", *directories, *files]:
            status = os.lstat(os.path.join(parent, name))
            found[os.path.join(parent, name)] = (
                *(status.st_ino, status.st_nlink, status.st_mode, status.st_uid, status.st_gid, status.st_size),
                *(status.st_mtime_ns, status.st_ctime_ns),
            )
    return found


def read_everything(path: Path) -> None:
    digest = Digest.parse(digest_of(path, "one"))
    with Repository.open(path) as mine:
        rows = list_tags(mine, owners=OWNERS)
        assert rows
        trash(mine)
        for row in rows:
            find(mine, row.name)
        for text in ("held/one", f"@{digest}", digest, f"@{digest[:20]}", "held/one@{0}"):
            assert resolve(mine, text) == digest
        history.log(mine, "held/one")
        referrers(mine, digest)
        facts(images.load(mine, digest))
        images.raw_manifest(mine, digest)
        images.raw_config(mine, digest)
        assert images.missing_parts(mine, digest) == ()
        reflog.all_entries(mine)
        list(refs.walk(mine, "streams/refs"))
        with mine.locked("shared"):
            assert mine.is_bootc is False
        plan = edit.plan(mine, [instructions.Instruction("create", "new", f"@{digest}")])
        assert plan.changes
        assert edit.plan_rename(mine, "held/one", "other").changes
        assert not Path(path, "new").exists()


@pytest.mark.parametrize("meta", [True, False])
@pytest.mark.parametrize("used", [True, False])
def test_reading_and_planning_change_nothing_at_all(stocked: Path, meta: bool, used: bool) -> None:
    if used:
        with Repository.open(stocked, write=True) as mine:
            tagging.create(mine, "app", f"@{digest_of(stocked, 'two')}")
            tagging.delete(mine, ["app"], expires=expiry(60))
    if not meta:
        (stocked / "meta.json").unlink()
    before = trace(stocked)

    with count_calls() as calls:
        read_everything(stocked)

    assert calls.names == []
    assert trace(stocked) == before


def test_a_repository_that_is_read_has_no_method_that_changes_it() -> None:
    for module, name in ((store_module, "ReadRepo"), (directory_module, "Directory")):
        code = ast.parse(inspect.getsource(module))
        [found] = [node for node in code.body if isinstance(node, ast.ClassDef) and node.name == name]
        assert not [node for node in ast.walk(found) if isinstance(node, ast.Name) and node.id == "fsops"], name

    def public(kind: type) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_")}

    assert public(WriteRepo) - public(ReadRepo) == {"make_directories", "reload_meta", "set_aside"}


def test_a_repository_opened_for_reading_cannot_be_written(stocked: Path) -> None:
    with Repository.open(stocked) as mine, pytest.raises(AttributeError):
        tagging.create(mine, "app", f"@{digest_of(stocked, 'one')}")  # type: ignore[arg-type]
    assert not (stocked / "cfs-tags").exists()
    assert not isinstance(mine, WriteRepo)


def test_closing_twice_is_harmless(repo: Path) -> None:
    mine = Repository.open(repo)
    mine.close()
    mine.close()


# -- other users -------------------------------------------------------------------------------------------------------


@pytest.fixture
def reachable(stocked: Path) -> Iterator[Path]:
    """The same repository where every user can get at it."""
    home = Path(tempfile.mkdtemp())
    home.chmod(0o755)
    try:
        copy_tree(stocked, home / "composefs").chmod(0o755)
        yield home / "composefs"
    finally:
        shutil.rmtree(home)


NOBODY = 65534


def as_nobody(function: Callable[[], object]) -> dict[str, Any]:
    """Run ``function`` in a forked child of another user; its result, or code, status, hint and text of its error."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            said: dict[str, Any] = {"result": str(function())}
        except CfsTagsError as error:
            said = {"code": error.code, "status": error.status, "hint": error.hint, "text": str(error)}
        except BaseException as error:
            said = {"code": repr(error)}
        os.write(writing, json.dumps(said).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    found: dict[str, Any] = json.loads(text)
    return found


def write_app(path: Path, number: int = 1) -> str:
    names = ("one", "two", "three")
    with Repository.open(path, write=True) as mine:
        return tagging.create(mine, "app", f"@{digest_of(path, names[number - 1])}", force=True).done


@root_only
def test_without_permission_to_read_the_system_says_no(reachable: Path) -> None:
    reachable.chmod(0o700)

    said = as_nobody(lambda: Repository.open(reachable))

    assert (said["code"], said["status"]) == ("system-failure", 1)
    assert said["text"] == f"cannot open {reachable}: Permission denied"
    assert said["hint"] == "run it as the owner, or as root"


@root_only
def test_without_permission_to_write_reading_works_and_writing_changes_nothing(reachable: Path) -> None:
    before = tree(reachable)

    def read() -> int:
        with Repository.open(reachable) as mine:
            return len(list_tags(mine))

    said = as_nobody(lambda: write_app(reachable))

    assert as_nobody(read) == {"result": "4"}
    assert (said["code"], said["status"]) == ("system-failure", 1)
    assert said["text"].endswith("Permission denied")
    assert tree(reachable) == before


@root_only
def test_an_object_that_may_not_be_read_is_a_failure_of_the_system_not_damage(reachable: Path) -> None:
    with Repository.open(reachable) as mine:
        object_id = mine.stream_object(ContentId.manifest(Digest.parse(digest_of(reachable, "one"))))
    assert object_id is not None
    (reachable / "objects" / object_id[:2] / object_id[2:]).chmod(0)

    def read() -> object:
        with Repository.open(reachable) as mine:
            return images.load(mine, Digest.parse(digest_of(reachable, "one")))

    assert as_nobody(read)["code"] == "system-failure"


@root_only
def test_what_a_user_makes_in_a_repository_of_their_own_is_theirs(reachable: Path) -> None:
    """Root becomes that user: see ``tests/hostile``."""
    for path in [reachable, *reachable.rglob("*")]:
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)

    def work() -> list[str]:
        with Repository.open(reachable, write=True) as mine:
            write_app(reachable, 1)
            write_app(reachable, 2)
            tagging.create(mine, "own", f"@{digest_of(reachable, 'one')}", home="private")
            tagging.delete(mine, ["own"], expires=expiry(60))
            ObjectStore(mine).add_stream(ContentId("x"), b"not looked at")
            done = [tagging.create(mine, "app", f"@{digest_of(reachable, 'three')}", force=True).done]
            done += [tagging.restore(mine, "own").done, *(row.done for row in tagging.delete(mine, ["app", "own"]))]
            return done

    assert as_nobody(work) == {"result": "['moved', 'restored', 'deleted', 'deleted']"}
    ours = [path for path in reachable.rglob("*") if not path.is_symlink() and path.lstat().st_uid != NOBODY]
    assert ours == []


# -- mounts ------------------------------------------------------------------------------------------------------------


@contextmanager
def mounted(where: Path, *options: str) -> Iterator[Path]:
    """``mount OPTIONS where``; skips where this system does not let us."""
    where.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", *options, where], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")
    try:
        yield where
    finally:
        subprocess.run(["umount", where], check=True, timeout=60)


@root_only
def test_a_read_only_mount_is_read_and_refuses_to_be_written(stocked: Path, tmp_path: Path) -> None:
    with mounted(tmp_path / "ro", "--bind", str(stocked)) as where:
        subprocess.run(["mount", "-o", "remount,bind,ro", where], check=True, timeout=60)
        with Repository.open(where) as mine:
            assert len(list_tags(mine)) == 4
        error = caught(lambda: Repository.open(where, write=True))

    assert error.code == "read-only-repository"
    assert (error.code, error.status) == ("read-only-repository", 4)
    assert error.reason == "the file system is mounted read-only"


@root_only
def test_a_mount_that_becomes_read_only_while_open_refuses_too(stocked: Path, tmp_path: Path) -> None:
    digest = digest_of(stocked, "one")
    with mounted(tmp_path / "ro", "--bind", str(stocked)) as where, Repository.open(where, write=True) as mine:
        subprocess.run(["mount", "-o", "remount,bind,ro", where], check=True, timeout=60)
        assert caught(lambda: tagging.create(mine, "app", f"@{digest}")).code == "read-only-repository"


@contextmanager
def small_tmpfs(where: Path) -> Iterator[Path]:
    with mounted(where, "-t", "tmpfs", "-o", "size=4m,nr_inodes=400", "tmpfs"):
        yield where


@contextmanager
def small_ext4(where: Path) -> Iterator[Path]:
    image = where.parent / "disk.img"
    with image.open("wb") as file:
        file.truncate(8 << 20)
    # 1 KiB blocks and no reserve: full means full
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-b", "1024", "-m", "0", "-N", "400", image], check=True, timeout=60)
    with mounted(where, "-o", "loop", str(image)):
        yield where


def fill_disk(where: Path, inodes: bool) -> None:
    """Take every free block, or every free inode."""
    number = 0
    try:
        if inodes:
            while True:
                (where / f"filler{number}").touch()
                number += 1
        for size in (1 << 16, 1 << 10, 1):
            while True:
                try:
                    with (where / "filler").open("ab", buffering=0) as file:
                        file.write(b"x" * size)
                except OSError:
                    break
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
    assert os.statvfs(where).f_favail == 0 if inodes else os.statvfs(where).f_bavail == 0


OPERATIONS: dict[str, Callable[[WriteRepo, str, str], object]] = {
    "create": lambda repo, one, two: tagging.create(repo, "new", f"@{two}"),
    "move": lambda repo, one, two: tagging.create(repo, "old", f"@{two}", force=True),
    "home": lambda repo, one, two: tagging.create(repo, "old", f"@{one}", home="private"),
    "several": lambda repo, one, two: run.transact(
        repo,
        lambda: edit.plan(
            repo,
            [
                instructions.Instruction("move", "old", f"@{two}"),
                instructions.Instruction("delete", "gone"),
                *(instructions.Instruction("create", f"{'n' * 200}{number}", f"@{one}") for number in range(20)),
            ],
        ),
    ),
    "trash": lambda repo, one, two: tagging.delete(repo, ["old", "gone"], expires=expiry(60)),
}


@root_only
@pytest.mark.parametrize("disk", [small_tmpfs, small_ext4])
@pytest.mark.parametrize("what", ["blocks", "inodes"])
def test_on_a_full_disk_no_ref_changes_and_the_error_says_so(
    stocked: Path, tmp_path: Path, cfsctl: Cfsctl, disk: Any, what: str
) -> None:
    one, two = digest_of(stocked, "one"), digest_of(stocked, "two")
    failed = []
    with disk(tmp_path / "disk") as where:
        path = copy_tree(stocked, where / "composefs")
        make_tag(path, "old", one)
        make_tag(path, "gone", one)
        with Repository.open(path, write=True) as mine:  # the directories are there: what fails is the change itself
            tagging.create(mine, "private", f"@{one}", home="private")
        before = stock.refs(path)
        fill_disk(where, inodes=what == "inodes")
        for name, operation in OPERATIONS.items():
            found: list[SystemFailure] = []
            try:
                with Repository.open(path, write=True) as mine:
                    operation(mine, one, two)
            except SystemFailure as error:
                found.append(error)
            if not found:  # a tmpfs keeps short links in the inode
                before = stock.refs(path)
                continue
            failed.append(name)
            assert (found[0].errno, found[0].hint) == (errno.ENOSPC, "make room"), name
            assert stock.refs(path) == before, name
            assert stock.leftovers(path) == [], name
        cfsctl.assert_healthy(path)
        for filler in where.glob("filler*"):
            filler.unlink()
        with Repository.open(path, write=True) as mine:
            tagging.create(mine, "after", f"@{one}")
            assert history.log(mine, "private")[0].new == one
    assert failed, "the disk was not full"


@root_only
def test_an_object_or_stream_on_a_full_disk_is_not_named(stocked: Path, tmp_path: Path) -> None:
    with small_tmpfs(tmp_path / "disk") as where:
        path = copy_tree(stocked, where / "composefs")
        fill_disk(where, inodes=False)
        before = {name: node for name, node in tree(path).items() if node.kind != "dir"}
        with Repository.open(path, write=True) as mine:
            error = caught(lambda: ObjectStore(mine).add_stream(ContentId("x"), b"\xa5" * 100_000))
        assert (error.code, error.facts()["errno"]) == ("system-failure", errno.ENOSPC)
        assert {name: node for name, node in tree(path).items() if node.kind != "dir"} == before


# -- bootc -------------------------------------------------------------------------------------------------------------


def test_a_repository_beside_state_deploy_is_bootcs(repo: Path) -> None:
    with Repository.open(repo) as mine:
        assert not mine.is_bootc
        assert mine.sysroot is None
        (repo.parent / "state" / "deploy").mkdir(parents=True)
        assert mine.is_bootc
        assert mine.sysroot is not None
        assert os.path.samefile(mine.sysroot, repo.parent)


@pytest.mark.parametrize(
    "ref", [f"streams/refs/oci/localhost%2Fbootc-sha256:{'00' * 32}", f"images/refs/cfs-tags/deployments/{'00' * 64}"]
)
def test_seen_through_a_bind_mount_it_is_bootcs_by_its_refs(repo: Path, ref: str) -> None:
    others = ["localhost%2Fbootc-backup", "localhost%2Fapp", "docker:%2F%2Fquay.io%2Flocalhost%2Fbootc-sha256:00"]
    (repo / "streams/refs/oci").mkdir(parents=True)
    for name in others:
        (repo / "streams/refs/oci" / name).symlink_to("../../anything")
    with Repository.open(repo) as mine:
        assert not mine.is_bootc
        (repo / ref).parent.mkdir(parents=True, exist_ok=True)
        (repo / ref).symlink_to("../../anything")
        assert mine.is_bootc
        assert mine.sysroot is None


def test_a_repository_with_a_containers_storage_is_bootcs(repo: Path) -> None:
    (repo / "bootc").mkdir()
    with Repository.open(repo) as mine:
        assert mine.is_bootc


def test_modes_of_what_we_make_let_others_read(stocked: Path) -> None:
    write_app(stocked)
    for path in (stocked / "cfs-tags").rglob("*"):
        mode = stat.S_IMODE(path.lstat().st_mode)
        assert mode == (0o755 if path.is_dir() else 0o644), path


@pytest.mark.parametrize("link", ["state", "state/deploy"])
def test_deployments_behind_a_link_that_leads_nowhere_are_not_absent(repo: Path, link: str) -> None:
    """They may be on a disk that is not mounted: a collection would take the host for none."""
    place = repo.parent / link
    place.parent.mkdir(exist_ok=True)
    place.symlink_to("/nowhere")
    with Repository.open(repo) as mine:
        error = caught(lambda: mine.is_bootc)
        assert (error.code, error.facts()["errno"]) == ("system-failure", errno.ENOENT)


def test_a_link_in_the_place_of_state_that_leads_elsewhere_is_followed(repo: Path) -> None:
    (repo.parent / "elsewhere").mkdir()
    (repo.parent / "state").symlink_to("elsewhere")
    with Repository.open(repo) as mine:
        assert not mine.is_bootc
