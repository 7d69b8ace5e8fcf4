#!/bin/sh
# What every image of ours has when it runs: bash, TLS roots, time zones, an init that reaps, the user `fleetcron`, and
# the directories given as arguments, which are that user's.
#
#   install-runtime.sh /var/lib/fleetcron
#
# For Debian 12 or later, as root. Doing it twice is doing it once.
set -eu

# Numbers, not only a name: Kubernetes cannot tell that a name is not root, and a volume keeps its owner's number.
user=fleetcron
number=10001
home=/var/lib/fleetcron

fail() {
    echo "install-runtime.sh: $*" >&2
    exit 1
}

[ "$(id -u)" -eq 0 ] || fail "it installs packages: run it as root"
command -v apt-get >/dev/null || fail "apt-get is not here: the base must be Debian"
[ "$#" -gt 0 ] || fail "name the directories that the user shall own"
for directory in "$@"; do
    case $directory in
    /*) ;;
    *) fail "$directory is no absolute path" ;;
    esac
done

# bash runs the jobs; tini is the init: jobs leave orphans, and whoever is process 1 must reap them.
export DEBIAN_FRONTEND=noninteractive
apt-get update
apt-get install --yes --no-install-recommends bash ca-certificates tini tzdata
apt-get clean
rm -rf /var/lib/apt/lists/*

# Not --system: system numbers end at 999, and 10001 meets nobody on the host.
getent group "$user" >/dev/null || groupadd --gid "$number" "$user"
getent passwd "$user" >/dev/null ||
    useradd --uid "$number" --gid "$number" --home-dir "$home" --no-create-home --shell /bin/bash "$user"
[ "$(id -u "$user"):$(id -g "$user")" = "$number:$number" ] ||
    fail "there is already a user $user with other numbers than $number:$number"

# A named volume takes contents and owner of the directory that it is put over, when it is made.
for directory in "$@"; do
    mkdir -p "$directory"
    chown "$number:$number" "$directory"
    chmod 0750 "$directory"
done
