"""A sysroot: where deployments are seen.

Reading only, and nothing is trusted.  Places:

================  ======================================================================================
``state``         ``state/deploy/<id>/`` with its origin file
``aboot``         slots and records of Android's boot loader, where they are
``boot-entry``    ``loader/entries`` (BLS), GRUB's scripts; in ``/boot`` and on the ESP
``staged-entry``  the same, waiting: ``loader/entries.staged``, ``user.cfg.staged``
``uki``           UKIs and their add-ons on the ESP
``staged-file``   ``/run/composefs/staged-deployment``
``kernel``        the command line that the running system was booted with
``mounts``        what is mounted from ``composefs:<id>``
================  ======================================================================================

Which of them could be read is part of the answer: what was not read may have any deployment.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

from cfs_tags.errors import CfsTagsError, FormatError, SystemFailure
from cfs_tags.formats.boot import paths
from cfs_tags.formats.boot.cmdline import booted_argument, composefs_arguments
from cfs_tags.formats.boot.order import GRUB, SYSTEMD_BOOT, bootloader
from cfs_tags.formats.boot.origin import (
    MAX_ORIGIN,
    MAX_STAGED,
    Origin,
    parse_aboot_record,
    parse_aboot_slot,
    parse_origin,
    parse_staged,
    salvaged_reference,
)
from cfs_tags.host.boot import read_boot_entries
from cfs_tags.host.mounts import TABLE as MOUNTS
from cfs_tags.host.mounts import Mounts, Partition, declared
from cfs_tags.host.sightings import Entry, Finding, Place, Sightings, reason_of
from cfs_tags.repo.directory import Directory, HostDirectory
from cfs_tags.values import Algorithm, DeploymentId

_MAX_FILE = 1 << 20
_CMDLINE = "/proc/cmdline"
_LOADER_GUID = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"  # systemd's, see the Boot Loader Interface


class Sysroot(NamedTuple):
    """Where the parts of a system are.  None for a directory: it is not known, or not mounted; so it counts as unread.

    ``root`` is the physical root, whose ``composefs/`` and ``state/`` are meant; ``boot`` the boot directory; ``esp`` the
    EFI system partition; ``run`` the system's ``/run``; ``cmdline`` the running kernel's command line and ``mounts`` the
    sources of its mounts; ``loader_info`` the EFI variable of that name.  ``without`` names parts that the system does not
    have, which are therefore not missed (``esp``, ``boot``, ``run``, ``kernel``).  ``boots`` and ``esps`` are further
    directories with boot files, which are read as well, and ``unread`` places of such that are known and cannot be.
    """

    root: str
    boot: str | None = None
    esp: str | None = None
    run: str | None = None
    cmdline: str | None = None
    mounts: tuple[str, ...] | None = None
    loader_info: str | None = None
    without: frozenset[str] = frozenset()
    boots: tuple[str, ...] = ()
    esps: tuple[str, ...] = ()
    unread: tuple[Place, ...] = ()

    @classmethod
    def find(
        cls,
        root: str,
        *,
        boot: str | None = None,
        esp: str | None = None,
        run: str | None = None,
        cmdline: str | None = None,
        without: Iterable[str] = (),
    ) -> Sysroot:
        """Look for the parts of the system at ``root`` that are not given.

        ``/run``, the kernel's command line and the mounts are taken from the running system only when ``root`` is its
        root; those of another system are not visible.
        """
        live = _same(root, "/") or _same(root, paths.SYSROOT)
        absent = frozenset(without)
        loader_info = None
        tops: tuple[str, ...] = (root,)
        if live:
            run = run or paths.RUN
            cmdline = cmdline if cmdline is not None else _text(_CMDLINE)
            loader_info = _efi_variable("LoaderInfo")
            tops = tuple(dict.fromkeys((root, "/")))
            if _has_other_firmware():
                absent |= {"esp"}
        homes = _Homes(tops, (cmdline or "") if live else None)
        esps = homes.esps()
        others = [home for home in homes.boots if not boot and (_boot_like(home) or _esp_like(home))]
        # an EFI directory that is no ESP is left over: nothing boots from there
        others += [home for home in homes.efis if not esp and _boot_like(home)]
        given = {part for part, place in (("boot", boot), ("esp", esp)) if place is not None}
        return cls(
            root,
            boot or next(filter(_boot_like, homes.boots), None),
            esp or next(iter(esps), None),
            run,
            cmdline,
            homes.mounts.sources if live else None,
            loader_info,
            absent,
            tuple(home for home in others if home not in esps),
            () if esp else esps,
            tuple(homes.unread(given | absent, esps)),
        )


class _Homes:
    """The directories where systems mount what they boot from.

    ``cmdline`` is the kernel's where the system is the running one, else None.
    """

    def __init__(self, tops: tuple[str, ...], cmdline: str | None) -> None:
        self._tops = tops
        self._cmdline = cmdline
        self.boots = [os.path.join(top, "boot") for top in tops]
        self.efis = [os.path.join(top, name) for name in ("boot/efi", "efi") for top in tops]
        self.mounts = Mounts([*tops, *self.boots, *self.efis])
        # else it is a copy of a host in some directory, where nothing is mounted
        self._is_system = cmdline is not None or self.mounts.is_mounted(tops[0])
        self._partitions = {
            home: Partition.of(home)
            for home in (*self.efis, *self.boots)
            if _esp_like(home) and (not self._is_system or self.mounts.is_mounted(home))
        }

    def esps(self) -> tuple[str, ...]:
        """Those of the EFI system partition, and of others where there are several."""
        kinds = {home: partition.is_esp for home, partition in self._partitions.items()}
        found = [home for home, kind in kinds.items() if kind or (kind is None and home in self.efis)]
        # at /boot may be another partition for boot files, which has UKIs and no boot loader
        found += [
            home
            for home, kind in kinds.items()
            if kind is None and home in self.boots and (self.mounts.is_fat(home) or not found) and _has_loader(home)
        ]
        return tuple(found)

    def unread(self, known: Collection[str], esps: Collection[str]) -> Iterator[Place]:
        """File systems with boot files that the system is known to have, and that are not seen.

        Args:
            known: the parts (``boot``, ``esp``) that need not be looked for.
            esps: what :meth:`esps` found.
        """
        places = [("boot-entry", home) for home in self.boots if "boot" not in known]
        places += [("uki", home) for home in self.efis if "esp" not in known]
        for name, home in places:
            if (reason := self.mounts.hidden(home)) is not None:
                yield Place(name, home, reason)
        for one in dict.fromkeys(declared(self._tops[0], self._cmdline)) if self._is_system and places else ():
            if isinstance(one, Place):
                yield one
                continue
            homes = self._at(one.place)
            if not any(map(self.mounts.is_mounted, homes)):
                reason = f"{one.said} has a file system for it, and none is mounted there"
                yield from (Place(name, home, reason) for name, home in places if home in homes[-1:])
        started = _efi_variable("LoaderDevicePartUUID") if self._cmdline is not None and "esp" not in known else None
        uuids = {self._partitions[home].uuid for home in esps}
        if started is not None and esps and None not in uuids and started.lower() not in uuids:
            reason = f"the system was started from the EFI system partition {started}, and that is at none of these places"
            yield Place("uki", paths.EFI, reason)

    def _at(self, place: str) -> list[str]:
        homes = [os.path.join(top, place.lstrip("/")) for top in self._tops]
        return [home for home in homes if home in (*self.boots, *self.efis)]


class SysrootView(NamedTuple):
    """What was seen of a sysroot.

    ``seen`` maps each deployment to the names of the places that have it; ``entries`` are in boot order (active ones first,
    then staged); ``places`` are all that were tried; ``booted`` and ``staged`` are None where nothing says so; ``loader`` is
    the boot loader (``formats/boot/order.py``); ``salvaged`` are the image references in origins that cannot be read.
    """

    sysroot: Sysroot
    seen: Mapping[DeploymentId, frozenset[str]]
    entries: tuple[Entry, ...]
    places: tuple[Place, ...]
    origins: Mapping[DeploymentId, Origin | CfsTagsError | None]
    booted: DeploymentId | None
    staged: DeploymentId | None
    findings: tuple[Finding, ...]
    loader: str
    salvaged: Mapping[DeploymentId, str]

    @property
    def unread(self) -> tuple[Place, ...]:
        """Places that could not be read."""
        return tuple(place for place in self.places if place.reason is not None)

    @classmethod
    def read(cls, sysroot: Sysroot, algorithm: Algorithm, known: Collection[DeploymentId] = ()) -> SysrootView:
        """Look at all places.  Never fails for what is in them.

        Args:
            sysroot: where they are.
            algorithm: of the repository; other ids are another system's.
            known: deployments that the repository has something of (:func:`cfs_tags.host.lookup.known`): a boot entry that
                names one of them counts as its entry, whatever form it has.
        """
        return _Reader(sysroot, algorithm, known).view()


# -- reading a sysroot -------------------------------------------------------------------------------------------------


class _Reader:
    def __init__(self, sysroot: Sysroot, algorithm: Algorithm, known: Collection[DeploymentId]) -> None:
        self._sysroot = sysroot
        self._sightings = Sightings(algorithm, known)
        self._origins: dict[DeploymentId, Origin | CfsTagsError | None] = {}
        self._salvaged: dict[DeploymentId, str] = {}

    def view(self) -> SysrootView:
        seen = self._sightings
        self._state()
        self._aboot()
        if self._sysroot.boot is None:
            self._missing("boot-entry", "boot", "no boot directory with entries of a boot loader: is /boot mounted?")
        loader = self._loader()
        boots = [path for path in (self._sysroot.boot, *self._sysroot.boots) if path is not None]
        esps = [path for path in (self._sysroot.esp, *self._sysroot.esps) if path is not None]
        entries = read_boot_entries(seen, boots, esps, loader)
        seen.places.extend(self._sysroot.unread)
        if self._sysroot.esp is None:
            self._missing("uki", "esp", "no EFI system partition is mounted")
        staged = self._staged_file()
        booted = self._kernel()
        self._mounts()
        return SysrootView(
            self._sysroot,
            {name: frozenset(places) for name, places in seen.deployments.items()},
            tuple(entry for entry in entries if not entry.staged) + tuple(entry for entry in entries if entry.staged),
            tuple(seen.places),
            self._origins,
            booted,
            staged,
            tuple(seen.findings),
            loader,
            self._salvaged,
        )

    def _missing(self, name: str, part: str, reason: str) -> None:
        if part not in self._sysroot.without:
            self._sightings.place(name, None, reason)

    def _state(self) -> None:
        path = os.path.join(self._sysroot.root, paths.STATE_DEPLOY)
        try:
            with Directory(path) as top:
                for name in sorted(top.names(".") or ()):
                    self._state_directory(top, name)
        except (OSError, CfsTagsError) as error:
            self._sightings.place("state", path, reason_of(error))
        else:
            self._sightings.place("state", path)

    def _state_directory(self, top: Directory, name: str) -> None:
        seen = self._sightings
        path = os.path.join(top.path, name)
        if re.fullmatch(f"[0-9a-f]{{{seen.algorithm.hex_length}}}", name, re.ASCII) is None:
            seen.find("not-a-deployment", f"{path} is not named like a deployment", "look at what put it there")
            return
        if not top.is_directory(name):
            seen.find("state-not-a-directory", f"{path} is a link or file, not a state directory", "it is not followed")
            seen.see(name, "state")  # another program keeps it there: its ref is not ours to retire
            return
        deployment = seen.see(name, "state")
        assert deployment is not None
        file = paths.origin_name(deployment)
        data = None
        try:
            data = top.read_file(f"{name}/{file}", MAX_ORIGIN)
            self._origins[deployment] = parse_origin(data) if data is not None else None
        except FormatError as error:
            error.path = error.path or f"{path}/{file}"
            self._origins[deployment] = error
            reference = salvaged_reference(data or b"")
            if reference is not None:
                self._salvaged[deployment] = reference
        except SystemFailure as error:
            self._origins[deployment] = error

    def _aboot(self) -> None:
        """Slots and records of deployments that Android's boot loader starts: they have no boot entries."""
        path = os.path.join(self._sysroot.root, paths.ABOOT)
        try:
            with HostDirectory(self._sysroot.root) as root:
                fd = root.directory(f"{paths.ABOOT}/.")
            if fd is None:
                return
            with Directory(path, fd) as top:
                slots = [f"{paths.ABOOT_SLOTS}/{name}" for name in sorted(top.names(paths.ABOOT_SLOTS) or ())]
                for name in (*slots, *paths.ABOOT_RECORDS):
                    self._aboot_file(top, name, name in slots)
                for name in sorted({*(top.names(".") or ())} - {paths.ABOOT_SLOTS, *paths.ABOOT_RECORDS}):
                    self._sightings.see_mentioned(top.read_file(name, MAX_STAGED) or b"", "aboot")
        except (OSError, CfsTagsError) as error:
            self._sightings.place("aboot", path, reason_of(error))
        else:
            self._sightings.place("aboot", path)

    def _aboot_file(self, top: Directory, name: str, is_slot: bool) -> None:
        try:
            data = top.read_file(name, MAX_STAGED)
            if data is not None:
                self._sightings.see(parse_aboot_slot(data) if is_slot else parse_aboot_record(data), "aboot")
        except CfsTagsError as error:
            self._sightings.place("aboot", os.path.join(top.path, name), error.message)

    def _staged_file(self) -> DeploymentId | None:
        run = self._sysroot.run
        if run is None:
            self._missing("staged-file", "run", "it is in the /run of another system")
            return None
        path = os.path.join(run, paths.STAGED_DEPLOYMENT)
        try:
            with HostDirectory(run) as top:
                data = top.read_file(paths.STAGED_DEPLOYMENT, MAX_STAGED)
            staged = parse_staged(data).deployment if data is not None else None
        except (OSError, CfsTagsError) as error:
            self._sightings.place("staged-file", path, reason_of(error))
            return None
        self._sightings.place("staged-file", path)
        return self._sightings.see(staged, "staged-file")

    def _kernel(self) -> DeploymentId | None:
        cmdline = self._sysroot.cmdline
        if cmdline is None:
            self._missing("kernel", "kernel", "it is the command line of another system")
            return None
        self._sightings.place("kernel", _CMDLINE)
        arguments = composefs_arguments(cmdline)
        for argument in arguments:
            self._sightings.see(argument.id, "kernel")
        self._sightings.see_mentioned(cmdline.encode("utf-8", "surrogateescape"), "kernel")
        followed = booted_argument(arguments, self._sightings.algorithm)
        return followed.id if followed is not None else None

    def _mounts(self) -> None:
        mounts = self._sysroot.mounts
        if mounts is None:
            self._missing("mounts", "kernel", "they are the mounts of another system")
            return
        self._sightings.place("mounts", MOUNTS)
        for source in mounts:
            self._sightings.see(paths.deployment_of_mount_source(source), "mounts")

    def _loader(self) -> str:
        if self._sysroot.loader_info is not None:
            return bootloader(self._sysroot.loader_info)
        # without the word of the firmware: GRUB keeps a directory of its own in /boot, systemd-boot none
        boot = self._sysroot.boot
        grub = boot is None or any(_may_be_there(os.path.join(boot, name), stat.S_ISDIR) for name in paths.GRUB_DIRECTORIES)
        return GRUB if grub or not _esp_like(self._sysroot.esp or boot or "") else SYSTEMD_BOOT


# -- the system --------------------------------------------------------------------------------------------------------


def _same(first: str, second: str) -> bool:
    try:
        return os.path.samefile(first, second)
    except OSError:
        return False


def _boot_like(path: str) -> bool:
    scripts = (f"{directory}/{paths.USER_CFG}" for directory in paths.GRUB_DIRECTORIES)
    return any(_may_be_there(os.path.join(path, name)) for name in (paths.ENTRIES, paths.ENTRIES_STAGED, *scripts))


def _esp_like(path: str) -> bool:
    return _may_be_there(os.path.join(path, paths.EFI), stat.S_ISDIR)


def _may_be_there(path: str, fits: Callable[[int], bool] = bool) -> bool:
    """Whether something with a mode that fits is there, or the system would not say: who reads it says why it cannot."""
    try:
        return fits(os.stat(path).st_mode)
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENOTDIR)


def _text(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read(_MAX_FILE)
    except OSError:
        return None


def _has_loader(path: str) -> bool:
    """Whether an ``EFI`` directory has something besides UKIs, or that cannot be known."""
    try:
        return any(name.casefold() != "linux" for name in os.listdir(os.path.join(path, paths.EFI)))
    except OSError:
        return True


def _has_other_firmware() -> bool:
    """Whether the kernel says that there is no EFI.  Containers hide what it says."""
    try:
        names = os.listdir("/sys/firmware")
    except OSError:
        return False
    return bool(names) and "efi" not in names


def _efi_variable(name: str) -> str | None:
    """A text that the boot loader left."""
    try:
        with open(f"/sys/firmware/efi/efivars/{name}-{_LOADER_GUID}", "rb") as file:
            return file.read(1024)[4:].decode("utf-16-le", "replace").rstrip("\0")  # four bytes of attributes go before
    except OSError:
        return None
