#!/bin/sh
# Builds programs of the workspace in the current directory, as Cargo.lock says, and puts them into a directory.
#
#   build.sh PROFILE DIRECTORY PROGRAM...        for example: build.sh release /out worker
#
# PROFILE is one of Cargo's: release, or dev, which is quick. A program's package has its name. CARGO_TARGET_DIR is honoured.
set -eu

fail() {
    echo "build.sh: $*" >&2
    exit 1
}

[ "$#" -ge 3 ] || fail "say which profile, which directory and which programs"
profile=$1
out=$2
shift 2
[ -f Cargo.lock ] || fail "there is no Cargo.lock in $(pwd): run it in the workspace's root"
command -v cargo >/dev/null || fail "cargo is not on the PATH: infra/images/install-toolchain.sh gets it"

# Cargo calls the directory of the profile `dev` otherwise. What is delivered is the same bytes wherever it is built; for `dev` other flags
# would only build again what is there.
case $profile in
dev)
    directory=debug
    how=env
    ;;
*)
    directory=$profile
    how=infra/images/reproducible.sh
    ;;
esac

mkdir -p "$out"
for program in "$@"; do
    # One at a time: built together they would share their features, and the worker would carry what only local-dev needs.
    "$how" cargo build --locked --profile "$profile" --package "$program" --bin "$program"
    install -m 0755 "${CARGO_TARGET_DIR:-target}/$directory/$program" "$out/$program"
done
