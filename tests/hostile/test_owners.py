"""Who works in whose repository: the program becomes the owner, the library refuses, and neither writes where others can."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from cfs_tags import Repository
from cfs_tags.errors import CfsTagsError
from hostile.conftest import APP, USER, give, needs_root, run, run_alone
from support.sandbox import forked

pytestmark = needs_root

KNOWN = pwd.getpwuid(1)
"""A user whom the system knows: daemon, mostly."""


def refusal(repo: Path, *, write: bool) -> tuple[str, int] | None:
    try:
        Repository.open(repo, write=write).close()  # type: ignore[call-overload]
    except CfsTagsError as error:
        return error.code, error.status
    return None


def owners(repo: Path) -> set[int]:
    return {path.lstat().st_uid for path in (repo, *repo.rglob("*"))}


# -- the program ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("uid", [USER, KNOWN.pw_uid])
def test_root_becomes_the_owner_says_so_and_all_that_it_makes_is_the_owners(repo: Path, image: Path, uid: int) -> None:
    give(repo, uid)

    commands = "create b app", f"import oci:{image}:fresh c", "delete app", "gc --no-sysroot", "fsck"
    for words in (command.split() for command in commands):
        result = run("--repo", repo, *words)
        assert result.status == 0, result
        assert f"belongs to user {uid}" in result.err or f"({uid})" in result.err

    assert owners(repo) == {uid}


def test_reading_too_is_done_as_the_owner(repo: Path) -> None:
    """So that an object that is a second name of a file that only root may read cannot be read through root."""
    secret = repo.parent.parent / "secret"
    secret.write_bytes(b"root's")
    secret.chmod(0o600)
    shown = (repo / APP).resolve()
    give(repo, USER)
    shown.unlink()
    os.link(secret, shown)

    result = run("--repo", repo, "show", "app")

    assert (result.status, "Permission denied" in result.err) == (1, True)
    assert secret.read_bytes() == b"root's"


def test_it_says_nothing_of_that_where_the_repository_is_roots_own(repo: Path) -> None:
    assert run("--repo", repo, "list").err == ""


def test_what_is_on_standard_output_is_not_touched_by_it(repo: Path) -> None:
    before = run("--repo", repo, "list", "--json").out
    give(repo, USER)

    assert run("--repo", repo, "list", "--json").out == before


IDENTITY = """
    import json, os, sys
    from cfs_tags.cli.main import main
    main(["--repo", sys.argv[1], "list"])
    back = []
    for call, words in ((os.setresuid, (0, 0, 0)), (os.setresgid, (0, 0, 0)), (os.setgroups, ([0],)), (os.seteuid, (0,))):
        try:
            call(*words)
            back.append("a way back")
        except PermissionError:
            pass
    status = open("/proc/self/status").read()
    capabilities = {line.split()[1] for line in status.splitlines() if line.startswith(("CapPrm", "CapEff", "CapAmb"))}
    names = {name: os.environ.get(name) for name in ("HOME", "USER", "LOGNAME", "XDG_RUNTIME_DIR")}
    print(json.dumps([os.getresuid(), os.getresgid(), sorted(os.getgroups()), sorted(capabilities), back, names]))
"""


def identity(repo: Path) -> list[object]:
    import json

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(IDENTITY), repo],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "XDG_RUNTIME_DIR": "/run/user/0"},
        extra_groups=[0, 4],
    )
    found: list[object] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_known_user_is_become_as_by_a_login_and_there_is_no_way_back(repo: Path) -> None:
    give(repo, KNOWN.pw_uid)
    groups = sorted(set(os.getgrouplist(KNOWN.pw_name, KNOWN.pw_gid)))

    uids, gids, others, capabilities, back, names = identity(repo)

    assert (uids, gids, others) == ([KNOWN.pw_uid] * 3, [KNOWN.pw_gid] * 3, groups)
    assert (capabilities, back) == (["0" * 16], [])
    assert names == {"HOME": KNOWN.pw_dir, "USER": KNOWN.pw_name, "LOGNAME": KNOWN.pw_name, "XDG_RUNTIME_DIR": None}


@pytest.mark.parametrize(("gid", "taken"), [(4712, 4712), (0, 65534)])
def test_an_unknown_user_has_the_group_of_the_repository_and_never_roots(repo: Path, gid: int, taken: int) -> None:
    give(repo, USER)
    os.chown(repo, USER, gid)

    uids, gids, others, capabilities, back, names = identity(repo)

    assert (uids, gids, others, capabilities, back) == ([USER] * 3, [taken] * 3, [], ["0" * 16], [])
    assert names == {"HOME": "/", "USER": str(USER), "LOGNAME": str(USER), "XDG_RUNTIME_DIR": None}


def test_the_owner_needs_no_access_to_the_paths_of_the_repository_and_the_program(repo: Path, home: Path) -> None:
    """Root has both open: a repository below /root, say, and a program that was installed for root alone."""
    package = home / "private/site/cfs_tags"
    shutil.copytree(Path(__file__).parent.parent.parent / "cfs_tags", package)
    repo.parent.rename(home / "private/host")
    (home / "private").chmod(0o700)
    give(home / "private/host/composefs", USER)

    hidden = home / "private/host/composefs"
    result = run_alone("--repo", hidden, "create", "b", "app", env={"PYTHONPATH": str(home / "private/site")})

    assert result.status == 0, result
    assert owners(hidden) == {USER}


def in_namespace(map_of_users: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run ``cfs-tag`` as root of a user namespace of its own, which maps these users."""
    program = f"""
        import ctypes, os, sys
        ready, go = os.pipe(), os.pipe()
        pid = os.fork()
        if pid == 0:
            if ctypes.CDLL(None, use_errno=True).unshare(0x10000000):
                os._exit(77)
            os.write(ready[1], b"x")
            os.read(go[0], 1)
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
            from cfs_tags.cli.main import main
            os._exit(main(sys.argv[1:]))
        if os.read(ready[0], 1) != b"x":
            sys.exit(77)
        for kind in ("uid", "gid"):
            with open(f"/proc/{{pid}}/{{kind}}_map", "w") as table:
                table.write({map_of_users!r})
        os.write(go[1], b"x")
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if done.returncode == 77:
        pytest.skip("no user namespaces here")
    return done


def test_an_owner_whom_the_user_namespace_does_not_map_is_refused(repo: Path) -> None:
    give(repo, USER)

    done = in_namespace("0 0 1\n", "--repo", repo, "list")

    assert (done.returncode, done.stdout) == (4, "")
    assert "does not map the owner" in done.stderr


def test_nobody_of_a_user_namespace_that_maps_it_is_not_taken_for_an_unmapped_owner(repo: Path) -> None:
    """It cannot be told apart, so it is refused."""
    give(repo, USER)

    done = in_namespace("0 0 1\n65534 65534 1\n", "--repo", repo, "list")

    assert done.returncode == 4


def test_an_owner_whom_the_user_namespace_maps_is_become(repo: Path) -> None:
    give(repo, USER)

    done = in_namespace(f"0 0 1\n1000 {USER} 1\n", "--repo", repo, "list")

    assert (done.returncode, done.stderr) == (0, f"cfs-tag: {repo} belongs to user {user_name(1000)}: working as that user\n")


def user_name(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} ({uid})"
    except KeyError:
        return str(uid)


# -- what the user cannot do ---------------------------------------------------------------------------------------------


def archive_of(image: Path, path: Path) -> Path:
    subprocess.run(["tar", "-C", image, "-cf", path, "."], check=True)
    path.chmod(0o600)
    return path


def test_a_source_that_only_root_may_read_is_refused_with_a_way_out(repo: Path, image: Path, home: Path) -> None:
    give(repo, USER)
    archive = archive_of(image, home / "image.tar")

    result = run("--repo", repo, "import", f"oci-archive:{archive}:app", "b")

    assert result.status == 1
    assert f"cannot read {archive}: Permission denied" in result.err
    assert f"works as user {USER}" in result.err
    assert "/dev/stdin" in result.err


@pytest.mark.parametrize("path", ["/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"])
def test_the_way_out_is_one(repo: Path, image: Path, home: Path, path: str) -> None:
    give(repo, USER)
    with archive_of(image, home / "image.tar").open("rb") as archive:
        result = run("--repo", repo, "import", f"oci-archive:{path}:app", "b", stdin=archive.fileno())

    assert result.status == 0, result


@pytest.mark.parametrize("dry", [["--dry-run"], []])
def test_origin_files_that_the_user_may_not_write_are_refused_first(host: Path, repo: Path, dry: list[str]) -> None:
    give(repo, USER)
    words = ["--boot", host / "boot", "--esp", "none", "--run", host / "run", "--booted", "none"]
    origins = {path: path.read_bytes() for path in host.glob("state/deploy/*/*.origin")}

    result = run("--repo", repo, "migrate", "--write-origin", *words, *dry)

    assert (result.status, "Permission denied" in result.err) == (1, True)
    assert not list(repo.glob("streams/refs/cfs-tags/deployments/*"))
    assert {path: path.read_bytes() for path in origins} == origins
    assert run("--repo", repo, "migrate", *words).status == 0
    assert list(repo.glob("streams/refs/cfs-tags/deployments/*"))


# -- the library ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [False, True])
def test_the_library_refuses_root_in_the_repository_of_another_user(repo: Path, write: bool) -> None:
    give(repo, USER)

    assert refusal(repo, write=write) == ("foreign-owner", 4)
    assert forked(lambda: refusal(repo, write=write), uid=USER) is None


def test_the_library_lets_another_user_read_what_the_system_lets_them_read(repo: Path) -> None:
    give(repo, USER)

    assert forked(lambda: refusal(repo, write=False), uid=USER + 1) is None


# -- directories that others can write -----------------------------------------------------------------------------------

WRITTEN = [
    ".",
    "objects",
    "objects/ab",
    "streams",
    "streams/refs",
    "streams/refs/oci",
    "streams/refs/cfs-tags",
    "images",
    "images/refs",
    "cfs-tags",
    "cfs-tags/tmp",
    "cfs-tags/reflog",
    "cfs-tags/journal",
]


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o707])
@pytest.mark.parametrize("place", WRITTEN)
def test_where_everybody_can_write_no_user_writes(repo: Path, place: str, mode: int) -> None:
    (repo / place).mkdir(exist_ok=True)
    (repo / place).chmod(mode)

    assert refusal(repo, write=True) == ("open-to-others", 4)
    assert refusal(repo, write=False) is None

    give(repo, USER)
    for uid in (USER, USER + 1):
        assert forked(lambda: refusal(repo, write=True), uid=uid) == ("open-to-others", 4)


@pytest.mark.parametrize("owner", [0, USER])
@pytest.mark.parametrize("place", [".", "objects", "streams/refs/oci", "cfs-tags/journal"])
def test_the_place_is_named_with_the_way_out(repo: Path, place: str, owner: int) -> None:
    (repo / place).mkdir(exist_ok=True)
    give(repo, owner)
    (repo / place).chmod(0o777)
    path = repo if place == "." else repo / place

    result = run("--repo", repo, "create", "b", "app")

    assert (result.status, f"everybody can write {path}," in result.err) == (4, True), result
    assert result.err.endswith(f"hint: chmod o-w {path}\n")


@pytest.mark.parametrize("place", WRITTEN)
def test_where_a_group_can_write_root_does_not_and_others_do(repo: Path, place: str) -> None:
    (repo / place).mkdir(exist_ok=True)
    (repo / place).chmod(0o775)

    assert refusal(repo, write=True) == ("open-to-others", 4)

    give(repo, USER)
    assert forked(lambda: refusal(repo, write=True), uid=USER) is None


@pytest.mark.parametrize("place", [".", "objects/ab", "streams/refs/oci"])
def test_root_names_what_a_group_can_write_and_works_there_as_the_owner(repo: Path, place: str) -> None:
    (repo / place).mkdir(exist_ok=True)
    (repo / place).chmod(0o775)
    path = repo if place == "." else repo / place

    result = run("--repo", repo, "create", "b", "app")
    assert (result.status, f"group 0 can write {path}," in result.err) == (4, True), result
    assert result.err.endswith(f"hint: chmod g-w {path}\n")

    give(repo, USER)
    assert run("--repo", repo, "create", "b", "app").status == 0
    checked = run("--repo", repo, "fsck")
    assert (checked.status, f"{place}: group {USER} can write it" in checked.out) == (6, True), checked


@pytest.mark.parametrize("place", WRITTEN[1:])
def test_a_directory_of_another_user_in_roots_repository_is_not_written(repo: Path, place: str) -> None:
    (repo / place).mkdir(exist_ok=True)
    os.chown(repo / place, USER, USER)

    result = run("--repo", repo, "create", "b", "app")

    assert (result.status, f"{repo / place} belongs to user {USER}" in result.err) == (4, True), result


@pytest.mark.parametrize("command", [["list"], ["resolve", "app"], ["show", "app"], ["log", "app"], ["df"]])
def test_reading_goes_on_where_everybody_can_write(repo: Path, command: list[str]) -> None:
    repo.chmod(0o777)

    assert run("--repo", repo, *command).status == 0


def test_directories_above_the_repository_do_not_count(repo: Path, home: Path) -> None:
    """What is opened once stays what it is, whatever its name becomes: /tmp is such a place."""
    home.chmod(0o1777)

    assert run("--repo", repo, "create", "b", "app").status == 0


@pytest.mark.parametrize("command", [["create", "b", "app"], ["gc", "--no-sysroot"], ["delete", "app"], ["fsck", "--repair"]])
def test_a_dry_run_is_refused_as_the_run_would_be(repo: Path, command: list[str]) -> None:
    repo.chmod(0o777)

    assert [run("--repo", repo, *command, *dry).status for dry in ([], ["--dry-run"])] == [4, 4]
