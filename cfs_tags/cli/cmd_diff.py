"""``cfs-tag diff``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cfs_tags.cli import complete, output, sysroots, view
from cfs_tags.cli.options import Json, LockTimeout, excluding
from cfs_tags.errors import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cfs_tags.diff import Difference, Layer, Package, Setting, Side, Sum
    from cfs_tags.formats.filetree import Change, File

_LETTERS = {"added": "A", "removed": "D", "changed": "M"}
_SIGNS = {"both": "=", "old": "-", "new": "+", "added": "+", "removed": "-", "changed": "~"}
_COLOURS = {"+": "32", "A": "32", "-": "31", "D": "31", "~": "33", "M": "33"}
_BAR = 20
_FOLDED = 200
"""Files from which on a terminal is shown directories."""
_DEPTH = 2
_DIGITS = 12


def command(
    ctx: typer.Context,
    old: Annotated[
        str,
        typer.Argument(
            metavar="OLD",
            autocompletion=complete.names,
            show_default=False,
            help="A tag, @sha256:DIGITS, @deployment/ID, @booted, @staged, @rollback, NAME@{N} or NAME@{TIME}.",
        ),
    ],
    new: Annotated[
        str, typer.Argument(metavar="NEW", autocompletion=complete.names, show_default=False, help="What it is compared with.")
    ],
    paths: Annotated[
        list[str] | None, typer.Argument(metavar="[PATH]...", show_default=False, help="Compare only files there and below.")
    ] = None,
    name_only: Annotated[bool, typer.Option("--name-only", help="Print only the paths of files that differ.")] = False,
    name_status: Annotated[
        bool,
        typer.Option("--name-status", help="Print A (added), D (removed) or M (changed), a tab and the path of each file."),
    ] = False,
    stat: Annotated[
        bool, typer.Option("--stat", help="Print each file with how many bytes it has grown, and the sums.")
    ] = False,
    dirstat: Annotated[bool, typer.Option("--dirstat", help="Print sums by directory.")] = False,
    *,
    places: sysroots.Places,
    lock_timeout: LockTimeout = 30.0,
    as_json: Json = False,
) -> None:
    """Show how two images differ: layers, config, packages and files.

    Files differ in kind, content, permissions, owner or extended attributes; times do not count.  Packages are told by the
    names of files, as dpkg, pacman, Python and kernels leave them; an RPM database is not read.  A terminal shows more than
    200 files as directories: --stat shows each.  Exit status 0 also where nothing differs.

    \b
    Examples:
      cfs-tag diff quay.io/org/app:1 quay.io/org/app:2
      cfs-tag diff @booted @staged --stat
      cfs-tag diff @rollback @booted /etc /usr/lib/modules --name-status
      cfs-tag diff @deployment/02aeae @staged --json
    """
    from cfs_tags.diff import diff

    excluding(ctx, name_only=name_only, name_status=name_status, stat=stat, dirstat=dirstat, json=as_json)
    session = ctx.obj
    with session.open(places) as repo, repo.locked("shared", lock_timeout):
        meant = [repo.deployments.meant(text) for text in (old, new)]
        found = diff(repo, meant[0], meant[1], paths or ())
    sides = found.old._replace(name=old), found.new._replace(name=new)
    found = found._replace(old=sides[0], new=sides[1])
    if as_json:
        output.document("diff", _facts(found))
    elif name_only:
        output.data(_path(change) for change in found.files)
    elif name_status:
        output.data(f"{_letter(change)}\t{_path(change)}" for change in found.files)
    elif stat:
        _show_stat(found.files)
    elif dirstat:
        _show_directories(found.files)
    else:
        _show(found)


# -- text --------------------------------------------------------------------------------------------------------------


def _show(found: Difference) -> None:
    output.fields([("Old", _side(found.old)), ("New", _side(found.new))])
    if found.layers:
        output.lines(["", f"Layers: {_layer_sums(found.layers)}"])
        output.lines(_marked(_SIGNS[one.where], f" {_short(one.digest)}  {_layer_size(one)}") for one in found.layers)
    if found.settings:
        output.lines(["", "Config:", *[_marked(*_setting(one)) for one in found.settings]])
    if found.packages:
        output.lines(["", "Packages:", *[_marked(*_package(one)) for one in found.packages]])
    if found.files:
        output.lines(["", "Files:"])
        if view.on_terminal() and len(found.files) > _FOLDED:
            _show_directories(found.files)
            return
        output.data(_marked(_letter(one), f" {_file(one)}") for one in found.files)
        _show_sums(found.files)
    elif not (found.settings or any(one.where != "both" for one in found.layers)):
        output.lines(["", "Nothing differs."])


def _marked(sign: str, rest: str) -> str:
    import sys

    colour = _COLOURS.get(sign)
    line = printable(f"{sign}{rest}")
    return f"\x1b[{colour}m{line}\x1b[0m" if colour and view.in_colour(sys.stdout) else line


def _side(side: Side) -> str:
    name = side.name
    return name if side.digest is None or name == f"@{side.digest}" else f"{name} {_short(side.digest)}"


def _short(digest: str) -> str:
    return digest[: digest.index(":") + 1 + _DIGITS] if view.on_terminal() else digest


def _layer_sums(layers: Sequence[Layer]) -> str:
    said = []
    for where, words in (("both", "in common"), ("old", "only in the old"), ("new", "only in the new")):
        those = [one for one in layers if one.where == where]
        size = sum(one.moved if one.size is None else one.size for one in those)
        said.append(f"{len(those)} {words} ({output.rounded(size)})" if those else f"none {words}")
    return ", ".join(said)


def _layer_size(layer: Layer) -> str:
    moved = f"{output.rounded(layer.moved)} to move"
    return f"{moved}, not here" if layer.size is None else f"{output.rounded(layer.size)}, {moved}"


def _setting(setting: Setting) -> tuple[str, str]:
    name = setting.field if setting.key is None else f"{setting.field} {setting.key}"
    return _sign(setting.old, setting.new), f" {name}: {_turned(*map(_quoted, (setting.old, setting.new)))}"


def _quoted(value: str | tuple[str, ...] | None) -> str | None:
    return None if value is None else output.to_json(value)


def _package(package: Package) -> tuple[str, str]:
    versions = _turned(package.old, package.new)
    return _SIGNS[package.change], f" {package.kind} {package.name}{' ' if versions else ''}{versions}"


def _turned(old: str | None, new: str | None) -> str:
    return " -> ".join(value for value in (old, new) if value is not None)


def _sign(old: object, new: object) -> str:
    return "+" if old is None else "-" if new is None else "~"


def _letter(change: Change) -> str:
    return _LETTERS[_kind(change)]


def _kind(change: Change) -> str:
    return "added" if change.old is None else "removed" if change.new is None else "changed"


def _path(change: Change) -> str:
    return printable(f"{change.path}/" if change.is_directory else change.path)


def _file(change: Change) -> str:
    path = f"/{change.path}{'/' if change.is_directory else ''}"
    if change.old is None or change.new is None:
        size = "" if change.is_directory else output.compact(abs(change.grown))
        return f"{size:>11} {path}"
    parts = [_part(name, change.old, change.new) for name in change.parts if name != "content"]
    size = _growth(change.grown) if "content" in change.parts else ""
    return f"{size:>11} {path}{'  ' if parts else ''}{', '.join(parts)}"


def _part(name: str, old: File, new: File) -> str:
    if name == "mode":
        return f"mode {old.mode:04o} -> {new.mode:04o}"
    if name == "owner":
        return f"owner {old.uid}:{old.gid} -> {new.uid}:{new.gid}"
    if name == "kind":
        return f"{old.kind} -> {new.kind}"
    return name


def _growth(count: int) -> str:
    return f"{'-' if count < 0 else '+'}{output.compact(abs(count))}"


def _show_stat(files: Sequence[Change]) -> None:
    """As ``git diff --stat``: a bar of ``+`` and ``-`` is as long as the change is large beside the largest."""
    shown = [(change, _path(change)) for change in files if not change.is_directory]
    width = max([len(path) for _, path in shown], default=0)
    largest = max([abs(change.grown) for change, _ in shown], default=0) or 1
    for change, path in shown:
        bar = ("+" if change.grown > 0 else "-") * -(-abs(change.grown) * _BAR // largest)
        output.data([_marked(_letter(change), f" {path:<{width}} | {_growth(change.grown):>11} {bar}").rstrip()])
    _show_sums(files)


def _show_directories(files: Sequence[Change]) -> None:
    from cfs_tags.diff import total

    by_place: dict[str, list[Change]] = {}
    for change in files:
        if not change.is_directory:
            by_place.setdefault("/".join(change.path.split("/")[:-1][:_DEPTH]), []).append(change)
    rows = [(f"/{place}", total(those)) for place, those in by_place.items()]
    rows.sort(key=lambda row: (-abs(row[1].grown), row[0]))
    if rows:
        cells = [(name, one.added, one.removed, one.changed, _growth(one.grown)) for name, one in rows]
        output.table(("DIRECTORY", "ADDED", "REMOVED", "CHANGED", "SIZE"), cells)
    _show_sums(files)


def _show_sums(files: Sequence[Change]) -> None:
    from cfs_tags.diff import total

    output.lines([_summed(total(files))])


def _summed(sums: Sum) -> str:
    came, went = output.compact(sums.added_bytes), output.compact(sums.removed_bytes)
    counts = f"{sums.added} added (+{came}), {sums.removed} removed (-{went}), {sums.changed} changed"
    return f"{counts}; {_growth(sums.grown)} in all"


# -- JSON --------------------------------------------------------------------------------------------------------------


def _facts(found: Difference) -> dict[str, Any]:
    from cfs_tags.diff import total

    def side(one: Side) -> dict[str, Any]:
        return {**output.named(one.name), "manifest": one.digest, "files_from": one.files}

    return {
        "old": side(found.old),
        "new": side(found.new),
        "layers": [
            {"digest": one.digest, "where": one.where, "moved_bytes": one.moved, "bytes": one.size} for one in found.layers
        ],
        "config": [one._asdict() for one in found.settings],
        "packages": [one._asdict() for one in found.packages],
        "sums": total(found.files)._asdict(),
        "files": [_row(change) for change in found.files],
    }


def _row(change: Change) -> dict[str, Any]:
    named = output.named(change.path)
    path = {"path": named["name"], **({"path_bytes": named["name_bytes"]} if "name_bytes" in named else {})}
    return {**path, "change": _kind(change), "parts": change.parts, "old": _side_of(change.old), "new": _side_of(change.new)}


def _side_of(file: File | None) -> dict[str, Any] | None:
    if file is None:
        return None
    content = file.content
    return {
        "kind": file.kind,
        "mode": f"{file.mode:04o}",
        "uid": file.uid,
        "gid": file.gid,
        "size": file.size,
        "object": content if isinstance(content, str) else None,
        "target": content.decode("utf-8", "surrogateescape") if isinstance(content, bytes) and file.kind == "symlink" else None,
    }
