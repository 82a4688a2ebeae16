"""Files that a command writes for its user."""

from __future__ import annotations

import os
import stat
from contextlib import suppress

from cfs_tags.cli import output
from cfs_tags.errors import SystemFailure, UsageError, printable


def write_page(command: str, page: str, file: str, as_json: bool) -> None:
    """Write a page, ``-`` for standard output, and say so, for ``--json`` in a document of that command.

    Raises as :func:`write_whole`.
    """
    data = page.encode()
    if file == "-":
        output.emit_bytes(data)
        return
    write_whole(file, data)
    if as_json:
        output.document(command, {"file": file, "bytes": len(data)})
    else:
        output.lines([f"written: {printable(file)}, {output.compact(len(data))}"])


def write_whole(file: str, data: bytes) -> None:
    """Have a file written whole, in the place of one that is there, or not at all.

    Raises:
        UsageError: it names no file.
        SystemFailure: the system refused.
    """
    from cfs_tags.repo import fsops

    directory, name = os.path.split(os.path.normpath(file))
    if file.endswith("/") or name in ("", ".", ".."):
        raise UsageError("invalid-argument", argument="file", value=file, reason="is no file")
    try:
        with suppress(FileNotFoundError):
            mode = os.stat(file).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # root would replace /dev/stdout for everybody
                raise UsageError("invalid-argument", argument="file", value=file, reason="is no regular file")
        fd = os.open(directory or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fsops.replace_file(fd, name, data, f".{name[:200]}.{os.getpid()}.new")
        finally:
            os.close(fd)
    except OSError as error:
        raise SystemFailure.of(error, "write", file) from error
