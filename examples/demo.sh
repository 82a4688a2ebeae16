#!/bin/sh
# cfs-tag on a copy of the recorded host: every step is printed, then run.  Needs cfs-tag on the path; where cfsctl is
# there too, it looks at the repository before and after.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/cfs-tag-demo.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

unset CFS_TAG_REPO CFS_TAG_SYSROOT
CFS_TAG_SYSROOT=$work/host
export CFS_TAG_SYSROOT

say() { printf '\n# %s\n' "$*"; }

step() {
    printf '$'
    for word in "$@"; do
        case $word in
            *[!A-Za-z0-9_@%+=:,./-]*) printf " '%s'" "$word" ;;
            *) printf ' %s' "$word" ;;
        esac
    done
    printf '\n'
    "$@"
}

# cfsctl where .ci/run builds it, or on the path
cfsctl=$(command -v cfsctl || true)
for built in "${CFS_TAGS_CACHE:-${XDG_CACHE_HOME:-${HOME:-/nonexistent}/.cache}/cfs-tag-ci}"/cfsctl-*/bin/cfsctl; do
    if [ -z "$cfsctl" ] && [ -x "$built" ]; then cfsctl=$built; fi
done

peer_agrees() {
    if [ -z "$cfsctl" ]; then
        echo "(cfsctl is not here: its view is left out)"
        return
    fi
    for command in "fsck" "gc --dry-run"; do
        echo "\$ cfsctl --repo composefs $command"
        # shellcheck disable=SC2086  # two words on purpose
        "$cfsctl" --repo "$CFS_TAG_SYSROOT/composefs" $command
    done
}

say "A host: three deployments and two app images in one composefs repository"
mkdir "$CFS_TAG_SYSROOT"
tar -xzf "$here/host.tar.gz" -C "$CFS_TAG_SYSROOT"
peer_agrees

say "What is tagged, and whose is it?"
step cfs-tag list

say "A second name for an app image"
step cfs-tag create quay.io/apps/web:stable quay.io/apps/web:1 --reason "passed its tests"
step cfs-tag show quay.io/apps/web:stable

say "A name that is taken is not moved by accident"
if step cfs-tag create quay.io/apps/web:stable quay.io/apps/db:2; then
    echo "demo: a taken name was moved" >&2
    exit 1
else
    echo "(exit status $?)"
fi

say "It moves when told to, and the move is recorded"
step cfs-tag create quay.io/apps/web:stable quay.io/apps/db:2 --force --reason "moved on purpose"
step cfs-tag list 'quay.io/*' --long
step cfs-tag log quay.io/apps/web:stable

say "Deleted, and brought back"
step cfs-tag delete quay.io/apps/web:stable --reason "not needed"
step cfs-tag restore quay.io/apps/web:stable
step cfs-tag resolve quay.io/apps/web:stable
step cfs-tag log quay.io/apps/web:stable

say "What bootc owns stays bootc's"
bootc_tag=$(cfs-tag list 'localhost/bootc-*' --format '{name}' | head -n 1)
if step cfs-tag delete "$bootc_tag"; then
    echo "demo: a tag of bootc's was deleted" >&2
    exit 1
else
    echo "(exit status $?)"
fi

# the copy is no running system: its /run and what it booted are named, and it has no EFI system partition
booted=$(sed -n 's/^  "booted": "\(.*\)",$/\1/p' "$here/host.json")
system="--run $CFS_TAG_SYSROOT/run --booted $booted --esp none"

say "The deployments of the host: what keeps them now is computed from files beside the repository"
# shellcheck disable=SC2086  # several words on purpose
step cfs-tag deployments $system
# shellcheck disable=SC2086
step cfs-tag lookup rollback $system

say "Each gets refs of its own, with a proof that nothing is lost"
# shellcheck disable=SC2086
step cfs-tag migrate --dry-run $system
# shellcheck disable=SC2086
step cfs-tag migrate $system --reason "refs decide from now on"
# shellcheck disable=SC2086
step cfs-tag deployments $system

if [ -n "$cfsctl" ]; then
    say "Even without bootc's own tags, a collection that knows nothing of deployments keeps them whole"
    rm "$CFS_TAG_SYSROOT"/composefs/streams/refs/oci/localhost%2Fbootc-*
    step "$cfsctl" --repo "$CFS_TAG_SYSROOT/composefs" gc
    # shellcheck disable=SC2086
    step cfs-tag deployments $system
fi

say "A look-up needs no origin file any more"
rm "$CFS_TAG_SYSROOT"/state/deploy/*/*.origin
# shellcheck disable=SC2086
step cfs-tag lookup booted $system

say "The repository is as its other users want it"
peer_agrees
