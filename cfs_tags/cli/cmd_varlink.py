"""``cfs-tag varlink``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cfs_tags.cli import sysroots
from cfs_tags.errors import UsageError, installed

if TYPE_CHECKING:
    from cfs_tags import Repository


def command(
    ctx: typer.Context,
    listen: Annotated[
        str | None,
        typer.Option(
            "--listen", metavar="PATH", show_default=False, help="A socket to make; else the one that systemd hands over."
        ),
    ] = None,
    *,
    places: sysroots.Places,
) -> None:
    """Answer other programs by varlink: the interface org.cfstags.

    List, Resolve, Update, Deployments, Lookup, Pin, Why, and Gc with progress; errors have the names of the codes.  Needs the
    Python package asyncvarlink.

    \b
    Examples:
      cfs-tag varlink --listen /run/user/1000/cfs-tags
      varlinkctl call /run/org.cfstags org.cfstags.Resolve '{"name": "quay.io/org/app:1"}'
    """
    import asyncio
    import os
    import socket

    from cfs_tags import Repository
    from cfs_tags.registry import listeners

    with installed("asyncvarlink", extra="varlink", command="varlink"):
        from cfs_tags import varlink

    session = ctx.obj
    with session.open() as first:  # root becomes the owner here, for good
        path = first.path

    def opened(*, write: bool) -> Repository:
        place: dict[str, Any] = {"sysroot": session.sysroot, **places._asdict()}
        return Repository.open(path, write=True, **place) if write else Repository.open(path, **place)

    addresses = [] if listen is None else [f"unix:{listen}"]
    if listen is not None:
        mask = os.umask(0o177)  # for this user alone
        try:
            (listener,) = map(listeners.listen, addresses)
        finally:
            os.umask(mask)
    else:
        handed = listeners.inherited(os.environ, os.getpid())
        if len(handed) != 1:
            text = f"systemd handed over {len(handed)} sockets, not one: --listen PATH makes one"
            raise UsageError("command-line", command=ctx.command_path, text=text)
        listener = handed[0]
        if listener.family != socket.AF_UNIX:
            text = "systemd handed over a socket of the network, where anybody could delete: varlink takes Unix sockets"
            raise UsageError("command-line", command=ctx.command_path, text=text)
    try:
        asyncio.run(varlink.serve(listener, opened))
    finally:
        listeners.clear(addresses)
