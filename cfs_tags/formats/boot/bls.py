"""Boot entries after the Boot Loader Specification: which deployments they boot.  Their order: ``order.py``.

Sources: bootc 1.16.9 (``parsers/bls_config.rs``, ``bootc_composefs/boot.rs``), systemd 258 (``boot.c``), GRUB as Fedora has it
(``blscfg.c``) and the specification.  A deployment that an entry boots must never be collected; so where bootc reads less than
a boot loader does (tabs, several ``options`` lines, quoted values), what is read here is what any of them may take, and what
bootc cannot read at all is a problem of the entry, not an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple, NoReturn

from cfs_tags.errors import FormatError
from cfs_tags.formats.boot.cmdline import ComposefsArgument, booted_argument, composefs_arguments, malformed_arguments
from cfs_tags.formats.boot.paths import deployment_of_uki
from cfs_tags.values import Algorithm, DeploymentId

MAX_BOOT_ENTRY = 64 << 10
"""Bytes of the longest boot entry that is read; real ones have some 700."""

_STRUCTURE = "boot entry"


class BootEntry(NamedTuple):
    """A boot entry after the Boot Loader Specification.  What it does not say is None or empty.

    Attributes:
        title: for people.
        version: of the deployment; bootc reads no entry if one has none.
        sort_key: systemd-boot's order, ascending.
        machine_id: of the system.
        linux: path of the kernel.
        initrd: paths, in the order of the entry.
        options: the kernel command line; several lines are joined by spaces.
        efi: path of the EFI program or UKI (``efi`` or ``uki``).
        programs: all paths that ``efi`` and ``uki`` lines name: which of several counts is the boot loader's affair.
        url: where a UKI is fetched from (``uki-url``).
        arguments: those in ``options`` that name an image.
        extra: all other keys; of one that stands there twice the last counts.
        problems: what is wrong, one sentence each.
    """

    title: str | None = None
    version: str | None = None
    sort_key: str | None = None
    machine_id: str | None = None
    linux: str | None = None
    initrd: tuple[str, ...] = ()
    options: str | None = None
    efi: str | None = None
    programs: tuple[str, ...] = ()
    url: str | None = None
    arguments: tuple[ComposefsArgument, ...] = ()
    extra: Mapping[str, str] = {}
    problems: tuple[str, ...] = ()

    @property
    def deployments(self) -> tuple[DeploymentId, ...]:
        """The deployments that it may boot, the one that it does first; nearly always one.

        Several are sound where ``composefs.digest=`` names one image in several forms; see ``problems`` for where they
        are not.  A UKI is known by its file name here, its own command line decides (``formats/boot/uki.py``).
        """
        found = [argument.id for argument in self.arguments]
        first = booted_argument(self.arguments)
        if first is not None:
            found.insert(0, first.id)
        named = deployment_of_uki(self.efi) if self.efi is not None else None
        return tuple(dict.fromkeys([*found, *([named] if named is not None else [])]))

    @property
    def deployment(self) -> DeploymentId | None:
        """The deployment that it boots; None for another system's entry."""
        return next(iter(self.deployments), None)


def parse_boot_entry(data: bytes) -> BootEntry:
    """Read a ``loader/entries/*.conf``.

    Raises:
        FormatError: longer than ``MAX_BOOT_ENTRY``, or not UTF-8.
    """
    first: dict[str, str] = {}
    lists: dict[str, list[str]] = {"initrd": [], "options": []}
    programs: dict[str, None] = {}
    problems = []
    for line in re.split("[\r\n]", _text(data)):  # as systemd-boot; GRUB takes a lone CR for nothing
        words = line.strip().split(None, 1)
        if len(words) < 2 or words[0].startswith("#"):
            continue
        key, value = words
        if key in lists:
            lists[key].append(value)
            continue
        if key in ("linux", "efi", "uki") and first.get(key, value) != value:
            problems.append(f"several values for {key}, the last one counts")
        first[key] = value
        if key in ("efi", "uki"):
            programs[value] = None
    efi = [first.pop(key) for key in ("efi", "uki") if key in first]
    linux = first.pop("linux", None)
    options = " ".join(lists["options"]) if lists["options"] else None
    arguments = composefs_arguments(options or "")
    if "version" not in first:
        problems.append("no version: bootc reads none of its boot entries")
    if len(efi) + (linux is not None) != 1:
        problems.append("not one of linux, efi and uki: bootc reads none of its boot entries")
    problems += _problems_of_arguments(arguments, malformed_arguments(options or ""))
    return BootEntry(
        title=first.pop("title", None),
        version=first.pop("version", None),
        sort_key=first.pop("sort-key", None),
        machine_id=first.pop("machine-id", None),
        linux=linux,
        initrd=tuple(lists["initrd"]),
        options=options,
        efi=efi[-1] if efi else None,
        programs=tuple(programs),
        url=first.pop("uki-url", None),
        arguments=arguments,
        extra=first,
        problems=tuple(problems),
    )


def _problems_of_arguments(arguments: Iterable[ComposefsArgument], malformed: Iterable[str]) -> list[str]:
    problems = [f"{text} names no image" for text in malformed]
    ids: dict[tuple[str, Algorithm], DeploymentId] = {}
    for argument in arguments:
        # several forms of one image have different ids; one form with two ids is two images
        if ids.setdefault((argument.form, argument.id.algorithm), argument.id) != argument.id:
            problems.append(f"two different images in {argument.form}=, the first one boots")
    return problems


def _text(data: bytes) -> str:
    if len(data) > MAX_BOOT_ENTRY:
        _wrong(MAX_BOOT_ENTRY, f"at most {MAX_BOOT_ENTRY} bytes", f"{len(data)} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        _wrong(error.start, "UTF-8", error.reason)


def _wrong(offset: int, wanted: str, found: str) -> NoReturn:
    raise FormatError(structure=_STRUCTURE, offset=offset, wanted=wanted, found=found)
