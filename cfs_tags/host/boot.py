"""What a host may boot: boot entries, GRUB's scripts and EFI programs, each followed to a command line.

An entry whose command line was read and names no deployment is another system's.  One that cannot be followed to a command
line may boot any deployment: the place where it stands counts as unread, with the reason.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import NamedTuple

from cfs_tags.errors import CfsTagsError, FormatError, SystemFailure
from cfs_tags.formats.boot import grub, paths
from cfs_tags.formats.boot.bls import MAX_BOOT_ENTRY, BootEntry, parse_boot_entry
from cfs_tags.formats.boot.cmdline import composefs_arguments, mentioned_ids
from cfs_tags.formats.boot.grub import GrubEntry, GrubMenu, GrubScript
from cfs_tags.formats.boot.order import SYSTEMD_BOOT, boot_order
from cfs_tags.formats.boot.uki import MZ, uki_cmdline
from cfs_tags.host.sightings import Entry, Sightings, reason_of
from cfs_tags.repo.directory import HostDirectory
from cfs_tags.values import DeploymentId

_MAX_LINKS = 8
_MAX_DEPTH = 32
"""Directories below each other on the ESP that are looked into."""
_MAX_NAMES = 50_000
"""Names on the ESP that are looked at; real ones have some hundred."""
_MAX_SCRIPTS = 4 << 20
"""Bytes of all GRUB scripts together, those that others read included."""


def read_boot_entries(sightings: Sightings, boots: Iterable[str], esps: Iterable[str], loader: str) -> list[Entry]:
    """All boot entries and EFI programs that lead to a kernel; what they boot goes to ``sightings``, and what was not read.

    Args:
        sightings: what is seen.
        boots: boot directories.
        esps: EFI system partitions; one may be a boot directory, too.
        loader: the boot loader (``formats/boot/order.py``).
    """
    wanted = {path: [path in {*boots}, path in {*esps}] for path in (*boots, *esps)}
    trees: dict[tuple[int, int], _Tree] = {}
    with ExitStack() as stack:
        for path, (is_boot, is_esp) in wanted.items():
            try:
                top = stack.enter_context(HostDirectory(path))
            except OSError as error:
                sightings.place("boot-entry", path, reason_of(error))
                if is_esp:
                    sightings.place("uki", os.path.join(path, paths.UKI_DIRECTORY), reason_of(error))
                continue
            tree = trees.setdefault(_identity(os.fstat(top.fd)), _Tree(top))
            tree.is_boot |= is_boot
            tree.is_esp |= is_esp
        return _Reader(sightings, list(trees.values()), loader).entries()


class _Tree:
    """A boot directory or an ESP, or both.  Names are found in whatever case, and links among files are followed within it."""

    def __init__(self, top: HostDirectory) -> None:
        self.top = top
        self.is_boot = self.is_esp = False
        self._names: dict[str, dict[str, list[str]]] = {}

    def shown(self, path: str) -> str:
        return os.path.join(self.top.path, path)

    def find(self, parts: Sequence[str]) -> list[str]:
        """The paths that these names may mean: the exact one where it is there, else those of another case.

        Raises:
            FormatError: a link on the way leads to nothing, or in a circle.
            SystemFailure: a directory could not be read.
        """
        found = [""]
        for part in parts:
            found = [posixpath.join(path, name) for path in found for name in self._called(path, part)]
        return found

    def _called(self, path: str, name: str) -> list[str]:
        names = self._names.get(path)
        if names is None:
            names = {}
            try:
                # a link to a directory may stand for one: /boot/loader often is such a link
                for one in self.top.names(posixpath.join(path, ".")) or ():
                    names.setdefault(one.casefold(), []).append(one)
            except FormatError:
                self.target(path)  # nothing is below a file
            self._names[path] = names
        same = names.get(name.casefold(), [])
        return [name] if name in same else sorted(same)

    def identity(self, path: str) -> object:
        """What is the same for two paths that lead to one file or directory; the path itself where nothing is."""
        try:
            return _identity(os.stat(path, dir_fd=self.top.fd))
        except OSError:
            return self, path

    def target(self, path: str) -> str:
        """The path itself, or the one that the link there leads to.

        Raises:
            FormatError: it leads out, to nothing, or in a circle.
        """
        first = path
        for _ in range(_MAX_LINKS):
            try:
                if not stat.S_ISLNK(self.top.status(path).st_mode):
                    return path
                text = os.readlink(path, dir_fd=self.top.fd)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ENOTDIR):
                    break
                raise SystemFailure.of(error, "read", self.shown(path)) from error
            path = posixpath.normpath(posixpath.join(posixpath.dirname(path), text)).lstrip("/")
            if path.split("/")[0] == "..":
                break
        raise FormatError(structure="file system", offset=0, wanted="a file", found=f"a link to {path}", path=self.shown(first))

    def is_directory(self, path: str) -> bool:
        """Whether a directory is at a path; programs that are links are followed by who reads them.

        Raises:
            FormatError: it is a link to a directory.
            SystemFailure: the system would not say, or it is a link that leads nowhere: there may be a directory behind it.
        """
        with self.top.reading(path):
            try:
                mode = self.top.status(path).st_mode
            except FileNotFoundError:  # it went
                return False
            if not stat.S_ISLNK(mode) or paths.is_program(path):
                return stat.S_ISDIR(mode)
            try:
                behind = os.stat(path, dir_fd=self.top.fd).st_mode
            except FileNotFoundError:
                if "/" not in path:  # kernels that are gone leave such links in /boot itself
                    return False
                raise
        if stat.S_ISDIR(behind):
            raise FormatError(structure="file system", offset=0, wanted="a directory", found="a link", path=self.shown(path))
        return False


class _Program(NamedTuple):
    """What an EFI program or a kernel has for a command line; ``reason`` says why that is not known."""

    deployments: tuple[DeploymentId, ...]
    has_cmdline: bool
    reason: str | None = None


class _Reader:
    def __init__(self, sightings: Sightings, trees: Sequence[_Tree], loader: str) -> None:
        self._sightings = sightings
        self._loader = loader
        self._trees = trees
        self._whole = {_identity(os.fstat(tree.top.fd)) for tree in trees if tree.is_esp}
        self._programs: dict[tuple[_Tree, str], _Program] = {}
        self._menus: list[GrubMenu] = []
        self._scripts_read: dict[tuple[_Tree, str], GrubScript | None] = {}
        self._sources: dict[tuple[_Tree, str, str], list[str]] = {}
        self._shown_scripts: set[object] = set()
        self._ids_in_scripts: dict[tuple[_Tree, str], list[DeploymentId]] = {}
        self._left = _MAX_SCRIPTS

    def entries(self) -> list[Entry]:
        found: list[Entry] = []
        failed: dict[_Tree, str] = {}
        for staged in (False, True):
            for read in (self._grub, self._bls):  # GRUB's variables may stand in boot entries
                for tree in self._trees:
                    try:
                        found.extend(read(tree, staged))
                    except (OSError, CfsTagsError) as error:
                        failed.setdefault(tree, reason_of(error))
        for tree in self._trees:
            self._sightings.place("boot-entry", tree.top.path, failed.get(tree))
        for tree in self._trees:
            shown = tree.shown(paths.UKI_DIRECTORY)
            try:
                found.extend(self._all_programs(tree))
            except (OSError, CfsTagsError) as error:
                self._sightings.place("uki", shown, reason_of(error))
            else:
                if tree.is_esp:
                    self._sightings.place("uki", shown)
        return found

    # -- boot entries

    def _bls(self, tree: _Tree, staged: bool) -> Iterator[Entry]:
        directory = paths.ENTRIES_STAGED if staged else paths.ENTRIES
        parsed: list[tuple[str, BootEntry]] = []
        mentioned: dict[str, list[DeploymentId]] = {}
        for path in tree.find(directory.split("/")):
            for name in tree.top.names(path) or ():
                if not name.lower().endswith(".conf"):
                    continue
                place = posixpath.join(path, name)
                try:
                    data = tree.top.read_file(place, MAX_BOOT_ENTRY)
                    if data is not None:
                        mentioned[place] = self._sightings.see_mentioned(data, _place(staged))
                        parsed.append((place, parse_boot_entry(data)))
                except CfsTagsError as error:
                    self._unreadable(tree.shown(place), error.message, "mend or remove it")
        for place, entry in boot_order(parsed, self._loader):
            ids, unfollowed = self._of_boot_entry(tree, entry)
            self._mentioned(tree.shown(place), mentioned[place], ids)
            yield self._entry(tree.shown(place), "bls", staged, ids or mentioned[place], entry)
            self._not_followed(tree.shown(place), unfollowed)

    def _of_boot_entry(self, tree: _Tree, entry: BootEntry) -> tuple[list[DeploymentId], list[str]]:
        ids = list(entry.deployments)
        reasons = []
        options = entry.options or ""
        if entry.linux is not None and entry.options is None:
            options = " ".join(value for menu in self._menus for value in menu.assigned("default_kernelopts"))
        # systemd-boot knows no variables
        if "$" in options and (self._menus or self._loader != SYSTEMD_BOOT):
            menus = self._menus or [grub.GrubMenu((), {}, "")]
            options = " ".join(menu.expand_options(options) for menu in menus)
            if grub.UNKNOWN in options:
                reasons.append("a variable in its options is not known")
        ids += [argument.id for argument in composefs_arguments(options)]
        if entry.url is not None:
            reasons.append(f"{entry.url} is in the network")
        more, unfollowed = self._references(tree, entry.programs, (entry.linux,) if entry.linux is not None else ())
        return ids + more, reasons + unfollowed

    def _entry(self, path: str, kind: str, staged: bool, ids: Sequence[DeploymentId], entry: BootEntry | GrubEntry) -> Entry:
        # ids of the other algorithm are another writing of the same image, or another system's
        found = self._sightings.see_all(ids, _place(staged))
        problems = entry.problems if isinstance(entry, BootEntry) else ()
        ambiguous = len(found) > 1
        if ambiguous:
            problems = (f"it names {len(found)} deployments",)
        elif problems and not found:
            self._sightings.find("boot-entry-odd", f"{path}: {'; '.join(problems)}", "mend or remove it")
        version = entry.version if isinstance(entry, BootEntry) else None
        deployment = found[0] if found else None
        return Entry(path, kind, staged, deployment, entry.title or None, version, "; ".join(problems) or None, ambiguous)

    def _mentioned(self, shown: str, mentioned: Iterable[DeploymentId], followed: Iterable[DeploymentId]) -> None:
        """Deployments whose ids are in a file, and to which nothing in it was followed: they count as its own all the same."""
        for deployment in dict.fromkeys(mentioned).keys() - {*followed}:
            reason = f"it names {deployment} in a form that is not understood"
            self._sightings.find("boot-entry-odd", f"{shown}: {reason}", "mend or remove it")

    def _not_followed(self, shown: str, reasons: Sequence[str]) -> None:
        """Some of what an entry, or a script, leads to could not be followed to a command line."""
        if reasons:
            more = f"; and {len(reasons) - 3} more" if len(reasons) > 3 else ""
            self._unreadable(shown, "; ".join(reasons[:3]) + more, "mend or remove it")

    def _unreadable(self, shown: str, reason: str, advice: str) -> None:
        self._sightings.find("boot-entry-unreadable", f"{shown}: {reason}", f"it may boot any deployment: {advice}")
        self._sightings.place("boot-entry", shown, reason)

    # -- GRUB

    def _grub(self, tree: _Tree, staged: bool) -> Iterator[Entry]:
        for directory in self._grub_directories(tree):
            names = [name for name in paths.GRUB_SCRIPTS if not (staged and name == paths.USER_CFG)]
            if staged and not tree.find((*directory.split("/"), paths.USER_CFG_STAGED)):
                continue
            scripts = self._scripts(tree, directory, [*names, *([paths.USER_CFG_STAGED] if staged else [])])
            environment = self._environment(tree, directory)
            if not scripts and not environment:
                continue
            whole = posixpath.join(directory, paths.GRUB_SCRIPTS[0]) in scripts
            menu = grub.GrubMenu(tuple(scripts.values()), environment, f"/{directory}", whole=whole)
            if not staged:
                self._menus.append(menu)
                self._entries_elsewhere(tree, directory, menu)
            for path, script in scripts.items():
                script_itself = tree.identity(path)
                if script_itself not in self._shown_scripts:
                    self._shown_scripts.add(script_itself)
                    yield from self._of_script(tree, path, script, menu, staged)

    def _grub_directories(self, tree: _Tree) -> list[str]:
        """Where GRUB's scripts may be: in directories of its own, ``boot/grub`` on an ESP that is also a boot disk; and beside
        GRUB itself, ``EFI/fedora``, or in its own directory there."""
        vendors = [
            posixpath.join(path, name)
            for path in tree.find((paths.EFI,))
            for name in sorted(tree.top.names(posixpath.join(path, ".")) or ())
        ]
        tops = ["", "boot", *vendors]
        directories = [*(posixpath.join(top, name) for top in tops for name in paths.GRUB_DIRECTORIES), *vendors]
        # links lead from one to another: /boot/boot to /boot, grub to grub2
        return list({tree.identity(directory): directory for directory in reversed(directories)}.values())[::-1]

    def _of_script(self, tree: _Tree, path: str, script: GrubScript, menu: GrubMenu, staged: bool) -> Iterator[Entry]:
        unfollowed: list[str] = []
        followed: list[DeploymentId] = []
        for entry in menu.entries(script):
            ids, reasons = self._references(tree, entry.programs, entry.kernels)
            followed += [*entry.deployments, *ids]
            yield self._entry(tree.shown(path), "grub", staged, [*entry.deployments, *ids], entry)
            unfollowed += [f"{entry.title}: {reason}" if entry.title else reason for reason in (*entry.unknown, *reasons)]
        mentioned = self._sightings.see_all(self._ids_in_scripts.get((tree, path), ()), _place(staged))
        self._mentioned(tree.shown(path), mentioned, followed)
        self._not_followed(tree.shown(path), unfollowed)

    def _scripts(self, tree: _Tree, directory: str, names: Iterable[str]) -> dict[str, GrubScript]:
        """The scripts of these names and those that they read, by their paths."""
        waiting = [path for name in names for path in tree.find((*directory.split("/"), name))]
        found: dict[str, GrubScript] = {}
        tried = set(waiting)
        while waiting:
            path = waiting.pop(0)
            script = self._script(tree, directory, path)
            if script is None:
                continue
            found[path] = script
            sources = self._sources_of(tree, directory, path, script)
            waiting.extend(one for one in sources if one not in tried)
            tried.update(sources)
        return found

    def _script(self, tree: _Tree, directory: str, path: str) -> GrubScript | None:
        if (tree, path) in self._scripts_read:
            return self._scripts_read[tree, path]
        script = None
        beside = posixpath.dirname(path) == directory
        try:
            data = tree.top.read_file(path if beside else tree.target(path), min(self._left, grub.MAX_GRUB_CONFIG))
            if data is not None:
                script = grub.parse_grub_script(data)
                self._ids_in_scripts[tree, path] = [one for one in mentioned_ids(data) if one in self._sightings.known]
                self._left -= len(data)
        except CfsTagsError as error:
            self._unreadable(tree.shown(path), error.message, "mend it")
        self._scripts_read[tree, path] = script
        return script

    def _sources_of(self, tree: _Tree, directory: str, path: str, script: GrubScript) -> list[str]:
        """The paths of the scripts that a script reads for the GRUB of a directory."""
        if (tree, directory, path) in self._sources:
            return self._sources[tree, directory, path]
        found: list[str] = []
        for source in grub.GrubMenu((script,), {}, f"/{directory}").sources(script):
            parts = _parts(source)
            meant = _meant(parts) if parts is not None else []
            places = [place for one in meant for place in tree.find(one)]
            found.extend(places)
            # one beside this one that is not there is not missed: the script asks for it before; and what is beside GRUB
            # itself mostly leads to the main script, which is read anyway
            is_beside = any("/".join(one).startswith(f"{directory}/") for one in meant)
            is_missed = not places and not is_beside and (tree.is_boot or self._is_elsewhere(tree, meant))
            if grub.is_pattern(source) or is_missed:
                self._unreadable(
                    tree.shown(path), f"it reads {source.replace(grub.UNKNOWN, '?')}, which cannot be followed", "mend it"
                )
        self._sources[tree, directory, path] = found
        return found

    def _is_elsewhere(self, own: _Tree, meant: Iterable[Sequence[str]]) -> bool:
        """Whether a script is on another partition, and is none of those that are read anyway."""
        there = [path for tree in self._trees if tree is not own for one in meant for path in tree.find(one)]
        return any(
            posixpath.basename(path) not in paths.GRUB_SCRIPTS
            or posixpath.basename(posixpath.dirname(path)) not in paths.GRUB_DIRECTORIES
            for path in there
        )

    def _environment(self, tree: _Tree, directory: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for path in tree.find((*directory.split("/"), paths.GRUB_ENVIRONMENT)):
            try:
                data = tree.top.read_file(tree.target(path), grub.MAX_GRUB_CONFIG) or b""
                self._sightings.see_mentioned(data, "boot-entry")
                found |= grub.parse_grub_environment(data)
            except CfsTagsError as error:
                self._unreadable(tree.shown(path), error.message, "mend it")
        return found

    def _entries_elsewhere(self, tree: _Tree, directory: str, menu: GrubMenu) -> None:
        """``blsdir`` has GRUB take its boot entries from another directory."""
        for value in menu.assigned("blsdir"):
            parts = _parts(value)
            if parts is None or paths.ENTRIES.split("/") not in _meant(parts):
                self._unreadable(tree.shown(directory), "blsdir is set: entries are elsewhere, too", "mend it")

    # -- EFI programs and kernels

    def _references(self, own: _Tree, programs: Iterable[str], kernels: Iterable[str]) -> tuple[list[DeploymentId], list[str]]:
        """What the files that an entry names boot, and why some could not be followed."""
        ids: list[DeploymentId] = []
        reasons: list[str] = []
        wanted = [(path, paths.is_program(path)) for path in kernels] + [(path, True) for path in programs]
        for path, is_program in wanted:
            parts = _parts(path)
            if parts is None:
                reasons.append(f"{path.replace(grub.UNKNOWN, '?')} cannot be followed")
                continue
            found = self._located(own, parts)
            # bootc goes by the name of a UKI alone; Windows is on a disk of its own often enough
            known = paths.deployment_of_uki(path) is not None or paths.is_windows(path)
            if not found and is_program and not known:
                reasons.append(
                    f"{path} is not there"
                    if any(tree.is_esp for tree in self._trees)
                    else f"{path} is on no partition that is known"
                )
            for tree, place in found:
                program = self._program(tree, place)
                ids.extend(program.deployments)
                if program.reason is not None:
                    reasons.append(f"{path}: {program.reason}")
        return ids, reasons

    def _located(self, own: _Tree, parts: list[str]) -> list[tuple[_Tree, str]]:
        trees = dict.fromkeys((own, *self._trees))
        return [(tree, path) for tree in trees for one in _meant(parts) for path in tree.find(one)]

    def _program(self, tree: _Tree, path: str) -> _Program:
        """Read each file once, however many entries name it."""
        known = self._programs.get((tree, path))
        if known is None:
            known = self._programs[tree, path] = self._look_into(tree, path)
        return known

    def _look_into(self, tree: _Tree, path: str) -> _Program:
        try:
            fd = tree.top.open_file(tree.target(path))
            if fd is None:
                return _Program((), False)
            try:
                if not paths.is_program(path) and os.pread(fd, len(MZ), 0) != MZ:
                    return _Program((), False)  # a kernel that is no EFI program has its command line from the entry
                cmdline = uki_cmdline(lambda offset, length: os.pread(fd, length, offset), os.fstat(fd).st_size)
            finally:
                os.close(fd)
        except (CfsTagsError, OSError) as error:
            return _Program((), False, reason_of(error))
        named = [argument.id for argument in composefs_arguments(cmdline or b"")]
        named += [one for one in mentioned_ids(cmdline or b"") if one in self._sightings.known]
        return _Program(tuple(dict.fromkeys(named)), cmdline is not None)

    def _all_programs(self, tree: _Tree) -> Iterator[Entry]:
        """UKIs and add-ons, which are started without an entry: all programs on the ESP, and those of the boot directory
        that are where systemd-boot looks for them."""
        tops = [""] if tree.is_esp else [*tree.find(paths.UKIS.split("/")), *tree.find(paths.ADDONS.split("/"))]
        waiting = [(top, top.count("/")) for top in tops]
        left = _MAX_NAMES
        while waiting:
            directory, depth = waiting.pop()
            names = sorted(tree.top.names(directory or ".") or ())
            left -= len(names)
            if left < 0 or depth > _MAX_DEPTH:
                raise FormatError(
                    structure="file system", offset=0, wanted=f"at most {_MAX_NAMES} names, {_MAX_DEPTH} deep", found="more"
                )
            for name in names:
                path = posixpath.join(directory, name)
                if tree.is_directory(path):
                    if tree.identity(path) in self._whole:
                        continue  # it is mounted there, and read by itself
                    waiting.append((path, depth + 1))
                elif paths.is_program(name):
                    yield from self._lone_program(tree, path)

    def _lone_program(self, tree: _Tree, path: str) -> Iterator[Entry]:
        program = self._program(tree, path)
        home = f"{path.casefold()}/"
        is_uki = any(home.startswith(f"{top.casefold()}/") for top in (paths.UKIS, paths.ADDONS))
        shown = tree.shown(path)
        if program.reason is not None and (is_uki or self._starts_like_a_program(tree, path)):
            self._sightings.find("uki-unreadable", f"{shown}: {program.reason}", "it may boot any deployment: write it again")
            self._sightings.place("uki", shown, program.reason)
        elif program.has_cmdline:
            found = self._sightings.see_all(program.deployments, "uki")
            count = len(program.deployments)
            problem = f"it names {count} deployments" if count > 1 else None
            yield Entry(shown, "uki", False, found[0] if found else None, None, None, problem)

    def _starts_like_a_program(self, tree: _Tree, path: str) -> bool:
        """What does not is not started by any firmware, whatever its name is."""
        try:
            fd = tree.top.open_file(tree.target(path))
            if fd is None:
                return False
            try:
                return os.pread(fd, len(MZ), 0) == MZ
            finally:
                os.close(fd)
        except (CfsTagsError, OSError):
            return True


def _place(staged: bool) -> str:
    return "staged-entry" if staged else "boot-entry"


def _parts(path: str) -> list[str] | None:
    """The names in a path as a boot loader takes it, without the disk; None where it is not known."""
    if path.startswith("("):
        path = path[path.find(")") + 1 :]
    parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".")]
    return None if grub.UNKNOWN in path or ".." in parts or not parts else parts


def _meant(parts: list[str]) -> list[list[str]]:
    """A path below ``/boot`` where that is a partition of its own, and where it is none."""
    return [parts, parts[1:]] if parts[0] == "boot" and len(parts) > 1 else [parts]


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
