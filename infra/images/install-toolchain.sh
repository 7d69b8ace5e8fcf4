#!/bin/sh
# The compiler that rust-toolchain.toml names, and what Fleetcron's build needs beside it (a C compiler: SQLite, TLS).
#
#   install-toolchain.sh DIRECTORY-OF-rust-toolchain.toml
#
# For Debian 12 or later, as root. RUSTUP_HOME and CARGO_HOME say where to (else root's home). Doing it twice is doing it once.
set -eu

# The installer is pinned by its checksum; it checks the tool chain that it fetches by itself.
version=1.28.2

fail() {
    echo "install-toolchain.sh: $*" >&2
    exit 1
}

[ "$(id -u)" -eq 0 ] || fail "it installs packages: run it as root"
command -v apt-get >/dev/null || fail "apt-get is not here: the base must be Debian"
[ "$#" -eq 1 ] || fail "name the directory of rust-toolchain.toml"
[ -f "$1/rust-toolchain.toml" ] || fail "there is no $1/rust-toolchain.toml"

export DEBIAN_FRONTEND=noninteractive
apt-get update
apt-get install --yes --no-install-recommends ca-certificates curl gcc libc6-dev
apt-get clean
rm -rf /var/lib/apt/lists/*

bin=${CARGO_HOME:-$HOME/.cargo}/bin
if [ ! -x "$bin/rustup" ]; then
    case $(dpkg --print-architecture) in
    amd64)
        machine=x86_64
        checksum=20a06e644b0d9bd2fbdbfd52d42540bdde820ea7df86e92e533c073da0cdd43c
        ;;
    arm64)
        machine=aarch64
        checksum=e3853c5a252fca15252d07cb23a1bdd9377a8c6f3efa01531109281ae47f841c
        ;;
    *) fail "no installer is pinned for $(dpkg --print-architecture): add it, with its checksum" ;;
    esac
    root=${RUSTUP_UPDATE_ROOT:-https://static.rust-lang.org/rustup}
    directory=$(mktemp -d)
    trap 'rm -rf "$directory"' EXIT
    curl --proto '=https' --tlsv1.2 --fail --silent --show-error --location --retry 3 --output "$directory/rustup-init" \
        "$root/archive/$version/$machine-unknown-linux-gnu/rustup-init"
    echo "$checksum  $directory/rustup-init" | sha256sum --check --quiet - ||
        fail "rustup-init $version is not the file that is pinned here"
    chmod 0755 "$directory/rustup-init"
    "$directory/rustup-init" -y --no-modify-path --profile minimal --default-toolchain none
fi

# Without a name rustup installs what the file says, components included.
cd "$1"
"$bin/rustup" toolchain install
"$bin/cargo" --version
