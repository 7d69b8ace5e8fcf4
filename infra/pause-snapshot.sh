#!/usr/bin/env bash
# Makes of a snapshot of etcd another one, the same but for the fleet being paused: what is put back from it runs nothing before somebody
# has looked. Needs etcd, etcdctl and etcdutl of one version. Usage: pause-snapshot.sh SNAPSHOT OUT
set -euo pipefail
if [ $# -ne 2 ] || [ ! -f "$1" ] || [ -e "$2" ]; then
    echo "usage: $0 SNAPSHOT OUT, where SNAPSHOT is a file and OUT is not there yet" >&2
    exit 2
fi
for program in etcd etcdctl etcdutl; do
    command -v "$program" >/dev/null || { echo "$program is not in PATH" >&2; exit 1; }
done
snapshot=$(realpath "$1") out=$(realpath "$2")
work=$(mktemp -d)
cd "$work" # the sockets below are files in it
etcd=
cleanup() {
    [ -z "$etcd" ] || kill "$etcd" 2>/dev/null || true
    wait 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT

etcdutl snapshot restore "$snapshot" --data-dir data >restore.log 2>&1 || { cat restore.log >&2; exit 1; }
# A socket in a directory of our own: nobody else can reach this member, whatever the snapshot says about users.
client=unix://localhost:1
etcd --data-dir data --listen-client-urls $client --advertise-client-urls $client --listen-peer-urls unix://localhost:2 \
    >etcd.log 2>&1 &
etcd=$!
# Where the snapshot's etcd asks for a login, etcdctl takes it from ETCDCTL_USER ("user:password").
ctl() { etcdctl --endpoints "$client" "$@"; }
tries=0
until ctl --command-timeout 1s endpoint status >/dev/null 2>ctl.log; do
    tries=$((tries + 1))
    if [ $tries -gt 30 ] || ! kill -0 "$etcd" 2>/dev/null; then
        cat etcd.log ctl.log >&2
        exit 1
    fi
    sleep 0.2
done
now=$(date +%s%3N)
ctl put /cron/paused "{\"v\":1,\"since\":$now,\"by\":\"pause-snapshot.sh\",\"reason\":\"etcd is restored from a snapshot\"}" >/dev/null
ctl snapshot save paused >save.log 2>&1 || { cat save.log >&2; exit 1; }
mv paused "$out"
echo "$out is $snapshot with the fleet paused"
