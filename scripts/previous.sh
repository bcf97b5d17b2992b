#!/usr/bin/env bash
# Builds the programs of an earlier revision, for the rolling upgrade of the cluster test (docs/upgrading.md). It takes as long as any
# release build, once for each revision; what is there already is not built again.
#
#   scripts/previous.sh              of the last release: the revision that protocol/released.txt names
#   scripts/previous.sh REV          of another one: a commit, a tag, a branch
#   scripts/previous.sh --debug REV  with the profile `dev`: quicker to build, slower to run
#
# Ends with the folder of the programs as the only line on standard output:
#   .venv/bin/python tests/cluster/run.py --previous "$(scripts/previous.sh)"
set -euo pipefail
cd "$(dirname "$0")/.."

profile=release
if [ "${1:-}" = --debug ]; then
    profile=debug
    shift
fi
case "${1:-}" in -*)
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
rev="${1:-$(sed -n 's/^revision //p' protocol/released.txt)}"
if ! commit=$(git rev-parse --quiet --verify "$rev^{commit}"); then
    echo "$rev is no revision of this repository (in a clone without its history: git fetch --unshallow)" >&2
    exit 1
fi

# One build directory for all revisions, because most of what is compiled is the same. Beside it the source, which cargo has to find at
# the same place.
below="$PWD/target/previous"
programs="$below/${commit:0:12}-$profile"
source="$below/source"
names=(millrace-gateway millrace-logic millrace-loadgen)

built() {
    local name
    for name in "${names[@]}"; do [ -x "$programs/$name" ] || return 1; done
}

if ! built; then
    mkdir -p "$below"
    # Two at once would build in one directory.
    exec 9>"$below/lock"
    flock 9
fi
if ! built; then
    echo "building $(git log -1 --format='%h (%cs) %s' "$commit")" >&2
    git worktree prune
    if [ -e "$source/.git" ]; then
        git -C "$source" checkout --quiet --force --detach "$commit"
    else
        git worktree add --quiet --force --detach "$source" "$commit"
    fi
    flags=()
    [ "$profile" = debug ] || flags+=(--release)
    (cd "$source" && CARGO_TARGET_DIR="$below/build" cargo build --locked "${flags[@]}" --bins -p millrace-gateway -p millrace-logic -p millrace-loadgen >&2)
    mkdir -p "$programs.new"
    for name in "${names[@]}"; do cp "$below/build/$profile/$name" "$programs.new/"; done
    rm -rf "$programs"
    mv "$programs.new" "$programs"
fi
echo "$programs"
