"""Collecting garbage: what no ref leads to goes, beside cfsctl and bootc at work.

1. With a sysroot deployments are adopted and retired; refs that have run out (leases, pins, trash) go.
2. *Mark*, under the shared lock (``mark.py``).  What cannot be followed stops everything here: nothing was deleted.
3. *Sweep* in slices, each under the exclusive lock on a new descriptor: compare all links, names and targets, with those
   that the marks came from, mark what is new, then delete for at most ``Pace.slice`` seconds, let go, and pause so that
   waiters get in.  Dead links go first and are synced before the first object.

A full disk does not stop it (``collect.Room``).  An object that is younger than the marks is never deleted.  A stop at any
point leaves links without garbage behind them or garbage without links: both are what a next run finds and finishes.
"""

from cfs_tags.gc.collect import collect
from cfs_tags.gc.early_refs import plan_refs
from cfs_tags.gc.plan import plan
from cfs_tags.gc.values import GcOptions, GcPlan, GcResult, Pace, RefsPlan, Swept

__all__ = [
    "GcOptions",
    "GcPlan",
    "GcResult",
    "Pace",
    "RefsPlan",
    "Swept",
    "collect",
    "plan",
    "plan_refs",
]
