"""Adopting what bootc deployed, and retiring what it removed: a ref goes when all places were read and none has it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cfs_tags import Repository
from cfs_tags.host import refs
from cfs_tags.host.sysroot import Sysroot, SysrootView
from cfs_tags.values import DeploymentId, Digest
from deployments.conftest import sysroot_of, view_of
from support.peers import Cfsctl
from support.peers_beside import hold_exclusive, hold_shared
from support.sysroots import BOOTC, Host, uki
from support.trees import tree

if TYPE_CHECKING:
    from deployments.conftest import On

PARTS = ("streams/refs/cfs-tags/deployments", "streams/refs/cfs-tags/configs", "images/refs/cfs-tags/deployments")


def parts(host: Host, name: str) -> int:
    """How many links of the deployment ref there are."""
    return sum((host.repo / part / host.id(name)).is_symlink() for part in PARTS)


def retire(host: Host, *only: str, grace: float = 0, **places: Any) -> dict[str, tuple[str, str]]:
    """Retire by the library, on a host of which every place can be read unless ``places`` say otherwise."""
    with Repository.open(host.repo, write=True) as repo:
        made = refs.retire(
            repo,
            lambda: SysrootView.read(sysroot_of(host, **places), repo.algorithm),
            [DeploymentId(host.id(name)) for name in only],
            grace=grace,
            timeout=5,
        )
    names = {deployed.id: name for name, deployed in host.pool.images.items()}
    return {names[row.id]: (row.done, row.reason) for row in made.rows}


@pytest.fixture
def referred(three: Host) -> Host:
    """``same`` is there; ``old`` has a ref and no place has it any more; ``new`` likewise, but one test puts it back."""
    with Repository.open(three.repo, write=True) as repo:
        refs.adopt(repo, view_of(three))
    assert [parts(three, name) for name in ("same", "old", "new")] == [3, 3, 3]
    three.undeploy("old")
    three.undeploy("new")
    shutil.rmtree(three.root / "boot/loader/entries.staged")
    (three.root / "run/composefs/staged-deployment").unlink()
    three.boot_entries("same")
    return three


# -- what goes ---------------------------------------------------------------------------------------------------------


def test_the_refs_of_deployments_that_no_place_has_go_and_nothing_else(referred: Host, cfsctl: Cfsctl) -> None:
    before = tree(referred.root)

    rows = retire(referred)

    assert rows["old"] == rows["new"] == ("retired", "no place has it")
    assert rows["same"] == ("kept", "it is in boot-entry, kernel, state")
    gone = {path for path in before if path not in tree(referred.root)}
    assert gone == {f"composefs/{part}/{referred.id(name)}" for part in PARTS for name in ("old", "new")}
    cfsctl.assert_healthy(referred.repo)


def test_what_was_retired_is_collected_by_cfsctl_and_the_rest_stays(referred: Host, cfsctl: Cfsctl) -> None:
    retire(referred)
    for name in ("old", "new"):
        referred.untag(BOOTC + referred.pool.images[name].manifest)

    cfsctl(referred.repo, "gc")

    assert referred.missing("same") == []
    assert len(referred.missing("old")) > 5
    assert [referred.missing_of_app(tag) for tag in referred.pool.apps] == [[], []]


def test_one_is_retired_by_its_name(referred: Host) -> None:
    assert retire(referred, "old") == {"old": ("retired", "no place has it")}
    assert [parts(referred, name) for name in ("same", "old", "new")] == [3, 0, 3]


def test_a_half_made_ref_is_retired_as_well(referred: Host) -> None:
    (referred.repo / PARTS[0] / referred.id("old")).unlink()

    assert retire(referred)["old"][0] == "retired"
    assert parts(referred, "old") == 0


# -- what is kept, and why ---------------------------------------------------------------------------------------------


def esp(host: Host) -> Path:
    host.has_esp = True
    (host.root / "efi/EFI/Linux/bootc").mkdir(parents=True)
    return host.root / "efi/EFI/Linux/bootc"


def a_state_directory(host: Host) -> dict[str, Any]:
    """It may come a moment before its boot entry, or stay a moment longer."""
    host.state("old").mkdir()
    return {}


def a_boot_entry(host: Host) -> dict[str, Any]:
    host.boot_entries("same", "old")
    return {}


def a_staged_entry(host: Host) -> dict[str, Any]:
    host.boot_entries("old", staged=True)
    return {}


def a_uki(host: Host) -> dict[str, Any]:
    host.ukis("old")
    return {}


def a_uki_of_another_name(host: Host) -> dict[str, Any]:
    (esp(host) / "other.efi").write_bytes(uki(f"rw composefs=?{host.id('old')}"))
    return {}


def a_grub_entry(host: Host) -> dict[str, Any]:
    host.grub("old")
    return {}


def a_waiting_grub_entry(host: Host) -> dict[str, Any]:
    host.grub("old", staged=True)
    return {}


def the_staged_file(host: Host) -> dict[str, Any]:
    host.stage("old")
    return {}


def the_kernel(host: Host) -> dict[str, Any]:
    """Booted, and all its files are gone."""
    return {"cmdline": f"rw composefs=?{host.id('old')} quiet"}


def a_mount(host: Host) -> dict[str, Any]:
    return {"mounts": ("/dev/vda3", f"composefs:{host.id('old')}", "tmpfs")}


def an_entry_on_the_esp(host: Host) -> dict[str, Any]:
    esp(host)
    host.boot_entries("old", boot="efi")
    return {}


@pytest.mark.parametrize(
    ("put", "place"),
    [
        (a_state_directory, "state"),
        (a_boot_entry, "boot-entry"),
        (a_staged_entry, "staged-entry"),
        (an_entry_on_the_esp, "boot-entry"),
        (a_uki, "uki"),
        (a_uki_of_another_name, "uki"),
        (a_grub_entry, "boot-entry"),
        (a_waiting_grub_entry, "staged-entry"),
        (the_staged_file, "staged-file"),
        (the_kernel, "kernel"),
        (a_mount, "mounts"),
    ],
)
def test_one_place_that_has_it_is_enough(referred: Host, put: Callable[[Host], dict[str, Any]], place: str) -> None:
    rows = retire(referred, **put(referred))

    assert rows["old"] == ("kept", f"it is in {place}")
    assert rows["new"][0] == "retired"
    assert parts(referred, "old") == 3


def unreadable_entry(host: Host) -> dict[str, Any]:
    (host.root / "boot/loader/entries/broken.conf").write_bytes(b"\xff")
    return {}


def unreadable_grub(host: Host) -> dict[str, Any]:
    (host.root / "boot/grub2/user.cfg").write_text("menuentry {")
    return {}


def unreadable_uki(host: Host) -> dict[str, Any]:
    (esp(host) / "broken.efi").write_bytes(b"MZ")
    return {}


def unreadable_staged_file(host: Host) -> dict[str, Any]:
    (host.root / "run/composefs/staged-deployment").write_text("{")
    return {}


def entries_are_a_link(host: Host) -> dict[str, Any]:
    (host.root / "boot/loader/entries").rename(host.root / "boot/loader/entries.real")
    (host.root / "boot/loader/entries").symlink_to("entries.real")
    return {}


def loader_is_a_link_to(target: str, path: str = "boot/loader") -> Callable[[Host], dict[str, Any]]:
    def make(host: Host) -> dict[str, Any]:
        if (host.root / path).exists():
            shutil.rmtree(host.root / path)
        (host.root / path).parent.mkdir(parents=True, exist_ok=True)
        (host.root / path).symlink_to(target)
        return {}

    return make


def efi_is_a_link(host: Host) -> dict[str, Any]:
    esp(host)
    (host.root / "efi/EFI").rename(host.root / "efi/real")
    (host.root / "efi/EFI").symlink_to("real")
    return {}


def behind_a_long_path(host: Host) -> dict[str, Any]:
    """Longer than the system takes in one piece."""
    fd = os.open(esp(host), os.O_RDONLY)
    for _ in range(17):
        os.mkdir("d" * 250, dir_fd=fd)
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    return {}


def no_state(host: Host) -> dict[str, Any]:
    (host.root / "state/deploy").rename(host.root / "state/away")
    return {}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda host: {"boot": None}, "boot-entry could not be read: no boot directory"),
        (lambda host: {"esp": None, "without": frozenset()}, "uki could not be read: no EFI system partition is mounted"),
        (lambda host: {"esp": str(host.root / "nowhere")}, "/nowhere/EFI/Linux/bootc) could not be read: No such file"),
        (lambda host: {"run": None}, "staged-file could not be read: it is in the /run of another system"),
        (
            lambda host: {"run": str(host.root / "nowhere")},
            "/nowhere/composefs/staged-deployment) could not be read: No such file",
        ),
        (lambda host: {"cmdline": None}, "kernel could not be read: it is the command line of another system"),
        (lambda host: {"mounts": None}, "mounts could not be read: they are the mounts of another system"),
        (unreadable_entry, "broken.conf"),
        (unreadable_grub, "user.cfg"),
        (unreadable_uki, "broken.efi"),
        (unreadable_staged_file, "/staged-deployment) could not be read: staged-deployment at byte 1"),
        (entries_are_a_link, "a link"),
        (loader_is_a_link_to("loader"), "a link to loader"),
        (loader_is_a_link_to("loader.1"), "a link to loader.1"),
        (loader_is_a_link_to("/mnt/not-mounted/loader"), "a link to "),
        (loader_is_a_link_to("nowhere", "boot/grub2"), "a link to nowhere"),
        (loader_is_a_link_to("nowhere", "boot/EFI"), "a link to nowhere"),
        (loader_is_a_link_to("nowhere", "boot/EFI/Linux/bootc"), "boot/EFI/Linux/bootc"),
        (loader_is_a_link_to("bootc", "boot/EFI/Linux/bootc"), "boot/EFI/Linux/bootc"),
        (loader_is_a_link_to("nowhere", "boot/EFI/Linux/one.efi.extra.d"), "boot/EFI/Linux/one.efi.extra.d"),
        (efi_is_a_link, "/efi/EFI: file system at byte 0: wanted a directory, found a link"),
        (behind_a_long_path, "File name too long"),
        (loader_is_a_link_to("nowhere", "run/composefs"), "run/composefs"),
        (loader_is_a_link_to("nowhere", "state/boot"), "state/boot"),
        (loader_is_a_link_to("nowhere", "state/boot/aboot"), "state/boot/aboot"),
        (loader_is_a_link_to("nowhere", "state"), "/state/deploy) could"),
        (no_state, "/state/deploy) could not be read: No such file"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value))[:30] if not isinstance(value, str) else value[:20],
)
def test_a_place_that_was_not_read_may_have_any_and_is_named(
    referred: Host, make: Callable[[Host], dict[str, Any]], says: str
) -> None:
    rows = retire(referred, **make(referred))

    assert rows["old"][0] == "kept"
    assert says in rows["old"][1]
    assert [parts(referred, name) for name in ("same", "old", "new")] == [3, 3, 3]


def test_a_boot_partition_that_is_not_mounted_keeps_all(on: On, referred: Host) -> None:
    """Its mount point is there and empty."""
    shutil.rmtree(referred.root / "boot")
    (referred.root / "boot").mkdir()
    referred.booted = None

    said = on(referred, "retire", "--grace", "0", ok=True)

    assert "retired" not in said.out
    assert "is /boot mounted?" in said.out


@pytest.mark.parametrize(("loop", "part"), [("boot/efi", "esp"), ("efi", "esp"), ("boot", "boot"), ("boot/loader", "boot")])
def test_a_part_that_the_system_would_not_say_to_be_there_is_not_absent(referred: Host, loop: str, part: str) -> None:
    """Nor is another one taken for it."""
    path = referred.root / loop
    if path.exists():
        shutil.rmtree(path)
    path.symlink_to(path.name)
    found = Sysroot.find(str(referred.root))

    assert getattr(found, part) == str(path if part == "esp" else referred.root / "boot")
    rows = retire(referred, boot=found.boot, esp=found.esp, without=frozenset({"esp"} - {part}))
    assert rows["old"][0] == "kept"
    assert str(path) in rows["old"][1]


def test_what_is_linked_to_and_boots_nothing_is_not_missed(referred: Host) -> None:
    """Distributions have such links in /boot, which may count as the ESP: kernels that went, files of the system."""
    boot = referred.root / "boot"
    (boot / "EFI/Linux").mkdir(parents=True)
    (boot / "vmlinuz.old").symlink_to("vmlinuz-gone")
    (boot / "symvers-1.xz").symlink_to("/nowhere/symvers.xz")
    (boot / "EFI/Linux/notes").symlink_to("../../grub2/grubenv")
    (boot / "grub2/grubenv").write_text("# GRUB Environment Block\n")

    rows = retire(referred, esp=str(boot), without=frozenset())

    assert rows["old"] == ("retired", "no place has it")


def test_a_part_that_the_system_does_not_have_is_not_missed(on: On, referred: Host) -> None:
    referred.booted = None

    rows = on(referred, "retire", "--grace", "0", "--json").result["deployments"]

    assert {row["id"]: row["result"] for row in rows} == {
        referred.id("same"): "kept",
        referred.id("old"): "retired",
        referred.id("new"): "retired",
    }


# -- the moment after ----------------------------------------------------------------------------------------------------


def test_an_updater_that_made_the_ref_and_nothing_else_yet_has_a_day(referred: Host) -> None:
    rows = retire(referred, grace=refs.GRACE)

    assert rows["old"][0] == "kept"
    assert rows["old"][1].endswith("and the deployment was not seen since")
    assert parts(referred, "old") == 3


def test_the_day_is_over_some_time(referred: Host) -> None:
    for part in PARTS:
        then = time.time_ns() - int((refs.GRACE + 10) * 1e9)
        os.utime(referred.repo / part / referred.id("old"), ns=(then, then), follow_symlinks=False)

    rows = retire(referred, grace=refs.GRACE)

    assert rows["old"][0] == "retired"
    assert rows["new"][0] == "kept"


def test_once_it_was_seen_there_is_no_waiting(referred: Host) -> None:
    referred.state("old").mkdir()
    assert retire(referred, grace=refs.GRACE)["old"] == ("kept", "it is in state")
    referred.state("old").rmdir()

    assert retire(referred, grace=refs.GRACE)["old"][0] == "retired"


def test_a_ref_that_is_made_again_has_its_day_again(referred: Host) -> None:
    """Whatever was seen with the ref before: the updater deploys the same image once more."""
    referred.state("old").mkdir()
    retire(referred)
    referred.state("old").rmdir()
    assert retire(referred)["old"][0] == "retired"
    with Repository.open(referred.repo, write=True) as repo:
        refs.create(repo, DeploymentId(referred.id("old")), Digest(referred.pool.images["old"].manifest))

    assert retire(referred, grace=refs.GRACE)["old"][0] == "kept"
    assert parts(referred, "old") == 3

    referred.state("old").mkdir()
    retire(referred)
    referred.state("old").rmdir()
    assert retire(referred, grace=refs.GRACE)["old"][0] == "retired"


@pytest.mark.parametrize("content", ["", "{}", "[5, null]", '{"a": "b"}', "\xff", "[" * 5000])
def test_a_lost_or_odd_note_of_what_was_seen_only_means_waiting(referred: Host, content: str) -> None:
    (referred.repo / "cfs-tags/seen.json").write_text(content)

    assert retire(referred, grace=refs.GRACE)["old"][0] == "kept"


# -- adopting ----------------------------------------------------------------------------------------------------------


def test_what_bootc_deployed_is_adopted_before_anything_is_retired(on: On, three: Host) -> None:
    three.untag_bootc()

    said = on(three, "retire", "--json").result

    assert sorted(said["adopted"]) == sorted(three.id(name) for name in ("same", "old", "new"))
    assert {row["result"] for row in said["deployments"]} == {"kept"}
    assert [parts(three, name) for name in ("same", "old", "new")] == [3, 3, 3]


def test_adoption_completes_a_part_that_is_missing(on: On, three: Host) -> None:
    on(three, "migrate", ok=True)
    (three.repo / PARTS[1] / three.id("old")).unlink()

    assert on(three, "retire", "--json").result["adopted"] == [three.id("old")]
    assert parts(three, "old") == 3


def test_adoption_takes_no_deployment_that_is_not_whole(on: On, three: Host) -> None:
    (three.repo / "images" / three.id("old")).unlink()
    layer = three.pool.images["new"].image.diff_ids[-1]
    (three.repo / "streams" / f"oci-layer-{layer}").resolve().unlink()

    said = on(three, "retire", "--json").result

    assert said["adopted"] == [three.id("same")]
    assert [parts(three, name) for name in ("same", "old", "new")] == [3, 0, 0]


def test_a_dry_run_says_the_same_and_changes_nothing(on: On, referred: Host) -> None:
    referred.booted = None
    before = tree(referred.root)

    dry = on(referred, "retire", "--grace", "0", "--dry-run", "--json").result
    assert tree(referred.root) == before
    done = on(referred, "retire", "--grace", "0", "--json").result

    assert {**dry, "dry_run": False} == done


# -- locks -------------------------------------------------------------------------------------------------------------


def test_retiring_waits_for_nobody_longer_than_it_may_and_names_them(on: On, referred: Host, cfsctl: Cfsctl) -> None:
    """A process that has the repository open may be an updater that is about to use the ref."""
    referred.booted = None
    with hold_shared(cfsctl, referred.repo) as pid:
        said = on(referred, "retire", "--grace", "0", "--lock-timeout", "0.2", "--json")

    assert said.status == 5
    assert [(one["pid"], one["mode"]) for one in said.json["error"]["facts"]["holders"]] == [(pid, "shared")]
    assert parts(referred, "old") == 3


@pytest.mark.parametrize("words", [("migrate",), ("migrate", "--undo"), ("retire",)])
def test_a_collector_at_work_is_waited_for_and_named(on: On, three: Host, words: tuple[str, ...]) -> None:
    on(three, "migrate", ok=True)
    before = tree(three.root)

    with hold_exclusive(three.repo) as pid:
        said = on(three, words[0], "--lock-timeout", "0.2", *words[1:])

    assert said.status == 5
    assert f"{pid}" in said.err
    assert tree(three.root) == before


def test_an_updater_makes_its_refs_while_a_pull_holds_the_repository(on: On, three: Host, cfsctl: Cfsctl) -> None:
    with hold_shared(cfsctl, three.repo), Repository.open(three.repo, write=True) as repo:
        name = DeploymentId(three.id("new"))
        refs.create(repo, name, Digest(three.pool.images["new"].manifest), timeout=1)
        on(three, "migrate", "--lock-timeout", "1", ok=True)

    assert [parts(three, name) for name in ("same", "old", "new")] == [3, 3, 3]


def test_mounts_that_cannot_be_seen_and_keep_a_ref_have_a_way_out(on: On, referred: Host) -> None:
    """Of a system that runs elsewhere they are never seen."""
    said = on(referred, "retire", "--dry-run", ok=True).out
    assert "mounts could not be read" in said
    assert "mounts: cfs-tag sees" in said
    assert "--booted none --run none" in said
    for text in (on(referred, "deployments", ok=True).out, on(referred, "status", ok=True).out):
        assert "--booted none --run none" in text
    assert "Nothing is wrong." not in on(referred, "status", ok=True).out

    referred.booted = None
    words = ("--run", "none", "--booted", "none", "--esp", "none")
    assert "could not be read" not in on(referred, "retire", "--dry-run", *words, ok=True).out


def test_a_collection_that_frees_nothing_names_refs_of_deployments_that_are_gone(on: On, referred: Host) -> None:
    from support.terminal import show

    words = ["--sysroot", referred.root, "gc", *referred.options]
    show(words)

    assert "2 refs of deployments that are gone still keep content: 'cfs-tag" in show(words, columns=300).text
