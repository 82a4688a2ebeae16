"""Moving a host from origin-embedded roots to refs, with a proof, and back.

Today bootc computes what stays from origin files and boot entries at each collection.  :func:`plan` gives every
deployment its ref and compares two sets for each of them:

*before*
    what bootc's computed roots keep: the EROFS image with its objects, for every deployment that bootc sees; and the
    manifest with all that a collector reaches from it, where bootc can match one (bootc 1.16.9, ``gc.rs``).
*after*
    what ``cfsctl gc`` keeps from the deployment refs alone, without any tag and any computed root.

A plan that loses anything is refused.  Undoing runs the comparison backwards.
"""

from cfs_tags.migrate.plan import MigratePlan, Proof, Row, manifests_by, plan
from cfs_tags.migrate.run import UndoPlan, UndoRow, migrate, plan_undo, undo

__all__ = ["MigratePlan", "Proof", "Row", "UndoPlan", "UndoRow", "manifests_by", "migrate", "plan", "plan_undo", "undo"]
