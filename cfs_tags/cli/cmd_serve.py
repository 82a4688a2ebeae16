"""``cfs-tag serve``."""

from __future__ import annotations

import io
import os
import select
import sys
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cfs_tags.cli import output
from cfs_tags.cli.options import Json
from cfs_tags.errors import CfsTagsError, UsageError, printable

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from cfs_tags.registry.catalog import Catalog
    from cfs_tags.repo.store import ReadRepo

_DEFAULT = "127.0.0.1:5000"
_DESCRIPTORS = 8192
_LINE = 4000
"""Bytes of a line of the log that are written: a pipe that has room at all has room for 4,096."""
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
    announce: Annotated[
        bool, typer.Option("--announce", help="Say so on the local network, for 'import --lan' of other hosts.")
    ] = False,
    list_only: Annotated[
        bool, typer.Option("--list", help="Print what would be served, and what would not and why, and end.")
    ] = False,
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
        raise UsageError("command-line", command=ctx.command_path, text="--json is for --list")
    if not list_only:
        try:
            import uvicorn  # noqa: F401
        except ImportError:
            raise CfsTagsError("missing-extra", package="uvicorn", extra="serve", command="serve") from None

    from cfs_tags.registry.catalog import Catalog

    with ctx.obj.open() as repo:
        catalog = Catalog(repo, allow or ())
        if list_only:
            _print(catalog, as_json)
        else:
            _serve(repo, catalog, listen or [], announce)


# -- serving -----------------------------------------------------------------------------------------------------------


def _serve(repo: ReadRepo, catalog: Catalog, addresses: Sequence[str], announce: bool) -> None:
    from cfs_tags.registry import listeners

    _raise_limit()
    sockets = listeners.inherited(os.environ, os.getpid()) if not addresses else []
    wanted = addresses or ([] if sockets else [_DEFAULT])
    made: list[str] = []
    try:
        for address in wanted:
            sockets.append(listeners.listen(address))
            made.append(address)
        with ExitStack() as stack:
            names: list[str] = []
            if announce:
                from cfs_tags.apps.lan import announced

                names = stack.enter_context(announced(sockets))
            _run(repo, catalog, sockets, names)
    finally:
        for one in sockets:
            one.close()
        listeners.clear(made)


def _run(repo: ReadRepo, catalog: Catalog, sockets: list[socket.socket], announced: Sequence[str]) -> None:
    import signal

    from cfs_tags.registry import listeners
    from cfs_tags.registry.app import Registry
    from cfs_tags.registry.server import server

    log = _Log()
    for one in sockets:
        log(f"cfs-tag: serving {printable(repo.path)} at {printable(listeners.shown(one))}")
        if not listeners.is_private(one):
            log("cfs-tag: warning: other machines can reach this address, and there is neither TLS nor a password")
    for name in announced:
        log(f"cfs-tag: announced on the local network: {printable(name)}")
    for row in catalog.rows():
        if row.place is None:
            log(f"cfs-tag: not served: {printable(row.tag.name)}: {printable(row.note)}")
    for warning in _idle(catalog):
        log(f"cfs-tag: warning: {warning}")
    # the server takes the signals, and raises them again when it has ended
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    registry = Registry(repo, catalog, log)
    try:
        server(registry).run(sockets)
    finally:
        registry.close()


def _raise_limit() -> None:
    """A connection takes a descriptor, and the usual limit is 1,024."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class _Log:
    """Writes lines to standard error, and never waits for the reader: what cannot be written is dropped and counted.

    Not through the stream, whose buffer would be waited for at the end.
    """

    def __init__(self) -> None:
        self._raw: io.FileIO | None = None
        self._poll = select.poll()
        self._dropped = 0
        # the parent closed it, its number may be another file's now; a test's has none
        with suppress(AttributeError, OSError):
            self._raw = io.FileIO(sys.stderr.fileno(), "wb", closefd=False)
            self._poll.register(self._raw, select.POLLOUT)

    def __call__(self, line: str) -> None:
        """Write a line, or not."""
        if self._raw is None:
            if sys.stderr is not None:
                sys.stderr.write(f"{line}\n")
            return
        if self._dropped:
            line = f"cfs-tag: {self._dropped} lines of the log were dropped: they were not read in time\n{line}"
        data = line.encode(errors="backslashreplace")[:_LINE] + b"\n"
        # what polls as writable takes this much at once
        if not any(event & select.POLLOUT for _, event in self._poll.poll(0)):
            self._dropped += 1
            return
        with suppress(OSError):  # a log that cannot be written is no reason to stop
            self._raw.write(data)
            self._dropped = 0


def _idle(catalog: Catalog) -> list[CfsTagsError]:
    """A warning for each pattern that fits nothing: a typo, mostly."""
    reason = "fits no tag"
    return [
        UsageError("invalid-argument", argument="--allow", value=pattern, reason=reason) for pattern in catalog.idle_patterns()
    ]


# -- listing -----------------------------------------------------------------------------------------------------------


def _print(catalog: Catalog, as_json: bool) -> None:
    rows = [_row(catalog, row) for row in catalog.rows()]
    if as_json:
        output.document("serve", rows, _idle(catalog))
        return
    output.warn(_idle(catalog))
    columns = ("repository", "reference", "served_digest", "name")
    cells = [(*[row[key] for key in columns], None if row["note"] == _REMADE else row["note"]) for row in rows]
    output.table(("REPOSITORY", "REFERENCE", "DIGEST", "NAME", "NOTES"), cells, "no tag is served")
    remade = sum(row["note"] == _REMADE for row in rows)
    if remade:
        output.lines([f"{remade} of {len(rows)} have another digest than their tag: {_REMADE}"])


def _row(catalog: Catalog, row: Any) -> dict[str, Any]:
    from cfs_tags.registry.images import NotServed

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
