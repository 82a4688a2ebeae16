"""What a writer does first: it finishes or takes back what crashed ones left.

A journal that is there was left by a crash:

* every ref has its old or its new value, and every new target is complete: the rest is done (rolled forward);
* else, and where an error had it taken back already (``<id>.back``): refs that have the new value are put back, those that
  others moved are left, and the reflog says ``transaction-abandoned``.  A ref is not put back to a target that is gone,
  which would stop every collector: it keeps the new one where that is whole, and goes where it is not.

What a crash left of a peer's value in ``tmp/`` is put back before either.  A transaction that is in the reflog was done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cfs_tags.errors import ExpectationFailed, TransactionAbandoned
from cfs_tags.repo import contents, fsops, reflog
from cfs_tags.repo.journal import JOURNALS, TMP, Journal

if TYPE_CHECKING:
    from cfs_tags.repo.changes import RefChange
    from cfs_tags.repo.store import ReadRepo
    from cfs_tags.repo.swap import Swap

__all__ = ["recover"]

_MAX_JOURNAL = 256 << 20


def recover(swap: Swap) -> tuple[TransactionAbandoned, ...]:
    """Finish or take back what crashed writers left; then clear ``tmp/``.

    Returns:
        the transactions that were taken back.

    Raises:
        OSError: the system refused.
    """
    repo = swap.repo
    abandoned = []
    for path in _left_in(repo, JOURNALS):
        journal = Journal.parse(repo.read_file(path, _MAX_JOURNAL) or b"")
        if journal is not None and path in (journal.path, journal.back):
            reasons = _recover(swap, journal, back=path == journal.back)
            if reasons:
                abandoned.append(TransactionAbandoned(transaction=journal.transaction, reasons=reasons))
        fsops.remove(repo.fd, path)
        fsops.sync(repo.fd, JOURNALS)
    for path in _left_in(repo, TMP):
        swap.discard(path)
    return tuple(abandoned)


def _left_in(repo: ReadRepo, directory: str) -> list[str]:
    """What is there, but for directories: nobody of us makes one, so what is in them is not ours to remove."""
    paths = [f"{directory}/{name}" for name in sorted(repo.names(directory) or ())]
    return [path for path in paths if not repo.is_directory(path)]


def _recover(swap: Swap, journal: Journal, *, back: bool) -> tuple[str, ...]:
    """Reasons for taking the transaction back; none when it was finished."""
    repo = swap.repo
    if not back and all(_is_logged(repo, journal, change) for change in journal.changes):
        return ()
    for parent in {change.path.rpartition("/")[0] for change in journal.changes}:
        repo.make_directories(parent)  # an empty one may have been cleared away since
    for index, change in enumerate(journal.changes):
        swap.rescue(change, journal.spare(index))
    reasons = ["an error had stopped it"] if back else []
    for change in journal.changes:
        value = swap.value(change.path)
        if value not in (change.old, change.new):
            reasons.append(f"{change.path} was moved by somebody else")
        elif change.new is not None:
            reasons.extend(contents.missing_behind(repo, change.path, change.new))
    if not reasons:
        try:
            for index, change in enumerate(journal.changes):
                if swap.value(change.path) != change.new:
                    swap.discard(journal.spare(index))
                    swap.change(change, journal.spare(index))
        except ExpectationFailed as error:
            reasons.append(error.message)
    entries = []
    time = reflog.timestamp()
    for index, change in enumerate(journal.changes):
        if not reasons:
            entries.append(journal.entry(change, time))
        elif swap.value(change.path) == change.new:
            old = change.old
            if old is not None and contents.missing_behind(repo, change.path, old):
                whole = change.new is not None and not contents.missing_behind(repo, change.path, change.new)
                old = change.new if whole else None
            undone = change._replace(old=old)
            if undone.old == undone.new or swap.undo(undone, journal.spare(index)):
                entries.append(journal.entry(change, time)._replace(new=old, action="transaction-abandoned"))
    for parent in sorted({change.path.rpartition("/")[0] for change in journal.changes}):
        if repo.is_directory(parent):
            fsops.sync(repo.fd, parent)
    reflog.append(repo, entries)
    return tuple(reasons)


def _is_logged(repo: ReadRepo, journal: Journal, change: RefChange) -> bool:
    """Whether the log has the change, which is written when all of them are on disk."""
    wanted = (journal.transaction, change.action, change.new)
    entries = reflog.history(repo, change.path).entries
    return any((entry.transaction, entry.action, entry.new) == wanted for entry in entries)
