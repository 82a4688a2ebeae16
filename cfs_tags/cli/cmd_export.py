"""``cfs-tag export``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cfs_tags.cli import complete, output
from cfs_tags.cli.options import Json, LockTimeout, NameArgument
from cfs_tags.errors import UsageError, printable

if TYPE_CHECKING:
    from cfs_tags.apps.exporting.export import Exported


def command(
    ctx: typer.Context,
    name: NameArgument,
    destination: Annotated[str, typer.Argument(metavar="DEST", show_default=False, help="Where to, as for skopeo.")],
    compress: Annotated[
        str,
        typer.Option(metavar="HOW", autocompletion=complete.one_of("none", "gzip", "zstd"), help="Layers: none, gzip or zstd."),
    ] = "none",
    lock_timeout: LockTimeout = 30.0,
    as_json: Json = False,
) -> None:
    """Take an image out of the repository.

    DEST is oci:DIR[:NAME], a layout that is made or added to, or oci-archive:FILE[:NAME], a new file; for anything
    else, docker:// and containers-storage: among it, skopeo must be installed.

    Layers are put together again bit for bit and checked.  Config and image ID stay.  The manifest is another one
    where the layers were compressed: it names them as they are exported, and the original in an annotation.

    \b
    Examples:
      cfs-tag export quay.io/org/app:1 oci:/srv/layout:app
      cfs-tag export quay.io/org/app:1 oci-archive:app.tar --compress zstd
      cfs-tag export quay.io/org/app:1 containers-storage:quay.io/org/app:1
    """

    from cfs_tags.apps.exporting.export import COMPRESSIONS, parse_destination, plan_export, run_export
    from cfs_tags.cli.progress import Progress, stoppable
    from cfs_tags.cli.session import machine

    if compress not in COMPRESSIONS:
        known = ", ".join(COMPRESSIONS)
        raise UsageError("invalid-argument", argument="--compress", value=compress, reason=f"is none of {known}")
    where = parse_destination(destination)
    with stoppable(), ctx.obj.open() as repo, Progress("Exporting", not as_json, of_bytes=True) as progress:
        done = run_export(
            repo, lambda: plan_export(repo, repo.deployments.meant(name), where, compress), machine(), lock_timeout, progress
        )
    if as_json:
        _document(done)
    else:
        _lines(done)


def _document(done: Exported) -> None:
    image = done.plan.image
    result = {
        **output.named(done.plan.name),
        "destination": done.plan.destination.text,
        "digest": done.digest,
        "original_digest": image.digest,
        "config_digest": image.manifest.config.digest,
        "layers": [{"media_type": kind, "digest": digest, "size": size} for kind, digest, size in done.layers],
    }
    output.document("export", result)


def _lines(done: Exported) -> None:
    output.lines([f"exported: {printable(done.plan.name)} -> {printable(done.plan.destination.text)}"])
    if done.is_original:
        output.lines([f"manifest: {done.digest}"])
    else:
        output.lines([f"manifest: {done.digest}, made from {done.plan.image.digest}: the layers are compressed in another way"])
    output.lines([f"image ID: {done.plan.image.manifest.config.digest}"])
