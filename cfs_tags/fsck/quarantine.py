"""Refs that were taken out because collectors stopped at them, and how they come back.

``cfs-tags/quarantine/<hash>.json`` is a record, not a link, so that no collector looks at it::

    {"ref": path, "link": text, "time": ISO 8601, "reason": text}

The hash is of path and link: the same ref taken out twice with the same link is one record.  A record counts as long as
nothing stands where the ref stood.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from cfs_tags.errors import CfsTagsError, FormatError, IncompleteTarget, OwnerRefused, SystemFailure
from cfs_tags.formats import layout
from cfs_tags.repo import contents, fsops, refs
from cfs_tags.repo.lock import DEFAULT_TIMEOUT
from cfs_tags.repo.refs import RefChange
from cfs_tags.tagging import TagPlan, TagResult
from cfs_tags.tags import owner_of_ref, tag_of_ref

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cfs_tags.fsck.roots import BrokenRef
    from cfs_tags.repo.store import ReadRepo, WriteRepo

__all__ = ["DIRECTORY", "Record", "file_of", "forget", "is_back", "keep", "plan_unquarantine", "records"]

DIRECTORY = f"{layout.STATE}/quarantine"
_TMP = f"{layout.STATE}/tmp"
_MAX = 1 << 20


class Record(NamedTuple):
    """A ref that was taken out.

    ``file`` is the record's own path; ``path`` and ``link`` are the ref's; ``time`` is UTC in ISO 8601; ``problem`` says
    why the record cannot be read.
    """

    file: str
    path: str
    link: str
    time: str
    reason: str
    problem: str = ""


def records(repo: ReadRepo) -> list[Record]:
    """All records, oldest first.  Takes no lock."""
    try:
        names = repo.names(DIRECTORY) or []
    except FormatError as error:
        return [Record(DIRECTORY, "", "", "", "", error.message)]
    return sorted((_read(repo, f"{DIRECTORY}/{name}") for name in names), key=lambda record: (record.time, record.file))


def _read(repo: ReadRepo, file: str) -> Record:
    try:
        facts = json.loads(repo.read_file(file, _MAX) or b"")
        values = [facts[key] for key in ("ref", "link", "time", "reason")]
    except CfsTagsError as error:
        return Record(file, "", "", "", "", error.message)
    except (ValueError, KeyError, TypeError, RecursionError):
        return Record(file, "", "", "", "", "it is no record of a ref")
    top, _, rest = values[0].partition("/refs/") if isinstance(values[0], str) else ("", "", "")
    # restoring makes a ref, and nothing else, whatever somebody wrote into the record
    is_ref = top in (layout.STREAMS, layout.IMAGES) and not {"", ".", ".."} & set(rest.split("/")) and "\0" not in rest
    if not is_ref or not all(isinstance(value, str) for value in values) or file != file_of(values[0], values[1]):
        return Record(file, "", "", "", "", "it is no record of a ref")
    return Record(file, *values)


def file_of(path: str, link: str) -> str:
    """Where the record of a ref is kept."""
    import hashlib

    text = f"{path}\0{link}".encode("utf-8", "surrogateescape")
    return f"{DIRECTORY}/{hashlib.sha256(text).hexdigest()[:32]}.json"


def is_back(repo: ReadRepo, record: Record) -> bool:
    """Whether something stands again where the ref stood."""
    try:
        return repo.read_link(record.path) is not None
    except CfsTagsError:
        return True


def keep(repo: WriteRepo, ref: BrokenRef, time: str) -> None:
    """Write the record of a ref, for good, unless it is there already.

    Raises:
        SystemFailure: the system refused.
    """
    file = file_of(ref.path, ref.link)
    if _read(repo, file).problem == "":
        return
    facts = {"ref": ref.path, "link": ref.link, "time": time, "reason": ref.reason}
    repo.make_directories(DIRECTORY)
    try:
        fsops.replace_file(repo.fd, file, json.dumps(facts).encode("ascii"), f"{_TMP}/quarantine", repo.owner)
    except OSError as error:
        raise SystemFailure.of(error, "write", file) from error


# -- back --------------------------------------------------------------------------------------------------------------


def plan_unquarantine(repo: ReadRepo, ref_or_name: str, *, owners: Sequence[str] = ()) -> TagPlan | None:
    """Put a ref back that was taken out.

    Args:
        repo: where; only read.
        ref_or_name: path of the ref (``streams/refs/…``, ``images/refs/…``) or the name of a tag.
        owners: owners, besides ``app``, whose refs may be made.

    Returns:
        the plan; None where there is no record of such a ref, or something stands there again.

    Raises:
        IncompleteTarget: what it leads to is still not there.
        OwnerRefused: it belongs to somebody who was not named.
    """
    for record in reversed(records(repo)):
        if record.problem or ref_or_name not in (record.path, tag_of_ref(record.path)) or is_back(repo, record):
            continue
        owner = owner_of_ref(record.path)
        if owner != "app" and owner not in owners:
            raise OwnerRefused(name=ref_or_name, owner=owner)
        missing = contents.missing_behind(repo, record.path, record.link)
        if missing:
            raise IncompleteTarget(target=ref_or_name, missing=missing)
        change = RefChange(record.path, None, record.link, "restore")
        value = record.link.rpartition("/")[2].removeprefix("oci-manifest-")
        return TagPlan((change,), (TagResult(ref_or_name, "restored", None, value, ""),))
    return None


class _Spent(NamedTuple):
    files: tuple[str, ...]
    changes: tuple[RefChange, ...] = ()


def forget(repo: WriteRepo, timeout: float = DEFAULT_TIMEOUT) -> None:
    """Remove the records whose ref is back.  Takes the locks of a change."""

    def plan() -> _Spent:
        return _Spent(tuple(record.file for record in records(repo) if not record.problem and is_back(repo, record)))

    def remove(spent: _Spent) -> None:
        for file in spent.files:
            with suppress(FileNotFoundError):
                fsops.remove(repo.fd, file)

    refs.transact(repo, plan, timeout=timeout, prepare=remove)
