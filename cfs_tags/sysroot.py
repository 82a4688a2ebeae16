"""A sysroot: where deployments are seen.

Reading only, and nothing is trusted.  Places:

================  ======================================================================================
``state``         ``state/deploy/<id>/`` with its origin file
``boot-entry``    ``loader/entries`` (BLS), GRUB's ``user.cfg``; in ``/boot`` and on the ESP
``staged-entry``  the same, waiting: ``loader/entries.staged``, ``user.cfg.staged``
``uki``           ``EFI/Linux/bootc/*.efi`` on the ESP
``staged-file``   ``/run/composefs/staged-deployment``
``kernel``        the command line that the running system was booted with
``mounts``        what is mounted from ``composefs:<id>``
================  ======================================================================================

Which of them could be read is part of the answer: what was not read may have any deployment.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, NamedTuple

from cfs_tags.errors import CfsTagsError, FormatError, SystemFailure
from cfs_tags.formats import bootc, bootentry, bootorder, pe
from cfs_tags.repo.directory import Directory
from cfs_tags.values import Algorithm, DeploymentId

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

__all__ = ["Entry", "Finding", "Place", "Sysroot", "SysrootView", "reason_of"]

_MAX_FILE = 1 << 20
_LOADER_GUID = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"  # systemd's, see the Boot Loader Interface


class Place(NamedTuple):
    """Somewhere deployments are seen.  ``reason`` says why it was not read, None where it was."""

    name: str
    path: str
    reason: str | None = None


class Entry(NamedTuple):
    """A boot entry: where it stands, which deployment it boots, and what is wrong with it."""

    path: str
    kind: str
    staged: bool
    deployment: DeploymentId | None
    title: str | None = None
    version: str | None = None
    problem: str | None = None
    ambiguous: bool = False


class Finding(NamedTuple):
    """Something that is not as it should be: a stable code, what it is, what to do."""

    code: str
    message: str
    advice: str


class Sysroot(NamedTuple):
    """Where the parts of a system are.  None for a directory: it is not known, or not mounted; so it counts as unread.

    ``root`` is the physical root, whose ``composefs/`` and ``state/`` are meant; ``boot`` the boot directory; ``esp`` the
    EFI system partition; ``run`` the system's ``/run``; ``cmdline`` the running kernel's command line and ``mounts`` the
    sources of its mounts; ``loader_info`` the EFI variable of that name.  ``without`` names parts that the system does not
    have, which are therefore not missed (``esp``, ``boot``, ``run``, ``kernel``).
    """

    root: str
    boot: str | None = None
    esp: str | None = None
    run: str | None = None
    cmdline: str | None = None
    mounts: tuple[str, ...] | None = None
    loader_info: str | None = None
    without: frozenset[str] = frozenset()

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
        """Look for the parts of the system at ``root``; what is given is taken, what is not is found.

        ``/run``, the kernel's command line and the mounts are taken from the running system only when ``root`` is its
        root; another system's are not to be had.
        """
        live = _same(root, "/") or _same(root, "/sysroot")
        absent = frozenset(without)
        mounts: tuple[str, ...] | None = None
        loader_info = None
        if live:
            run = run or "/run"
            cmdline = cmdline if cmdline is not None else _text("/proc/cmdline")
            mounts = _mount_sources()
            loader_info = _loader_info()
            if not os.path.isdir("/sys/firmware/efi"):
                absent |= {"esp"}
        boot = boot or _first(_boot_like, f"{root}/boot", *(("/boot",) if live else ()))
        places = [f"{root}/boot/efi", f"{root}/efi", f"{root}/boot", *(("/boot/efi", "/efi", "/boot") if live else ())]
        esp = esp or _first(_esp_like, *places)
        return cls(root, boot, esp, run, cmdline, mounts, loader_info, absent)


class SysrootView(NamedTuple):
    """What was seen of a sysroot.

    ``seen`` maps each deployment to the names of the places that have it; ``entries`` are in boot order (active ones first,
    then staged); ``places`` are all that were tried; ``booted`` and ``staged`` are None where nothing says so; ``loader`` is
    the boot loader (``formats/bootorder.py``).
    """

    sysroot: Sysroot
    seen: Mapping[DeploymentId, frozenset[str]]
    entries: tuple[Entry, ...]
    places: tuple[Place, ...]
    origins: Mapping[DeploymentId, bootc.Origin | FormatError | None]
    booted: DeploymentId | None
    staged: DeploymentId | None
    findings: tuple[Finding, ...]
    loader: str

    @property
    def unread(self) -> tuple[Place, ...]:
        """Places that could not be read."""
        return tuple(place for place in self.places if place.reason is not None)

    @classmethod
    def read(cls, sysroot: Sysroot, algorithm: Algorithm) -> SysrootView:
        """Look at all places.  Never fails for what is in them.

        Args:
            sysroot: where they are.
            algorithm: of the repository; other ids are another system's.
        """
        return _Reader(sysroot, algorithm).view()


# -- reading a sysroot -------------------------------------------------------------------------------------------------


class _Reader:
    def __init__(self, sysroot: Sysroot, algorithm: Algorithm) -> None:
        self._sysroot = sysroot
        self._algorithm = algorithm
        self._seen: dict[DeploymentId, set[str]] = {}
        self._places: list[Place] = []
        self._findings: list[Finding] = []
        self._origins: dict[DeploymentId, bootc.Origin | FormatError | None] = {}

    def view(self) -> SysrootView:
        self._state()
        entries = [*self._boot(), *self._esp()]
        staged = self._staged_file()
        booted = self._kernel()
        self._mounts()
        return SysrootView(
            self._sysroot,
            {name: frozenset(places) for name, places in self._seen.items()},
            tuple(entry for entry in entries if not entry.staged) + tuple(entry for entry in entries if entry.staged),
            tuple(self._places),
            self._origins,
            booted,
            staged,
            tuple(self._findings),
            self._loader(),
        )

    def _see(self, name: str | None, place: str) -> DeploymentId | None:
        if name is None or len(name) != self._algorithm.hex_length:
            return None
        deployment = DeploymentId.trusted(name)
        self._seen.setdefault(deployment, set()).add(place)
        return deployment

    def _place(self, name: str, path: str | None, reason: str | None = None) -> None:
        self._places.append(Place(name, path or "", reason))

    def _missing(self, name: str, part: str, reason: str) -> None:
        if part not in self._sysroot.without:
            self._place(name, None, reason)

    def _state(self) -> None:
        path = os.path.join(self._sysroot.root, "state/deploy")
        try:
            with Directory(path) as top:
                for name in sorted(top.names(".") or ()):
                    self._state_directory(top, name)
        except (OSError, CfsTagsError) as error:
            self._place("state", path, reason_of(error))
        else:
            self._place("state", path)

    def _state_directory(self, top: Directory, name: str) -> None:
        path = os.path.join(top.path, name)
        if re.fullmatch(f"[0-9a-f]{{{self._algorithm.hex_length}}}", name, re.ASCII) is None:
            self._find("not-a-deployment", f"{path} is not named like a deployment", "look at what put it there")
            return
        if not top.is_directory(name):
            self._find("state-not-a-directory", f"{path} is a link or file, not a state directory", "it is not followed")
            self._see(name, "state")  # somebody wants it there: its ref is not for us to retire
            return
        deployment = self._see(name, "state")
        assert deployment is not None
        try:
            data = top.read_file(f"{name}/{name}.origin", bootc.MAX_ORIGIN)
            self._origins[deployment] = bootc.parse_origin(data) if data is not None else None
        except FormatError as error:
            error.path = error.path or f"{path}/{name}.origin"
            self._origins[deployment] = error
        except SystemFailure as error:
            self._origins[deployment] = FormatError(
                structure="origin file", offset=0, wanted="a readable file", found=error.message, path=f"{path}/{name}.origin"
            )

    def _boot(self) -> Iterator[Entry]:
        boot = self._sysroot.boot
        if boot is None:
            self._missing("boot-entry", "boot", "no boot directory with entries of a boot loader: is /boot mounted?")
            return
        yield from self._entries(boot, "boot-entry", grub=True)

    def _esp(self) -> Iterator[Entry]:
        esp = self._sysroot.esp
        if esp is None:
            self._missing("uki", "esp", "no EFI system partition is mounted")
            return
        if self._sysroot.boot is None or not _same(esp, self._sysroot.boot):
            yield from self._entries(esp, "boot-entry", grub=False)
        yield from self._ukis(esp)

    def _entries(self, boot: str, place: str, *, grub: bool) -> Iterator[Entry]:
        try:
            with Directory(boot) as top:
                for staged in (False, True):
                    suffix = ".staged" if staged else ""
                    if grub:
                        yield from self._grub(top, f"grub2/user.cfg{suffix}", staged)
                    yield from self._bls(top, f"loader/entries{suffix}", staged)
        except (OSError, CfsTagsError) as error:
            self._place(place, boot, reason_of(error))
        else:
            self._place(place, boot)

    def _bls(self, top: Directory, path: str, staged: bool) -> Iterator[Entry]:
        parsed: list[tuple[str, bootentry.BootEntry]] = []
        for name in top.names(path) or ():
            if not name.endswith(".conf"):
                continue
            shown = os.path.join(top.path, path, name)
            try:
                data = top.read_file(f"{path}/{name}", bootentry.MAX_BOOT_ENTRY)
                if data is not None:
                    parsed.append((name, bootentry.parse_boot_entry(data)))
            except CfsTagsError as error:
                self._find(
                    "boot-entry-unreadable", f"{shown}: {error.message}", "it may boot any deployment: mend or remove it"
                )
                self._place("boot-entry", shown, error.message)
        for name, entry in bootorder.boot_order(parsed, self._loader()):
            yield self._entry(os.path.join(top.path, path, name), "bls", staged, entry.deployments, entry)

    def _grub(self, top: Directory, path: str, staged: bool) -> Iterator[Entry]:
        shown = os.path.join(top.path, path)
        try:
            data = top.read_file(path, bootentry.MAX_GRUB_CONFIG)
            entries = bootentry.parse_grub_config(data) if data is not None else ()
        except CfsTagsError as error:
            self._find("boot-entry-unreadable", f"{shown}: {error.message}", "it may boot any deployment: mend it")
            self._place("boot-entry", shown, error.message)
            return
        for entry in entries:
            ids = (entry.deployment,) if entry.deployment is not None else ()
            yield self._entry(shown, "grub", staged, ids, entry)

    def _entry(
        self, path: str, kind: str, staged: bool, ids: Sequence[str], entry: bootentry.BootEntry | bootentry.GrubEntry
    ) -> Entry:
        place = "staged-entry" if staged else "boot-entry"
        # ids of the other algorithm are another writing of the same image, or another system's
        found = [deployment for name in ids if (deployment := self._see(name, place)) is not None]
        version = entry.version if isinstance(entry, bootentry.BootEntry) else None
        problems = entry.problems if isinstance(entry, bootentry.BootEntry) else ()
        ambiguous = len(set(found)) > 1
        if ambiguous:
            problems = (f"it names {len(set(found))} deployments",)
        elif problems and not found:
            self._find("boot-entry-odd", f"{path}: {'; '.join(problems)}", "mend or remove it")
        deployment = found[0] if found else None
        return Entry(path, kind, staged, deployment, entry.title, version, "; ".join(problems) or None, ambiguous)

    def _ukis(self, esp: str) -> Iterator[Entry]:
        path = os.path.join(esp, "EFI/Linux/bootc")
        try:
            with Directory(esp) as top:
                for name in sorted(top.names("EFI/Linux/bootc") or ()):
                    if name.lower().endswith(".efi"):
                        yield from self._uki(top, f"EFI/Linux/bootc/{name}")
        except (OSError, CfsTagsError) as error:
            self._place("uki", path, reason_of(error))
        else:
            self._place("uki", path)

    def _uki(self, top: Directory, path: str) -> Iterator[Entry]:
        shown = os.path.join(top.path, path)
        try:
            fd = top.open_file(path)
            if fd is None:
                return
            try:
                cmdline = pe.uki_cmdline(lambda offset, length: os.pread(fd, length, offset), os.fstat(fd).st_size)
            finally:
                os.close(fd)
            arguments = bootentry.composefs_arguments(cmdline)
        except (FormatError, OSError) as error:
            reason = reason_of(error)
            self._find("uki-unreadable", f"{shown}: {reason}", "it may boot any deployment: write it again")
            self._place("uki", shown, reason)
            return
        ids = [argument.id for argument in arguments]
        found = [self._see(name, "uki") for name in ids]
        problem = f"it names {len(set(ids))} deployments" if len(set(ids)) > 1 else None
        yield Entry(shown, "uki", False, found[0] if found else None, None, None, problem)

    def _staged_file(self) -> DeploymentId | None:
        run = self._sysroot.run
        if run is None:
            self._missing("staged-file", "run", "it is in the /run of another system")
            return None
        path = os.path.join(run, "composefs/staged-deployment")
        try:
            with Directory(run) as top:
                data = top.read_file("composefs/staged-deployment", bootc.MAX_STAGED)
            staged = bootc.parse_staged(data).deployment if data is not None else None
        except (OSError, CfsTagsError) as error:
            self._place("staged-file", path, reason_of(error))
            return None
        self._place("staged-file", path)
        return self._see(staged, "staged-file")

    def _kernel(self) -> DeploymentId | None:
        cmdline = self._sysroot.cmdline
        if cmdline is None:
            self._missing("kernel", "kernel", "it is the command line of another system")
            return None
        self._place("kernel", "/proc/cmdline")
        arguments = bootentry.composefs_arguments(cmdline)
        for argument in arguments:
            self._see(argument.id, "kernel")
        followed = bootentry.booted_argument(arguments, self._algorithm)
        return followed.id if followed is not None else None

    def _mounts(self) -> None:
        mounts = self._sysroot.mounts
        if mounts is None:
            self._missing("mounts", "kernel", "they are the mounts of another system")
            return
        self._place("mounts", "/proc/self/mountinfo")
        for source in mounts:
            self._see(bootc.deployment_of_mount_source(source), "mounts")

    def _loader(self) -> str:
        if self._sysroot.loader_info is not None:
            return bootorder.bootloader(self._sysroot.loader_info)
        # without the word of the firmware: GRUB keeps a directory of its own in /boot, systemd-boot none
        boot = self._sysroot.boot
        grub = boot is None or any(os.path.isdir(os.path.join(boot, name)) for name in ("grub2", "grub"))
        return bootorder.GRUB if grub or not _esp_like(self._sysroot.esp or boot or "") else bootorder.SYSTEMD_BOOT

    def _find(self, code: str, message: str, advice: str) -> None:
        self._findings.append(Finding(code, message, advice))


# -- the system --------------------------------------------------------------------------------------------------------


def _same(first: str, second: str) -> bool:
    try:
        return os.path.samefile(first, second)
    except OSError:
        return False


def _first(fits: Callable[[str], bool], *paths: str) -> str | None:
    return next((path for path in paths if fits(path)), None)


def _boot_like(path: str) -> bool:
    return any(
        os.path.exists(os.path.join(path, name)) for name in ("loader/entries", "grub2/user.cfg", "loader/entries.staged")
    )


def _esp_like(path: str) -> bool:
    return os.path.isdir(os.path.join(path, "EFI"))


def _text(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read(_MAX_FILE)
    except OSError:
        return None


def _mount_sources() -> tuple[str, ...] | None:
    table = _text("/proc/self/mountinfo")
    if table is None:
        return None
    # "36 35 98:0 / /mnt rw - ext4 SOURCE options": the source is the second field after the lone dash
    return tuple(fields[1] for line in table.splitlines() if len(fields := line.partition(" - ")[2].split(" ")) > 1)


def _loader_info() -> str | None:
    try:
        with open(f"/sys/firmware/efi/efivars/LoaderInfo-{_LOADER_GUID}", "rb") as file:
            return file.read(1024)[4:].decode("utf-16-le", "replace").rstrip("\0")  # four bytes of attributes go before
    except OSError:
        return None


def reason_of(error: Exception) -> str:
    """The words of an error, ours or the system's."""
    if isinstance(error, CfsTagsError):
        return error.message
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
