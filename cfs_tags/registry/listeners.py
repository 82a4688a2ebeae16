"""The sockets that a registry listens on: made here, or handed over by systemd."""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress

from cfs_tags.errors import SystemFailure, UsageError
from cfs_tags.repo import fsops

_BACKLOG = 1024
_FIRST_FD = 3
"""Where systemd puts the first socket (sd_listen_fds(3))."""
_MOST_FDS = 64
_FAMILIES = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.%a-z]+)\]|([^:\[\]/]+)):(\d{1,5})", re.ASCII)


def listen(address: str) -> socket.socket:
    """A socket that listens.

    Args:
        address: ``HOST:PORT``, ``[IPV6]:PORT`` (port 0: any that is free) or ``unix:PATH``.

    Raises:
        UsageError: another form of address.
        SystemFailure: the system refused.
    """
    if address.startswith("unix:") and address != "unix:":
        return _listen_unix(address[5:])
    match = _ADDRESS.fullmatch(address)
    if match is None or int(match[3]) > 65535:
        reason = "is none of HOST:PORT, [IPV6]:PORT and unix:PATH" if match is None else "has a port above 65535"
        raise UsageError("invalid-argument", argument="listen", value=address, reason=reason)
    host = match[1] or match[2]
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            host, int(match[3]), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind, protocol)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(place)
            made.listen(_BACKLOG)
        except BaseException:
            made.close()
            raise
    except UnicodeError:  # a label of a name is empty or too long
        raise UsageError("invalid-argument", argument="listen", value=address, reason="names no host") from None
    except OSError as error:
        raise SystemFailure.of(error, "listen on", address) from error
    return made


def _listen_unix(path: str) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            made.bind(path)
        except OSError:
            _remove_stale(path)
            made.bind(path)
        made.listen(_BACKLOG)
    except OSError as error:
        made.close()
        raise SystemFailure.of(error, "listen on", f"unix:{path}") from error
    return made


def clear(addresses: Sequence[str]) -> None:
    """Remove what :func:`listen` made for addresses whose sockets are closed: a Unix socket has a file."""
    for address in addresses:
        if address.startswith("unix:"):
            _remove_stale(address[5:])


def _remove_stale(path: str) -> None:
    """Remove a socket that no process listens on: a server that was killed leaves it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial, suppress(OSError):
        try:
            trial.connect(path)
        except ConnectionRefusedError:
            parent = os.open(os.path.dirname(path) or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                if stat.S_ISSOCK(os.stat(os.path.basename(path), dir_fd=parent, follow_symlinks=False).st_mode):
                    fsops.remove(parent, os.path.basename(path))
            finally:
                os.close(parent)


def inherited(environment: Mapping[str, str], pid: int) -> list[socket.socket]:
    """The sockets that systemd hands over (``LISTEN_FDS``, ``LISTEN_PID``), none where it does not.

    Raises:
        SystemFailure: it hands over something else.
    """
    count, meant = environment.get("LISTEN_FDS", ""), environment.get("LISTEN_PID", "")
    if meant != str(pid) or not (count.isascii() and count.isdecimal()) or int(count) == 0:
        return []
    found: list[socket.socket] = []
    for fd in range(_FIRST_FD, _FIRST_FD + min(int(count), _MOST_FDS)):
        try:
            os.set_inheritable(fd, False)
            found.append(socket.socket(fileno=fd))
            if found[-1].type != socket.SOCK_STREAM or found[-1].family not in _FAMILIES:
                raise OSError(errno.ESOCKTNOSUPPORT, os.strerror(errno.ESOCKTNOSUPPORT))
            if not found[-1].getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                raise OSError(errno.EINVAL, "it does not listen: is there Accept=yes in the socket unit?")
        except OSError as error:
            for one in found:
                one.close()
            raise SystemFailure.of(error, "listen on", f"descriptor {fd} of LISTEN_FDS={count}") from error
    return found


def shown(listener: socket.socket) -> str:
    """A socket's address as people and clients write it."""
    if listener.family == socket.AF_UNIX:
        name = listener.getsockname()
        return f"unix:{name if isinstance(name, str) else os.fsdecode(name)}"
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if listener.family == socket.AF_INET6 else f"http://{host}:{port}"


def is_private(listener: socket.socket) -> bool:
    """Whether only this machine can reach it."""
    if listener.family == socket.AF_UNIX:
        return True
    import ipaddress

    return ipaddress.ip_address(str(listener.getsockname()[0]).partition("%")[0]).is_loopback
