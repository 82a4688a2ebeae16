"""``cfs-tag serve``."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cfs_tags.cli import output
from cfs_tags.cli.options import Json, LockTimeout, seconds
from cfs_tags.errors import CommandLineError, Interrupted, MissingExtra, printable

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from cfs_tags.apps.filling import Fillers
    from cfs_tags.apps.logs import Log
    from cfs_tags.apps.served import Catalog
    from cfs_tags.repo.store import ReadRepo

_DEFAULT = "127.0.0.1:5000"
_DESCRIPTORS = 8192
_REMADE = "layers are served uncompressed, so the digest is another"


def command(
    ctx: typer.Context,
    listen: Annotated[
        list[str] | None,
        typer.Option(
            "--listen",
            metavar="ADDRESS",
            show_default=False,
            help=f"HOST:PORT, [IPV6]:PORT or unix:PATH; may be given again.  [default: {_DEFAULT}, or systemd's sockets]",
        ),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            "--allow",
            metavar="PATTERN",
            show_default=False,
            help="Show only names that this fits, whoever owns them; may be given again.  [default: all tags of apps]",
        ),
    ] = None,
    list_only: Annotated[
        bool, typer.Option("--list", help="Print what would be served, and what would not and why, and end.")
    ] = False,
    lock_timeout: LockTimeout = 30.0,
    as_json: Json = False,
) -> None:
    """Serve tags as a read-only OCI registry.

    The tag quay.io/org/app:1 is pulled as ADDRESS/quay.io/org/app:1.  Layers are served as they are kept, as
    uncompressed tars; where an image came with compressed ones its manifest is made anew, config and image ID stay.
    There is neither TLS nor a password: who can reach the address can read what is shown.

    \b
    Examples:
      cfs-tag serve --list
      cfs-tag serve --allow 'quay.io/org/*' --listen 127.0.0.1:5000
      podman pull --tls-verify=false 127.0.0.1:5000/quay.io/org/app:1
      skopeo copy --src-tls-verify=false docker://127.0.0.1:5000/quay.io/org/app:1 oci:app:1
    """
    if as_json and not list_only:
        raise CommandLineError(command=ctx.command_path, text="--json is for --list")
    timeout = seconds(lock_timeout)
    if not list_only:
        _need_h11()

    from cfs_tags.apps.served import Catalog

    with ctx.obj.open() as repo:
        catalog = Catalog(repo, allow or ())
        if list_only:
            with repo.locked("shared", timeout):
                _print(catalog, as_json)
        else:
            _serve(repo, catalog, listen or [], timeout)


def _need_h11() -> None:
    try:
        import h11  # noqa: F401
    except ImportError:
        raise MissingExtra(package="h11", extra="serve", command="serve") from None


# -- serving -----------------------------------------------------------------------------------------------------------


def _serve(repo: ReadRepo, catalog: Catalog, addresses: Sequence[str], timeout: float) -> None:
    from cfs_tags.apps import listeners
    from cfs_tags.apps.filling import Fillers
    from cfs_tags.apps.httpd import BODIES
    from cfs_tags.apps.logs import Log

    _raise_limit()
    sockets = listeners.inherited(os.environ, os.getpid()) if not addresses else []
    wanted = addresses or ([] if sockets else [_DEFAULT])
    # forked before there are threads, and before anything that a process should not have with it
    with Fillers(repo, BODIES, unwanted=sockets) as fillers, Log(_write) as log:
        made: list[str] = []
        try:
            for address in wanted:
                sockets.append(listeners.listen(address))
                made.append(address)
            _run(repo, catalog, fillers, sockets, log, timeout)
        finally:
            for one in sockets:
                one.close()
            listeners.clear(made)


def _run(
    repo: ReadRepo, catalog: Catalog, fillers: Fillers, sockets: Sequence[socket.socket], log: Log, timeout: float
) -> None:
    import asyncio
    import signal

    from cfs_tags.apps import listeners
    from cfs_tags.apps.httpd import Server

    for one in sockets:
        log(f"cfs-tag: serving {printable(repo.path)} at {printable(listeners.shown(one))}")
        if not listeners.is_private(one):
            log("cfs-tag: warning: other machines can reach this address, and there is neither TLS nor a password")
    for row in catalog.rows():
        if row.place is None:
            log(f"cfs-tag: not served: {printable(row.tag.name)}: {printable(row.note)}")
    got: list[int] = []

    async def run() -> None:
        server = Server(repo, catalog, fillers, sockets, log, timeout)

        def stop(number: int) -> None:
            got.append(number)
            server.stop()

        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop, number)
        await server.run()
        if server.failure is not None:
            raise server.failure

    asyncio.run(run())
    if signal.SIGINT in got:
        raise Interrupted


def _raise_limit() -> None:
    """A connection takes a descriptor, and the usual limit is 1,024."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _write(text: str) -> None:
    """Write to the log.  Not through the stream: one that waits would keep the program from ending."""
    if sys.stderr is None:  # closed by who started us; its number may be another file's now
        return
    try:
        fd = sys.stderr.fileno()
    except OSError:  # a test's
        sys.stderr.write(text)
        return
    data = text.encode(errors="backslashreplace")
    with os.fdopen(fd, "wb", 0, closefd=False) as raw:
        while data:
            data = data[raw.write(data) :]


# -- listing -----------------------------------------------------------------------------------------------------------


def _print(catalog: Catalog, as_json: bool) -> None:
    rows = [_row(catalog, row) for row in catalog.rows()]
    if as_json:
        output.document("serve", rows)
        return
    columns = ("repository", "reference", "served_digest", "name")
    output.table(
        ("REPOSITORY", "REFERENCE", "DIGEST", "NAME", "NOTES"),
        [(*[row[key] for key in columns], None if row["note"] == _REMADE else row["note"]) for row in rows],
    )
    remade = sum(row["note"] == _REMADE for row in rows)
    if remade:
        output.lines([f"{remade} of {len(rows)} have another digest than their tag: {_REMADE}"])


def _row(catalog: Catalog, row: Any) -> dict[str, Any]:
    from cfs_tags.apps.served import NotServed

    tag, place, note = row
    digest = None
    if place is not None:
        found = catalog.by_tag(place.repository, place.reference) if place.reference is not None else None
        found = found or catalog.manifest_of(tag.digest)
        if isinstance(found, NotServed):
            note = found.reason
        else:
            digest = found.digest
            if found.original != tag.digest:
                note = "the index that was kept"
            elif digest != tag.digest:
                note = _REMADE
    return {
        **output.named(tag.name),
        "digest": tag.digest,
        "repository": place.repository if place is not None else None,
        "reference": place.reference if place is not None else None,
        "served_digest": digest,
        "note": note,
    }
