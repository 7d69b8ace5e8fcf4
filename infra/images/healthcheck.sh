#!/bin/bash
# Says by its exit code whether a program of ours in this container answers 200; bash alone does it, without curl.
#
#   healthcheck.sh VARIABLE PATH      for example: healthcheck.sh CRON_WORKER_LISTEN /readyz
#
# VARIABLE is the setting that holds the program's own address (127.0.0.1:9070): the check follows it.
set -eu

address=${!1:?"is not set"}
path=$2

# Opening fails, and ends this script, where nobody listens. Whoever listens on all addresses does so on loopback, too.
exec 3<>"/dev/tcp/127.0.0.1/${address##*:}"
if [ "$1" = CRON_LISTEN ] && [ -n "${CRON_TLS_CERT:-}" ]; then
    # Bash speaks no TLS. To what is none the program answers with an alert, whose first byte is 21: it accepts and answers. One line, which
    # is one write: what came after the alert would be answered with a reset, and that may overtake it.
    printf 'this is no TLS\n' >&3
    IFS= LC_ALL=C read -r -N 1 -u 3 alert
    [ "$alert" = $'\x15' ]
    exit
fi
printf 'GET %s HTTP/1.0\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n' "$path" >&3
# HTTP/1.1 200 OK
read -r _ status _ <&3
if [ "$status" != 200 ]; then
    echo "$path: $status" >&2
    exit 1
fi
