"""GRUB's scripts (``grub.cfg``, ``user.cfg``): which command lines and which EFI programs their entries lead to.

Sources: GRUB 2.12 (``script/yylex.l``, ``script/parser.y``, ``script/execute.c``, ``lib/envblk.c``, ``commands/*``), Fedora's
``commands/blscfg.c``, bootc 1.16.9 (``parsers/grub_menuconfig.rs``).

A script is read, not run: both branches of an ``if`` may be taken, a function may be called, and a variable may have any value
that something gives it anywhere.  So what an entry leads to here is at least what it leads to below GRUB.  Where a value comes
from something that is not in the scripts (a search of the disks, an argument of a function), it is :data:`UNKNOWN`, and an
entry that needs it says so in ``unknown``: such an entry may boot anything.

Time and memory grow with the length of the scripts, whatever is in them: see the limits below.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from cfs_tags.errors import FormatError
from cfs_tags.formats.boot.cmdline import COMPOSEFS, composefs_arguments
from cfs_tags.formats.boot.paths import GRUB_ENVIRONMENT, deployment_of_uki

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from cfs_tags.values import DeploymentId

    Word = tuple["Part", ...]

MAX_GRUB_CONFIG = 1 << 20
"""Bytes of the longest script that is read."""

UNKNOWN = "\0"
"""Stands in a text where something is that is not known."""

_MAX_VALUES = 8
"""Values of one variable that are told apart; with more it is unknown."""
_MAX_DEPTH = 32
"""Variables in the values of variables: deeper ones are unknown."""
_MAX_EXPANDED = 8 << 20
"""Characters that variables may expand to in all: what comes after that is unknown."""

_STRUCTURE = "GRUB configuration"


class Part(NamedTuple):
    """A piece of a word: its text, or the name of a variable."""

    text: str
    is_variable: bool = False


class Command(NamedTuple):
    """A command with its words; ``entry`` is the number of its menu entry, None outside of menu entries."""

    words: tuple[Word, ...]
    entry: int | None


class GrubScript(NamedTuple):
    """A script as it was read: titles of the menu entries in the order of the menu, commands, names of functions."""

    titles: tuple[str, ...]
    commands: tuple[Command, ...]
    functions: frozenset[str]


class GrubEntry(NamedTuple):
    """What a ``menuentry`` leads to.

    Attributes:
        title: for people, without quotes and backslashes; empty for what stands outside of all entries.
        cmdlines: of the kernels that it starts, without the paths of the kernels.
        kernels: their paths.
        programs: paths of the EFI programs and UKIs that it starts (``chainloader``).
        unknown: why it may lead elsewhere, one sentence each.
    """

    title: str
    cmdlines: tuple[str, ...] = ()
    kernels: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    @property
    def deployments(self) -> tuple[DeploymentId, ...]:
        """Those that its command lines and the names of its UKIs name; nearly always one."""
        found = [argument.id for cmdline in self.cmdlines for argument in composefs_arguments(cmdline)]
        found += [named for path in self.programs if (named := deployment_of_uki(path)) is not None]
        return tuple(dict.fromkeys(found))


# -- reading -----------------------------------------------------------------------------------------------------------

# a word is made of these; a comment starts only where a word could (yylex.l: CHAR, SQSTR, DQSTR, ESC, VARIABLE)
_VARIABLE = r"\$(?:(?P<name>[A-Za-z_]\w*|\d+|[?#*@])|\{(?P<braced>[A-Za-z_]\w*|\d+|[?#*@])\})"
_PIECE = re.compile(
    rf"""(?P<plain>[^{{}}|&$;<> \t\n'"\\]+)|'(?P<single>[^']*)'|(?P<double>\$?")|\\(?P<escaped>.|\n)|{_VARIABLE}"""
    r"|(?P<lone>\$|\\\Z)",
    re.ASCII,
)
_QUOTED = re.compile(rf'(?P<plain>[^"\\$]+)|\\(?P<escaped>.|\n)|{_VARIABLE}|(?P<lone>[$\\])', re.ASCII | re.DOTALL)
_VARIABLES = ("name", "braced")
_BETWEEN = re.compile(r"(?:[ \t]|\\\n|#[^\n]*)+")
_SKIPPED = frozenset(("if", "then", "elif", "else", "fi", "while", "until", "do", "done", "!", "time"))
"""Words at the start of a command after which another command follows."""
_WITH_VALUE = frozenset(("--class", "--users", "--hotkey", "--id", "--source"))
"""Options of ``menuentry`` whose value is the next word (``commands/menuentry.c``)."""
_MENUS = ("menuentry", "submenu", "hiddenentry")
"""Commands whose last argument is a block; ``--source`` gives one as a text."""
_A_TITLE = 'menuentry "title" {'
_BALANCE = "a menuentry with as many } as {"


def parse_grub_script(data: bytes) -> GrubScript:
    """Read a script.

    Raises:
        FormatError: longer than ``MAX_GRUB_CONFIG``, not UTF-8, a quote or a block without an end, a ``menuentry`` without a
            title.
    """
    return _Parser(_text(data).replace("\r", "")).script()


def _text(data: bytes) -> str:
    if len(data) > MAX_GRUB_CONFIG:
        _wrong(MAX_GRUB_CONFIG, f"at most {MAX_GRUB_CONFIG} bytes", f"{len(data)} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        _wrong(error.start, "UTF-8", error.reason)


class _Parser:
    """Commands, blocks and words.  Keywords of control flow are passed over: all branches count."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._titles: list[str] = []
        self._commands: list[Command] = []
        self._functions: set[str] = set()
        self._blocks: list[int | None] = []  # for each open block the entry that its commands are in
        self._words: list[Word] = []
        self._start = 0

    def script(self) -> GrubScript:
        text, at = self._text, 0
        while True:
            if (between := _BETWEEN.match(text, at)) is not None:
                at = between.end()
            character = text[at : at + 1]
            if character in ("", "\n", ";", "&", "|", "<", ">"):
                self._finish()
                if not character:
                    break
            elif character == "{":
                self._open(at)
            elif character == "}":
                self._finish()
                if not self._blocks:
                    self._fail(at, "a { before", "}")
                self._blocks.pop()
            else:
                at = self._word(at)
                continue
            at += 1
        if self._blocks:
            self._fail(at, _BALANCE, "the end of the file")
        return GrubScript(tuple(self._titles), tuple(self._commands), frozenset(self._functions))

    def _word(self, at: int) -> int:
        """Read a word; the offset after it."""
        start = at
        parts: list[Part] = []
        while (piece := _PIECE.match(self._text, at)) is not None:
            at = piece.end()
            kind, text = _kind_and_text(piece)
            if kind == "double":
                at = self._quoted(at, parts)
            elif kind != "escaped" or text != "\n":
                parts.append(Part(text, kind in _VARIABLES))
        if at == start:  # a quote that nothing ends, a "\" at the end
            self._fail(at, self._wanted_quote, "the end of the file")
        if not self._words:
            self._start = start
            if self._text[start:at] in _SKIPPED:
                return at
        self._words.append(_joined(parts))
        return at

    def _quoted(self, at: int, parts: list[Part]) -> int:
        start = at
        while (piece := _QUOTED.match(self._text, at)) is not None:
            at = piece.end()
            kind, text = _kind_and_text(piece)
            if kind != "escaped" or text in '$"\\':
                parts.append(Part(text, kind in _VARIABLES))
            elif text != "\n":
                parts.append(Part(f"\\{text}"))
        if self._text[at : at + 1] != '"':
            self._fail(start, self._wanted_quote, "the end of the file")
        parts.append(Part(""))
        return at + 1

    @property
    def _command(self) -> str:
        """The name of the command that is read; empty where a variable is in it."""
        first, *rest = self._words[0] if self._words else (Part(""),)
        return "" if rest or first.is_variable else first.text

    @property
    def _wanted_quote(self) -> str:
        return _A_TITLE if self._command == "menuentry" else "a closing quote"

    def _finish(self) -> None:
        """The command ends here."""
        command = self._command
        if command in _MENUS:
            self._fail(self._start, _A_TITLE, "no block")
        if command == "function":
            self._functions.update(_shown(word) for word in self._words[1:2])
        elif self._words:
            self._commands.append(Command(tuple(self._words), self._blocks[-1] if self._blocks else None))
        self._words = []

    def _open(self, at: int) -> None:
        """A block starts, the last argument of the command before it."""
        inside = self._blocks[-1] if self._blocks else None
        command = self._command
        if command == "menuentry":
            title = _title(self._words[1:])
            if title is None:
                self._fail(self._start, _A_TITLE, "no title")
            inside = len(self._titles)
            self._titles.append(title)
        if command in _MENUS:
            self._words = []
        self._finish()
        self._blocks.append(inside)

    def _fail(self, at: int, wanted: str, found: str) -> NoReturn:
        _wrong(len(self._text[:at].encode()), wanted, found)


def _kind_and_text(piece: re.Match[str]) -> tuple[str, str]:
    """Which of its alternatives a piece is, and its text."""
    kind = piece.lastgroup
    assert kind is not None
    return kind, piece[kind]


def _joined(parts: list[Part]) -> Word:
    """Text that stands together as one part."""
    result: list[Part] = []
    texts: list[str] = []
    for part in parts:
        if part.is_variable:
            if texts:
                result.append(Part("".join(texts)))
                texts = []
            result.append(part)
        else:
            texts.append(part.text)
    if texts or not result:
        result.append(Part("".join(texts)))
    return tuple(result)


def _title(words: Sequence[Word]) -> str | None:
    skip = False
    for word in words:
        shown = _shown(word)
        if skip or shown.startswith("--"):
            skip = shown in _WITH_VALUE
            continue
        return shown
    return None


def _shown(word: Word) -> str:
    return "".join(f"${{{part.text}}}" if part.is_variable else part.text for part in word)


def parse_grub_environment(data: bytes) -> dict[str, str]:
    """The variables in an environment block (``grubenv``): lines ``name=value``, with ``\\`` before what stands for itself.

    Raises:
        FormatError: longer than ``MAX_GRUB_CONFIG``, or not UTF-8.
    """
    found = {}
    for line in re.findall(r"(?:[^\\\n]|\\(?:.|\n))+", _text(data)):
        name, equals, value = line.partition("=")
        if equals and not name.startswith("#"):
            found[name] = re.sub(r"\\(.|\n)", r"\1", value)
    return found


# -- what entries start ------------------------------------------------------------------------------------------------


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# the commands of GRUB 2.12 and of Fedora's, by what they mean here
_KERNEL = _words("linux linux16 linuxefi multiboot multiboot2 module module2 xen_hypervisor xen_module legacy_kernel")
_SCRIPT = _words("source . configfile extract_entries_source extract_entries_configfile")
_ENTRIES = _words("blscfg bls_import uki")
_SETS = _words(
    "search search.file search.fs_label search.fs_uuid search.fsuuid probe regexp read read_byte read_word read_dword inb inw "
    "inl setpci smbios getenv increment decrement cpuid cmosread rdmsr btrfs-get-default-subvol net_get_dhcp_option uuid_tool "
    "efi-load-env date for"
)
_NOTHING = _words(
    "[ acpi all_functional_test appleloader authenticate background_color background_image backtrace badram blocklist boot "
    "boottime break btrfs-info btrfs-list-subvols btrfs-mount-subvol cacheinfo cat cbmemc clear cmosclean cmosdump cmosset "
    "cmostest cmp connectefi continue coreboot_boottime crc cryptocheck cryptomount cutmem devicetree distrust "
    "distrust_certificate drivemap dump echo efi-export-env efiemu_loadcore efiemu_prepare efiemu_unload efitextmode exit "
    "export fakebios false file fix_video fpswa freedos functional_test fwsetup gdbinfo gdbstub gdbstub_break gdbstub_stop "
    "gettext gptsync halt hashsum hdparm hello help hexdump hexdump_random initrd initrd16 initrdefi insmod "
    "keymap keystatus kfreebsd kfreebsd_loadenv kfreebsd_module kfreebsd_module_elf knetbsd knetbsd_module knetbsd_module_elf "
    "kopenbsd kopenbsd_ramdisk legacy_check_password legacy_initrd legacy_initrd_nounzip legacy_password list_certificates "
    "list_env list_trusted loadbios loadfont loopback ls lsacpi lsapm lscoreboot lsdev lsefi lsefimmap lsefisystab lsfonts "
    "lsfreemem lsmem lsmmap lsmod lspci lssal lsspd macppcbless mactelbless md5sum nativedisk net_add_addr net_add_dns "
    "net_add_route net_bootp net_bootp6 net_del_addr net_del_dns net_del_route net_dhcp net_ipv6_autoconf net_ls_addr "
    "net_ls_cards net_ls_dns net_ls_routes net_nslookup net_set_vlan normal_exit ntldr outb outl outw parttool password "
    "password_pbkdf2 pcidump plainmount plan9 play reboot reset return rmmod save_env savedefault sendkey "
    "serial setparams sha1sum sha256sum sha512sum shift sleep suspend terminal terminal_input terminal_output terminfo test "
    "testload testspeed tpm tr true truecrypt trust trust_certificate unset usb vbeinfo vbetest verify_appended "
    "verify_detached version videoinfo videotest write_byte write_dword write_word wrmsr xen_cat xen_ls xnu_devprop_load "
    "xnu_kernel xnu_kernel64 xnu_kext xnu_kextdir xnu_mkext xnu_ramdisk xnu_resume xnu_splash xnu_uuid zfs-bootfs zfsinfo "
    "zfskey load_video"
)
_OF_GRUB = re.compile(
    r"root|cmdpath|config_file|default|chosen|lang|superusers|\d+|[?#*@]|(?:grub|net|pxe|feature|fw|shim)_.*", re.DOTALL
)
"""Variables that GRUB sets by itself: they are never known to be empty, nor to have one value alone."""
_NAME = re.compile(r"(?:--?[a-z]+=)?(?:\d+:)?([A-Za-z_]\w*)", re.ASCII)
_BLOCKS = re.compile(r"(?:\([^)]*\))?(?:\d+)?\+\d+(?:,\d*\+\d+)*")
_BLS_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})", re.ASCII)
_PATTERN = re.compile(r"[*[]|.\?", re.DOTALL)
"""GRUB replaces a word with such characters by the names of files; composefs-rs gives the first ``?`` of a value a meaning."""


class GrubMenu:
    """The menu entries of scripts that GRUB reads together.

    Args:
        scripts: all of them.
        environment: what ``load_env`` gives.
        directory: the path of the directory with the scripts below GRUB, ``$prefix`` and ``$config_directory``.
        whole: whether GRUB's main script is among them.  Then a variable that nothing sets is empty; else it is unknown.
    """

    def __init__(
        self, scripts: Sequence[GrubScript], environment: Mapping[str, str], directory: str, *, whole: bool = False
    ) -> None:
        self._scripts = scripts
        self._whole = whole
        self._directory = directory
        self._left = _MAX_EXPANDED
        self._functions = frozenset[str]().union(*(script.functions for script in scripts))
        self._given: dict[str, list[Word]] = {name: [(Part(value),)] for name, value in environment.items()}
        for name in ("prefix", "config_directory"):
            self._given.setdefault(name, []).append((Part(directory),))
        self._values: dict[str, tuple[str, ...]] = {}
        self._anything = False
        for script in scripts:
            for command in script.commands:
                self._assign(command.words)

    # -- variables

    def _assign(self, words: tuple[Word, ...]) -> None:
        first = _shown(words[0])
        assigned = words[1:2] if first == "set" else words[:1] if len(words) == 1 else ()
        for word in assigned:
            name, equals, value = word[0].text.partition("=")
            if equals and not word[0].is_variable:
                self._given.setdefault(name, []).append((Part(value), *word[1:]))
            elif first == "set" and any(part.is_variable for part in word):
                self._anything = True
        if first == "for":
            for name in map(_shown, words[1:2]):
                self._given.setdefault(name, []).extend(words[3:])
        elif first in _SETS or any(_shown(word).startswith(("--set", "--var")) for word in words):
            for word in words[1:]:
                match = _NAME.fullmatch(_shown(word))
                if match is not None:
                    self._given.setdefault(match[1], []).append((Part(UNKNOWN),))
        elif first == "load_env" and len(words) > 1 and not self._is_own_environment(_shown(words[-1])):
            self._anything = True

    def _is_own_environment(self, argument: str) -> bool:
        """Whether the argument of ``load_env`` means the block beside the scripts."""
        directory, _, name = argument.rpartition("=")[2].rpartition("/")
        if directory.startswith("("):
            directory = directory[directory.find(")") + 1 :]
        own = {"${prefix}", "${config_directory}", self._directory, f"/boot{self._directory}"}
        return name == GRUB_ENVIRONMENT and directory in own

    def _of_variable(self, name: str, depth: int) -> tuple[str, ...]:
        known = self._values.get(name)
        if known is None:
            self._values[name] = (UNKNOWN,)  # while it is looked up: a variable in its own value
            given = self._given.get(name, ())
            found: dict[str, None] = {}
            for word in given:
                for value in self._expand(word, depth + 1):
                    found[value] = None
                if len(found) > _MAX_VALUES:
                    found = {UNKNOWN: None}
                    break
            if self._anything or depth > _MAX_DEPTH or _OF_GRUB.fullmatch(name) is not None:
                found[UNKNOWN] = None
            elif not given:
                found["" if self._whole else UNKNOWN] = None
            known = self._values[name] = tuple(found)
        return known

    def _expand(self, word: Word, depth: int = 0) -> tuple[str, ...]:
        """The texts that a word may stand for."""
        if depth > _MAX_DEPTH:
            return (UNKNOWN,)
        results = [""]
        for part in word:
            values = self._of_variable(part.text, depth) if part.is_variable else (part.text,)
            size = sum(map(len, results)) * len(values) + sum(map(len, values)) * len(results)
            if len(results) * len(values) > _MAX_VALUES or (size > self._left):
                return (UNKNOWN,)
            self._left -= size if part.is_variable else 0
            results = [before + value for before in results for value in values]
        return tuple(results)

    def expand_options(self, text: str) -> str:
        """The options of a boot entry with ``$name`` replaced, as ``blscfg`` does; of several values all, one after another."""

        def value(match: re.Match[str]) -> str:
            return " ".join(self._expand((Part(match[1] or match[2], True),)))

        return _BLS_VARIABLE.sub(value, text)

    def assigned(self, name: str) -> tuple[str, ...]:
        """The values that a variable is given, by scripts or environment; none where nothing sets it."""
        return self._of_variable(name, 0) if name in self._given else ()

    # -- commands

    def entries(self, script: GrubScript) -> tuple[GrubEntry, ...]:
        """What each menu entry of one of the scripts leads to, then what stands outside of all, if that is anything."""
        inside: list[list[Command]] = [[] for _ in script.titles]
        outside: list[Command] = []
        for command in script.commands:
            (outside if command.entry is None else inside[command.entry]).append(command)
        found = [self._entry(title, commands) for title, commands in zip(script.titles, inside, strict=True)]
        rest = self._entry("", outside)
        return (*found, rest) if rest != GrubEntry("") else tuple(found)

    def sources(self, script: GrubScript) -> Iterator[str]:
        """Paths of the scripts that one of the scripts reads; with :data:`UNKNOWN` in them where they are not known."""
        for command in script.commands:
            if _shown(command.words[0]) in _SCRIPT:
                for word in command.words[1:2]:
                    yield from self._expand(word)

    def _entry(self, title: str, commands: Iterable[Command]) -> GrubEntry:
        cmdlines: list[str] = []
        kernels: list[str] = []
        programs: list[str] = []
        unknown: list[str] = []
        for name, *arguments in (command.words for command in commands):
            command = _shown(name)
            if command in _KERNEL:
                texts = [self._expand(word) for word in arguments]
                found = texts[0] if texts else ()
                kernels += found
                words = [text for word in texts[1:] for text in word]
                cmdlines.append(" ".join(words))
                is_known = not any(map(_may_be_any_path, found)) and not any(map(_may_be_any, words))
            elif command == "chainloader":
                path, *options = [word for word in arguments if not _shown(word).startswith("-")] or [()]
                found = self._expand(path)
                programs += [text for text in found if text and _BLOCKS.fullmatch(text) is None]
                cmdlines += [" ".join(self._expand(word)) for word in options]
                is_known = not any(map(_may_be_any_path, found))
            elif command in _ENTRIES:
                is_known = all(_shown(word) in ("default", "non-default") for word in arguments)
            else:
                is_known = self._is_harmless(name, command, bool(arguments))
            if not is_known:
                unknown.append(f"'{' '.join(map(_shown, (name, *arguments)))[:200]}' cannot be followed")
        return GrubEntry(title, tuple(cmdlines), *(tuple(dict.fromkeys(found)) for found in (kernels, programs, unknown)))

    def _is_harmless(self, name: Word, command: str, has_arguments: bool) -> bool:
        """Whether a command starts nothing by itself; what scripts and functions have in them is looked at there."""
        if "=" in name[0].text and not has_arguments:
            return True  # name=value
        if command == "normal":
            return not has_arguments
        known = (_NOTHING, _SETS, _SCRIPT, self._functions, ("set", "load_env"))
        return len(name) == 1 and not name[0].is_variable and any(command in names for names in known)


def is_pattern(text: str) -> bool:
    """Whether GRUB replaces a word by the names of the files that fit it."""
    return _PATTERN.search(text) is not None


def _may_be_any(argument: str) -> bool:
    """Whether an argument of a kernel may name any deployment: GRUB quotes it where there are blanks in it, so that what
    stands after another name stays the value of that."""
    before, unknown, _ = argument.partition(UNKNOWN)
    name, _, value = argument.partition("=")
    if name.startswith(COMPOSEFS) and is_pattern(value):
        return True
    return bool(unknown) and ("=" not in before or before.startswith(COMPOSEFS))


def _may_be_any_path(path: str) -> bool:
    """Whether a path may lead anywhere; which disk it is on, ``(hd0,gpt1)``, is not known here, and is not needed."""
    return UNKNOWN in (path[path.find(")") + 1 :] if path.startswith("(") else path)


def _wrong(offset: int, wanted: str, found: str) -> NoReturn:
    raise FormatError(structure=_STRUCTURE, offset=offset, wanted=wanted, found=found)
