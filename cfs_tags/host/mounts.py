"""What is mounted where boot files are, and which partitions these are, as the kernel, udev and ``fstab`` say it.

A directory that nothing is mounted at may have files all the same: of an image, or from before its partition was made.  They
are read, and they are not what the boot loader reads.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

from cfs_tags.errors import CfsTagsError
from cfs_tags.formats.boot import paths
from cfs_tags.host.sightings import Place, reason_of
from cfs_tags.repo.directory import Directory, HostDirectory

TABLE = "/proc/self/mountinfo"
_UDEV = "/run/udev/data"
_MAX_FILE = 1 << 20
_FAT = ("vfat", "msdos")
_ESP = ("c12a7328-f81f-11d2-ba4b-00a0c93ec93b", "0xef")
_ESCAPED = re.compile(r"\\([0-7]{3})")
"""Blanks, tabs, ends of lines and backslashes in names (proc_pid_mountinfo(5))."""
_MOUNT_EXTRA = "systemd.mount-extra="
_XBOOTLDR = "bc13c2ff-59e6-4262-a352-b275fd6f7172"


class _Mount(NamedTuple):
    number: str
    device: str
    root: str
    place: str
    kind: str


class Mounts:
    """What the mount table says of some directories, which are looked at first: there may be some that are mounted then.

    Attributes:
        sources: of all mounts; None where the table could not be read whole.
    """

    def __init__(self, homes: Iterable[str]) -> None:
        self.sources: tuple[str, ...] | None = None
        self._at = {home: _mount_at(home) for home in homes}
        self._real = {home: os.path.realpath(home) for home in self._at}
        self._mounts: list[_Mount] = []
        places = {*self._real.values()}
        wanted = {number for number in self._at.values() if isinstance(number, str)}
        sources: dict[str, None] = {}
        try:
            with open(TABLE, encoding="utf-8", errors="surrogateescape", newline="\n") as table:
                for line in table:
                    # "36 35 98:0 /root /place rw shared:1 - ext4 SOURCE options"
                    fields, (kind, source, *_) = (part.split(" ") for part in line.rstrip("\n").split(" - ", 1))
                    number, _, device, root, place, *_ = fields
                    sources[source] = None
                    place = _ESCAPED.sub(lambda found: chr(int(found[1], 8)), place)
                    if number in wanted or place in places:
                        self._mounts.append(_Mount(number, device, root, place, kind))
        except (OSError, ValueError):
            return
        self.sources = tuple(sources)

    def is_mounted(self, home: str) -> bool:
        """Whether something is mounted at a directory, or that cannot be known."""
        number, mount = self._at[home], self._seen(home)
        if isinstance(number, FileNotFoundError):
            return False
        known = self.sources is not None and number != "" and not isinstance(number, OSError)
        return not known or (mount is not None and mount.place == self._real[home])

    def is_fat(self, home: str) -> bool:
        """Whether a directory is on a file system that firmware reads."""
        mount = self._seen(home)
        return mount is not None and mount.kind in _FAT

    def hidden(self, home: str) -> str | None:
        """Why a file system that is mounted at a directory is not seen there; None where all that is mounted there is."""
        number, seen = self._at[home], self._seen(home)
        for mount in self._mounts:
            if mount.place != self._real[home] or mount.kind == "autofs":
                continue
            if isinstance(number, OSError) and not isinstance(number, FileNotFoundError):
                return reason_of(number)
            if seen is None or (seen.device, seen.root) != (mount.device, mount.root):
                return "something else is mounted over the file system that is mounted there"
        return None

    def _seen(self, home: str) -> _Mount | None:
        return next((mount for mount in self._mounts if mount.number == self._at[home]), None)


def _mount_at(path: str) -> str | OSError:
    """The number of the mount that a directory is on; "" where the kernel does not say it."""
    try:
        fd = os.open(os.path.join(path, "."), os.O_PATH)
    except OSError as error:
        return error
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as facts:
            return next((line.split()[1] for line in facts if line.startswith("mnt_id:")), "")
    except OSError:
        return ""
    finally:
        os.close(fd)


class Partition(NamedTuple):
    """What udev knows of the partition that a directory is on; None for what it does not say."""

    is_esp: bool | None
    uuid: str | None

    @classmethod
    def of(cls, path: str) -> Partition:
        """The partition of a directory.  One of another type may be an ESP all the same, as on disks with an MBR."""
        facts = dict[str, str]()
        with suppress(OSError):
            device = os.stat(path).st_dev
            name = f"{_UDEV}/b{os.major(device)}:{os.minor(device)}"
            with open(name, encoding="utf-8", errors="replace") as file:
                facts = dict(line.strip().partition("=")[::2] for line in file)
        kind = facts.get("E:ID_PART_ENTRY_TYPE", "").lower()
        return cls(kind in _ESP if kind in (*_ESP, _XBOOTLDR) else None, facts.get("E:ID_PART_ENTRY_UUID", "").lower() or None)


class Declared(NamedTuple):
    """A directory at which a system has a file system mounted, and where that is said."""

    place: str
    said: str


def declared(root: str, cmdline: str | None) -> Iterator[Declared | Place]:
    """Where a system has file systems mounted, by its ``fstab`` and its command line; and which could not be read.

    Args:
        root: the physical root.
        cmdline: of the kernel, where that system is the running one; else the ``fstab`` of every deployment counts.
    """
    if cmdline is not None:
        for word in cmdline.split():
            if word.startswith(_MOUNT_EXTRA):  # "systemd.mount-extra=WHAT:WHERE:TYPE:OPTIONS"
                yield from (Declared(posixpath.normpath(place), "the command line") for place in word.split(":")[1:2])
        yield from _of_fstab("/etc/fstab", HostDirectory)
        return
    home = os.path.join(root, paths.STATE_DEPLOY)
    try:
        with Directory(home) as top:
            files = [os.path.join(home, name, "etc/fstab") for name in top.names(".") or () if top.is_directory(name)]
    except FileNotFoundError:
        return
    except (OSError, CfsTagsError) as error:
        yield Place("boot-entry", home, reason_of(error))
        return
    for file in files:
        yield from _of_fstab(file, Directory)


def _of_fstab(file: str, kind: type[Directory]) -> Iterator[Declared | Place]:
    try:
        with kind(os.path.dirname(file)) as etc:
            data = etc.read_file("fstab", _MAX_FILE) or b""
    except FileNotFoundError:
        return
    except (OSError, CfsTagsError) as error:
        yield Place("boot-entry", file, reason_of(error))
        return
    lines = (line.split() for line in data.decode("utf-8", "surrogateescape").split("\n"))
    yield from (Declared(posixpath.normpath(line[1]), file) for line in lines if len(line) > 1 and not line[0].startswith("#"))
