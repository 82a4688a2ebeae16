"""``cfs-tag revive``."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cfs_tags.cli import complete, output, sysroots
from cfs_tags.cli.options import Change, excluding

if TYPE_CHECKING:
    from cfs_tags.apps.reviving import Revival, Revived

_ETC = "/etc will be that of the booted deployment, merged with the image's own, as at any update; the one it had is gone"
_ETC_THERE = f"{_ETC.removesuffix(' gone')} in {{}}"


def command(
    ctx: typer.Context,
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            autocompletion=complete.pins_and_deployments,
            show_default=False,
            help="A pin, a deployment by its id or prefix, or any name of a tag.",
        ),
    ],
    to: Annotated[
        str | None, typer.Option("--to", metavar="DIR", show_default=False, help="Of the layout; else in /var/lib/cfs-tags.")
    ] = None,
    only_print: Annotated[bool, typer.Option("--print", help="Print the commands that do it, and do nothing.")] = False,
    export_only: Annotated[
        bool, typer.Option("--export-only", help="Export the image, and say what bootc is to be told.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Also one that is still deployed.")] = False,
    sources: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            metavar="SOURCE",
            show_default=False,
            help="Fetch what is missing from there first, as for import; may be given again.",
        ),
    ] = None,
    *,
    places: sysroots.Places,
    how: Change,
) -> None:
    """Bring a deployment back: export its image, and have bootc deploy it.

    For a deployment that bootc has deleted and that a pin, or another ref, keeps.  First it is looked whether everything is
    there; objects of files in /boot that are gone come back from what the pin keeps.  bootc makes the same EROFS image again,
    with the same id, and stages it for the next boot.

    \b
    Examples:
      cfs-tag revive before-upgrade
      cfs-tag revive 6c19d984 --print
      cfs-tag revive 6c19d984 --from docker://quay.io/org/os
      cfs-tag --sysroot /mnt/sysroot revive 6c19d984 --export-only --to /mnt/layout
    """
    from cfs_tags.cli.changes import told
    from cfs_tags.cli.progress import Progress, stoppable
    from cfs_tags.cli.session import bootc, machine

    excluding(ctx, print=only_print, export_only=export_only)
    session, dry, here = ctx.obj, how.dry_run or only_print, machine()
    deploys = not export_only and not dry
    with (
        stoppable(),
        session.open(places) if only_print else session.open(places, write=True, dry_run=dry) as repo,
        Progress("Exporting", not (how.as_json or dry), of_bytes=True) as progress,
    ):
        if deploys:  # a name that stands for nothing is told before a program that is not there
            repo.pins.target(target, pinned=True)
        done = repo.deployments.revive(
            target,
            to=to,
            bootc=bootc() if deploys else None,
            force=force,
            sources=sources or (),
            skopeo=here.skopeo,
            cfsctl=here.cfsctl,
            temporary=here.temporary,
            **{**told(how), "dry_run": dry},
            progress=progress,
        )
    if how.as_json:
        output.document("revive", _facts(done, dry))
    elif not dry:
        _show(done)
    else:
        _print(done.plan, [target, *(f"--from={source}" for source in sources or ())], session.options)


def _export(plan: Revival, words: list[str], options: tuple[str, ...]) -> str:
    return shlex.join(["cfs-tag", *options, "revive", *words, "--export-only", "--to", plan.layout])


def _etc(plan: Revival) -> str:
    return _ETC if plan.etc is None else _ETC_THERE.format(plan.etc)


def _afterwards(plan: Revival) -> str:
    """What is left to do: until then updates come from the layout."""
    back = shlex.join(plan.switch_back or ("bootc", "switch", "IMAGE"))
    return f"once it is booted, for its updates: {back}; then {shlex.join(('rm', '-r', plan.layout))}"


def _print(plan: Revival, words: list[str], options: tuple[str, ...]) -> None:
    """The commands, and what is to be known as comments: it can be pasted into a shell."""
    from cfs_tags.errors import printable

    about = f"deployment {plan.deployment}" if plan.deployment is not None else plan.manifest
    lines = [f"# {about}{f', version {plan.version}' if plan.version else ''}"]
    if plan.put_back:
        lines.append(f"# {output.count(len(plan.put_back), 'object')} of files in /boot will be put back")
    lines += [f"# to be fetched: {line}" for line in plan.missing]
    lines += [_export(plan, words, options), shlex.join(plan.switch), f"# {_etc(plan)}"]
    lines.append(f"# {_afterwards(plan)}")
    output.data([printable(line) for line in lines])


def _show(done: Revived) -> None:
    from cfs_tags.errors import printable

    plan = done.plan
    if plan.put_back:
        output.lines([f"put back: {output.count(len(plan.put_back), 'object')} of files in /boot"])
    output.lines([f"exported: {plan.deployment or plan.manifest} -> oci:{printable(plan.layout)}:{plan.name}"])
    if done.deployed:
        output.lines(["deployed: bootc boots it next"])
    else:
        output.lines([f"to be run on the host: {printable(shlex.join(plan.switch))}"])
    output.lines([printable(_etc(plan))])
    output.lines([printable(_afterwards(plan))])


def _facts(done: Revived, dry_run: bool) -> dict[str, Any]:
    plan, exported = done.plan, done.exported
    return {
        "dry_run": dry_run,
        "deployment": plan.deployment,
        "manifest": plan.manifest,
        "version": plan.version,
        "pins": plan.pins,
        "put_back": plan.put_back,
        "missing": plan.missing,
        "layout": plan.layout,
        "name": plan.name,
        "exported": exported.digest if exported is not None else None,
        "config_digest": exported.plan.image.manifest.config.digest if exported is not None else None,
        "deployed": done.deployed,
        "etc": _etc(plan),
        "commands": [list(plan.switch), *([list(plan.switch_back)] if plan.switch_back is not None else [])],
    }
