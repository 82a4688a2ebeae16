"""Advice of the command line: what to type after an error.

The library says what to do without a word about commands and options; here a code, with its facts, gets the words."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from contextlib import suppress

from cfs_tags.catalogue import CATALOGUE
from cfs_tags.cli import owner, view
from cfs_tags.errors import CfsTagsError
from cfs_tags.messages import Facts, Text, render


def hint(error: CfsTagsError, words: Sequence[str] = ()) -> str | None:
    """What to do about an error: the advice of the command line where there is one, else the library's.

    May hold foreign text, unescaped.  None where the message says it all.

    Args:
        error: what went wrong.
        words: the command line, for advice that repeats it.
    """
    if error.code not in ADVICE:
        return error.hint
    advice = ADVICE[error.code]
    return _here(render(advice, {**error.facts(), "words": words})) if advice is not None else None


def _here(text: str | None) -> str | None:
    """Advice whose commands name the repository as this one did, so that they can be typed as they stand."""
    if not view.options or text is None:
        return text
    here = shlex.join(view.options)

    def named(found: re.Match[str]) -> str:
        command = f"cfs-tag {here} {found['rest']}"
        return command if "'" in command else f"'{command}'"

    return re.sub(r"'cfs-tag (?P<rest>(?!--)[^']+)(?<!--help)'", named, text)


def as_typed(error: CfsTagsError) -> CfsTagsError:
    """The error with the argument that it is about as it is typed: the library names its own."""
    if error.code == "invalid-argument":
        argument = error.facts()["argument"]
        error.argument = _OPTIONS.get(argument, argument)  # type: ignore[attr-defined]
    return error


def _argument(facts: Facts) -> str | None:
    """'cfs-tag retire' removes deployment refs, 'cfs-tag unpin' removes pins, 'cfs-tag deployments' lists deployments"""
    if facts["argument"] == "deployment":
        return "'cfs-tag deployments' lists deployments"
    if facts["argument"] == "--announce":
        return "--listen ADDRESS:PORT says which"
    if facts["argument"] != "tag":
        return None
    pin = facts["value"].startswith("@pin/")
    return "'cfs-tag unpin' removes pins" if pin else "'cfs-tag retire' removes deployment refs"


def _digest(facts: Facts) -> str:
    """'cfs-tag resolve NAME' prints the digest of a tag; 'cfs-tag deployments --json' has the ids of deployments"""
    if facts["wanted"].startswith("sha256:"):
        return "'cfs-tag resolve NAME' prints the digest of a tag, or of its first digits"
    return "the whole id of a deployment or object: 'cfs-tag deployments --json' has those of deployments"


def _ambiguous(facts: Facts) -> str:
    """give more digits, or the whole name; of images in a source: SOURCE:NAME"""
    from cfs_tags.formats.boot.paths import BOOTC_TAG_PREFIX

    name = facts["name"]
    if ":" in name and not name.startswith(("sha256:", "@", BOOTC_TAG_PREFIX)):  # a source of images
        return f"say which: {name}:{facts['candidates'][0]}"
    return "give more digits, or the whole name"


def _no_tag(facts: Facts) -> str:
    """'cfs-tag list' shows the tags, 'cfs-tag trash' deleted ones that are kept"""
    name = facts["name"]
    tag, _, digest = name.rpartition("@")
    if tag and digest.startswith("sha256:"):
        return f"a digest alone names an image: @{digest}"
    if facts["near"] and facts["near"][0].startswith(f"{name}@{{"):
        return f"it is gone: {typed('restore', name)} brings it back, and {facts['near'][0]} is what it named"
    if facts["near"]:
        return f"there is {', '.join(facts['near'])}"
    return "'cfs-tag list' shows the tags, 'cfs-tag trash' deleted ones that are kept"


def _no_pin(facts: Facts) -> str:
    """'cfs-tag pins' lists them"""
    return f"there is {', '.join(facts['near'])}" if facts["near"] else "'cfs-tag pins' lists them"


def _collected(facts: Facts) -> str:
    """'cfs-tag import SOURCE NAME' brings it again"""
    if facts["source"] is None:
        return "the log does not say where it came from: import it again from where it is"
    return f"{typed('import', facts['source'], facts['name'])} brings what is there now"


def _no_target(facts: Facts) -> str | None:
    """'cfs-tag deployments' lists deployments; 'cfs-tag import --mountable' makes the EROFS image of a manifest"""
    if facts["kind"] == "EROFS image of":
        return "'cfs-tag import --mountable' makes it, and so does cfsctl when it mounts the image"
    if facts["name"] in ("booted", "staged", "rollback"):
        return (
            "'cfs-tag deployments' lists what is known, 'cfs-tag deployments --booted ID --run DIR' what is of another system; "
            "@deployment/ID names one"
        )
    return "'cfs-tag deployments' lists them" if facts["kind"].startswith("deployment") else None


def _loss(facts: Facts) -> str | None:
    """when undoing, --force leaves a tag migrated/ID for each"""
    return "--force leaves a tag migrated/ID for each" if facts["what"] == "undoing" else None


def _system_failure(facts: Facts) -> str | None:
    """where root has become the owner of the repository: let that user, or hand a file over by standard input"""
    import errno

    user = owner.became()
    if user is None or facts["errno"] not in (errno.EACCES, errno.EPERM):
        return render(CATALOGUE["system-failure"].way_out, facts)
    return (
        f"cfs-tag works as user {user}, whose repository it is: let that user do it; an archive that only root may read "
        "can be given by standard input: docker-archive:/dev/stdin <FILE"
    )


def _read_only(facts: Facts) -> str | None:
    """unshare -m sh -c 'mount -o remount,rw MOUNTPOINT && cfs-tag …', with both filled in, as bootc does"""
    if "mounted" not in facts["reason"]:
        return None
    place, options = _mount_of(os.path.realpath(facts["path"]))
    words = [word for word in facts["words"] if word != "--dry-run"]
    line = f"mount -o {options} {shlex.quote(place)} && cfs-tag {shlex.join(words)}"
    who = (
        "for this command alone"
        if len(words) == len(facts["words"])
        else "the run writes, and needs the mount writable for it alone"
    )
    return f"{who}, as bootc does: unshare -m sh -c {shlex.quote(line)}"


def _mount_of(path: str) -> tuple[str, str]:
    """Where the mount is that an absolute path without links is on, and with which options it becomes writable.

    Only this mount is changed where it alone is read-only, as a bind mount can be; else the file system behind it is.
    """
    found, options = "/", "remount,rw"
    with suppress(OSError), open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            fields = line.split()
            place = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4])
            if len(place) >= len(found) and f"{path}/".startswith(f"{place.rstrip('/')}/"):
                alone = "ro" in fields[5].split(",") and "rw" in fields[-1].split(",")
                found, options = place, "remount,bind,rw" if alone else "remount,rw"
    return found, options


def _ended(facts: Facts) -> str:
    """what it named may still be there: 'cfs-tag create NAME @DIGEST' keeps it"""
    return f"what it named may still be there: {typed('create', facts['name'], '@' + facts['digest'])} keeps it"


def _log(facts: Facts) -> str:
    """'cfs-tag log NAME' shows the entries"""
    return f"{typed('log', facts['name'])} shows the entries"


def _moved(facts: Facts) -> str:
    """another program moved it: look at it with 'cfs-tag show NAME', then decide again"""
    from cfs_tags.tags.rows import name_of_ref

    name = name_of_ref(facts["ref"])
    shown = "'cfs-tag show'" if "/refs/" in name else typed("show", name)
    return f"another program moved it: look at it with {shown}, then decide again"


def _other_image(facts: Facts) -> str:
    """name another manifest; 'cfs-tag create --deployment ID @sha256:… --force' takes this one all the same"""
    there = typed("create", "--deployment", facts["deployment"], f"@{facts['manifest']}", "--force")
    return f"name another manifest; {there} takes this one all the same"


def _not_revivable(facts: Facts) -> str:
    """--from SOURCE fetches what is missing, from where the image came from or any other place that has it"""
    if facts["source"] is None:
        return "--from SOURCE fetches what is missing, from where the image came from or any other place that has it"
    return f"--from {facts['source']} fetches what is missing, as long as the image is there; or name another place that has it"


def _program_missing(facts: Facts) -> str:
    """install it; revive --export-only does without bootc, and says what to run"""
    if facts["program"] == "bootc":
        return "--export-only exports the image, and says what to run where bootc is"
    return f"install {facts['program']}"


def typed(*words: str) -> str:
    """A command as it is typed, in quotes."""
    shown = shlex.join(["cfs-tag", *view.options, *words])
    return f"'{shown}'" if "'" not in shown else shown


def _unresolved(facts: Facts) -> str:
    """name its manifest: @sha256:…; when collecting, --image-only goes on and keeps its image alone"""
    if not any("would be collected" in note for note in facts["notes"]):
        return f"name its manifest: @{facts['candidates'][0] if facts['candidates'] else 'sha256:…'}"
    candidate = facts["candidates"][0] if facts["candidates"] else "DIGEST"
    return (
        "--image-only goes on, and keeps its image alone; "
        f"'cfs-tag migrate --manifest {facts['deployment'][:12]}={candidate}' names its manifest. "
        "What an interrupted upgrade left, bootc removes when it collects next"
    )


_OPTIONS = {
    "booted": "--booted",
    "all_platforms": "--all-platforms",
    "announce": "--announce",
    "keep_index": "--keep-index",
    "listen": "--listen",
    "place": "REGISTRY/REPO",
    "platform": "--platform",
}
"""Arguments of the library that have another name on the command line."""

ADVICE: dict[str, Text | None] = {
    # None: the message says it all, or the way out is not a command
    "ambiguous-name": _ambiguous,
    "bad-ref-link": None,
    "broken-roots": "'cfs-tag fsck --repair' takes dangling refs out; --keep-broken collects what nothing broken leads to",
    "command-line": "'{command} --help' shows how it is written",
    "content-left": "the same command again goes on with them, and 'cfs-tag gc' removes them",
    "deployment-mismatch": _other_image,
    "digest-mismatch": None,
    "expectation-failed": _moved,
    "internal": "this is a mistake in cfs-tag: please report it with what CFS_TAG_DEBUG=1 shows",
    "interrupted": None,
    "invalid-argument": _argument,
    "invalid-digest": _digest,
    "layer-too-large": "--max-layer-size GIB allows more",
    "lease-ended": _ended,
    "lock-timeout": "wait for it to finish, or give more time with --lock-timeout SECONDS",
    "malformed": None,
    "missing-object": None,
    "not-a-link": None,
    "no-deployments": "mount it; where bootc is gone for good: 'cfs-tag delete --owner bootc NAME…', then collect",
    "nothing-to-undo": None,
    "not-revivable": _not_revivable,
    "not-running": "--export-only exports the image, and says what to run there",
    "not-recorded": None,
    "output-failed": None,
    "owner-refused": "--owner {owner} changes it all the same",
    "pin-exists": "--name gives the new pin another name; 'cfs-tag unpin' removes the old one",
    "pin-not-found": _no_pin,
    "place-unread": "mount it, or mend it; gc --no-sysroot collects by the refs that there are, without a look at deployments",
    "platform-not-found": "choose with --platform OS/ARCH[/VARIANT], or take --all-platforms",
    "program-failed": None,
    "program-missing": _program_missing,
    "read-only-repository": _read_only,
    "clock-ahead": "set the clock; --force believes it as it is",
    "clock-set-back": "set the clock; --force believes it as it is",
    "reflog-entry-not-found": _log,
    "repository-not-found": (
        "name one with --repo DIR, --sysroot DIR, --user or --system, or set CFS_TAG_REPO; 'cfsctl init DIR' makes one"
    ),
    "sysroot-not-found": "name the physical root with --sysroot DIR, or set CFS_TAG_SYSROOT",
    "sysroot-unseen": "name the physical root with --sysroot DIR; gc --no-sysroot collects by the refs that there are",
    "still-deployed": "the boot menu or 'bootc rollback' boots it; --force deploys it again",
    "system-failure": _system_failure,
    "tags-unread": "'cfs-tag policy check' says of each what becomes of it, 'cfs-tag fsck' what is wrong",
    "tag-collected": _collected,
    "tag-exists": "--force moves it all the same",
    "tag-not-found": _no_tag,
    "target-is-index": "name one of its images; import --all-platforms makes a tag for each",
    "target-not-found": _no_target,
    "transaction-abandoned": None,
    "unresolved-deployment": _unresolved,
    "transaction-finished": None,
    "unsupported-feature": "use a newer cfs-tag",
    "unsupported-version": "use a newer cfs-tag",
    "would-lose-content": _loss,
}

ADVICE_TEXTS = {
    "read the content of all objects; then pull the images that need them again": (
        "check the objects with --content; then pull the images that need them again"
    ),
    "a repair restores it where everything behind it is whole; else pull the image again": (
        "--repair restores it where everything behind it is whole; else pull the image again"
    ),
    "none needed: our collection follows it, and deployment refs keep it for other collectors": (
        "none needed: 'cfs-tag gc' follows it, and deployment refs keep it for other collectors"
    ),
    "check it with a newer version of cfs-tags": "check it with a newer cfs-tag",
    "pull the image again, or have a repair take the ref out: collectors stop at it": (
        "pull the image again, or take the ref out with --repair: collectors stop at it"
    ),
    "have a repair take it out, or make it anew: collectors stop at it": (
        "take it out with --repair, or make it anew: collectors stop at it"
    ),
    "have a repair take it out: collectors stop at it": "take it out with --repair: collectors stop at it",
    "delete it, once no cfsctl is at work": "'cfs-tag delete' removes it, once no cfsctl is at work",
    "the next collection removes it": "'cfs-tag gc' removes it",
    "retire it, or make it anew": "'cfs-tag retire' it, or 'cfs-tag create --deployment' it anew",
    "a migration completes it": "'cfs-tag migrate' completes it",
    "it stays bootable; a migration that is told its manifest completes it": (
        "it stays bootable; 'cfs-tag migrate --manifest' completes it"
    ),
    "the next writer, or a repair, finishes it or takes it back": (
        "the next command that writes, or --repair, finishes it or takes it back"
    ),
    "the next writer, or a repair, removes it": "the next command that writes, or --repair, removes it",
    "it can be restored once its target is there": "'cfs-tag restore' puts it back once its target is there",
    "a migration that writes origin files adds it": "'cfs-tag migrate --write-origin' adds it",
    "a migration finds it": "'cfs-tag migrate' finds it",
    "retire its ref": "'cfs-tag retire' removes its ref",
    "a check says what is missing": "'cfs-tag fsck' says what is missing",
    "a migration makes it": "'cfs-tag migrate' makes it",
    "a migration completes its ref": "'cfs-tag migrate' completes it",
    "a look-up may find another": "'cfs-tag lookup' finds another",
    "give it a name in UTF-8: it can be renamed and deleted": "give it a name in UTF-8: cfs-tag renames and deletes it",
    "give it another name: @ is kept for digests": "give it another name: cfs-tag and cfsctl keep @ for digests",
}
"""Advice of findings, as the library gives it and as commands."""
_ADVICE_PARTS = {
    "; a migration keeps it": "; 'cfs-tag migrate' keeps it",
    "several manifests with different configs fit: ": (
        "several manifests with different configs fit, --manifest ID=DIGEST says which: "
    ),
}


def advice(text: str) -> str:
    """The advice of a finding, or the reason of a row, in commands and options where there are any for it."""
    for part, typed in _ADVICE_PARTS.items():
        text = text.replace(part, typed)
    return _here(ADVICE_TEXTS.get(text, text)) or text
