"""Where a host has its boot files: every place that exists is read, and one that is known to exist and is not seen is named.

Each host has lost the state directory of ``old``; what still boots it is in a place that is easily overlooked.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cfs_tags import Repository
from cfs_tags.host import mounts, sysroot
from cfs_tags.host.sightings import Place
from cfs_tags.host.sysroot import Sysroot, SysrootView
from cfs_tags.values import DeploymentId
from deployments.conftest import retired_on
from support.livehost import Step, run_on_host
from support.refusing import refused
from support.sysroots import Host, entry_text, uki


def found(host: Host, *without: str) -> Sysroot:
    made = Sysroot.find(str(host.root), run=str(host.root / "run"), cmdline=f"composefs={host.booted}", without=without)
    return made._replace(mounts=())


def retired(host: Host, *without: str) -> dict[str, tuple[str, str]]:
    return retired_on(host, lambda: found(host, *without))


def put(host: Host, path: str, data: bytes = b"MZ") -> None:
    (host.root / path).parent.mkdir(parents=True, exist_ok=True)
    (host.root / path).write_bytes(data)


def uki_of_old(host: Host) -> bytes:
    return uki(f"rw composefs={host.id('old')}")


ANOTHER = uki("root=UUID=1")


@pytest.mark.parametrize("path", ["efi/EFI/Linux/x.efi", "efi/EFI/BOOT/BOOTX64.EFI", "boot/EFI/Linux/x.efi"])
def test_every_esp_is_read(lost: Host, path: str) -> None:
    put(lost, "boot/efi/EFI/Linux/other.efi", ANOTHER)
    put(lost, path, uki_of_old(lost))

    assert retired(lost) == {
        "same": ("kept", "it is in boot-entry, kernel, state"),
        "old": ("kept", "it is in uki"),
        "new": ("retired", "no place has it"),
    }


def test_entries_on_an_esp_beside_the_boot_directory_are_read_without_programs(lost: Host) -> None:
    put(lost, "efi/loader/entries/a.conf", entry_text(lost.id("old")).encode())

    assert retired(lost, "esp")["old"] == ("kept", "it is in boot-entry")


def test_a_script_of_grub_on_the_esp_is_read_beside_one_of_the_same_name_in_boot(lost: Host) -> None:
    put(lost, "boot/grub2/grub.cfg", b"menuentry x { linux /v quiet\n}\n")
    put(lost, "efi/grub2/grub.cfg", f"menuentry x {{ linux /v composefs={lost.id('old')}\n}}\n".encode())
    put(lost, "efi/EFI/BOOT/x.efi", ANOTHER)

    assert retired(lost)["old"] == ("kept", "it is in boot-entry")


@pytest.mark.parametrize(
    ("path", "is_read"), [("grub2/grub.cfg", True), ("grub2/more.cfg", False), ("more/grub.cfg", False), ("boot/x.cfg", False)]
)
def test_a_script_of_grub_on_the_esp_that_reads_one_elsewhere_is_followed_or_named(
    lost: Host, path: str, is_read: bool
) -> None:
    put(lost, f"boot/{path}", f"menuentry x {{ linux /v composefs={lost.id('old')}\n}}\n".encode())
    put(lost, "efi/EFI/BOOT/x.efi", ANOTHER)
    put(lost, "efi/EFI/fedora/grub.cfg", f"search --set=root --label boot\nconfigfile ($root)/{path}\n".encode())

    done, reason = retired(lost)["old"]

    shown = lost.root / "efi/EFI/fedora/grub.cfg"
    unread = f"boot-entry ({shown}) could not be read: it reads (?)/{path}, which cannot be followed"
    assert (done, reason) == ("kept", "it is in boot-entry" if is_read else unread)


def test_a_boot_partition_with_ukis_is_not_taken_for_the_esp(lost: Host) -> None:
    put(lost, "boot/EFI/Linux/x.efi", ANOTHER)

    assert found(lost).esp is None
    assert retired(lost)["old"] == ("kept", "uki could not be read: no EFI system partition is mounted")
    assert retired(lost, "esp")["old"][0] == "retired"


def test_an_esp_at_boot_is_known_by_its_boot_loader(lost: Host) -> None:
    put(lost, "boot/EFI/systemd/systemd-bootx64.efi", ANOTHER)

    assert found(lost).esp == str(lost.root / "boot")
    assert retired(lost)["old"][0] == "retired"


@pytest.mark.parametrize(
    ("kind", "is_esp"),
    [("c12a7328-f81f-11d2-ba4b-00a0c93ec93b", True), ("0xef", True), ("bc13c2ff-59e6-4262-a352-b275fd6f7172", False)],
)
def test_what_udev_says_of_the_partition_decides(
    lost: Host, kind: str, is_esp: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(lost, f"boot/EFI/{'Linux' if is_esp else 'BOOT'}/x.efi", ANOTHER)
    device = os.stat(lost.root / "boot").st_dev
    put(lost, f"udev/b{os.major(device)}:{os.minor(device)}", f"S:disk\nE:ID_PART_ENTRY_TYPE={kind}\n".encode())
    monkeypatch.setattr(mounts, "_UDEV", str(lost.root / "udev"))

    assert found(lost).esp == (str(lost.root / "boot") if is_esp else None)


def links(*pairs: tuple[str, str]) -> Callable[[Host], None]:
    return lambda host: [(host.root / path).symlink_to(target) for path, target in pairs].clear()


@pytest.mark.parametrize("make", [links(("boot/boot", ".")), links(("boot/grub", "grub2")), lambda host: None])
def test_entries_are_listed_once(lost: Host, make: Callable[[Host], None]) -> None:
    put(lost, "boot/grub2/user.cfg", f"menuentry x {{ linux /v composefs={lost.id('old')}\n}}\n".encode())
    make(lost)
    place = found(lost, "esp")

    with Repository.open(lost.repo) as repo:
        view = SysrootView.read(place._replace(esps=place.boots), repo.algorithm)

    assert [entry.kind for entry in view.entries].count("grub") == 1


# -- what the system says ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("names", "known"), [((), False), (None, False), (("efi", "acpi"), False), (("acpi", "memmap"), True)])
def test_hidden_firmware_is_not_another_firmware(
    names: tuple[str, ...] | None, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def listed(path: str) -> list[str]:
        assert path == "/sys/firmware"
        if names is None:
            raise FileNotFoundError(path)
        return [*names]

    monkeypatch.setattr(os, "listdir", listed)

    assert sysroot._has_other_firmware() is known


TABLE = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"


def test_a_mount_table_of_any_length_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = f"composefs:{'ab' * 64}"
    table = tmp_path / "mountinfo"
    table.write_text("23 1 0:5 / /x rw shared:1 - tmpfs tmpfs rw\n" * 40_000 + f"24 1 0:9 / /y rw - overlay {source} ro\n")
    assert table.stat().st_size > 1 << 20
    monkeypatch.setattr(mounts, "TABLE", str(table))

    assert mounts.Mounts([]).sources == ("tmpfs", source)


@pytest.mark.parametrize("end", ["24 1 0:9 / /y rw", "24 1 0:9 /", "24 1 0:9 / /y rw - "])
def test_a_mount_table_that_is_cut_is_not_known(end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mountinfo").write_text(TABLE + end)
    monkeypatch.setattr(mounts, "TABLE", str(tmp_path / "mountinfo"))

    assert mounts.Mounts([]).sources is None


@pytest.mark.parametrize(("kind", "is_hidden"), [("vfat", True), ("autofs", False)])
def test_a_file_system_that_another_is_mounted_over_is_named(
    kind: str, is_hidden: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "boot"
    home.mkdir()
    (tmp_path / "mountinfo").write_text(f"{TABLE}0 22 8:99 / {home} rw - {kind} /dev/sdz9 rw\n")
    monkeypatch.setattr(mounts, "TABLE", str(tmp_path / "mountinfo"))

    assert (mounts.Mounts([str(home)]).hidden(str(home)) is not None) is is_hidden


def test_a_boot_directory_within_the_esp_hides_nothing_of_it(lost: Host) -> None:
    """FAT has no case: with ``EFI/loader/entries`` in an ESP at ``/boot``, ``/boot/efi`` is a boot directory, too."""
    put(lost, "boot/EFI/BOOT/BOOTX64.EFI", ANOTHER)
    put(lost, "boot/EFI/Linux/x.efi", uki_of_old(lost))
    place = found(lost)._replace(boots=(str(lost.root / "boot/EFI"),))

    with Repository.open(lost.repo) as repo:
        view = SysrootView.read(place, repo.algorithm)

    assert "uki" in view.seen[DeploymentId.trusted(lost.id("old"))]


def test_what_is_left_over_where_an_esp_was_is_not_read(lost: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    put(lost, "boot/efi/EFI/fedora/grub.cfg", b"search --set=root --label boot\nconfigfile ($root)/nowhere/x.cfg\n")
    monkeypatch.setattr(mounts.Mounts, "is_mounted", lambda self, home: home == str(lost.root))

    assert retired(lost, "esp")["old"][0] == "retired"


@pytest.mark.parametrize("name", ["My Disk", "tab\t", "back\\slash", "no\xa0break"])
def test_places_of_any_name_are_found_in_the_table(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / name
    home.mkdir()
    (tmp_path / "link").symlink_to(name)
    escaped = str(home).translate({ord(one): f"\\{ord(one):03o}" for one in " \t\n\\"})
    monkeypatch.setattr(mounts, "TABLE", str(tmp_path / "mountinfo"))
    monkeypatch.setattr(mounts, "_mount_at", lambda path: "7")
    (tmp_path / "mountinfo").write_text(
        f"{TABLE}7 22 8:9 / {escaped} rw - vfat /dev/x rw\n8 7 8:8 / {escaped} rw - vfat /dev/y rw\n"
    )

    for path in (str(home), str(tmp_path / "link"), os.path.relpath(home)):
        table = mounts.Mounts([path])
        assert table.is_mounted(path)
        assert table.hidden(path) is not None


def test_a_directory_of_which_the_kernel_does_not_say_the_mount_may_be_mounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mounts, "_mount_at", lambda path: "")

    assert mounts.Mounts([str(tmp_path)]).is_mounted(str(tmp_path))


def test_what_the_system_does_not_give_of_fstab_was_not_read(lost: Host) -> None:
    with refused("deploy"):
        (place,) = mounts.declared(str(lost.root), None)

    assert isinstance(place, Place)
    assert place.reason == "Input/output error"


def test_the_command_line_mounts_too() -> None:
    found = [*mounts.declared("/sysroot", "rw systemd.mount-extra=UUID=1:/boot:auto:ro systemd.mount-extra=x quiet")]

    assert mounts.Declared("/boot", "the command line") in found


def test_what_fstab_has_and_is_not_mounted_is_named(lost: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The root of another system is mounted, and its boot partition is not."""
    fstab = f"state/deploy/{lost.id('same')}/etc/fstab"
    put(
        lost,
        fstab,
        b"# x\nUUID=1 /boot/ ext4 defaults\nUUID=2 /var xfs x\nPARTLABEL=e /efi vfat\n",
    )
    assert found(lost, "esp").unread == ()
    monkeypatch.setattr(mounts.Mounts, "is_mounted", lambda self, home: home == str(lost.root))

    assert [(place.name, place.path) for place in found(lost).unread] == [
        ("boot-entry", str(lost.root / "boot")),
        ("uki", str(lost.root / "efi")),
    ]
    assert retired(lost, "esp")["old"] == (
        "kept",
        f"boot-entry ({lost.root}/boot) could not be read: "
        f"{lost.root}/{fstab} has a file system for it, and none is mounted there",
    )


FSTAB = "/etc/fstab has a file system for it, and none is mounted there"
COVERED = "something else is mounted over the file system that is mounted there"
NO_ESP = "no EFI system partition is mounted"


def test_real_mounts_are_seen_as_they_are(hosts: Path, tmp_path: Path) -> None:
    """What a running host with EFI says that it has not read, while partitions are mounted and unmounted."""
    booted = json.loads((hosts / "life-staged.json").read_text())["booted"]
    etc = "mkdir /run/etc; cp -a /etc/. /run/etc/; mount --bind /run/etc /etc"
    wanted = {
        f"mkdir -p /sys/firmware/efi /efi; {etc}; echo 'UUID=1 /efi vfat umask=0077 0 2' >/etc/fstab": [
            ("uki", "/efi", FSTAB),
            ("uki", None, NO_ESP),
        ],
        "mount -t tmpfs esp /efi; mkdir -p /efi/EFI/BOOT": [],
        "mount -t tmpfs other /efi; mkdir -p /efi/EFI/BOOT": [("uki", "/efi", COVERED)],
        "umount /efi; mount -t tmpfs other /boot": [("boot-entry", "/boot", COVERED)],
        "umount /boot; umount /boot": [],  # it is read below /sysroot
        "umount /efi; mkdir -p /efi/EFI/BOOT": [("uki", "/efi", FSTAB), ("uki", None, NO_ESP)],
        "mount -t tmpfs esp /boot; mkdir -p /boot/EFI/BOOT": [("uki", "/efi", FSTAB)],
    }
    steps = [
        Step(
            f"{{ {command}; }} >/dev/null; cfs-tag deployments --json >/run/said; jq -c .result.places /run/said", writable=True
        )
        for command in wanted
    ]

    said = run_on_host(hosts / "life-staged.tar.gz", booted, steps, tmp_path, columns=2000)

    for typed, (command, unread) in zip(said, wanted.items(), strict=True):
        places = json.loads(typed.text)
        assert [(one["place"], one["path"], one["not_read"]) for one in places if one["not_read"]] == unread, command
