"""GRUB's scripts: words as GRUB splits them, values of variables, and time that grows with the length alone."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from cfs_tags.formats.boot.grub import UNKNOWN, GrubEntry, GrubMenu, parse_grub_environment, parse_grub_script
from cfs_tags.values import DeploymentId

A = DeploymentId("a1" * 64)


def menu(text: str, environment: dict[str, str] | None = None, *, whole: bool = False) -> tuple[GrubEntry, ...]:
    script = parse_grub_script(text.encode())
    return GrubMenu((script,), environment or {}, "/grub2", whole=whole).entries(script)


def cmdline(text: str, **variables: str) -> str:
    """The command line of the only kernel that a script starts."""
    [entry] = menu(f"linux /vmlinuz {text}\n", variables)
    return entry.cmdlines[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a b\tc", "a b c"),
        ("'a b' \"c d\"", "a b c d"),
        ("a\"b\"'c'd", "abcd"),
        ('"a\\"b\\\\c\\$d\\e"', 'a"b\\c$d\\e'),
        ("a\\ b\\;c", "a b;c"),
        ("a\\\nb \\\n c", "ab c"),
        ('"a\\\nb"', "ab"),
        ("a#b #c", "a#b"),
        ("$'x'", "$x"),
        ('$"x y"', "x y"),
        ("a;b", "a"),
        ("${v}x $v-x \"$v x\" '$v'", "VALx VAL-x VAL x $v"),
        ("$", "$"),
        ("x=a{", "x=a"),
    ],
)
def test_words_are_those_of_grub(text: str, words: str) -> None:
    closing = "}" if "{" in text.replace("${", "") else ""
    script = parse_grub_script(f"linux /vmlinuz {text}{closing}\n".encode())
    found = GrubMenu((script,), {"v": "VAL"}, "/grub2").entries(script)

    assert found[0].cmdlines[0] == words


def test_what_is_not_known_says_so() -> None:
    assert cmdline("a$b", b="c") == "ac"
    assert cmdline("a$b") == f"a{UNKNOWN}"
    assert menu("linux /v a$b\n")[0].unknown == ("'linux /v a${b}' cannot be followed",)
    assert menu("linux /v root=$b\n")[0].unknown == ()
    assert menu("linux /v composefs=$b\n")[0].unknown != ()
    assert menu("linux /v a$b\n", whole=True)[0].unknown == ()
    assert menu("linux /v a$1\n", whole=True)[0].unknown != ()


def test_all_values_of_a_variable_count() -> None:
    [entry] = menu(f"set x=1\nif true; then x={A}; fi\nlinux /v composefs=$x\n")

    assert entry.deployments == (A,)
    assert entry.cmdlines == (f"composefs=1 composefs={A}",)


@pytest.mark.parametrize(
    ("setting", "found"),
    [
        ("set x=a$x", UNKNOWN),
        ("set x=$y\nset y=$x", UNKNOWN),
        ("x='a b'", "a b"),
        ("export x=a", UNKNOWN),
        ("set y=b\nset x=a${y}c", "abc"),
        ("search --set=x --label boot", UNKNOWN),
        ("search --fs-uuid 1 --set x", UNKNOWN),
        ("regexp --set 1:x a b", UNKNOWN),
        ("read x", UNKNOWN),
        ("load_env -f (hd0,1)/other", UNKNOWN),
    ],
)
def test_variables_have_what_the_script_gives_them(setting: str, found: str) -> None:
    assert found in menu(f"{setting}\nlinux /v $x\n")[-1].cmdlines[0]


def test_titles_are_what_people_read() -> None:
    found = menu(
        "menuentry --class x --id y 'one two' $opt z { boot }\n"
        'menuentry "a\\"b ${v}" {\n}\n'
        "submenu x { menuentry c { boot } }\n"
    )

    assert [entry.title for entry in found] == ["one two", 'a"b ${v}', "c"]


def test_an_environment_block_is_read() -> None:
    data = b"# GRUB Environment Block\n# a=b\nkernelopts=root=1 ro\nlong=a\\\nb\\\\c\nempty=\n##########"

    assert parse_grub_environment(data) == {"kernelopts": "root=1 ro", "long": "a\nb\\c", "empty": ""}


HOSTILE: dict[str, Callable[[], str]] = {
    "one line without a brace": lambda: 'menuentry "x" ' + "x" * 1_000_000,
    "quotes": lambda: "menuentry " + '"x" ' * 250_000,
    "open braces": lambda: "{" * 1_000_000,
    "menu entries": lambda: "menuentry a { chainloader /a }\n" * 30_000,
    "menu entries within each other": lambda: "menuentry a { " * 60_000 + "}" * 60_000,
    "a quote without an end": lambda: '"' + "\\a" * 500_000,
    "backslashes": lambda: "\\" * 999_999,
    "lines continued": lambda: "linux /v " + "\\\n" * 490_000,
    "pieces": lambda: 'a$b"c"\\d ' * 100_000,
    "variables that double": lambda: (
        "set v0=composefs\n" + "".join(f'set v{n}="$v{n - 1}$v{n - 1}"\n' for n in range(1, 30_000)) + "linux /x $v29999\n"
    ),
    "a long variable used often": lambda: f"set a={'x' * 400_000}\n" + "linux /k $a\n" * 50_000,
    "many values": lambda: "".join(f"set x=$y{n}\n" for n in range(40_000)) + "linux /k $x\n" * 1_000,
    "comments": lambda: "#" * 1_000_000,
    "lone dollars": lambda: "$ " * 500_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_time_grows_with_the_length_alone(name: str) -> None:
    """A megabyte takes seconds; where each byte was looked at as often as there are bytes, it took hours."""
    data = HOSTILE[name]().encode()
    started = time.process_time()

    try:
        script = parse_grub_script(data)
        found = GrubMenu((script,), {}, "/grub2", whole=True)
        found.entries(script)
        list(found.sources(script))
    except Exception as error:
        assert type(error).__name__ == "FormatError"  # noqa: PT017

    assert time.process_time() - started < 30
