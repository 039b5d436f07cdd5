#!/bin/sh
# Sends one trace, with a fresh event id and the present time, and prints the answer.
#
#   CLIENT_ID=my-app PAK=pano_pak_... sh examples/first-trace.sh [TOOL]
#
# LOGI_URL is the server (default http://127.0.0.1:7420). The app and its PAK come from
# `logi panopticon enable CLIENT_ID`. An app in HMAC mode needs signed requests: see clients/python_rp.py.
# Exit status: 0 accepted, 1 refused or not reached, 2 wrong usage.
set -eu

usage_error() {
    echo "first-trace.sh: $1" >&2
    echo "usage: CLIENT_ID=my-app PAK=pano_pak_... [LOGI_URL=http://127.0.0.1:7420] sh first-trace.sh [TOOL]" >&2
    exit 2
}

LOGI_URL=${LOGI_URL:-http://127.0.0.1:7420}
tool=${1:-hello}
[ $# -le 1 ] || usage_error "one tool name at most"
case $tool in -*) usage_error "unknown option $tool" ;; esac
[ -n "${CLIENT_ID:-}" ] || usage_error "CLIENT_ID is not set: the app's client id"
[ -n "${PAK:-}" ] || usage_error "PAK is not set: 'logi panopticon enable $CLIENT_ID' prints it once"
case $PAK in
pano_pak_*[!A-Za-z0-9_]* | pano_pak_) usage_error "PAK has characters that no PAK has: copy it whole" ;;
pano_pak_*) ;;
*) usage_error "PAK does not begin with pano_pak_" ;;
esac
case $LOGI_URL in http://* | https://*) ;; *) usage_error "LOGI_URL is not an http or https URL: $LOGI_URL" ;; esac
case $CLIENT_ID$tool in *[\"\\]*) usage_error "quotes and backslashes in names are beyond this script" ;; esac
command -v curl >/dev/null || usage_error "curl is not installed"

# A random UUID (version 4) from 16 random bytes.
event_id=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n' |
    sed 's/^\(.\{8\}\)\(.\{4\}\).\(.\{3\}\).\(.\{3\}\)\(.\{12\}\)$/\1-\2-4\3-a\4-\5/')
started_at=$(date -u +%Y-%m-%dT%H:%M:%SZ)
trace="{\"event_id\":\"$event_id\",\"client_id\":\"$CLIENT_ID\",\"tool\":\"$tool\",\"status\":\"ok\""
trace="$trace,\"started_at\":\"$started_at\",\"duration_ms\":12,\"user_sub\":\"first-user\"}"

# The PAK goes in by standard input, so that no process list shows it.
answer=$(printf 'header = "Authorization: Bearer %s"\n' "$PAK" |
    curl --config - --silent --show-error --max-time 10 --write-out '\n%{http_code}' \
        --header 'Content-Type: application/json' --data-binary "$trace" \
        "${LOGI_URL%/}/panopticon/trace") || {
    echo "first-trace.sh: no answer from $LOGI_URL: is the server running? (panopticon serve)" >&2
    exit 1
}
code=${answer##*
}
echo "sent      $trace"
echo "answered  $code ${answer%
*}"
case $code in 200 | 202) ;; *) exit 1 ;; esac
