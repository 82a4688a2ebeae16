"""Every error of this package, in one table: code, family, message, facts, cause and way out.

:data:`CATALOGUE` maps a code, which never changes its meaning, to its :class:`Entry`.  A message and a way out are
templates with the names of facts in braces (see ``messages.py``), or functions of the facts where a template cannot say
it.  A way out is for callers of the library: it names no command and no option.  ``docs/errors.md`` is made from this
table.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import NamedTuple

from cfs_tags import messages
from cfs_tags.messages import Facts, Text


class Entry(NamedTuple):
    """One code.

    Attributes:
        family: the type that has this code, by name; its exit status is the code's.
        message: what went wrong.
        facts: names of the facts, in the order in which JSON shows them.
        cause: when it is raised, as a sentence.
        way_out: what to do about it; the docstring of a function stands for it in the documentation.
        defaults: facts that may be left out, with their values.
    """

    family: str
    message: Text
    facts: str
    cause: str
    way_out: Text
    defaults: Facts = MappingProxyType({})

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the facts."""
        return tuple(self.facts.split())


# -- the table ---------------------------------------------------------------------------------------------------------

CATALOGUE: dict[str, Entry] = {
    # what was asked makes no sense
    "command-line": Entry(
        "UsageError",
        "{text}",
        "command text",
        "The words of a command line make no command: one is missing, unknown, or excludes another.",
        "read how the command is written",
    ),
    "invalid-argument": Entry(
        "UsageError",
        "{argument} {value:quoted} {reason}",
        "argument value reason",
        "An argument has a form that it may not have.",
        "write it in the form that the message names",
    ),
    "invalid-tag-name": Entry(
        "UsageError",
        "tag name {name:quoted} {rule}",
        "name rule",
        "A name that no tag may have.",
        "names look like quay.io/org/app:1.2: at most 255 bytes once encoded, no control characters, no leading @ or -",
    ),
    "invalid-digest": Entry(
        "InvalidDigest",
        "{text:quoted} is not a digest: wanted {wanted}",
        "text wanted",
        "Text that should be a digest or an id, and is none.",
        "give the whole digest or id, in lower case",
    ),
    "invalid-instruction": Entry(
        "UsageError",
        "line {line} {text:quoted}: {reason}",
        "line text reason",
        "A line of an update that is no instruction, or cannot be carried out; lines count from 1.",
        "one of: create NAME TARGET | move NAME TARGET [EXPECTED] | delete NAME [EXPECTED] | verify NAME EXPECTED",
    ),
    "invalid-policy": Entry(
        "UsageError",
        "policy {path}: {reason}",
        "path reason",
        "A policy of retention cannot be read; nothing was deleted.",
        "mend the file; no tag is deleted by it until then",
    ),
    "clock-set-back": Entry(
        "RefusedError",
        "the clock says {now}, and it was {seen} here before",
        "now seen",
        "The clock was set back, or was wrong before: what is dated by it may be dated wrongly, so nothing is deleted by age.",
        "set the clock, or say that it is right",
    ),
    "clock-ahead": Entry(
        "RefusedError",
        "the clock says {now}, and nothing was done here since {seen}",
        "now seen",
        "The clock was set forward by half a year or more, or nothing was done for so long: nothing newer is deleted by age.",
        "set the clock, or say that it is right",
    ),
    "empty-group": Entry(
        "RefusedError",
        "{rule} would delete all tags of {group:quoted}, {count} of them",
        "rule group count",
        "A policy would leave nothing of a group of tags; nothing was deleted.",
        "mend the rule, or say that groups may become empty",
    ),
    "ambiguous-name": Entry(
        "UsageError",
        "{name:quoted} is ambiguous: {candidates:5,}",
        "name candidates",
        "A name, or the start of one, fits several things.",
        "give more digits, or the whole name",
    ),
    # what was named is not there
    "repository-not-found": Entry(
        "RepositoryNotFound",
        "no composefs repository at {path}: {reason}",
        "path reason",
        "There is no composefs repository at the path.",
        "name another directory; 'cfsctl init DIR' makes a repository",
    ),
    "policy-not-found": Entry(
        "NotFoundError",
        "no policy at {path}",
        "path",
        "A policy of retention that was named is not there.",
        "name another file",
    ),
    "sysroot-not-found": Entry(
        "NotFoundError",
        "{path} is no repository of a bootc host: there is no state/deploy beside it",
        "path",
        "A question about deployments in a repository beside which there are none.",
        "name the physical root of the host",
    ),
    "tag-not-found": Entry(
        "TagNotFound",
        "no tag {name:quoted}",
        "name near",
        "There is no tag of that name.",
        messages.near,
        {"near": ()},
    ),
    "pin-not-found": Entry(
        "NotFoundError",
        "no pin {name:quoted}",
        "name near",
        "There is no pin of that name, or for that deployment, or its time is over.",
        "list the pins",
    ),
    "tag-collected": Entry(
        "NotFoundError",
        "{name} led to {digest}, which was collected",
        "name digest source",
        "The value that was to be restored is in the log, but its content is gone: nothing kept it when a collection ran.",
        "import the image again, from where the log says that it came, if it says so",
    ),
    "lease-ended": Entry(
        "NotFoundError",
        "tag {name:quoted} was a lease, which ended at {expires}",
        "name digest expires",
        "The tag was made for a time, which is over: it no longer resolves.",
        "what it named may still be there: a new tag for @{digest} keeps it",
    ),
    "target-not-found": Entry(
        "TargetNotFound",
        "no {kind} {name:quoted} in {where:short}",
        "kind name where",
        "A name or digest stands for a manifest, an index, an image or a deployment that is not there, or a path for a file.",
        "bring it in again, or name another",
        {"where": "the repository"},
    ),
    "reflog-entry-not-found": Entry(
        "NotFoundError",
        messages.no_entry,
        "name number entries action time",
        "The log of a tag does not reach back that far, or the tag named no image after that entry or at that time.",
        "choose an entry that the log has, or another time",
    ),
    "before-the-log": Entry(
        "NotFoundError",
        "the log of {name} begins at {begins}, and not before {time}",
        "name time begins",
        "The log of a tag does not reach back to a time: the tag was made later, or what was before is forgotten.",
        "choose a later time",
    ),
    "source-not-found": Entry(
        "SourceNotFound",
        "{source:short}: {reason}",
        "source reason names",
        "What is to be imported is not there: no such directory, file, image or blob.",
        messages.what_it_has,
        {"names": ()},
    ),
    "source-failed": Entry(
        "SourceFailed",
        "{source:short}: {reason}",
        "source reason",
        "A source of images could not be reached, did not answer as a registry does, or was too slow.",
        "see that it can be reached, and try again",
    ),
    "nothing-to-undo": Entry(
        "NotFoundError",
        "no migration to undo: {path} is not there",
        "path",
        "There is no record of a migration.",
        "there is nothing to do: the host was not migrated, or that was undone already",
    ),
    # it could be done, and must not be
    "boot-objects-not-kept": Entry(
        "CfsTagsError",
        "pin {name:quoted}: {count} objects of files in /boot have no second name: {reason}",
        "name count reason",
        "A pin is made; what it would keep against a program that removes the objects of files in /boot, it does not keep.",
        "the pin keeps them as long as no such program runs; an export of the image keeps them anywhere",
    ),
    "host-files-not-kept": Entry(
        "CfsTagsError",
        "pin {name:quoted}: {count} of origin and boot entries are not kept beside it: {reason}",
        "name count reason",
        "A pin of a deployment is made; what could not be read of its origin and its boot entries is not kept beside it.",
        "mend what is named, and pin it again",
    ),
    "tags-unread": Entry(
        "CfsTagsError",
        "{names:3,+} stay, because what they lead to is broken or cannot be read",
        "names",
        "A warning: a policy is not asked about tags that lead nowhere, or whose image cannot be read.",
        "see what is wrong with them, and import them again or delete them",
    ),
    "tag-exists": Entry(
        "RefusedError",
        "tag {name:quoted} exists and names {found}",
        "name found wanted",
        "The tag is there and names something else.",
        "choose another name, or say that it may move",
    ),
    "pin-exists": Entry(
        "RefusedError",
        "pin {name:quoted} exists and keeps {found}",
        "name found wanted",
        "There is a pin of that name, and it keeps something else.",
        "choose another name, or remove the pin first",
    ),
    "still-deployed": Entry(
        "RefusedError",
        "{deployment:id} is still deployed: it is in {places:9,}",
        "deployment places",
        "A deployment that is to be brought back is there.",
        "boot it from the menu, or say that it is to be deployed again all the same",
    ),
    "not-revivable": Entry(
        "RefusedError",
        "{target:id} cannot be brought back: {missing:3;+}",
        "target missing source",
        "Something of the image is not in the repository, and no pin keeps it.",
        "bring in what is missing from where the image came from; then try again",
        {"source": None},
    ),
    "not-running": Entry(
        "RefusedError",
        "{path} is not the system that runs, and bootc deploys to that one",
        "path",
        "bootc is to deploy an image, and the host that is meant is not the running system.",
        "export the image alone, and have bootc deploy it there",
    ),
    "target-exists": Entry(
        "RefusedError",
        "{path} exists",
        "path",
        "A file that would have to be replaced.",
        "name another file; an archive is not added to",
    ),
    "platform-not-found": Entry(
        "PlatformNotFound",
        "{target:short} has no image for {wanted}; it has: {platforms:20,}",
        "target wanted platforms",
        "An index has no image for the platform.",
        "choose one of the platforms that it has, or take all",
    ),
    "target-is-index": Entry(
        "RefusedError",
        "{target:short} is an index, and a tag names one image; it has: {platforms:20,}",
        "target platforms",
        "The digest is that of an index, and a tag names one image.",
        "name one of its images; an import of all its platforms makes a tag for each",
    ),
    "expectation-failed": Entry(
        "ExpectationFailed",
        "{ref}: expected {wanted}, found {found}",
        "ref wanted found",
        "The ref does not have the value that was expected, or another program moved it meanwhile.",
        "look at what it names now, then decide again",
    ),
    "owner-refused": Entry(
        "RefusedError",
        "{name:quoted} belongs to {owner}",
        "name owner",
        "The ref belongs to bootc, podman or an application: it manages its refs itself.",
        "leave it to its owner, or name the owner {owner}",
    ),
    "foreign-owner": Entry(
        "RefusedError",
        "{path} belongs to user {owner}, and root does not work where another user can change everything meanwhile",
        "path owner",
        "The process is root's, and the repository, or a directory in it, belongs to another user.",
        "work as that user, or give it to root: chown root {path}",
    ),
    "owner-not-to-be": Entry(
        "RefusedError",
        "{path} belongs to user {owner}, whom this process cannot become: {reason}",
        "path owner reason",
        "The program was started by root and works as the owner of the repository, but the system does not let it.",
        "run it as that user",
    ),
    "open-to-others": Entry(
        "RefusedError",
        "{who} can write {path}, and put something else in the place of what stands in it",
        "path who",
        "Everybody can write a directory on the way to what is to be written; or its group can, and the process is root's.",
        messages.close_to_others,
    ),
    "incomplete-target": Entry(
        "IncompleteTarget",
        "{target} is incomplete: {missing:3;+}",
        "target missing",
        "Something of the image is not in the repository: a layer, the config, an object.",
        "import the image again: a pull by cfsctl or bootc does not bring back files of a layer that it knows",
    ),
    "unresolved-deployment": Entry(
        "UnresolvedDeployment",
        messages.unresolved,
        "deployment notes candidates",
        "For a deployment no manifest is known, or several may be the one.",
        "name its manifest: @sha256:…",
        {"notes": (), "candidates": ()},
    ),
    "place-unread": Entry(
        "PlaceUnread",
        "{path} could not be read ({reason}): the content of deployments without a ref would be collected",
        "place path reason",
        "A place where deployments are seen could not be read, so it is not known which there are.",
        "mount or mend it, so that it can be read",
    ),
    "no-deployments": Entry(
        "NoDeployments",
        "{path} has no deployment, and the repository has tags that bootc made for deployments: on a host that is booted from "
        "ostree, or whose {path} is not mounted, they are in use",
        "path",
        "bootc's tags are in the repository, and its state directory is empty. So it is with hosts that boot ostree commits "
        "and keep their images here: what is live there is not seen.",
        "mount the directory if it is on a partition of its own; where there really is no deployment, remove bootc's tags",
    ),
    "no-files": Entry(
        "RefusedError",
        "the files of {name} cannot be listed: {reason}",
        "name reason",
        "One of two images to compare has no list of its files: it is an artifact, or a layer and the EROFS image are gone.",
        "compare two images; bring missing layers back by importing or pulling the image again",
    ),
    "sysroot-unseen": Entry(
        "RefusedError",
        messages.sysroot_unseen,
        "path images",
        "The repository is bootc's, and its deployments are not seen: its sysroot was not named.",
        "name the physical root of the host",
        {"images": ()},
    ),
    "deployment-mismatch": Entry(
        "RefusedError",
        "{manifest} was made into {images:id,}, not into {deployment:id}",
        "deployment manifest images",
        "The manifest was made into other EROFS images than the deployment's.",
        "name another manifest, or say that it is to be taken all the same",
    ),
    "would-lose-content": Entry(
        "RefusedError",
        "{what} would lose content: {lost:3;}",
        "what lost",
        "After it, content that is kept today would be garbage to collectors.",
        "keep what the message names by a tag first, then try again",
    ),
    "transaction-abandoned": Entry(
        "RefusedError",
        "transaction {transaction} was taken back: {reasons:3;}",
        "transaction reasons",
        "An interrupted transaction could not be finished, because a ref has another value by now; it was taken back.",
        "look at the refs that it names, and do what is still wanted again",
    ),
    "transaction-finished": Entry(
        "CfsTagsError",
        "recovered: an interrupted transaction ({actions:3,}) was finished: {changes:3;}",
        "transaction actions changes",
        "A command was interrupted after it had begun to change refs; the next command that writes finished its work.",
        "run the command again if it is to be done once more; the same command run again at once only says that it is done",
    ),
    "read-only-repository": Entry(
        "RefusedError",
        "{path} can only be read: {reason}",
        "path reason",
        "The file system is mounted read-only, or the repository has a feature with which this program may not write.",
        "mount the file system writable; for a feature, use a newer version of cfs-tags",
    ),
    "hook-refused": Entry(
        "RefusedError",
        "hook {hook} refuses: {reason}",
        "hook reason",
        "A program in /etc/cfs-tags/hooks.d/pre did not agree, could not be run, or took too long; nothing was changed.",
        "the reason has the words of the program; it is the administrator's",
    ),
    "hook-failed": Entry(
        "CfsTagsError",
        "hook {hook} failed: {reason}",
        "hook reason",
        "A warning: a program in /etc/cfs-tags/hooks.d/post failed after moves of refs, which are made.",
        "nothing is wrong with the refs; see to the program",
    ),
    # locks
    "lock-timeout": Entry(
        "LockTimeout",
        messages.lock_timeout,
        "path mode seconds holders",
        "Another process held the lock for the whole time; the message names it where the system shows it.",
        "wait for it to finish, or give more time",
        {"holders": ()},
    ),
    "lock-conflict": Entry(
        "LockConflict",
        "this process holds {path} {held} already and asked for it {wanted}",
        "path held wanted",
        "This process holds the lock itself, in a mode that excludes the one asked for: waiting would never end.",
        "close the other handle first",
    ),
    # damage
    "malformed": Entry(
        "FormatError",
        messages.malformed,
        "structure offset wanted found path",
        "Bytes that are not what they should be, at this offset (0 for the whole) of the structure.",
        "check the repository; bring the image in again",
        {"path": None},
    ),
    "layer-too-large": Entry(
        "FormatError",
        messages.malformed,
        "structure offset wanted found path",
        "A layer is longer, once uncompressed, than was allowed.",
        "allow larger layers, if the source can be trusted",
        {"path": None},
    ),
    "bad-ref-link": Entry(
        "BadRefLink",
        "{path} -> {target:short}: {reason}",
        "path target reason",
        "The link of a ref leads where no ref may lead: it is absolute, nested, looping, or leads outside.",
        "take the ref out, or make it anew",
    ),
    "not-a-link": Entry(
        "NotALink",
        "{path} is {found}, not a link",
        "path found",
        "A file or directory stands where only links may be; it stops the collectors of cfsctl and bootc.",
        "move it away",
    ),
    "broken-roots": Entry(
        "BrokenRoots",
        messages.broken_roots,
        "problems",
        "Something that refs lead to cannot be followed, so nothing can be said to be garbage.",
        "bring in again what is missing, or take the refs out",
    ),
    "missing-object": Entry(
        "MissingObject",
        "object {object}, needed by {needed_by}, is missing",
        "object needed_by",
        "An object that something names is not in the repository.",
        "bring the image in again",
    ),
    "content-missing": Entry(
        "DamagedError",
        "content of an image that refs keep is missing: {what} (needed by {refs:5;+})",
        "what refs",
        "All links of an image are there and objects are not: a newer bootc removes those of files below /boot.",
        "import the same image again: that brings it back, which a pull by cfsctl or bootc does not",
    ),
    "digest-mismatch": Entry(
        "DamagedError",
        "{path}: wanted {wanted}, found {found}",
        "path wanted found",
        "Bytes have another digest or another size than the one they are kept or announced under.",
        "bring the image in again, from a source that is whole",
    ),
    "target-damaged": Entry(
        "DamagedError",
        "{path} is not what an OCI layout has there: {reason}",
        "path reason",
        "A file of the layout that is written to was left by another program, or by an accident of the disk.",
        "remove that file, or write to another directory",
    ),
    # of a newer program
    "unsupported-version": Entry(
        "UnsupportedError",
        "{structure} version {found}: this program knows {wanted}",
        "structure wanted found",
        "A version of a format that this program does not know.",
        "use a newer version of cfs-tags",
    ),
    "unsupported-feature": Entry(
        "UnsupportedError",
        "{structure} needs {features:,}, which this program does not know",
        "structure features",
        "A feature flag, an algorithm or a form that this program does not know.",
        "use a newer version of cfs-tags",
    ),
    # the system
    "name-not-pullable": Entry(
        "CfsTagsError",
        "registry clients do not pull {name:quoted} as it stands: {reason}",
        "name reason",
        "A warning: a tag was made whose name the registry protocol does not know.",
        "another name, such as quay.io/org/app:1, can be pulled",
    ),
    "content-left": Entry(
        "CfsTagsError",
        messages.left,
        "objects bytes",
        "A warning: an import was stopped. What it had stored is in the repository, under no name.",
        "the same import again goes on with it; a collection removes it",
    ),
    "not-recorded": Entry(
        "CfsTagsError",
        "the {action} is done, and is not in the log: {reason}",
        "action reason",
        "A warning: a collection, a check, an import or a migration could not be written down.",
        "nothing is wrong with what was done; make room for the next",
    ),
    "system-failure": Entry(
        "SystemFailure",
        "cannot {operation} {path}: {reason}",
        "operation path reason errno",
        "The system refused an operation: no permission, no space, an I/O error.",
        messages.permission_or_room,
    ),
    "missing-extra": Entry(
        "CfsTagsError",
        "{command} needs the Python package {package}, which is not installed",
        "command package extra",
        "A command needs a package that is not installed.",
        "pip install {package}; where the program is a package of the system, its python3-{package}",
    ),
    "program-missing": Entry(
        "CfsTagsError",
        "{program} is needed {purpose}, and is not installed",
        "program purpose",
        "Another program is needed and is not installed.",
        "install {program}",
    ),
    "program-failed": Entry(
        "CfsTagsError",
        lambda facts: f"{facts['program']} ended with status {facts['exit_status']}: {messages.short(facts['said'], 1000)}",
        "program exit_status said",
        "Another program failed; the message has the end of what it said.",
        "mend what it names, then try again",
    ),
    # registries of others
    "registry-unreachable": Entry(
        "CfsTagsError",
        "{registry} cannot be reached: {reason:short}",
        "registry reason",
        "A registry does not answer: no network, no such host, no trust in its certificate; it was asked several times.",
        "look at its name, the network and its certificate; what was done until then stays, and the next run goes on",
    ),
    "registry-failed": Entry(
        "CfsTagsError",
        "{registry} answers {request:short} with status {answer}: {reason:short}",
        "registry request answer reason",
        "A registry answered with an error, several times where that may help.",
        "try again later; what was done until then stays, and the next run goes on",
    ),
    "registry-refused": Entry(
        "RefusedError",
        "{registry} refuses {request:short} with status {answer}: {reason:short}",
        "registry request answer reason",
        "A registry wants other credentials, or these have no right to do that.",
        "log in with a user who may do that, with podman or Docker",
    ),
    "registry-keeps-tags": Entry(
        "RefusedError",
        "{registry} does not delete tag {tag:quoted}",
        "registry tag",
        "A registry where tags cannot be deleted, or these credentials may not.",
        "have its operator allow that, or delete the tags there",
    ),
    "host-name-taken": Entry(
        "CfsTagsError",
        "{place} has {found} for host {host:quoted}, and not {wanted}, which was published last",
        "host place found wanted",
        "A warning: another machine publishes under the same name, somebody has changed what this one published, or the "
        "state of this one is an old copy.",
        "give each host a name of its own; of machines that are copies, each needs a new machine-id",
    ),
    "use-unknown": Entry(
        "CfsTagsError",
        "not published for host {host:quoted}: {reason:short}",
        "host reason",
        "A warning: something that a host uses cannot be published.",
        "give the deployment a ref: then its manifest is known",
    ),
    "output-failed": Entry(
        "OutputFailed",
        "cannot write to standard output: {reason}",
        "reason",
        "The result could not be written; what was to be done is done.",
        "make room where the output goes",
    ),
    "internal": Entry(
        "CfsTagsError",
        "internal error: {kind}: {text:short}",
        "kind text",
        "A mistake in this program.",
        "this is a mistake in cfs-tags: please report it, with the traceback",
    ),
    "interrupted": Entry(
        "Interrupted",
        "interrupted",
        "",
        "The user or a signal stopped the program.",
        "run it again: an interrupted change is finished or taken back",
    ),
}
