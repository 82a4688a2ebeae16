"""What can be found: every code with its severity and what to do about it.

``docs/fsck.md`` says of each code what it means; a test compares the two.
"""

from __future__ import annotations

from typing import NamedTuple

SEVERITIES = ("error", "warning", "note")
"""``error``: content is lost or will be, or another program stops at it; ``warning``: wrong, and harmless so far;
``note``: to be known, nothing to be done."""


class _Row(NamedTuple):
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
_IMPORT = "import the same image: that brings it back; a pull by cfsctl or bootc does not"
_REWRITE = (
    "repair from a source that has it; or remove the object, then import the same image: "
    "a pull by cfsctl or bootc does not bring it back"
)
_DELETE_REF = "delete it, or make it anew"

CODES = {
    # -- objects ---------------------------------------------------------------------------------------------------
    "bad-object-name": _Row("error", "move it away: the collectors of cfsctl and bootc stop at it"),
    "not-an-object": _Row("error", f"move it away, then {_PULL}"),
    "not-a-directory": _Row("error", "move it away; nothing can be read or stored below it"),
    "wrong-object-digest": _Row("error", _REWRITE),
    "unreadable": _Row("error", "look at the disk and the permissions; if it stays so, remove it and pull again"),
    "no-verity": _Row("error", f"the repository demands fs-verity: remove the object, then {_PULL}"),
    "wrong-verity-digest": _Row("error", f"remove the object, then {_PULL}"),
    "missing-object": _Row("error", _PULL),
    "content-missing": _Row("error", _IMPORT),
    # -- streams and images ----------------------------------------------------------------------------------------
    "not-a-link": _Row("error", "move it away: the collectors of cfsctl and bootc stop at it"),
    "bad-object-link": _Row("error", "remove it: the collectors of cfsctl and bootc stop at it; then pull again"),
    "broken-link": _Row("warning", "a collector removes it"),
    "undecodable-name": _Row("error", "remove it: the collectors of cfsctl and bootc stop at it"),
    "bad-stream": _Row("error", f"remove the link and the object, then {_PULL}"),
    "unsupported-stream": _Row("warning", "check it with a newer version of cfs-tags"),
    "wrong-stream-size": _Row("error", "read the content of all objects; then pull the images that need them again"),
    "sparse-content": _Row("warning", "nearly all of it is holes: no image is so; remove its tags if you do not know it"),
    "wrong-stream-link": _Row("error", f"remove the link, then {_PULL}"),
    "missing-link": _Row("error", "a repair restores it where everything behind it is whole; else pull the image again"),
    "stale-named-ref": _Row("note", "none needed: our collection follows it, and deployment refs keep it for other collectors"),
    "missing-named-ref": _Row("error", "pull the image again"),
    "wrong-named-ref": _Row("error", "pull the image again"),
    "wrong-manifest-digest": _Row("error", f"remove the link, then {_PULL}"),
    "bad-manifest": _Row("warning", "no program can use this image: remove its tags"),
    "wrong-config-digest": _Row("error", f"remove the link, then {_PULL}"),
    "bad-config": _Row("warning", "no program can use this image: remove its tags"),
    "wrong-layer-digest": _Row("error", f"remove the link, then {_PULL}"),
    "bad-image-name": _Row("warning", "remove it, or give it the name of its object"),
    "wrong-image-link": _Row("error", "remove it: a deployment of that name would run something else"),
    "bad-image": _Row("error", f"remove the link and the object, then {_PULL}"),
    # -- refs ------------------------------------------------------------------------------------------------------
    "dangling-ref": _Row("error", "pull the image again, or have a repair take the ref out: collectors stop at it"),
    "nested-ref": _Row("error", "have a repair take it out, or make it anew: collectors stop at it"),
    "looping-ref": _Row("error", "have a repair take it out: collectors stop at it"),
    "bad-ref-link": _Row("error", _DELETE_REF),
    "bad-tag-target": _Row("warning", _DELETE_REF),
    "undecodable-ref": _Row("warning", "give it a name in UTF-8: it can be renamed and deleted"),
    "reserved-name": _Row("warning", "give it another name: @ is kept for digests"),
    "name-in-two-homes": _Row("warning", "delete one of them"),
    "left-over-link": _Row("note", "delete it, once no cfsctl is at work"),
    "expired-lease": _Row("note", "the next collection removes it"),
    "expired-trash": _Row("note", "the next collection removes it"),
    "expired-pin": _Row("note", "the next collection removes it"),
    "orphaned-index": _Row("note", "the next collection removes it"),
    "bad-expiry": _Row("warning", "delete it: it never expires"),
    "absent-subject": _Row("note", "none needed: signatures are often on an index, which no repository keeps"),
    "bad-referrer": _Row("warning", _DELETE_REF),
    "bad-deployment-ref": _Row("warning", "retire it, or make it anew"),
    "partial-deployment-ref": _Row("warning", "a migration completes it"),
    "partial-pin": _Row("warning", "unpin it, and pin what it is to keep again"),
    "image-only-deployment": _Row("note", "it stays bootable; a migration that is told its manifest completes it"),
    # -- who else can change it ------------------------------------------------------------------------------------
    "open-to-everybody": _Row("error", "chmod o-w it: until then nothing is written to the repository"),
    "open-to-group": _Row("warning", "chmod g-w it, unless the group is to write; root does not write to it until then"),
    "foreign-directory": _Row("warning", "give it to the owner of the repository, then check all content"),
    # -- our state -------------------------------------------------------------------------------------------------
    "pending-transaction": _Row("warning", "the next writer, or a repair, finishes it or takes it back"),
    "left-over-file": _Row("note", "the next writer, or a repair, removes it"),
    "damaged-reflog": _Row("note", "history alone is lost; the other lines are whole"),
    "damaged-state": _Row("warning", "remove it: it is not needed for safety"),
    "quarantined-ref": _Row("note", "it can be restored once its target is there"),
    "no-metadata": _Row("note", "cfsctl and bootc write meta.json when they open the repository, gc when it collects"),
}
"""All codes, in the order of the documentation."""
