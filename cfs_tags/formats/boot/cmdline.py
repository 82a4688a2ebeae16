"""Kernel command lines: which deployments they name.

Sources: the kernel (``lib/cmdline.c``), composefs-rs 0.9.4 (``composefs-boot/src/cmdline.rs``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from cfs_tags.formats.boot.paths import DEPLOYMENT_PREFIX
from cfs_tags.values import Algorithm, DeploymentId

COMPOSEFS = "composefs"
"""The argument that names a deployment; newer images name it by its digest in an argument of its own."""
_DIGEST = f"{COMPOSEFS}.digest"


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


# in whatever syntax; directories with the kernel of a deployment often serve another one, and UKIs are known by their names
_MENTION = re.compile(rf"(?<![0-9a-f])(?<!{DEPLOYMENT_PREFIX})(?:[0-9a-f]{{64}}){{1,2}}(?![0-9a-f])".encode(), re.IGNORECASE)
_COMMENT = re.compile(rb"^[ \t]*#[^\r\n]*", re.MULTILINE)
_HEX = re.compile(r"(?:[0-9a-fA-F]{64}){1,2}", re.ASCII)
_FORMS = {
    f"v{version}-{algorithm.value}-12": algorithm for version in (1, 2) for algorithm in (Algorithm.SHA256, Algorithm.SHA512)
}
# what the kernel's isspace() knows below 128; NUL ends a command line, but what follows it is searched, too
# 0xa0, a blank that does not break a line in Latin-1, separates too
_PIECE = re.compile(r'(?:"[^"]*(?:"|$)|[^" \t\n\v\f\r\0\xa0\udca0])+')


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


def mentioned_ids(data: bytes) -> tuple[DeploymentId, ...]:
    """All that is written like an id in a file that boot loaders read, outside of comments, in whatever form: what an entry
    that is not understood may boot.  Passwords and the hashes of other systems look the same."""
    found = _MENTION.findall(_COMMENT.sub(b"", data))
    return tuple(dict.fromkeys(DeploymentId.trusted(text.lower().decode()) for text in found))


def booted_argument(
    arguments: Sequence[ComposefsArgument], algorithm: Algorithm = Algorithm.SHA512
) -> ComposefsArgument | None:
    """The argument that the initramfs follows: the first ``composefs.digest=`` of the algorithm, else ``composefs=``."""
    fitting = [argument for argument in arguments if argument.id.algorithm is algorithm]
    digests = [argument for argument in fitting if argument.form != COMPOSEFS]
    return next(iter(digests or fitting), None)


def _arguments(cmdline: bytes | str) -> list[tuple[str, ComposefsArgument | None]]:
    result = []
    for name, value in split_cmdline(cmdline):
        if name in (COMPOSEFS, _DIGEST) and value is not None:
            result.append((f"{name}={value}", _argument(name, value)))
    return result


def _argument(name: str, value: str) -> ComposefsArgument | None:
    optional = value.startswith("?")
    text = value[1:] if optional else value
    form = COMPOSEFS
    if name == _DIGEST:
        form, _, text = text.partition(":")
        if form not in _FORMS:
            return None
    if _HEX.fullmatch(text) is None:
        return None
    found = DeploymentId.trusted(text.lower())  # composefs-rs takes capitals too, and means the same image
    if _FORMS.get(form, found.algorithm) is not found.algorithm:
        return None
    return ComposefsArgument(found, optional, form)


def _unquoted(text: str) -> str:
    # bootc takes a lone one off the end as well
    return text.removeprefix('"').removesuffix('"')
