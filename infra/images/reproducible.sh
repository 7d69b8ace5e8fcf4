#!/bin/sh
# Runs a command that builds so that the same sources give the same bytes, wherever and whenever it is done.
#
#   reproducible.sh COMMAND...      for example: infra/images/reproducible.sh cargo build --locked --release --package worker
#
# In the workspace's root. What stays an input: the compilers (rust-toolchain.toml names Rust's; C's is the machine's, or the zig of
# cargo-lambda) and the C library. RUSTFLAGS and CFLAGS of the environment are not taken over.
set -eu

fail() {
    echo "reproducible.sh: $*" >&2
    exit 1
}

[ "$#" -gt 0 ] || fail "say which command"
[ -f Cargo.lock ] || fail "there is no Cargo.lock in $(pwd): run it in the workspace's root"
command -v cargo >/dev/null || fail "cargo is not on the PATH: infra/images/install-toolchain.sh gets it"

# The dependencies must lie there before their directories can be named.
cargo fetch --locked --quiet

root=$(pwd -P)
home=${CARGO_HOME:-$HOME/.cargo}
sysroot=$(rustc --print sysroot)
commit=$(rustc --version --verbose | sed -n 's/^commit-hash: //p')
target=${CARGO_TARGET_DIR:-target}
case $target in
/*) ;;
*) target=$root/$target ;;
esac

# Directories, and what they are called in programs, whose panics name source files. The last one that fits counts.
names() {
    echo "$home=/cargo"
    # Called after the address of the registry: a mirror has another one.
    for registry in "$home"/registry/src/*; do
        echo "$registry=/cargo/registry/src"
    done
    echo "$sysroot=/rust"
    # As the compiler's makers call it. Where the component rust-src is installed the compiler would say its place.
    echo "$sysroot/lib/rustlib/src/rust=/rustc/$commit"
    echo "$root=/fleetcron"
    echo "$target=/fleetcron/target"
}

RUSTFLAGS=
CFLAGS=
for name in $(names | sed 's/ /%20/g'); do
    case $name in
    # Flags are parted by spaces, and there is no way to write one that has some.
    *%20*) fail "there is a space in the name of a directory: $name" ;;
    esac
    RUSTFLAGS="$RUSTFLAGS --remap-path-prefix=$name"
    CFLAGS="$CFLAGS -ffile-prefix-map=$name"
done
# It would be taken in place of RUSTFLAGS.
unset CARGO_ENCODED_RUSTFLAGS
# For what writes a time into its output, __DATE__ of C among it: the oldest that a zip can say.
SOURCE_DATE_EPOCH=315532800
CARGO_INCREMENTAL=0
export RUSTFLAGS CFLAGS SOURCE_DATE_EPOCH CARGO_INCREMENTAL
exec "$@"
