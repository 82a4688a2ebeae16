#!/bin/sh
# cfs-tag on a copy of the recorded host: every step is printed, then run.  Needs cfs-tag on the path; where cfsctl is
# there too, it collects as it does on a host.  On a terminal of 80x24 it fits two screens.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/cfs-tag-demo.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

unset CFS_TAG_REPO CFS_TAG_SYSROOT
tar -xzf "$here/host.tar.gz" -C "$work"
cd "$work"
export CFS_TAG_SYSROOT="$work"
web=quay.io/apps/web

# the copy is no running system: its /run and what it booted are named, and it has no EFI system partition
booted=$(sed -n 's/^  "booted": "\(.\{12\}\).*",$/\1/p' "$here/host.json")
HOST="--run run --booted $booted --esp none"

# cfsctl where .ci/run builds it, or on the path
cfsctl=$(command -v cfsctl || true)
for built in "${CFS_TAGS_CACHE:-${XDG_CACHE_HOME:-${HOME:-/nonexistent}/.cache}/cfs-tag-ci}"/cfsctl-*/bin/cfsctl; do
    if [ -z "$cfsctl" ] && [ -x "$built" ]; then cfsctl=$built; fi
done

say() { printf '# %s\n' "$*"; }

# shellcheck disable=SC2016  # $HOST is shown as it is typed
step() {
    printf '$ %s\n' "$1"
    eval "$1"
}

say "A host: HOST='$HOST'"
say "Each deployment gets refs of its own, with a proof that nothing is lost"
step 'cfs-tag migrate $HOST'
if [ -n "$cfsctl" ]; then
    say "Now any collector keeps them, even without bootc's tags and origin files"
    step 'rm composefs/streams/refs/oci/localhost* state/deploy/*/*.origin'
    printf '$ cfsctl --repo composefs gc\n'
    "$cfsctl" --repo composefs gc
fi
say "What was this deployment made from? No network, no origin file"
step "cfs-tag resolve @deployment/$booted"
say "Names of app images are compared before they move, and can be taken back"
step "cfs-tag create $web:stable $web:1"
if step "cfs-tag create $web:stable quay.io/apps/db:2"; then
    echo "demo: a taken name was moved" >&2
    exit 1
fi
step "cfs-tag create $web:stable quay.io/apps/db:2 --force"
step "cfs-tag restore $web:stable@{1}"
say "Why is it still there?"
step "cfs-tag why $web:1"
