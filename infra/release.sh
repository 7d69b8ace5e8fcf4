#!/bin/sh
# Builds what a release consists of: the same sources give the same bytes, on any machine with the same compilers.
#
#   infra/release.sh DIRECTORY [WHAT...]      for example: infra/release.sh /tmp/fleetcron-0.1.0
#
# WHAT is `worker` (for the machine's own kind), `functions` (the zips for Lambda, arm64), or the name of one function; both of the first
# when nothing is said. Into DIRECTORY go `worker`, `functions/NAME.zip` and `SHA256SUMS`; the zips are also where infra/template.yaml looks
# for them. Needs cargo; for functions also cargo-lambda, zig, Rust's library for arm64 and python3. Flags: infra/images/reproducible.sh.
set -eu

fail() {
    echo "release.sh: $*" >&2
    exit 1
}

[ "$#" -ge 1 ] || fail "say into which directory"
[ -f Cargo.lock ] || fail "there is no Cargo.lock in $(pwd): run it in the workspace's root"
out=$1
shift
[ "$#" -gt 0 ] || set -- worker functions

mkdir -p "$out"
# Nothing of an earlier release.
rm -rf "$out/worker" "$out/functions" "$out/SHA256SUMS"
zips=${CARGO_TARGET_DIR:-target}/lambda
rm -rf "$zips"

for what in "$@"; do
    case $what in
    worker)
        infra/images/build.sh release "$out" worker
        continue
        ;;
    functions) set -- ;;
    *) set -- "--bin=$what" ;;
    esac
    infra/images/reproducible.sh cargo lambda build --profile function --arm64 --package=functions --output-format zip --locked "$@"
    # cargo-lambda writes the time of the build into them.
    python3 infra/plain-zips.py "$zips"/*/bootstrap.zip
    mkdir -p "$out/functions"
    for zip in "$zips"/*/bootstrap.zip; do
        name=$(basename "$(dirname "$zip")")
        install -m 0644 "$zip" "$out/functions/$name.zip"
    done
done

cd "$out"
find worker functions -type f 2>/dev/null | LC_ALL=C sort | xargs sha256sum >SHA256SUMS
cat SHA256SUMS
