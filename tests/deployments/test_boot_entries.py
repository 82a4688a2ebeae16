"""Everything that may boot a deployment is followed to a command line; what cannot be followed keeps every deployment.

Each host has lost the state directory of ``old`` and still has something that boots it, in some form; ``new`` is gone whole.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from deployments.conftest import On, retired_on, sysroot_of
from support.sysroots import BOOTC, KERNEL_ARGUMENTS, Host, uki

EFI = "efi/EFI"
LINUX = "linux /vmlinuz root=UUID=1 rw"


def retire(host: Host) -> dict[str, tuple[str, str]]:
    return retired_on(host, lambda: sysroot_of(host))


def write(host: Host, path: str, data: str | bytes) -> Path:
    """A file of the host, with the id of ``old`` for ID and its kernel command line for OPTIONS."""
    file = host.root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(data, str):
        data = with_id(host, data.replace("OPTIONS", f"{KERNEL_ARGUMENTS} composefs=?ID")).encode()
    file.write_bytes(data)
    return file


def with_id(host: Host, text: str) -> str:
    return re.sub(r"\bID\b", host.id("old"), text)


def grub(text: str, path: str = "boot/grub2/user.cfg") -> Callable[[Host], object]:
    return put(path, text)


def program(path: str, *cmdlines: str) -> Callable[[Host], object]:
    def make(host: Host) -> None:
        host.has_esp = host.has_esp or path.startswith("efi/")
        write(host, path, portable(*(with_id(host, line) for line in cmdlines)))

    return make


def portable(*cmdlines: str, linux: bool = True) -> bytes:
    """An EFI program with these ``.cmdline`` sections, and a kernel."""
    contents = [(b".cmdline", line.encode()) for line in cmdlines] + ([(b".linux", b"kernel")] if linux else [])
    at = 64 + 24 + 40 * len(contents)
    head = b"MZ".ljust(60, b"\0") + struct.pack("<I4sHHIIIHH", 64, b"PE\0\0", 0x8664, len(contents), 0, 0, 0, 0, 0x22)
    body = b""
    for name, content in contents:
        head += struct.pack("<8sIIIIIIHHI", name, len(content), 0, len(content), at + len(body), 0, 0, 0, 0, 0)
        body += content
    return head + body


def entry(text: str, path: str = "boot/loader/entries/other.conf") -> Callable[[Host], object]:
    return put(path, text)


def put(path: str, data: str | bytes) -> Callable[[Host], object]:
    return lambda host: write(host, path, data)


def both(*makers: Callable[[Host], object]) -> Callable[[Host], object]:
    def make(host: Host) -> None:
        for maker in makers:
            maker(host)

    return make


AN_ESP = program("efi/x.efi", "quiet")
TWO = f"{EFI}/Linux/two.efi"


class Case(NamedTuple):
    make: Callable[[Host], object]
    place: str = "boot-entry"


UKI = f"{KERNEL_ARGUMENTS} composefs=ID"

BOOTS: dict[str, Case] = {
    # names without case, and UKIs of any name
    "entry in capitals": Case(
        lambda host: os.rename(host.boot_entries("same", "old")[1], host.root / "boot/loader/entries/OLD.CONF")
    ),
    "directory in capitals": Case(
        both(
            program("efi/EFI/x.efi", "quiet"),
            entry("OPTIONS\n", "efi/LOADER/Entries/a.txt"),
            entry("title Two\nversion 2\nlinux /vmlinuz\noptions OPTIONS\n", "efi/LOADER/Entries/A.Conf"),
        )
    ),
    "uki without bootc's name": Case(program(f"{EFI}/Linux/system-44.efi", UKI), place="uki"),
    "uki in capitals": Case(program(f"{EFI}/LINUX/BOOTC/X.EFI", UKI), place="uki"),
    "uki as the default program": Case(program(f"{EFI}/BOOT/BOOTX64.EFI", UKI), place="uki"),
    "uki in a directory of its own": Case(program("efi/ukis/deep/down/x.efi", UKI), place="uki"),
    "uki on the boot partition": Case(program("boot/EFI/Linux/x.efi", UKI), place="uki"),
    "second profile": Case(program(f"{EFI}/Linux/x.efi", "quiet", "quiet", UKI), place="uki"),
    "add-on of one uki": Case(
        both(program(f"{EFI}/Linux/x.efi", "quiet"), program(f"{EFI}/Linux/x.efi.extra.d/c.addon.efi", "composefs=ID")),
        place="uki",
    ),
    "add-on of all ukis": Case(program("efi/loader/addons/c.addon.efi", "composefs=ID"), place="uki"),
    "add-on on the boot partition": Case(program("boot/loader/addons/C.ADDON.EFI", "composefs=ID"), place="uki"),
    "quoted in a uki": Case(program(f"{EFI}/Linux/x.efi", 'rw "composefs=ID"'), place="uki"),
    # boot entries
    "efi names a uki": Case(both(program("efi/two.efi", UKI), entry("title Two\nversion 2\nefi /two.efi\n")), place="uki"),
    "uki in another case": Case(both(program("efi/A/Two.Efi", UKI), entry("title Two\nversion 2\nuki \\a\\TWO.EFI\n"))),
    "the first of two efi lines": Case(
        both(program("efi/1.efi", UKI), program("efi/2.efi", "quiet"), entry("version 2\nefi /1.efi\nefi /2.efi\n"))
    ),
    "linux names a uki": Case(both(program("boot/EFI/x.efi", UKI), entry("version 2\nlinux /EFI/x.efi\noptions quiet\n"))),
    "linux names a uki without .efi": Case(
        both(program("boot/kernel", UKI), entry("version 2\nlinux /boot/kernel\noptions quiet\n"))
    ),
    "several options lines": Case(entry("version 2\nlinux /v\noptions quiet\noptions OPTIONS\noptions debug\n")),
    "tries are counted": Case(entry("version 2\nlinux /v\noptions OPTIONS\n", "boot/loader/entries/bootc_x-2-0+3-1.conf")),
    "other keys": Case(
        entry("version 2\narchitecture aa64\ndevicetree /d\ngrub_users $u\ngrub_arg --x\nlinux /v\noptions OPTIONS\n")
    ),
    "tabs and CRLF": Case(entry("version\t2\r\nlinux\t/v\r\noptions\tOPTIONS\r\n")),
    "kernelopts in grubenv": Case(
        both(
            entry("version 2\nlinux /v\noptions $kernelopts $tuned\n"),
            grub("# GRUB Environment Block\nkernelopts=root=1 composefs=ID\ntuned=quiet\n####", "boot/grub2/grubenv"),
        )
    ),
    "kernelopts in grub.cfg": Case(
        both(
            entry("version 2\nlinux /v\noptions $kernelopts $other\n"),
            grub('set kernelopts="OPTIONS"\nblscfg\n', "boot/grub2/grub.cfg"),
        )
    ),
    "no options, but default ones": Case(
        both(entry("version 2\nlinux /v\n"), grub("default_kernelopts=composefs=ID\n", "boot/grub/grubenv"))
    ),
    "in the boot partition and on the ESP": Case(
        both(program("efi/EFI/x.efi", "quiet"), entry("version 2\nlinux /v\noptions OPTIONS\n", "efi/loader/entries/x.conf"))
    ),
    # GRUB's scripts
    "tabs": Case(grub('menuentry "Two" {\n\tlinux\t/vmlinuz OPTIONS\n\tinitrd\t/initrd\n}\n')),
    "braces in a title": Case(grub('menuentry "Two ${x}" --id "${kind}" {\n linux /vmlinuz OPTIONS\n}\n')),
    "single quotes": Case(grub("menuentry 'it is \"two\" {' {\n linux '/vmlinuz' 'composefs=ID'\n}\n")),
    "quotes within a word": Case(
        grub('menuentry two { linux /vmlinuz compo"sefs"=\'I\'"" ; linux /v comp\\osefs="?"\'\'ID }\n')
    ),
    "lines continued": Case(grub("menuentry two {\nlinux /vmlinuz \\\n root=1 compo\\\nsefs=\\\nID\n}\n")),
    "everything on one line": Case(grub("menuentry two { insmod gzio; linux /vmlinuz OPTIONS; initrd /i; }")),
    "a comment with a brace": Case(grub("# } {\nmenuentry two { # }\n linux /vmlinuz a#b OPTIONS # composefs=\n}\n")),
    "if around it": Case(
        grub("if [ -f /x ]; then\n menuentry two {\n if true; then linux /v quiet; else linux /v OPTIONS; fi\n }\nfi\n")
    ),
    "submenu": Case(grub("submenu 'More' {\n submenu 'Yet more' {\n menuentry two {\n linux /v OPTIONS\n}\n}\n}\n")),
    "function": Case(grub("function boot_two {\n linux /v OPTIONS\n}\nmenuentry two {\n boot_two\n}\n")),
    "function with the brace below": Case(grub("function f\n{\n linux /v OPTIONS\n}\nmenuentry two {\n f\n}\n")),
    "outside of all entries": Case(grub("linux /v OPTIONS\nboot\n")),
    "variable": Case(grub("set which=ID\nmenuentry two {\n linux /v composefs=?${which}\n}\n")),
    "variable in a variable": Case(
        grub("a=ID\nset b=\"composefs=$a\"\nset opts='rw'\nmenuentry two {\n linux /v $opts $b\n}\n")
    ),
    "variable of a loop": Case(grub("for id in x ID; do\n menuentry $id {\n linux /v composefs=$id\n }\ndone\n")),
    "variable set twice": Case(grub("set which=nothing\nset which=ID\nmenuentry two {\n linux /v composefs=$which\n}\n")),
    "variable in grubenv": Case(
        both(grub("load_env\nmenuentry two {\n linux /v $opts\n}\n"), grub("opts=composefs=ID\n", "boot/grub2/grubenv"))
    ),
    "variable from a script that it reads": Case(
        both(
            grub("source $prefix/mine.cfg\nmenuentry two { linux /v $opts\n}\n"),
            grub("set opts=composefs=ID", "boot/grub2/mine.cfg"),
        )
    ),
    "script that it reads": Case(
        both(
            grub("source ${config_directory}/more.cfg\n"), grub("menuentry two { linux /v OPTIONS\n}\n", "boot/grub2/more.cfg")
        )
    ),
    "grub.cfg": Case(grub("menuentry two { linux /v OPTIONS\n}\n", "boot/grub2/grub.cfg")),
    "custom.cfg in grub": Case(grub("menuentry two { linux /v OPTIONS\n}\n", "boot/grub/custom.cfg")),
    "user.cfg in grub": Case(grub("menuentry two { linux /v OPTIONS\n}\n", "boot/grub/user.cfg")),
    "staged": Case(grub("menuentry two { linux /v OPTIONS\n}\n", "boot/grub2/user.cfg.staged"), place="staged-entry"),
    "linuxefi": Case(grub("menuentry two { linuxefi ($root)/v OPTIONS\n}\n")),
    "xen": Case(grub("menuentry two { multiboot2 /xen.gz\n module2 /v OPTIONS\n module2 /initrd\n}\n")),
    "root by a search": Case(grub("probe -u $root --set=uuid\nmenuentry two { linux /v root=UUID=$uuid composefs=ID\n}\n")),
    "chainloader of a uki": Case(
        both(
            program(TWO, UKI),
            grub(
                'menuentry two {\n search --set=root --fs-uuid "${EFI_PART_UUID}"\n chainloader ($root)/EFI/linux/TWO.efi\n}\n'
            ),
        )
    ),
    "chainloader with options": Case(
        both(program("efi/two.efi", "quiet"), grub("menuentry two { chainloader /two.efi composefs=ID\n}\n"))
    ),
    "chainloader of a uki that is gone": Case(grub("menuentry two { chainloader /EFI/Linux/bootc/BOOTC_COMPOSEFS-ID.EFI\n}\n")),
    "grub.cfg on the ESP": Case(both(AN_ESP, grub("menuentry two { linux /v OPTIONS\n}\n", "efi/EFI/fedora/grub.cfg"))),
    "kernelopts on the ESP": Case(
        both(
            AN_ESP,
            entry("version 2\nlinux /v\noptions $kernelopts\n"),
            grub("kernelopts=composefs=ID\n", "efi/EFI/fedora/grubenv"),
        )
    ),
    "staged, with a variable in grubenv": Case(
        both(
            grub("menuentry two { linux /v $o\n}\n", "boot/grub2/user.cfg.staged"), grub("o=composefs=ID", "boot/grub2/grubenv")
        ),
        place="staged-entry",
    ),
    # an id in a form that nothing understands is kept all the same
    "a byte order mark": Case(entry("\ufeffoptions OPTIONS\nversion 2\nlinux /v\n")),
    "a byte order mark on the ESP": Case(
        both(AN_ESP, put("efi/loader/entries/a.conf", "\ufeffoptions OPTIONS\nlinux /v\nversion 2\n"))
    ),
    "a byte order mark in a uki": Case(program(f"{EFI}/Linux/x.efi", "\ufeffcomposefs=ID"), place="uki"),
    "lines of a Macintosh": Case(entry("version 2\rlinux /v\roptions OPTIONS\r")),
    "lines that end with a zero": Case(entry("version 2\0linux /v\0options OPTIONS\0")),
    "a blank that breaks no line": Case(entry("version 2\nlinux /v\noptions rw\u00a0composefs=ID\n")),
    "no blank": Case(entry("version: 2\nlinux: /v\noptions=composefs=ID\n")),
    "keys in capitals": Case(entry("VERSION 2\nLINUX /v\nOPTIONS composefs=ID\n")),
    "options behind the kernel": Case(entry("version 2\nlinux /v composefs=ID\n")),
    "an id in capitals": Case(
        lambda host: write(host, "boot/loader/entries/o.conf", f"options composefs={host.id('old').upper()}")
    ),
    "a name in bytes": Case(
        lambda host: write(host, os.fsdecode(b"boot/loader/entries/b\xff.conf"), "version 2\nlinux /v\noptions OPTIONS\n")
    ),
    "a name that starts with a point": Case(entry("version 2\nlinux /v\noptions OPTIONS\n", "boot/loader/entries/.conf")),
    "a newer digest": Case(entry("version 2\nlinux /v\noptions composefs.digest=v3-sha512-12:ID\n")),
    "a newer block size": Case(entry("version 2\nlinux /v\noptions composefs.digest=v1-sha512-16:ID\n")),
    "a path to it": Case(entry("version 2\nlinux /v\noptions composefs=/images/ID\n")),
    "an argument of another name": Case(entry("version 2\nlinux /v\noptions rd.composefs=ID\n")),
    "quotes that GRUB takes off": Case(
        both(entry("version 2\nlinux /v\noptions rw compo''sefs='ID'\n"), grub("blscfg\n", "boot/grub2/grub.cfg"))
    ),
    "a variable in braces in an entry": Case(
        both(entry("version 2\nlinux /v\noptions composefs=?${which}\n"), grub("set which=ID\n", "boot/grub2/grub.cfg"))
    ),
    "a newer record of aboot": Case(put("state/boot/aboot/current", '{"depl_id": "ID"}'), place="aboot"),
    # more of GRUB
    "a command that is timed": Case(grub("menuentry two {\n time linux /v OPTIONS\n}\n")),
    "a uki that is timed": Case(both(program("efi/two.x", UKI), grub("menuentry two {\n time chainloader /two.x\n}\n"))),
    "hidden": Case(grub("hiddenentry two --hotkey x {\n linux /v OPTIONS\n}\n")),
    "GRUB's directory on the ESP": Case(both(AN_ESP, grub("menuentry two { linux /v OPTIONS\n}\n", "efi/grub/grub.cfg"))),
    "GRUB's other directory on the ESP": Case(both(AN_ESP, grub("linux /v OPTIONS\n", "efi/grub2/user.cfg"))),
    "GRUB's directory in boot on the ESP": Case(both(AN_ESP, grub("linux /v OPTIONS\n", "efi/boot/grub/custom.cfg"))),
    "GRUB's directory below a vendor's": Case(both(AN_ESP, grub("linux /v OPTIONS\n", "efi/EFI/fedora/grub2/grub.cfg"))),
    "beside GRUB in a boot directory that is an ESP": Case(grub("linux /v OPTIONS\n", "boot/EFI/fedora/grub.cfg")),
    "carriage returns": Case(grub("menuentry two {\r\n linux /v \\\r\n OPTIONS\r\n}\r\n")),
    # Android's boot loader
    "slot of aboot": Case(put("state/boot/aboot/slots/a", "ID\n"), place="aboot"),
    "the other slot": Case(both(put("state/boot/aboot/slots/a", ""), put("state/boot/aboot/slots/b", "ID")), place="aboot"),
    "attempted by aboot": Case(put("state/boot/aboot/attempted", '{"depl_id": "ID", "slot": "b"}'), place="aboot"),
    "rollback of aboot": Case(put("state/boot/aboot/rollback", '{"depl_id": "ID"}'), place="aboot"),
}


@pytest.mark.parametrize("name", BOOTS)
def test_what_boots_a_deployment_keeps_it_in_whatever_form(lost: Host, name: str) -> None:
    case = BOOTS[name]
    case.make(lost)

    rows = retire(lost)

    assert rows["old"][0] == "kept"
    assert case.place in rows["old"][1].removeprefix("it is in ").split(", ")
    assert rows["new"] == ("retired", "no place has it")


BROKEN = b"MZ".ljust(60, b"\0") + struct.pack("<I", 64)

UNREAD: dict[str, tuple[Callable[[Host], object], str]] = {
    # programs
    "no ESP is known": (entry("version 2\nefi /EFI/Linux/two.efi\n"), "/EFI/Linux/two.efi is on no partition that is known"),
    "uki by a name alone": (
        grub("menuentry two { chainloader /EFI/Linux/two.efi\n}\n"),
        "two: /EFI/Linux/two.efi is on no partition",
    ),
    "uki that is not there": (both(AN_ESP, entry("version 2\nuki /two.efi\n")), "/two.efi is not there"),
    "uki that is cut": (both(AN_ESP, put(TWO, uki("composefs=")[:100])), "two.efi) could not be read"),
    "uki cut outside of EFI/Linux": (both(AN_ESP, put("efi/two.efi", portable(UKI)[:100])), "two.efi) could not be read"),
    "add-on that is cut": (both(AN_ESP, put("efi/loader/addons/a.addon.efi", b"")), "a.addon.efi) could not be read"),
    "uki without a command line": (both(AN_ESP, put(TWO, portable())), "wanted a section .cmdline, found none"),
    "too many sections": (
        both(AN_ESP, put(TWO, BROKEN + struct.pack("<4sHH12xHH", b"PE\0\0", 0, 65535, 0, 0) + bytes(4000))),
        "65535 section headers",
    ),
    "section beyond the end": (both(AN_ESP, put(TWO, portable("x" * 100, linux=False)[:-50])), "section .cmdline"),
    "header beyond the end": (both(AN_ESP, put(TWO, b"MZ".ljust(60, b"\0") + b"\xff" * 4)), "a PE header"),
    "link that leads out": (
        both(
            AN_ESP,
            lambda host: (host.root / EFI / "Linux").mkdir(parents=True),
            lambda host: (host.root / EFI / "Linux/two.efi").symlink_to("../../../../elsewhere.efi"),
        ),
        "a link to",
    ),
    "link to a directory": (
        both(program("efi/EFI/Real/x.efi", "quiet"), lambda host: (host.root / EFI / "Linux").symlink_to("Real")),
        "a link",
    ),
    "link in a circle": (
        both(program("efi/EFI/Linux/x.efi", "quiet"), lambda host: (host.root / EFI / "Linux/two.efi").symlink_to("two.efi")),
        "a link to",
    ),
    "uki in the network": (
        entry("version 2\nuki-url https://example.org/two.efi\n"),
        "https://example.org/two.efi is in the network",
    ),
    "path upwards": (entry("version 2\nefi /EFI/../../two.efi\n"), "cannot be followed"),
    # entries
    "no UTF-8": (
        put("boot/loader/entries/OLD.CONF", b"title Syst\xe8me\noptions composefs=x\n"),
        "OLD.CONF) could not be read",
    ),
    "variable that nothing sets": (
        entry("version 2\nlinux /v\noptions $kernelopts\n"),
        "a variable in its options is not known",
    ),
    "variable that a search sets": (
        both(entry("version 2\nlinux /v\noptions x$found\n"), grub("search --label x --set=found", "boot/grub2/grub.cfg")),
        "a variable in its options",
    ),
    "entries elsewhere": (grub("set blsdir=/elsewhere/entries\n", "boot/grub2/grub.cfg"), "blsdir is set"),
    # GRUB's scripts
    "variable of no script": (
        grub("menuentry two {\n linux /v composefs=?${which}\n}\n"),
        "two: 'linux /v composefs=?${which}' cannot be followed",
    ),
    "variable that is a whole argument": (grub("menuentry two {\n linux /v root=1 $opts\n}\n"), "'linux /v root=1 $"),
    "argument of a function": (
        grub("function f { linux /v $1\n}\nmenuentry two {\n f composefs=ID\n}\n"),
        "'linux /v ${1}' cannot be followed",
    ),
    "variable in itself": (grub('set o="$o quiet"\nmenuentry two {\n linux /v $o\n}\n'), "'linux /v ${o}'"),
    "variable that is read": (grub("read opts\nmenuentry two {\n linux /v $opts\n}\n"), "'linux /v ${opts}'"),
    "variable of another file": (
        grub("load_env -f /elsewhere/env\nset o=quiet\nmenuentry two {\n linux /v $o\n}\n"),
        "'linux /v ${o}'",
    ),
    "variable with too many values": (
        grub("".join(f"set o={n}\n" for n in range(20)) + "menuentry two {\n linux /v $o\n}\n"),
        "'linux /v ${o}'",
    ),
    "command in a variable": (grub("menuentry two {\n $start /v composefs=ID\n}\n"), "'${start} /v"),
    "path in a variable": (grub("menuentry two {\n chainloader $uki\n}\n"), "'chainloader ${uki}' cannot be followed"),
    "command that GRUB has not": (grub("menuentry two {\n kexec /v composefs=ID\n}\n"), "'kexec /v"),
    "text that is run": (grub("menuentry two {\n eval 'linux /v composefs=ID'\n}\n"), "'eval linux"),
    "script that is not there": (grub("source /elsewhere/more.cfg\n"), "it reads /elsewhere/more.cfg"),
    "script of a name that is not known": (grub("configfile $where/grub.cfg\n"), "it reads ?/grub.cfg"),
    "script of another language": (grub("syslinux_configfile /syslinux.cfg\n"), "'syslinux_configfile"),
    "entries of another directory": (grub("blscfg (hd0,1)/entries\n"), "'blscfg (hd0,1)/entries'"),
    "quote without an end": (grub("menuentry 'two {\n linux /v OPTIONS\n}\n"), "user.cfg) could not be read"),
    "block without an end": (grub("menuentry two {\n linux /v OPTIONS\n"), "user.cfg) could not be read"),
    "block without a beginning": (grub("linux /v OPTIONS\n}\n}\n"), "user.cfg) could not be read"),
    "scripts in a circle are read, with an unknown one": (
        both(grub("source $prefix/a.cfg\n"), grub("source $prefix/user.cfg\nsource $x\n", "boot/grub2/a.cfg")),
        "it reads ?",
    ),
    "a menu with an unknown script for an argument": (grub("submenu x --source $body\n"), "wanted menuentry"),
    "a hidden entry without a block": (grub("hiddenentry x --source $body\n"), "wanted menuentry"),
    "scripts by a pattern": (grub("source $prefix/custom/*.cfg\n"), "it reads /grub2/custom/*.cfg"),
    "scripts of a loop by a pattern": (grub("for f in $prefix/*.menu; do source $f; done\n"), "it reads /grub2/*.menu"),
    "script by a pattern of one character": (grub("configfile /a/men?\n"), "it reads /a/men?"),
    "ids from names of files": (grub("for f in /ids/*; do menuentry $f { linux /v composefs=$f\n}\ndone\n"), "'linux /v"),
    "environment of another directory": (
        grub("load_env -f /elsewhere/grubenv\nset o=quiet\nmenuentry two {\n linux /v $o\n}\n"),
        "'linux /v ${o}'",
    ),
    "environment below": (
        grub("load_env --file=$prefix/sub/grubenv\nset o=quiet\nmenuentry two {\n linux /v $o\n}\n"),
        "'linux /v ${o}'",
    ),
    "variable of a file": (grub("o=quiet\ncat --set=o /f\nmenuentry two {\n linux /v $o\n}\n"), "'linux /v ${o}'"),
    "name of a variable in a variable": (
        grub("n=o\no=quiet\nset $n=composefs=ID\nmenuentry two { linux /v $o\n}\n"),
        "'linux /v ${o}'",
    ),
    "arguments of a function for a variable": (
        grub("function put { set $1=$2\n}\no=quiet\nput o composefs=ID\nmenuentry two { linux /v $o\n}\n"),
        "'linux /v ${o}'",
    ),
    "variable of an expression": (
        grub("o=quiet\nregexp --set 1:o '(.*)' composefs=ID\nmenuentry two { linux /v $o\n}\n"),
        "'linux /v ${o}'",
    ),
    "a menu with a script for an argument": (grub("submenu x --source 'linux /v composefs=ID'\n"), "wanted menuentry"),
    "variable whose name is unknown": (grub("o=quiet\nset $n=$v\nmenuentry two {\n linux /v $o\n}\n"), "'linux /v ${o}'"),
    "a program from the network": (grub("menuentry two { pxechainloader /two.0\n}\n"), "'pxechainloader /two.0'"),
    # Android's boot loader
    "slot with something else": (put("state/boot/aboot/slots/a", "slot a\n"), "slots/a) could not be read"),
    "record with something else": (put("state/boot/aboot/pending", "{}"), "/depl_id"),
    "slot that is a directory": (
        lambda host: (host.root / "state/boot/aboot/slots/a").mkdir(parents=True),
        "slots/a) could not be read",
    ),
}


@pytest.mark.parametrize("name", UNREAD)
def test_what_cannot_be_followed_is_a_place_that_was_not_read(lost: Host, name: str) -> None:
    make, says = UNREAD[name]
    make(lost)

    rows = retire(lost)

    assert {done for done, _ in rows.values()} == {"kept"}
    assert says in rows["new"][1]
    assert "could not be read" in rows["new"][1]


WINDOWS = "menuentry 'Windows Boot Manager (on /dev/sda1)' --class windows {\n insmod fat\n search --set=root --fs-uuid 1234-5678\n chainloader /EFI/Microsoft/Boot/bootmgfw.efi\n}\n"  # noqa: E501

OTHERS: dict[str, Callable[[Host], object]] = {
    "Linux": grub(f"menuentry 'Linux' {{\n load_video\n insmod gzio\n {LINUX}\n initrd /initrd\n}}\n"),
    "Linux with an entry": entry("title Linux\nversion 6.1\nlinux /vmlinuz-6.1\ninitrd /initrd\noptions root=UUID=1 ro\n"),
    "Linux with GRUB's variables": both(
        entry("title Linux\nversion 6.1\nlinux /v\ninitrd /i $tuned_initrd\noptions root=UUID=1 ro $tuned_params\n"),
        grub("load_env\nif [ -z $kernelopts ]; then set kernelopts='root=UUID=1 ro'; fi\nblscfg\n", "boot/grub2/grub.cfg"),
    ),
    "Linux with another bootc": grub(f"menuentry 'Linux' {{\n linux /v composefs={'ab' * 64}\n}}\n"),
    "Linux by ostree": entry("title Fedora\nversion 43\nlinux /ostree/x/vmlinuz\noptions root=1 ostree=/ostree/boot.1/x/1/0\n"),
    "Linux whose root is searched": grub("probe --set=u -u $root\nmenuentry Linux {\n linux ($root)/v root=UUID=$u ro\n}\n"),
    "its UKI": program(f"{EFI}/Linux/linux-6.1.efi", "root=UUID=1 ro"),
    "Windows on another disk": grub(WINDOWS),
    "Windows here": both(
        grub(WINDOWS),
        lambda host: (setattr(host, "has_esp", True), write(host, f"{EFI}/Microsoft/Boot/bootmgfw.efi", portable(linux=False))),
    ),
    "Windows before UEFI": grub("menuentry XP {\n set root=(hd0,1)\n drivemap -s (hd0) $root\n chainloader (hd0,1)+1\n}\n"),
    "a firmware tool": both(
        entry("title Shell\nversion 2\nefi /shellx64.efi\n"),
        lambda host: (setattr(host, "has_esp", True), write(host, "efi/shellx64.efi", portable(linux=False))),
    ),
    "another boot loader": both(
        grub("menuentry 'systemd-boot' {\n chainloader /efi/systemd/SYSTEMD-BOOTX64.EFI\n}\n"),
        lambda host: (
            setattr(host, "has_esp", True),
            write(host, f"{EFI}/systemd/systemd-bootx64.efi", portable(linux=False)),
        ),
    ),
    "memtest": grub("menuentry 'Memory test' {\n linux16 /boot/memtest86+x64.bin console=ttyS0\n}\n"),
    "firmware": grub("if [ $grub_platform = efi ]; then\n menuentry 'UEFI' $menuentry_id_option x {\n fwsetup\n }\nfi\n"),
    "Linux with the hash of its root": entry(
        f"title x\nversion 6\nlinux /v\noptions roothash={'cd' * 32} usrhash={'ab' * 64}\n"
    ),
    "a password with a hash": grub(
        f"password_pbkdf2 root grub.pbkdf2.sha512.10000.{'AB' * 64}.{'cd' * 64}\n", "boot/grub2/grub.cfg"
    ),
    "a comment": entry("title x\nversion 6\nlinux /v\n# options composefs=ID\noptions root=1\n"),
    "the kernel of a deployment": entry("title x\nversion 6\nlinux /bootc_composefs-ID/vmlinuz\noptions root=1\n"),
    "its own environment": both(
        grub("load_env -f ${config_directory}/grubenv\nmenuentry x {\n linux /v $o\n}\n", "boot/grub2/grub.cfg"),
        grub("o=quiet", "boot/grub2/grubenv"),
    ),
    "an empty script": grub(""),
    "entries where they are": grub("set blsdir=/boot/loader/entries\nblscfg\n", "boot/grub2/grub.cfg"),
    "GRUB's stub on the ESP": both(
        AN_ESP,
        grub(
            "search --fs-uuid 12 --set prefix --no-floppy\nset prefix=($prefix)/grub2\nconfigfile $prefix/grub.cfg\nboot\n",
            "efi/EFI/fedora/grub.cfg",
        ),
    ),
    "a password": grub("GRUB2_PASSWORD=grub.pbkdf2.sha512.10000.AB\n"),
    "a script beside it that is not there": grub("if [ -f $prefix/x.cfg ]; then\n source $prefix/x.cfg\nfi\n"),
    "an add-on for a device tree": both(AN_ESP, put("efi/loader/addons/d.addon.efi", portable(linux=False))),
    "something else of that name": both(AN_ESP, put("efi/note.efi", b"text")),
    "a kernel that is a link": both(
        put("boot/vmlinuz-6.1", b"kernel"),
        lambda host: (host.root / "boot/vmlinuz").symlink_to("vmlinuz-6.1"),
        entry("title Linux\nversion 6.1\nlinux /boot/vmlinuz\noptions root=1\n"),
    ),
    "aboot without a slot": lambda host: (host.root / "state/boot/aboot/slots").mkdir(parents=True),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_system_beside_it_keeps_nothing(lost: Host, name: str) -> None:
    OTHERS[name](lost)

    rows = retire(lost)

    assert rows["old"] == rows["new"] == ("retired", "no place has it")
    assert rows["same"][0] == "kept"


def test_a_menu_as_distributions_write_it_keeps_nothing(lost: Host) -> None:
    write(
        lost,
        "boot/grub2/grub.cfg",
        """
set pager=1
if [ -f ${config_directory}/grubenv ]; then
  load_env -f ${config_directory}/grubenv
elif [ -s $prefix/grubenv ]; then
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   save_env next_entry
else
   set default="${saved_entry}"
fi
function savedefault {
  if [ -z "${boot_once}" ]; then
    saved_entry="${chosen}"
    save_env saved_entry
  fi
}
function gfxmode {
  set gfxpayload="${1}"
  if [ "${1}" = keep ]; then set vt_handoff=vt.handoff=7; else set vt_handoff=; fi
}
terminal_output console
if [ x$feature_timeout_style = xy ] ; then
  set timeout_style=menu
fi
menuentry 'Ubuntu' --class ubuntu --class os $menuentry_id_option 'gnulinux-simple-1' {
	savedefault
	gfxmode $linux_gfx_mode
	if [ x$grub_platform = xxen ]; then insmod xzio; insmod lzopio; fi
	search --no-floppy --fs-uuid --set=root --hint-efi=hd0,gpt2 7e3f2b41
	linux	/boot/vmlinuz-6.8 root=UUID=7e3f2b41 ro  quiet splash $vt_handoff
	initrd	/boot/initrd.img-6.8
}
submenu 'Advanced options' $menuentry_id_option 'gnulinux-advanced-1' {
	menuentry 'Ubuntu, recovery' { linux /boot/vmlinuz-6.8 root=UUID=7e3f2b41 ro recovery $more }
}
blscfg
if [ -f ${prefix}/user.cfg ]; then
  source ${prefix}/user.cfg
  if [ -n "${GRUB2_PASSWORD}" ]; then
    set superusers="root"
    export superusers
    password_pbkdf2 root ${GRUB2_PASSWORD}
  fi
fi
""",
    )
    lost.grub("same")

    assert retire(lost)["new"] == ("retired", "no place has it")


# -- what is said ------------------------------------------------------------------------------------------------------


def test_an_entry_that_user_cfg_boots_is_not_said_to_be_booted_by_nothing(on: On, lost: Host) -> None:
    lost.deploy("old")
    grub('menuentry "Two" {\n\tlinux\t/vmlinuz OPTIONS\n}\n')(lost)

    shown = on(lost, "deployments", "--json", ok=True).result["deployments"]

    codes = {row["id"]: {finding["code"] for finding in row["health"]} for row in shown}
    assert codes[lost.id("old")].isdisjoint({"no-boot-entry", "boot-entry-unknown"})


@pytest.mark.parametrize(
    "script",
    [
        "menuentry two { linux /v $opts\n}\n",
        "menuentry two { chainloader $uki\n}\n",
        "menuentry two { start_it\n}\n",
        "menuentry 'two {",
    ],
)
def test_of_an_entry_that_is_not_understood_is_not_said_that_it_boots_nothing(on: On, lost: Host, script: str) -> None:
    lost.deploy("old")
    bad = write(lost, "boot/grub2/user.cfg", script)

    shown = on(lost, "deployments", "--json", ok=True).result

    health = {row["id"]: {finding["code"] for finding in row["health"]} for row in shown["deployments"]}
    assert "boot-entry-unknown" in health[lost.id("old")]
    assert "no-boot-entry" not in health[lost.id("old")]
    assert [finding["code"] for finding in shown["findings"]] == ["boot-entry-unreadable"]
    assert str(bad) in [place["path"] for place in shown["places"] if place["not_read"]]


def test_a_deployment_of_aboot_needs_no_boot_entry(on: On, lost: Host) -> None:
    lost.deploy("old")
    write(lost, "state/boot/aboot/slots/a", "ID\n")
    lost.origin("old").write_text(lost.origin("old").read_text().replace("boot_type=bls", "boot_type=aboot"))

    shown = on(lost, "deployments", "--json", ok=True).result["deployments"]

    row = next(row for row in shown if row["id"] == lost.id("old"))
    assert row["health"] == []
    assert "aboot" in row["places"]


@pytest.mark.parametrize("what", ["a state directory alone", "one with an origin", "one with an image"])
def test_what_an_upgrade_left_has_a_hint_that_can_be_followed(on: On, lost: Host, what: str) -> None:
    left = "cd" * 64
    (lost.root / "state/deploy" / left / "etc").mkdir(parents=True)
    if what == "one with an origin":
        (lost.root / "state/deploy" / left / f"{left}.origin").write_text("[origin]\ncontainer-image-reference=x\n")
    if what == "one with an image":
        (lost.repo / "images" / left).symlink_to(os.readlink(lost.repo / "images" / lost.id("same")))

    said = on(lost, "gc", "--json")

    assert said.status == 4
    assert said.json["error"]["code"] == "unresolved-deployment"
    assert "--image-only" in said.json["error"]["hint"]
    assert on(lost, "gc", "--image-only").status == 0
    assert lost.missing("same") == []


# -- deployments that never had a ref ------------------------------------------------------------------------------------


@pytest.fixture
def unreferred(three: Host) -> Host:
    """No deployment has a ref; of ``old`` there is neither state directory nor tag; what boots it is made by the test."""
    three.undeploy("old")
    three.untag(BOOTC + three.pool.images["old"].manifest)
    return three


@pytest.mark.parametrize("words", [["gc"], ["gc", "--dry-run"], ["gc", "--image-only"]], ids=" ".join)
@pytest.mark.parametrize(
    "make",
    [
        grub("menuentry two { linux /v composefs=$which\n}\n"),
        grub("menuentry two { chainloader /EFI/Linux/two.efi\n}\n"),
        both(AN_ESP, put(TWO, uki("composefs=ID")[:100])),
        put("boot/loader/entries/two.conf", b"\xff"),
        put("state/boot/aboot/slots/a", "slot a\n"),
    ],
    ids=["variable", "no ESP", "cut", "no UTF-8", "aboot"],
)
def test_an_image_without_a_ref_stays_while_an_entry_cannot_be_followed(
    on: On, unreferred: Host, make: Callable[[Host], object], words: list[str]
) -> None:
    make(unreferred)

    said = on(unreferred, *words, "--json")

    assert said.status == 4
    assert said.json["error"]["code"] == "place-unread"
    assert "mend it" in said.json["error"]["hint"]
    assert unreferred.missing("old", image_only=True) == []


def test_once_the_entry_is_mended_it_is_collected(on: On, unreferred: Host) -> None:
    bad = write(unreferred, "boot/grub2/user.cfg", "menuentry two { linux /v composefs=$which\n}\n")
    assert on(unreferred, "gc").status == 4
    bad.write_text("menuentry two { linux /v quiet\n}\n")

    assert on(unreferred, "gc").status == 0
    assert unreferred.missing("old", image_only=True) != []
    assert unreferred.missing("same") == unreferred.missing("new") == []


def test_an_entry_that_is_followed_to_it_has_it_adopted(on: On, unreferred: Host) -> None:
    write(unreferred, "boot/grub2/user.cfg", "menuentry two { linux /v OPTIONS\n}\n")

    said = on(unreferred, "gc", "--json")

    assert (said.status, unreferred.missing("old", image_only=True)) == (0, [])


def test_an_entry_that_cannot_be_followed_stops_no_collection_of_other_garbage(on: On, three: Host) -> None:
    write(three, "boot/grub2/user.cfg", "menuentry two { linux /v composefs=$which\n}\n")
    (three.repo / "streams/refs/oci/quay.io%2Fapps%2Fweb:1").unlink()

    assert on(three, "gc").status == 0
    assert three.missing_of_app("quay.io/apps/web:1") != []
    assert [three.missing(name) for name in ("same", "old", "new")] == [[], [], []]


# -- bootc's tags without deployments ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [["gc"], ["gc", "--dry-run"], ["gc", "--image-only"], ["gc", "--json"]],
    ids=" ".join,
)
def test_bootcs_tags_and_an_empty_state_directory_are_refused_with_the_reason(on: On, host: Host, words: list[str]) -> None:
    """A host that boots ostree commits and keeps their images here."""
    host.untag(BOOTC + host.pool.images["new"].manifest)
    (host.root / "ostree/repo").mkdir(parents=True)

    said = on(host, *words)

    assert said.status == 4
    reason = said.json["error"]["message"] if "--json" in words else said.err
    assert "state/deploy has no deployment, and the repository has tags that bootc made" in reason
    for name in ("same", "old"):
        assert host.missing(name) == []
    assert host.missing("new") == []


def test_without_bootcs_tags_an_empty_state_directory_is_an_empty_host(on: On, host: Host) -> None:
    host.untag_bootc()

    assert on(host, "gc").status == 0
    assert host.missing("same") != []
    assert [host.missing_of_app(tag) for tag in host.pool.apps] == [[], []]


def test_what_would_go_first_is_shown_where_a_collection_is_refused(on: On, host: Host) -> None:
    shown: Any = on(host, "df", "--json").json

    assert "has no deployment" in str(shown)
