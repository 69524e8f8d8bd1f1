#!/usr/bin/env bash
# usage: bash scripts/setup_upstream.sh [--from FOLDER]
#
# Make the patched checkout of HRNet/DEKR in DEKR/:
#   bash scripts/setup_upstream.sh                  clones it (needs git and the network)
#   bash scripts/setup_upstream.sh --from FOLDER    takes an existing clone instead
# Running it again on a finished checkout changes nothing.
set -euo pipefail
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
help_if_asked "$@"
commit=7a303139e92bdf3eab8d899415ccac37374285a4
source=https://github.com/HRNet/DEKR.git
target=$root/DEKR
patch=$root/DEKR.patch

case ${1:-} in
"") ;;
--from)
    [[ -n ${2:-} ]] || fail 2 "--from needs the folder of a clone of HRNet/DEKR; see --help"
    [[ -d $2 ]] || fail 1 "$2: no such folder"
    source=$(cd "$2" && pwd)
    ;;
*) fail 2 "unknown word $1; usage: bash scripts/setup_upstream.sh [--from FOLDER]" ;;
esac
command -v git >/dev/null || fail 1 "git: not found; install it (Debian: apt install git)"

if [[ ! -e $target ]]; then
    partial=$target.partial
    rm -rf "$partial"
    git clone --quiet -- "$source" "$partial" ||
        fail 1 "$source: could not be cloned; without network, copy a clone here and name it with --from"
    git -C "$partial" cat-file -e "$commit^{commit}" 2>/dev/null ||
        fail 1 "$source: does not hold commit ${commit:0:8}; clone HRNet/DEKR whole, without --depth"
    git -C "$partial" -c advice.detachedHead=false checkout --quiet "$commit"
    mv "$partial" "$target"
fi
[[ -d $target/.git ]] || fail 1 "$target: is not a git checkout; move it away and run this again"
found=$(git -C "$target" rev-parse HEAD)
[[ $found == "$commit" ]] ||
    fail 1 "$target: is at ${found:0:8}, the patch is for ${commit:0:8}; run 'git checkout $commit' there"

if git -C "$target" apply --unidiff-zero --reverse --check "$patch" 2>/dev/null; then
    echo "DEKR/ is at ${commit:0:8} and patched already"
elif git -C "$target" apply --unidiff-zero "$patch" 2>/dev/null; then
    echo "DEKR/ is at ${commit:0:8}, and patched now"
else
    fail 1 "$target: has changes that conflict with the patch; undo them ('git checkout .' there) and run this again"
fi
