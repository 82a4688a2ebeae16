"""Boot entries: which deployments they boot.  Their order: :mod:`cfs_tags.formats.bootorder`.

Sources: bootc 1.16.9 (``parsers/bls_config.rs``, ``parsers/grub_menuconfig.rs``, ``bootc_composefs/boot.rs``), composefs-rs
0.9.4 (``composefs-boot/src/cmdline.rs``) and the Boot Loader Specification.  A deployment that an entry boots must never
be collected; so where bootc reads less than a boot loader does (tabs, several ``options`` lines, quoted values), what is
read here is what either of them may take, and what bootc cannot read at all is a problem of the entry, not an error.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from cfs_tags.errors import FormatError
from cfs_tags.values import Algorithm, DeploymentId

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = [
    "BOOT_PREFIX",
    "ENTRIES",
    "ENTRIES_STAGED",
    "MAX_BOOT_ENTRY",
    "MAX_GRUB_CONFIG",
    "UKI_DIRECTORY",
    "USER_CFG",
    "USER_CFG_STAGED",
    "BootEntry",
    "ComposefsArgument",
    "EntryName",
    "GrubEntry",
    "boot_directory_name",
    "booted_argument",
    "composefs_arguments",
    "deployment_of_boot_directory",
    "deployment_of_uki",
    "malformed_arguments",
    "parse_boot_entry",
    "parse_entry_name",
    "parse_grub_config",
    "split_cmdline",
    "uki_addons_name",
    "uki_name",
]

ENTRIES = "loader/entries"
"""Where boot entries are, from /boot or the ESP."""

ENTRIES_STAGED = "loader/entries.staged"
"""Where those are that take the place of ``ENTRIES`` at shutdown, or while bootc changes them."""

USER_CFG = "grub2/user.cfg"
"""Where GRUB's entries for UKIs are, from /boot."""

USER_CFG_STAGED = "grub2/user.cfg.staged"
"""Where those are that take the place of ``USER_CFG``."""

UKI_DIRECTORY = "EFI/Linux/bootc"
"""Where UKIs are, from the ESP."""

BOOT_PREFIX = "bootc_composefs-"
"""How the directories with kernel and initrd, and the UKIs, start; the id of a deployment follows."""

MAX_BOOT_ENTRY = 64 << 10
"""Bytes of the longest boot entry that is read; real ones have some 700."""

MAX_GRUB_CONFIG = 1 << 20
"""Bytes of the longest ``user.cfg`` that is read."""

_EFI = ".efi"
_HEX = re.compile(r"(?:[0-9a-fA-F]{64}){1,2}", re.ASCII)


# -- names -------------------------------------------------------------------------------------------------------------


class EntryName(NamedTuple):
    """The file name of a boot entry that bootc wrote: ``bootc_<os>-<version>-<priority>.conf``.

    Attributes:
        os: the ID of os-release, with ``_`` for ``-``.
        version: of the deployment.
        priority: ``1`` for the default, ``0`` for the other: GRUB takes it for the release of a package.
    """

    os: str
    version: str
    priority: str


def parse_entry_name(name: str) -> EntryName | None:
    """Split the file name of a boot entry; None for one that bootc did not write, or bootc before 1.14."""
    match = re.fullmatch(r"bootc_([^-]*)-(.*)-([^-]*)\.conf", name, re.DOTALL)
    return EntryName(match[1], match[2], match[3]) if match else None


def boot_directory_name(deployment: DeploymentId) -> str:
    """The directory below /boot (or the ESP) with kernel and initrd of a deployment.

    Deployments with the same kernel and initrd share the directory of the first of them, so an entry's ``composefs=``
    says which deployment it boots, and its ``linux`` does not.
    """
    return BOOT_PREFIX + deployment


def uki_name(deployment: DeploymentId) -> str:
    """The UKI of a deployment, in ``UKI_DIRECTORY``."""
    return f"{BOOT_PREFIX}{deployment}{_EFI}"


def uki_addons_name(deployment: DeploymentId) -> str:
    """The directory with the add-ons of that UKI, beside it."""
    return f"{BOOT_PREFIX}{deployment}{_EFI}.extra.d"


def deployment_of_boot_directory(name: str) -> DeploymentId | None:
    """The deployment in the name of a directory below /boot; None where the name has another shape."""
    return _id(name.removeprefix(BOOT_PREFIX)) if name.startswith(BOOT_PREFIX) else None


def deployment_of_uki(path: str) -> DeploymentId | None:
    """The deployment in the file name of a UKI, whatever directory it is in; None where the name has another shape."""
    name = path.rstrip("/").rpartition("/")[2]
    if not name.startswith(BOOT_PREFIX) or not name.endswith(_EFI):
        return None
    return _id(name[len(BOOT_PREFIX) : -len(_EFI)])


def _id(text: str) -> DeploymentId | None:
    # composefs-rs takes capitals too, and means the same image
    return DeploymentId.trusted(text.lower()) if _HEX.fullmatch(text) else None


# -- kernel command lines ----------------------------------------------------------------------------------------------


class ComposefsArgument(NamedTuple):
    """An argument that names the image to boot.

    Attributes:
        id: which.
        optional: whether fs-verity may be missing (``?``).
        form: ``composefs`` for ``composefs=<id>``, else what stands before the id in ``composefs.digest=``:
            ``v1-sha512-12``.
    """

    id: DeploymentId
    optional: bool
    form: str


_FORMS = {
    f"v{version}-{algorithm.value}-12": algorithm for version in (1, 2) for algorithm in (Algorithm.SHA256, Algorithm.SHA512)
}
# what the kernel's isspace() knows below 128; NUL ends a command line, and what follows it is looked at all the same
_PIECE = re.compile(r'(?:"[^"]*(?:"|$)|[^" \t\n\v\f\r\0])+')


def split_cmdline(cmdline: bytes | str) -> list[tuple[str, str | None]]:
    """Names and values of a kernel command line; None for an argument without ``=``.

    White space within double quotes does not separate, and there is no way to write a double quote.  Quotes around an
    argument or its value are taken off, as by the kernel (``lib/cmdline.c``).
    """
    text = cmdline if isinstance(cmdline, str) else cmdline.decode("utf-8", "surrogateescape")
    result: list[tuple[str, str | None]] = []
    for piece in _PIECE.findall(text):
        name, equals, value = _unquoted(piece).partition("=")
        result.append((name, _unquoted(value) if equals else None))
    return result


def composefs_arguments(cmdline: bytes | str) -> tuple[ComposefsArgument, ...]:
    """All well-formed arguments that name an image, in the order of the command line."""
    return tuple(argument for _, argument in _arguments(cmdline) if argument is not None)


def malformed_arguments(cmdline: bytes | str) -> tuple[str, ...]:
    """The arguments that should name an image, and do not in a way that is known."""
    return tuple(text for text, argument in _arguments(cmdline) if argument is None)


def booted_argument(
    arguments: Sequence[ComposefsArgument], algorithm: Algorithm = Algorithm.SHA512
) -> ComposefsArgument | None:
    """The argument that the initramfs follows: the first ``composefs.digest=`` of the algorithm, else ``composefs=``."""
    fitting = [argument for argument in arguments if argument.id.algorithm is algorithm]
    digests = [argument for argument in fitting if argument.form != "composefs"]
    return next(iter(digests or fitting), None)


def _arguments(cmdline: bytes | str) -> list[tuple[str, ComposefsArgument | None]]:
    result = []
    for name, value in split_cmdline(cmdline):
        if name in ("composefs", "composefs.digest") and value is not None:
            result.append((f"{name}={value}", _argument(name, value)))
    return result


def _argument(name: str, value: str) -> ComposefsArgument | None:
    optional = value.startswith("?")
    text = value[1:] if optional else value
    form = "composefs"
    if name == "composefs.digest":
        form, _, text = text.partition(":")
        if form not in _FORMS:
            return None
    found = _id(text)
    if found is None or _FORMS.get(form, found.algorithm) is not found.algorithm:
        return None
    return ComposefsArgument(found, optional, form)


def _unquoted(text: str) -> str:
    # bootc takes a lone one off the end as well
    return text.removeprefix('"').removesuffix('"')


# -- entries -----------------------------------------------------------------------------------------------------------


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
    arguments: tuple[ComposefsArgument, ...] = ()
    extra: Mapping[str, str] = {}
    problems: tuple[str, ...] = ()

    @property
    def deployments(self) -> tuple[DeploymentId, ...]:
        """The deployments that it may boot, the one that it does first; nearly always one.

        Several are sound where ``composefs.digest=`` names one image in several forms; see ``problems`` for where they
        are not.  A UKI is known by its file name here, its own command line decides (``formats/pe.py``).
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

    @property
    def boot_artifact(self) -> str | None:
        """What bootc keeps in /boot for it: the name of kernel directory or UKI, without prefix and ``.efi``."""
        if self.efi is not None:
            name = self.efi.rstrip("/").rpartition("/")[2]
            return name.removesuffix(_EFI).removeprefix(BOOT_PREFIX) if name.endswith(_EFI) else None
        if self.linux is not None:
            directory = self.linux.rstrip("/").rpartition("/")[0].rstrip("/").rpartition("/")[2]
            return directory.removeprefix(BOOT_PREFIX) or None
        return None


def parse_boot_entry(data: bytes) -> BootEntry:
    """Read a ``loader/entries/*.conf``.

    Raises:
        FormatError: longer than ``MAX_BOOT_ENTRY``, or not UTF-8.
    """
    first: dict[str, str] = {}
    lists: dict[str, list[str]] = {"initrd": [], "options": []}
    problems = []
    for line in _text(data, "boot entry", MAX_BOOT_ENTRY).split("\n"):
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


class GrubEntry(NamedTuple):
    """A ``menuentry`` of GRUB.

    Attributes:
        title: for people, without quotes and backslashes.
        chainloader: the path of the UKI that it starts; None where it starts none.
        deployment: in the file name of that UKI, or in the options of a ``linux`` line.
    """

    title: str
    chainloader: str | None
    deployment: DeploymentId | None


# title in quotes or without; bootc writes neither options nor anything else between it and the brace
_MENUENTRY = (
    r"""(?ms)^[ \t]*menuentry\b"""
    r"""(?:[ \t]+(?:"(?P<double>(?:[^"\\]|\\.)*)"|'(?P<single>[^']*)'|(?P<bare>[^\s"'{]+))[^{}\n]*\{)?"""
)
_BRACE = r"(?s)\\.|[{}]"


def parse_grub_config(data: bytes) -> tuple[GrubEntry, ...]:
    """Read the menu entries of a ``user.cfg``, in their order, which is the order of the menu.

    Raises:
        FormatError: longer than ``MAX_GRUB_CONFIG``, not UTF-8, or a ``menuentry`` without title or end.
    """
    structure = "GRUB configuration"
    text = _text(data, structure, MAX_GRUB_CONFIG)
    menuentry = re.compile(_MENUENTRY)
    entries = []
    at = 0
    while (match := menuentry.search(text, at)) is not None:
        offset = len(text[: match.start()].encode())
        title = next((part for part in match.group("double", "single", "bare") if part is not None), None)
        if title is None:
            _wrong(structure, offset, 'menuentry "title" {', match[0])
        end = _end_of_block(text, match.end())
        if end is None:
            _wrong(structure, offset, "a menuentry with as many } as {", "the end of the file")
        entries.append(_grub_entry(title, text[match.end() : end]))
        at = end + 1
    return tuple(entries)


def _end_of_block(text: str, start: int) -> int | None:
    depth = 1
    for brace in re.compile(_BRACE).finditer(text, start):
        depth += (brace[0] == "{") - (brace[0] == "}")
        if depth == 0:
            return brace.start()
    return None


def _grub_entry(title: str, body: str) -> GrubEntry:
    chainloader: str | None = None
    deployment: DeploymentId | None = None
    for line in body.split("\n"):
        command, _, rest = line.strip().partition(" ")
        value = rest.strip()
        if command == "chainloader":
            chainloader = value.strip("\"'")
            deployment = deployment_of_uki(chainloader) or deployment
        elif command in ("linux", "linuxefi", "linux16"):
            first = booted_argument(composefs_arguments(value))
            deployment = first.id if first is not None else deployment
    return GrubEntry(re.sub(r"\\(.)", r"\1", title, flags=re.DOTALL), chainloader, deployment)


# -- pieces ------------------------------------------------------------------------------------------------------------


def _text(data: bytes, structure: str, limit: int) -> str:
    if len(data) > limit:
        _wrong(structure, limit, f"at most {limit} bytes", f"{len(data)} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        _wrong(structure, error.start, "UTF-8", error.reason)


def _wrong(structure: str, offset: int, wanted: str, found: str) -> NoReturn:
    raise FormatError(structure=structure, offset=offset, wanted=wanted, found=found)
