"""Refs that were taken out because collectors stopped at them, and how they come back.

``cfs-tags/quarantine/<hash>.json`` is a record, not a link, so that no collector looks at it::

    {"ref": path, "link": text, "time": ISO 8601, "reason": text}

The hash is of path and link: the same ref taken out twice with the same link is one record.  A record counts as long as
there is nothing at the path of the ref.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from cfs_tags.errors import CfsTagsError, FormatError, IncompleteTarget, NotALink, RefusedError, SystemFailure
from cfs_tags.formats import json_fields
from cfs_tags.repo import fsops, images, layout
from cfs_tags.repo.layout import QUARANTINE, TMP
from cfs_tags.repo.lock import DEFAULT_TIMEOUT
from cfs_tags.repo.transaction import run
from cfs_tags.repo.transaction.change import RefChange
from cfs_tags.tags.edit import TagPlan, TagResult
from cfs_tags.tags.rows import owner_of_ref, tag_of_ref

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cfs_tags.fsck.roots import BrokenRef
    from cfs_tags.repo.store import ReadRepo, WriteRepo

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
        names = repo.names(QUARANTINE) or []
    except FormatError as error:
        return [Record(QUARANTINE, "", "", "", "", error.message)]
    return sorted((_read(repo, f"{QUARANTINE}/{name}") for name in names), key=lambda record: (record.time, record.file))


def _read(repo: ReadRepo, file: str) -> Record:
    try:
        facts = json_fields.load(repo.read_file(file, _MAX) or b"", "quarantine record", _MAX)
    except CfsTagsError as error:
        return Record(file, "", "", "", "", error.message)
    values = [facts.get(key) for key in ("ref", "link", "time", "reason")]
    texts = [value for value in values if isinstance(value, str)]
    with suppress(UnicodeEncodeError):  # half a character, which JSON may hold and no link
        # restoring makes a ref, and nothing else, whatever the record says
        if len(texts) == len(values) and layout.is_ref_path(texts[0]) and file == file_of(texts[0], texts[1]):
            return Record(file, *texts)
    return Record(file, "", "", "", "", "it is no record of a ref")


def file_of(path: str, link: str) -> str:
    """Where the record of a ref is kept."""
    import hashlib

    text = f"{path}\0{link}".encode("utf-8", "surrogateescape")
    return f"{QUARANTINE}/{hashlib.sha256(text).hexdigest()[:32]}.json"


def is_back(repo: ReadRepo, record: Record) -> bool:
    """Whether something stands again where the ref stood, for sure: else the record stays."""
    try:
        return repo.read_link(record.path) is not None
    except NotALink:
        return True
    except CfsTagsError:
        return False


def keep(repo: WriteRepo, ref: BrokenRef, time: str) -> None:
    """Write the record of a ref, for good, unless it is there already.

    Raises:
        SystemFailure: the system refused.
    """
    file = file_of(ref.path, ref.link)
    if _read(repo, file).problem == "":
        return
    facts = {"ref": ref.path, "link": ref.link, "time": time, "reason": ref.reason}
    repo.make_directories(QUARANTINE)
    try:
        fsops.replace_file(repo.fd, file, json.dumps(facts).encode("ascii"), f"{TMP}/quarantine")
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
        the plan; None if there is no record of such a ref, or its path is taken again.

    Raises:
        IncompleteTarget: what it leads to is still not there.
        RefusedError (owner-refused): it belongs to an owner that was not named.
    """
    for record in reversed(records(repo)):
        if record.problem or ref_or_name not in (record.path, tag_of_ref(record.path)) or is_back(repo, record):
            continue
        owner = owner_of_ref(record.path)
        if owner != "app" and owner not in owners:
            raise RefusedError("owner-refused", name=ref_or_name, owner=owner)
        missing = images.missing_behind(repo, record.path, record.link)
        if missing:
            raise IncompleteTarget(target=ref_or_name, missing=missing)
        change = RefChange(record.path, None, record.link, "restore")
        value = layout.named_by(record.link)
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

    run.transact(repo, plan, timeout=timeout, prepare=remove)
