"""At work beside real peers that hold, write and collect the same repository."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cfs_tags import Repository
from cfs_tags.errors import CfsTagsError, ExpectationFailed, LockTimeout
from cfs_tags.repo import images
from cfs_tags.repo.store import WriteRepo
from cfs_tags.repo.transaction import run
from cfs_tags.tags import edit, history, instructions, rows
from cfs_tags.tags.names import resolve
from cfs_tags.values import Digest
from support import stock, tagging
from support.images import static_image
from support.peers import Cfsctl
from support.peers_beside import hold_shared, lock_modes
from support.stock import PRIVATE, SHARED, before_call, digest_of, leftovers, let_go, make_tag, without_exchange

APP = f"{SHARED}/app"


@pytest.fixture
def digests(stocked: Path) -> dict[str, str]:
    return {name: digest_of(stocked, name) for name in stock.IMAGES}


# -- a peer that holds the repository ----------------------------------------------------------------------------------


def test_every_change_of_tags_finishes_while_a_cfsctl_holds_the_repository(
    stocked: Path, digests: dict[str, str], cfsctl: Cfsctl
) -> None:
    with hold_shared(cfsctl, stocked) as pid, Repository.open(stocked, write=True) as repo:
        tagging.create(repo, "app", f"@{digests['one']}", timeout=1)
        tagging.create(repo, "app", f"@{digests['two']}", force=True, timeout=1)
        tagging.create(repo, "app", f"@{digests['two']}", home="private", timeout=1)
        tagging.rename(repo, "app", "b", timeout=1)
        lines = [f"create c @{digests['one']}", f"move b @{digests['three']}", "verify absent absent"]
        run.transact(repo, lambda: edit.plan(repo, instructions.parse_instructions(lines)), timeout=1)
        tagging.delete(repo, ["b", "c"], expires=rows.expiry(60), timeout=1)
        tagging.restore(repo, "b", timeout=1)
        assert lock_modes(stocked, pid) == {"shared"}
    with Repository.open(stocked) as reader:
        assert resolve(reader, "b") == digests["three"]


def test_without_exchange_a_move_waits_for_the_peer_and_names_it(
    stocked: Path, digests: dict[str, str], cfsctl: Cfsctl
) -> None:
    make_tag(stocked, "app", digests["one"])
    with hold_shared(cfsctl, stocked) as pid, without_exchange(), Repository.open(stocked, write=True) as repo:
        tagging.create(repo, "b", f"@{digests['one']}", timeout=0.1)
        tagging.delete(repo, ["b"], timeout=0.1)
        with pytest.raises(LockTimeout) as caught:
            tagging.create(repo, "app", f"@{digests['two']}", force=True, timeout=0.1)
    assert (caught.value.mode, caught.value.holders[0]["pid"]) == ("exclusive", pid)
    assert stock.tags(stocked) == {APP: digests["one"]}
    assert leftovers(stocked) == []


def test_a_collector_waits_until_our_change_is_done_and_keeps_what_it_names(
    stocked: Path, digests: dict[str, str], cfsctl: Cfsctl
) -> None:
    let_go(stocked, "one")
    started: list[subprocess.Popen[bytes]] = []

    def plan(repo: WriteRepo) -> edit.TagPlan:
        command = cfsctl.command(stocked, "gc")
        started.append(subprocess.Popen(command, env=cfsctl.environment, stdout=subprocess.DEVNULL))
        time.sleep(0.15)
        assert started[0].poll() is None, "the collector did not wait"
        return edit.plan(repo, [instructions.Instruction("create", "app", f"@{digests['one']}")])

    with Repository.open(stocked, write=True) as repo:
        run.transact(repo, lambda: plan(repo))
        assert started[0].wait(timeout=20) == 0
        assert images.missing_parts(repo, Digest.parse(digests["one"])) == ()


def test_a_collector_that_was_first_leaves_nothing_to_name(stocked: Path, digests: dict[str, str], cfsctl: Cfsctl) -> None:
    let_go(stocked, "one")
    cfsctl(stocked, "gc")
    with Repository.open(stocked, write=True) as repo, pytest.raises(CfsTagsError) as caught:
        tagging.create(repo, "app", f"@{digests['one']}")
    assert (caught.value.code, caught.value.status) == ("target-not-found", 3)
    cfsctl.assert_healthy(stocked)


# -- a peer that writes between our look and our step ------------------------------------------------------------------

Act = Callable[[WriteRepo, dict[str, str]], object]
ACTS: dict[str, tuple[Act, str, int, str]] = {
    "create": (lambda repo, d: tagging.create(repo, "app", f"@{d['two']}"), "make_link", 1, "app"),
    "create that must be new": (
        lambda repo, d: tagging.create(repo, "app", f"@{d['two']}", expected="absent"),
        "make_link",
        1,
        "app",
    ),
    "move": (lambda repo, d: tagging.create(repo, "there", f"@{d['two']}", force=True), "exchange", 1, "there"),
    "move with an expectation": (
        lambda repo, d: tagging.create(repo, "there", f"@{d['two']}", expected=d["one"]),
        "exchange",
        1,
        "there",
    ),
    "delete": (lambda repo, d: tagging.delete(repo, ["there"]), "rename", 1, "there"),
    "delete into the trash": (
        lambda repo, d: tagging.delete(repo, ["there"], expires=rows.expiry(60)),
        "rename",
        1,
        "there",
    ),
    "rename, the new name": (lambda repo, d: tagging.rename(repo, "there", "app"), "make_link", 1, "app"),
    "rename, the old name": (lambda repo, d: tagging.rename(repo, "there", "app"), "rename", 1, "there"),
    "rename over another": (lambda repo, d: tagging.rename(repo, "there", "c", force=True), "exchange", 1, "c"),
    "home": (
        lambda repo, d: tagging.create(repo, "there", f"@{d['one']}", home="private"),
        "rename",
        1,
        "there",
    ),
    "restore": (lambda repo, d: tagging.restore(repo, "moved"), "exchange", 1, "moved"),
    "batch, first": (lambda repo, d: batch(repo, d), "make_link", 1, "app"),
    "batch, middle": (lambda repo, d: batch(repo, d), "exchange", 1, "there"),
    "batch, last": (lambda repo, d: batch(repo, d), "rename", 1, "b"),
}


def batch(repo: WriteRepo, digest: dict[str, str]) -> None:
    lines = [f"create app @{digest['two']}", f"move there @{digest['two']}", "delete b"]
    run.transact(repo, lambda: edit.plan(repo, instructions.parse_instructions(lines)))


@pytest.mark.parametrize("kind", ACTS)
def test_a_cfsctl_that_tags_between_our_look_and_our_step_wins(
    stocked: Path, digests: dict[str, str], cfsctl: Cfsctl, kind: str
) -> None:
    act, operation, which, name = ACTS[kind]
    with Repository.open(stocked, write=True) as repo:
        tagging.create(repo, "there", f"@{digests['one']}")
        tagging.create(repo, "b", f"@{digests['one']}")
        tagging.create(repo, "c", f"@{digests['three']}")
        tagging.create(repo, "moved", f"@{digests['two']}")
        tagging.create(repo, "moved", f"@{digests['one']}", force=True)
        before = stock.tags(stocked)

        with (
            before_call(operation, lambda: cfsctl(stocked, "oci", "tag", digests["four"], name), which) as seen,
            pytest.raises(ExpectationFailed) as caught,
        ):
            act(repo, digests)

    error = caught.value
    assert seen["calls"] >= 1
    assert (error.code, error.status) == ("expectation-failed", 4)
    assert error.ref == f"{SHARED}/{name}"
    assert error.found == f"oci-manifest-{digests['four']}"
    assert error.wanted == ("absent" if name == "app" else f"oci-manifest-{before[f'{SHARED}/{name}']}")
    assert stock.tags(stocked) == {**before, f"{SHARED}/{name}": digests["four"]}
    assert cfsctl.tags(stocked)[name] == digests["four"]
    assert leftovers(stocked) == []
    with Repository.open(stocked) as reader:
        assert history.log(reader, name)[0].entry.action == "found"
    cfsctl.assert_healthy(stocked)


@pytest.mark.parametrize("kind", ["move", "delete", "rename, the old name", "batch, middle", "batch, last"])
def test_a_cfsctl_that_untags_between_our_look_and_our_step_wins(
    stocked: Path, digests: dict[str, str], cfsctl: Cfsctl, kind: str
) -> None:
    act, operation, which, name = ACTS[kind]
    with Repository.open(stocked, write=True) as repo:
        tagging.create(repo, "there", f"@{digests['one']}")
        tagging.create(repo, "b", f"@{digests['one']}")
        before = stock.tags(stocked)
        with (
            before_call(operation, lambda: cfsctl(stocked, "oci", "untag", name), which),
            pytest.raises(ExpectationFailed) as caught,
        ):
            act(repo, digests)

    assert caught.value.found == "absent"
    del before[f"{SHARED}/{name}"]
    assert stock.tags(stocked) == before
    assert leftovers(stocked) == []


def test_a_cfsctl_that_is_faster_twice_keeps_its_newest_value(stocked: Path, digests: dict[str, str], cfsctl: Cfsctl) -> None:
    """It tags before our exchange, and again before we have put its first value back."""
    make_tag(stocked, "app", digests["one"])
    again = before_call("exchange", lambda: cfsctl(stocked, "oci", "tag", digests["four"], "app"), 2)
    first = before_call("exchange", lambda: cfsctl(stocked, "oci", "tag", digests["three"], "app"), 1)
    with Repository.open(stocked, write=True) as repo, first, again, pytest.raises(ExpectationFailed):
        tagging.create(repo, "app", f"@{digests['two']}", force=True)

    assert stock.tags(stocked) == {APP: digests["four"]}
    assert leftovers(stocked) == []


def test_a_cfsctl_that_untags_before_its_value_is_put_back_has_untagged(
    stocked: Path, digests: dict[str, str], cfsctl: Cfsctl
) -> None:
    make_tag(stocked, "app", digests["one"])
    again = before_call("exchange", lambda: cfsctl(stocked, "oci", "untag", "app"), 2)
    first = before_call("exchange", lambda: cfsctl(stocked, "oci", "tag", digests["three"], "app"), 1)
    with Repository.open(stocked, write=True) as repo, first, again, pytest.raises(ExpectationFailed):
        tagging.create(repo, "app", f"@{digests['two']}", force=True)

    assert stock.tags(stocked) == {}
    assert leftovers(stocked) == []


def test_a_cfsctl_that_tags_while_its_value_is_out_for_a_deletion_keeps_its_newest(
    stocked: Path, digests: dict[str, str], cfsctl: Cfsctl
) -> None:
    make_tag(stocked, "app", digests["one"])
    first = before_call("rename", lambda: cfsctl(stocked, "oci", "tag", digests["three"], "app"))
    again = before_call("make_link", lambda: cfsctl(stocked, "oci", "tag", digests["four"], "app"))
    with Repository.open(stocked, write=True) as repo, first, again, pytest.raises(ExpectationFailed):
        tagging.delete(repo, ["app"])

    assert stock.tags(stocked) == {APP: digests["four"]}
    assert leftovers(stocked) == []


def test_peers_that_open_the_repository_while_we_write_see_it_whole(
    stocked: Path, digests: dict[str, str], cfsctl: Cfsctl
) -> None:
    """Two writers of ours, a cfsctl that tags, untags, lists and collects; all on the same few names."""
    names = [f"app{number}" for number in range(4)]
    pids = []
    for seed in range(2):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                _write_at_random(stocked, names, list(digests.values()), seed, 1.0)
                status = 0
            finally:
                os._exit(status)
        pids.append(pid)
    numbers = random.Random(7)
    try:
        ends = time.monotonic() + 1.0
        while time.monotonic() < ends:
            cfsctl(stocked, "oci", "tag", numbers.choice(list(digests.values())), numbers.choice(names))
            cfsctl(stocked, "oci", "untag", numbers.choice(names), check=False)
            cfsctl(stocked, "--no-upgrade", "oci", "images")
            cfsctl(stocked, "--no-upgrade", "gc")
    finally:
        statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert statuses == [0, 0]
    cfsctl.assert_healthy(stocked)
    with Repository.open(stocked, write=True) as repo:
        tagging.create(repo, "last", f"@{digests['one']}")
        assert leftovers(stocked) == []
        assert stock.dangling(stocked) == []
        listed = {tag.name: tag.digest for tag in rows.list_tags(repo) if tag.home == "shared"}
        assert listed == cfsctl.tags(stocked)


def _write_at_random(path: Path, names: list[str], digests: list[str], seed: int, seconds: float) -> None:
    numbers = random.Random(seed)
    ends = time.monotonic() + seconds
    done = 0
    with Repository.open(path, write=True) as repo:
        while time.monotonic() < ends or not done:
            name, other = numbers.sample(names, 2)
            target = f"@{numbers.choice(digests)}"
            try:
                match numbers.randrange(5):
                    case 0:
                        tagging.create(repo, name, target, force=True)
                    case 1:
                        tagging.delete(repo, [name])
                    case 2:
                        tagging.rename(repo, name, other, force=True)
                    case 3:
                        tagging.delete(repo, [name, other], expires=rows.expiry(60))
                    case _:
                        tagging.create(repo, name, target, home=numbers.choice(["shared", "private"]), force=True)
                done += 1
            except CfsTagsError as error:
                if error.status not in (3, 4):
                    raise


# -- bootc -------------------------------------------------------------------------------------------------------------


def test_an_image_that_bootc_could_choke_on_is_tagged_out_of_its_sight_and_kept(stocked: Path, cfsctl: Cfsctl) -> None:
    """cfsctl stores an image without ``/usr`` and fails to make its EROFS image: no tag, and none that bootc may see."""
    (stocked.parent / "state" / "deploy").mkdir(parents=True)
    image = static_image(stocked.parent / "layout")
    assert cfsctl(stocked, "oci", "pull", image.source, "static", check=False).returncode != 0
    digest = Digest.parse(image.manifest_digest)

    with Repository.open(stocked, write=True) as repo:
        made = tagging.create(repo, "static", f"@{digest}")
        assert made.home == "private"
        assert stock.tags(stocked) == {f"{PRIVATE}/static": digest}
        assert "static" not in cfsctl.tags(stocked)
        cfsctl(stocked, "gc")
        assert images.missing_parts(repo, digest) == ()
        cfsctl.assert_healthy(stocked)

        tagging.delete(repo, ["static"])
        cfsctl(stocked, "gc")
        with pytest.raises(CfsTagsError) as caught:
            images.missing_parts(repo, digest)
    assert caught.value.code == "target-not-found"


def test_tags_of_bootc_are_listed_as_its_and_left_alone(stocked: Path, digests: dict[str, str], cfsctl: Cfsctl) -> None:
    name = f"localhost/bootc-{digests['one']}"
    cfsctl(stocked, "oci", "tag", digests["one"], name)

    with Repository.open(stocked, write=True) as repo:
        [found] = [tag for tag in rows.list_tags(repo) if tag.owner == "bootc"]
        assert (found.name, found.digest) == (name, digests["one"])
        with pytest.raises(CfsTagsError) as caught:
            tagging.delete(repo, [name])
    assert caught.value.code == "owner-refused"
    assert cfsctl.tags(stocked)[name] == digests["one"]
