"""Looks that the system refuses: what has one name can be listed, and nothing else."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from cfs_tags.repo import beneath

__all__ = ["refused"]

_LOOKS = (
    *((beneath, name, 1) for name in ("open_at", "read_link", "status")),
    *((os, name, 0) for name in ("open", "readlink", "stat")),
)
"""Functions that look, and which of their arguments is the path."""


@contextmanager
def refused(name: str, number: int = errno.EIO) -> Iterator[None]:
    """Context in which every look at what has that name, a link, file or directory, ends with this error."""

    def refusing(look: Callable[..., Any], place: int) -> Callable[..., Any]:
        def refuses(*args: Any, **named: Any) -> Any:
            if isinstance(args[place], str) and os.path.basename(args[place]) == name:
                raise OSError(number, os.strerror(number))
            return look(*args, **named)

        return refuses

    with ExitStack() as stack:
        for module, function, place in _LOOKS:
            stack.enter_context(patch.object(module, function, refusing(getattr(module, function), place)))
        yield
