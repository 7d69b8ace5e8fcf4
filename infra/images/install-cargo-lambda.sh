#!/bin/sh
# cargo-lambda, for the functions under `cargo lambda watch`: the Python package that the tests use too.
#
#   install-cargo-lambda.sh REQUIREMENTS-FILE DIRECTORY
#
# For Debian 12 or later, as root. The program is DIRECTORY/bin/cargo-lambda. Doing it twice is doing it once.
set -eu

fail() {
    echo "install-cargo-lambda.sh: $*" >&2
    exit 1
}

[ "$(id -u)" -eq 0 ] || fail "it installs packages: run it as root"
command -v apt-get >/dev/null || fail "apt-get is not here: the base must be Debian"
[ "$#" -eq 2 ] || fail "name the file of requirements and the directory to install into"
[ -f "$1" ] || fail "there is no $1"

export DEBIAN_FRONTEND=noninteractive
apt-get update
apt-get install --yes --no-install-recommends ca-certificates python3 python3-venv
apt-get clean
rm -rf /var/lib/apt/lists/*

[ -x "$2/bin/pip" ] || python3 -m venv "$2"
# The package also names the zig compiler, 100 MB for building for other machines: `watch` builds for this one.
"$2/bin/pip" install --quiet --no-cache-dir --no-deps --require-hashes --requirement "$1"
"$2/bin/cargo-lambda" lambda --version
