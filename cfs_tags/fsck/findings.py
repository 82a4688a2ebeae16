"""What can be found: every code with its severity and what to do about it.

``docs/fsck.md`` says of each code what it means; a test compares the two.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["CODES", "SEVERITIES", "Code", "Finding", "finding"]

SEVERITIES = ("error", "warning", "note")
"""``error``: content is lost or will be, or another program stops at it; ``warning``: wrong, and harmless so far;
``note``: to be known, nothing to be done."""


class Code(NamedTuple):
    """What a code stands for; ``advice`` is one sentence without a full stop."""

    severity: str
    advice: str


class Finding(NamedTuple):
    """One thing that was found.

    ``path`` is relative to the repository; ``message`` says in one line what is wrong, and may hold foreign text;
    ``repaired`` is true where a repair has mended it, or would mend it in a dry run.
    """

    code: str
    severity: str
    path: str
    message: str
    advice: str
    repaired: bool = False

    @property
    def fails(self) -> bool:
        """Whether a check with this finding fails."""
        return self.severity != "note" and not self.repaired


def finding(code: str, path: str, message: str) -> Finding:
    """A finding with the severity and the advice of its code."""
    meaning = CODES[code]
    return Finding(code, meaning.severity, path, message, meaning.advice)


_PULL = "pull the images that need it again"
_DELETE_REF = "delete it, or make it anew"

CODES = {
    # -- objects ---------------------------------------------------------------------------------------------------
    "bad-object-name": Code("error", "move it away: the collectors of cfsctl and bootc stop at it"),
    "not-an-object": Code("error", f"move it away, then {_PULL}"),
    "not-a-directory": Code("error", "move it away; nothing can be read or stored below it"),
    "wrong-object-digest": Code("error", f"remove the object, then {_PULL}"),
    "unreadable": Code("error", "look at the disk and the permissions; if it stays so, remove it and pull again"),
    "no-verity": Code("error", f"the repository demands fs-verity: remove the object, then {_PULL}"),
    "wrong-verity-digest": Code("error", f"remove the object, then {_PULL}"),
    "missing-object": Code("error", _PULL),
    # -- streams and images ----------------------------------------------------------------------------------------
    "not-a-link": Code("error", "move it away: the collectors of cfsctl and bootc stop at it"),
    "bad-object-link": Code("error", "remove it: the collectors of cfsctl and bootc stop at it; then pull again"),
    "broken-link": Code("warning", "a collector removes it"),
    "undecodable-name": Code("error", "remove it: the collectors of cfsctl and bootc stop at it"),
    "bad-stream": Code("error", f"remove the link and the object, then {_PULL}"),
    "unsupported-stream": Code("warning", "check it with a newer cfs-tag"),
    "wrong-stream-size": Code("error", "check the objects with --content; then pull the images that need them again"),
    "wrong-stream-link": Code("error", f"remove the link, then {_PULL}"),
    "missing-link": Code("error", "--repair restores it where everything behind it is whole; else pull the image again"),
    "stale-named-ref": Code("note", "none needed: cfs-tag gc follows it, and deployment refs keep it for other collectors"),
    "missing-named-ref": Code("error", "pull the image again"),
    "wrong-named-ref": Code("error", "pull the image again"),
    "wrong-manifest-digest": Code("error", f"remove the link, then {_PULL}"),
    "bad-manifest": Code("warning", "no program can use this image: remove its tags"),
    "wrong-config-digest": Code("error", f"remove the link, then {_PULL}"),
    "bad-config": Code("warning", "no program can use this image: remove its tags"),
    "wrong-layer-digest": Code("error", f"remove the link, then {_PULL}"),
    "bad-image-name": Code("warning", "remove it, or give it the name of its object"),
    "wrong-image-link": Code("error", "remove it: a deployment of that name would run something else"),
    "bad-image": Code("error", f"remove the link and the object, then {_PULL}"),
    # -- refs ------------------------------------------------------------------------------------------------------
    "dangling-ref": Code("error", "pull the image again, or take the ref out with --repair: collectors stop at it"),
    "nested-ref": Code("error", "take it out with --repair, or make it anew: collectors stop at it"),
    "looping-ref": Code("error", "take it out with --repair: collectors stop at it"),
    "bad-ref-link": Code("error", _DELETE_REF),
    "bad-tag-target": Code("warning", _DELETE_REF),
    "undecodable-ref": Code("warning", "give it a name in UTF-8: cfs-tag renames and deletes it"),
    "reserved-name": Code("warning", "give it another name: cfs-tag and cfsctl keep @ for digests"),
    "name-in-two-homes": Code("warning", "delete one of them"),
    "left-over-link": Code("note", "cfs-tag delete removes it, once no cfsctl is at work"),
    "expired-lease": Code("note", "cfs-tag gc removes it"),
    "expired-trash": Code("note", "cfs-tag gc removes it"),
    "orphaned-index": Code("note", "cfs-tag gc removes it"),
    "bad-expiry": Code("warning", "delete it: it never expires"),
    "absent-subject": Code("note", "none needed: signatures are often on an index, which no repository keeps"),
    "bad-referrer": Code("warning", _DELETE_REF),
    "bad-deployment-ref": Code("warning", "cfs-tag retire it, or cfs-tag create --deployment it anew"),
    "partial-deployment-ref": Code("warning", "cfs-tag migrate completes it"),
    "image-only-deployment": Code("note", "it stays bootable; cfs-tag migrate --manifest completes it"),
    # -- our state -------------------------------------------------------------------------------------------------
    "pending-transaction": Code("warning", "the next command that writes, or --repair, finishes it or takes it back"),
    "left-over-file": Code("note", "the next command that writes, or --repair, removes it"),
    "damaged-reflog": Code("note", "history alone is lost; the other lines are whole"),
    "damaged-state": Code("warning", "remove it: it is not needed for safety"),
    "quarantined-ref": Code("note", "cfs-tag restore puts it back once its target is there"),
    "no-metadata": Code("note", "cfsctl and bootc write meta.json when they open the repository, gc when it collects"),
}
"""All codes, in the order of the documentation."""
