#!/bin/bash
# Tries a deployment: saves a harmless job, waits for the record of a run with its output, and deletes the job.
#
#   infra/smoke.sh [--timeout SECONDS] URL
#
# URL is where the API is. The token that it is called with is taken from FLEETCRON_TOKEN: one with the role editor, whose prefix, if it
# has one, "smoke-" begins with. Without that variable calls have no token, as a local-dev that is open wants it.
#
# Exit code: 0 = a job was saved, run and read back; 1 = the deployment does not do that, and the last line says what is
# wrong; 2 = this script was called wrongly, or misses a tool. The job is deleted in every case, also on Ctrl-C.
set -uo pipefail

wrong_call() {
    echo "smoke: $*" >&2
    echo "usage: infra/smoke.sh [--timeout SECONDS] URL" >&2
    exit 2
}

timeout=60
url=
while [ "$#" -gt 0 ]; do
    case $1 in
    --timeout)
        [ "$#" -ge 2 ] || wrong_call "$1 wants a value"
        timeout=$2
        shift 2
        ;;
    -*) wrong_call "$1 is no option" ;;
    *)
        [ -z "$url" ] || wrong_call "one address, not two"
        url=${1%/}
        shift
        ;;
    esac
done
[[ $url == http://* || $url == https://* ]] || wrong_call "${url:-nothing} is not like https://example.execute-api.eu-central-1.amazonaws.com"
[[ $timeout =~ ^[1-9][0-9]{0,4}$ ]] || wrong_call "--timeout $timeout is no number of seconds"
command -v curl >/dev/null || wrong_call "curl is not here"

token=${FLEETCRON_TOKEN:-}
unset FLEETCRON_TOKEN
[[ -z $token || $token =~ ^[A-Za-z0-9._~+/=-]+$ ]] || wrong_call "FLEETCRON_TOKEN is no token"
if [[ -z $token && $url == https://*.execute-api.*.amazonaws.com* ]]; then
    wrong_call "calls to $url need a token: set FLEETCRON_TOKEN"
fi

work=$(mktemp -d) || wrong_call "no temporary directory"
name="smoke-$(date +%s)-$$-$RANDOM"
said="fleetcron $name"
saved=

# The name is in the output, so that nobody else's record passes for ours.
job='{"name":"'$name'","command":"echo '$said'","cronExpr":"* * * * * * *"}'

# The header with the token goes through a file: what stands on a command line is seen by everybody on the machine.
authorization=()
if [ -n "$token" ]; then
    (
        umask 077
        echo "header = \"Authorization: Bearer $token\"" >"$work/authorization"
    )
    authorization=(--config "$work/authorization")
fi

# Calls the API: the answer goes to $work/answer, its status to $status (000: there was none, $curl_code is why).
call() {
    local path=$1
    shift
    : >"$work/answer"
    status=$(curl --silent --show-error --max-time 20 --output "$work/answer" --write-out '%{http_code}' \
        ${authorization[@]+"${authorization[@]}"} "$@" "$url$path" 2>"$work/trouble")
    curl_code=$?
}

answer() { head -c 600 "$work/answer"; }

fail() {
    echo "smoke: FAILED: $*" >&2
    exit 1
}

# What it means that a call was not answered with 200.
explain() {
    case $status in
    000) echo "$url does not answer: $(cat "$work/trouble")" ;;
    401) echo "401: the token in FLEETCRON_TOKEN is not known, not any more, or not given: $(answer)" ;;
    403) echo "403: the token may not do this (it needs the role editor, and names that begin with smoke-): $(answer)" ;;
    404) echo "404: this is not Fleetcron's API, or the address has a path too much: $(answer)" ;;
    429) echo "429: the gateway throttles, see ThrottlingRate: $(answer)" ;;
    500 | 502 | 504) echo "$status: the function failed or took too long, its log says more: $(answer)" ;;
    503) echo "503: a store does not answer (network, security group, secret), or the function is throttled: $(answer)" ;;
    *) echo "$status: $(answer)" ;;
    esac
}

clean_up() {
    local code=$?
    trap - EXIT INT TERM
    if [ -n "$saved" ]; then
        call /job/delete --data "name=$name"
        if [ "$status" != 200 ]; then
            echo "smoke: the job $name could not be deleted, delete it by hand: $(explain)" >&2
            [ "$code" -ne 0 ] || code=1
        fi
    fi
    rm -rf "$work"
    exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

started=$SECONDS
# From here on the job may be there, also when the answer is lost.
saved=yes
call /job/save --header 'content-type: application/json' --data "$job"
if [ "$status" != 200 ]; then
    case $status in
    401 | 403 | 404 | 429) saved= ;; # refused before anything was done
    # No connection was made (name, proxy, port, TLS). After any other trouble the call may have arrived.
    000) case $curl_code in 5 | 6 | 7 | 35 | 60) saved= ;; esac ;;
    esac
    fail "saving: $(explain)"
fi
grep -q '"errno":0' "$work/answer" || fail "saving: this is no answer of Fleetcron: $(answer)"
echo "smoke: saved $name"

while :; do
    call "/job/log?limit=1&name=$name&status=succeeded"
    [ "$status" = 200 ] || fail "reading the log: $(explain)"
    # The answer to a job without a run is an empty list.
    if grep -q "\"output\":\"$said" "$work/answer"; then
        break
    fi
    if [ $((SECONDS - started)) -ge "$timeout" ]; then
        call /worker/list
        fail "no run of $name was recorded in $timeout s; the workers: $([ "$status" = 200 ] && answer || explain)"
    fi
    sleep 1
done
echo "smoke: it ran after $((SECONDS - started)) s and its record has the output"

call /job/delete --data "name=$name"
[ "$status" = 200 ] || fail "deleting: $(explain)"
grep -q "\"name\":\"$name\"" "$work/answer" || fail "deleting: the answer is not the job: $(answer)"
saved=
echo "smoke: deleted it: the deployment works"
