#!/usr/bin/env bash
# Gives etcd the roles and users with which each kind of program may do what it does and nothing else. What is there already stays; of an
# older set it makes this one, first what is new and then what is too much, so that programs which run miss nothing. Needs etcdctl, and its
# settings in the environment (ETCDCTL_ENDPOINTS, _CACERT, _CERT, _KEY; ETCDCTL_USER=root and ETCDCTL_PASSWORD once etcd asks for a login).
#
# Users are fleetcron-worker, fleetcron-api and fleetcron-reader, each with the role of its name. Passwords come from the environment, in
# FLEETCRON_WORKER_PASSWORD and so on: a user whose variable is set gets that password, one that is new and has none can only come with a
# client certificate that has the user's name as its common name (etcd's --client-cert-auth).
set -euo pipefail

# What each may do: r = read, w = read and write, - = nothing. Every key of common/src/keys.rs stands here.
#   worker  the workers: they never see tokens, and change no job
#   api     functions that change something
#   reader  functions that only read, and local-dev check-seed; of a token they note that it was used
rights='
key                     worker  api  reader
/cron/jobs/             r       w    r
/cron/calendars/        r       w    r
/cron/settings          r       w    r
/cron/paused            r       w    r
/cron/base              w       w    r
/cron/killer/           w       w    -
/cron/requests/         w       w    r
/cron/runs/             w       r    r
/cron/workers/          w       r    r
/cron/lock/             w       r    -
/cron/shared/           w       r    -
/cron/fired/            w       w    -
/cron/notify/           w       w    -
/cron/after/            w       w    -
/cron/sessions/         w       -    -
/cron/audit/            w       w    -
/cron/audit-full        w       w    -
/cron/refused           -       w    -
/cron/idempotency/      -       w    -
/cron/tokens/           -       w    r
/cron/tokens_used/      -       w    w
/cron/tokens_changed    -       w    r
'

if [ $# -ne 0 ]; then
    echo "usage: $0, with the settings of etcdctl and the passwords in the environment" >&2
    exit 2
fi
command -v etcdctl >/dev/null || { echo "etcdctl is not in PATH" >&2; exit 1; }
for program in worker api reader; do
    variable=FLEETCRON_${program^^}_PASSWORD
    # etcdctl reads a password up to the first blank.
    if [[ ${!variable-} == *[[:space:]]* ]]; then
        echo "$variable: a password with blanks cannot be given to etcdctl" >&2
        exit 2
    fi
done
ctl() { etcdctl "$@"; }
quietly() { ctl "$@" >/dev/null; }

# The rights that a role has, into the array `has`: the key, or the first key and the one behind the last, to read, write or readwrite.
read_role() {
    local line kind='' span
    has=()
    while IFS= read -r line; do
        case $line in
        'KV Read:') kind=read ;;
        'KV Write:') kind=write ;;
        $'\t'*)
            span=${line#$'\t'}
            if [[ $span == '['* ]]; then
                span=${span#'['} span=${span%% (prefix *} span=${span%)} span=${span/, / }
            fi
            case ${has[$span]-$kind} in "$kind") has[$span]=$kind ;; *) has[$span]=readwrite ;; esac
            ;;
        esac
    done <<<"$1"
}

roles=$(ctl role list)
users=$(ctl user list)
column=0
for program in worker api reader; do
    column=$((column + 1))
    name=fleetcron-$program
    if ! grep -qx "$name" <<<"$roles"; then
        quietly role add "$name"
        echo "$name: role made"
    fi
    declare -A has=() want=()
    read_role "$(ctl role get "$name")"
    while read -r key rest; do
        # shellcheck disable=SC2206 # the columns
        columns=($rest)
        case ${columns[column - 1]-} in r) kind=read ;; w) kind=readwrite ;; *) continue ;; esac
        # All keys below: "0" comes right behind "/".
        case $key in */) span="$key ${key%/}0" ;; *) span=$key ;; esac
        want[$span]=$kind
    done <<<"$rights"
    for span in "${!want[@]}"; do
        if [ "${has[$span]-}" != "${want[$span]}" ]; then
            # shellcheck disable=SC2086 # one word or two
            quietly role grant-permission "$name" "${want[$span]}" $span
            echo "$name: may ${want[$span]} ${span%% *}"
        fi
    done
    # If this is ended here, some role may do more than it should; the next time it is taken away.
    for span in "${!has[@]}"; do
        if [ -z "${want[$span]-}" ]; then
            if [[ $span == *' <open ended>' ]]; then
                quietly role revoke-permission "$name" "${span%% *}" --from-key
            else
                # shellcheck disable=SC2086
                quietly role revoke-permission "$name" $span
            fi
            echo "$name: no longer ${has[$span]} ${span%% *}"
        fi
    done

    variable=FLEETCRON_${program^^}_PASSWORD
    password=${!variable-}
    if ! grep -qx "$name" <<<"$users"; then
        if [ -n "$password" ]; then
            printf '%s\n' "$password" | quietly user add "$name" --interactive=false
            echo "$name: user made, with a password"
        else
            quietly user add "$name" --no-password
            echo "$name: user made, for client certificates"
        fi
    elif [ -n "$password" ]; then
        printf '%s\n' "$password" | quietly user passwd "$name" --interactive=false
        echo "$name: password set"
    fi
    granted=$(ctl user get "$name" | sed -n 's/^Roles://p')
    if [[ " $granted " != *" $name "* ]]; then
        quietly user grant-role "$name" "$name"
        echo "$name: user has its role"
    fi
    unset has want
done

case $(ctl auth status) in
*'Authentication Status: true'*) ;;
*)
    echo "etcd does not ask for users yet. Give every program its user (they come in without as long as etcd does not ask), then:" >&2
    echo "  etcdctl user add root && etcdctl user grant-role root root && etcdctl auth enable" >&2
    ;;
esac
