#!/usr/bin/env python3
"""Make examples/airline-traces.ndjson.gz from a tau-bench trajectory file.

    make_airline_traces.py SOURCE.json[.gz] OUT.ndjson.gz   make the file, check it, print its figures
    make_airline_traces.py --check FILE.ndjson[.gz]         check a file and print its figures

What: the tool calls of 200 real conversations of an airline's customer service agent (gpt-4o), from
https://github.com/sierra-research/tau-bench, historical_trajectories/gpt-4o-airline.json (MIT), as one
trace a line, in the form that `POST /panopticon/trace` takes. Only facts about the calls are kept: which
tool, for which user, with which outcome, in which order. No message text, arguments or results.

Why: a demo and a test should run on calls that a real agent made. Two things are added to them:

* A clock, since the source has none: conversations spread over two days with business-hour density, calls
  seconds to tens of seconds apart (more where the user spoke in between), durations that suit each tool.
* Two incidents, so that there is something to detect, marked by the attribute `injected`: a runaway loop and
  a burst of denials from one address. Both lie in the last minute: replayed with the newest trace set to
  the present, none of their calls is old enough to count as late, however fast the rest is sent.

The same source gives the same bytes every time (the same lines on any machine; the compressed bytes may vary
with the version of zlib). Needs Python 3.9 or newer, and nothing but its standard library.
"""

import argparse
import collections
import datetime as dt
import gzip
import hashlib
import ipaddress
import json
import random
import re
import sys
import uuid

CLIENT_ID = "airline-agent"
AGENT = "gpt-4o"
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://github.com/sierra-research/tau-bench")

END = dt.datetime(2026, 6, 30, 18, 0, 0, tzinfo=dt.timezone.utc)
START = END - dt.timedelta(hours=48)
SEED = 27  # chosen so that other users' conversations go on during the incidents
# Conversations begun in each hour of a UTC day, relative to one another; a Sunday has half of it.
HOUR_WEIGHTS = [0.2, 0.2, 0.2, 0.2, 0.3, 0.6, 1.5, 3, 5, 7, 7, 7, 6, 7, 7, 7, 6, 5, 3, 2, 1.5, 1, 0.6, 0.4]

# tool: (scope it uses or None, median duration in ms)
TOOLS = {
    "book_reservation": ("reservations:write payments:write", 640),
    "calculate": (None, 2),
    "cancel_reservation": ("reservations:write payments:write", 460),
    "get_reservation_details": ("reservations:read", 85),
    "get_user_details": ("profile:read", 60),
    "list_all_airports": ("flights:read", 40),
    "search_direct_flight": ("flights:read", 240),
    "search_onestop_flight": ("flights:read", 520),
    "send_certificate": ("payments:write", 310),
    "think": (None, 1),
    "transfer_to_human_agents": ("handoff:write", 150),
    "update_reservation_baggages": ("reservations:write payments:write", 380),
    "update_reservation_flights": ("reservations:write payments:write", 560),
    "update_reservation_passengers": ("reservations:write", 330),
}
DURATION_SIGMA = 0.45

# The first pattern found in the tool's message names the error.
ERROR_CODES = [
    (r"flight \S+ not available", "flight_unavailable"),
    (r"not enough seats", "seats_unavailable"),
    (r"payment amount does not add up", "payment_mismatch"),
    (r"balance is not enough|not enough balance", "insufficient_balance"),
    (r"certificate cannot be used", "certificate_not_accepted"),
    (r"payment method .*not found", "payment_method_not_found"),
]

LOOP_TOOL, LOOP_CALLS = "search_direct_flight", 140
LOOP_END = END - dt.timedelta(seconds=7.5)
BURST_CALLS, BURST_USERS, BURST_IP = 12, 4, "198.51.100.23"
BURST_START, BURST_GAP_MS = END - dt.timedelta(seconds=6), 500
QUIET = dt.timedelta(hours=1)  # the users of the incidents do nothing else in the last hour


# ---------------------------------------------------------------- from conversations to traces


def rng(*about):
    """A generator of its own for each thing, so that one change does not move everything else."""
    return random.Random("/".join(map(str, (SEED, *about))))


def pseudonym(user_id):
    return "user_" + hashlib.sha256(user_id.encode()).hexdigest()[:8]


def address_of(user_sub):
    """A stable address from the documentation ranges; one user in five has none, one in five uses IPv6."""
    random_ = rng("address", user_sub)
    kind = random_.randrange(5)
    if kind == 0:
        return None
    if kind == 1:
        return f"2001:db8:{random_.randrange(1, 0xFFFF):x}::{random_.randrange(1, 0xFFFF):x}"
    return f"203.0.113.{random_.randrange(1, 255)}"


def error_code(message):
    for pattern, code in ERROR_CODES:
        if re.search(pattern, message):
            return code
    raise SystemExit(f"no error code for the tool's message {message!r}: add it to ERROR_CODES")


def duration_ms(random_, tool):
    return max(1, round(TOOLS[tool][1] * random_.lognormvariate(0, DURATION_SIGMA)))


def trace(name, user_sub, tool, started_at, duration, *, status="ok", code=None, session=None, ip=None, attributes):
    fields = {
        "event_id": str(uuid.uuid5(NAMESPACE, name)),
        "client_id": CLIENT_ID,
        "user_sub": user_sub,
        "tool": tool,
        "scope_used": TOOLS[tool][0],
        "status": status,
        "started_at": started_at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "duration_ms": duration,
        "session_id": session,
        "agent": AGENT,
        "source_ip": ip,
        "error_code": code,
        "attributes": attributes,
    }
    return {key: value for key, value in fields.items() if value is not None}


def calls_of(conversation):
    """(tool, error message or None, how often the user spoke since the call before) for each tool call, in order."""
    answers = {m["tool_call_id"]: m["content"] for m in conversation["traj"] if m["role"] == "tool"}
    calls, user_turns = [], 0
    for message in conversation["traj"]:
        user_turns += message["role"] == "user"
        for call in message.get("tool_calls") or []:
            answer = answers[call["id"]]
            calls.append((call["function"]["name"], answer if answer.startswith("Error") else None, user_turns))
            user_turns = 0
    return calls


def time_calls(session, calls):
    """Gives each call its offset from the conversation's start and its duration: a turn of the model takes
    some seconds, a turn of the user some more, and a call begins once the one before has ended."""
    random_, offset, timed = rng("pace", session), dt.timedelta(), []
    for tool, error, user_turns in calls:
        pause_s = max(2.2, random_.lognormvariate(1.4, 0.4))
        pause_s += sum(min(60, random_.lognormvariate(2.5, 0.5)) for _ in range(user_turns))
        offset += dt.timedelta(milliseconds=round(pause_s * 1000))
        duration = duration_ms(random_, tool)
        timed.append((tool, error, offset, duration))
        offset += dt.timedelta(milliseconds=duration)
    return timed, offset


def start_of(session, attempt):
    """A moment between START and END, by the density of business hours."""
    random_ = rng("start", session, attempt)
    hours = [START + dt.timedelta(hours=h) for h in range(48)]
    weights = [HOUR_WEIGHTS[h.hour] * (0.5 if h.weekday() == 6 else 1) for h in hours]
    return random_.choices(hours, weights)[0] + dt.timedelta(milliseconds=random_.randrange(3_600_000))


def conversations_to_traces(conversations):
    traces, busy = [], collections.defaultdict(list)
    for conversation in sorted(conversations, key=lambda c: (c["task_id"], c["trial"])):
        task, trial = conversation["task_id"], conversation["trial"]
        session = f"task-{task}-trial-{trial}"
        user_sub = pseudonym(conversation["info"]["task"]["user_id"])
        timed, length = time_calls(session, calls_of(conversation))
        # Conversations of different users overlap; one user has one at a time, and all end by END.
        for attempt in range(1000):
            start = start_of(session, attempt)
            if start + length < END and all(start + length < b or e < start for b, e in busy[user_sub]):
                break
        else:
            raise SystemExit(f"no room for {session}")
        busy[user_sub].append((start, start + length))
        for index, (tool, error, offset, duration) in enumerate(timed):
            traces.append(
                trace(
                    f"airline/{AGENT}/{session}/{index}", user_sub, tool, start + offset, duration,
                    status="error" if error else "ok", code=error and error_code(error),
                    session=session, ip=address_of(user_sub),
                    attributes={"task": str(task), "trial": str(trial)},
                )
            )  # fmt: skip
    return traces


def runaway_loop(user_sub):
    """An agent that repeats one search without end, each call as soon as the one before has answered."""
    random_ = rng("runaway_loop")
    calls, offset_ms = [], 0
    for _ in range(LOOP_CALLS):
        duration = round(240 * random_.lognormvariate(0, 0.2))
        calls.append((offset_ms, duration))
        offset_ms += duration + random_.randrange(60, 120)
    start = LOOP_END - dt.timedelta(milliseconds=offset_ms)
    return [
        trace(
            f"airline/injected/runaway_loop/{index}", user_sub, LOOP_TOOL,
            start + dt.timedelta(milliseconds=offset), duration,
            session="injected-runaway-loop", ip=address_of(user_sub), attributes={"injected": "runaway_loop"},
        )
        for index, (offset, duration) in enumerate(calls)
    ]  # fmt: skip


def denial_burst(users):
    """Bad tokens tried on one user after another from one address; refused before there is a session."""
    random_ = rng("denial_burst")
    return [
        trace(
            f"airline/injected/denial_burst/{index}", users[index % len(users)], "get_user_details",
            BURST_START + dt.timedelta(milliseconds=index * BURST_GAP_MS + random_.randrange(300)),
            random_.randrange(3, 9),
            status="denied", code="invalid_token", ip=BURST_IP, attributes={"injected": "denial_burst"},
        )
        for index in range(BURST_CALLS)
    ]  # fmt: skip


def inject(traces):
    recent = {t["user_sub"] for t in traces if parse_time(t["started_at"]) > END - QUIET}
    quiet = sorted({t["user_sub"] for t in traces} - recent)
    searches = collections.Counter(t["user_sub"] for t in traces if t["tool"] == LOOP_TOOL)
    loop_user = max(quiet, key=lambda user: (searches[user], user))
    sprayed = [user for user in quiet if user != loop_user][:BURST_USERS]
    return traces + runaway_loop(loop_user) + denial_burst(sprayed)


def make(source, out):
    with (gzip.open if source.endswith(".gz") else open)(source, "rb") as file:
        traces = inject(conversations_to_traces(json.load(file)))
    traces.sort(key=lambda t: (t["started_at"], t["event_id"]))
    lines = "".join(json.dumps(t, separators=(",", ":")) + "\n" for t in traces)
    with open(out, "wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as file:
        file.write(lines.encode())


# ---------------------------------------------------------------- the check

OPTIONAL = {"user_sub": 255, "session_id": 255, "agent": 255, "source_ip": 255, "error_code": 255, "scope_used": 1024}
REQUIRED = {"event_id", "client_id", "tool", "status", "started_at", "duration_ms"}
RFC3339 = re.compile(r"(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d:\d\d)(?:\.(\d+))?([Zz]|[+-]\d\d:\d\d)")
DOCUMENTATION_NETWORKS = [ipaddress.ip_network(n) for n in ("198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")]
DENIED_CODES = {"invalid_token", "insufficient_scope", "access_denied", "unauthorized", "forbidden"}


def parse_time(text):
    match = RFC3339.fullmatch(text)
    if not match:
        raise ValueError(f"not RFC 3339 with an offset: {text!r}")
    date, time, fraction, zone = match.groups()
    return dt.datetime.fromisoformat(f"{date}T{time}.{(fraction or '')[:6]:0<6}{zone if zone[0] in '+-' else '+00:00'}")


def refusal(t):
    """Why the gateway would refuse this trace, or why it does not belong in this file; None if it is good."""
    if not isinstance(t, dict):
        return "not an object"
    if missing := REQUIRED - t.keys():
        return f"{sorted(missing)} missing"
    if unknown := t.keys() - REQUIRED - OPTIONAL.keys() - {"attributes"}:
        return f"{sorted(unknown)} unknown"
    for field in REQUIRED - {"duration_ms"}:
        if not isinstance(t[field], str):
            return f"{field} is not a string"
    if not re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", t["event_id"]):
        return "event_id is not a hyphenated lower-case UUID"
    if not re.fullmatch(r"[\x20-\x7e]{1,255}", t["client_id"]):
        return "client_id is not 1 to 255 visible ASCII characters"
    if not 1 <= len(t["tool"].encode()) <= 256 or re.search(r"[\x00-\x1f\x7f-\x9f]", t["tool"]):
        return "tool is not 1 to 256 bytes without control characters"
    if t["status"] not in ("ok", "error", "denied"):
        return "status is not ok, error or denied"
    try:
        started_at = parse_time(t["started_at"])
    except ValueError:
        return "started_at is not RFC 3339 with an offset"
    if not dt.datetime(2000, 1, 1, tzinfo=dt.timezone.utc) <= started_at <= END:
        return f"started_at is before 2000 or after {END}"
    if type(t["duration_ms"]) is not int or not 0 <= t["duration_ms"] <= 86_400_000:
        return "duration_ms is not an integer from 0 to 86400000"
    for field, limit_bytes in OPTIONAL.items():
        value = t.get(field)
        if value is not None and (not isinstance(value, str) or len(value.encode()) > limit_bytes):
            return f"{field} is not a string of at most {limit_bytes} bytes"
    attributes = t.get("attributes") or {}
    if not isinstance(attributes, dict) or not all(isinstance(v, str) for v in attributes.values()):
        return "attributes is not a flat map of strings"
    if len(json.dumps(attributes, ensure_ascii=False).encode()) > 8192:
        return "attributes is over 8 KiB"
    if ip := t.get("source_ip"):
        try:
            if not any(ipaddress.ip_address(ip) in network for network in DOCUMENTATION_NETWORKS):
                return "source_ip is not from a documentation range"
        except ValueError:
            return "source_ip is not an address"
    return None


def episodes(traces, key, window_s, count):
    """Runs of traces with one key in which `count` fall within the window: (key, deciding trace) for each.
    A run ends when a whole window has passed without the key."""
    seen, found, window = collections.defaultdict(collections.deque), [], dt.timedelta(seconds=window_s)
    open_ = set()
    for t in traces:
        k, at = key(t), parse_time(t["started_at"])
        if k is None:
            continue
        times = seen[k]
        while times and at - times[0] >= window:
            times.popleft()
        if not times:
            open_.discard(k)
        times.append(at)
        if len(times) >= count and k not in open_:
            open_.add(k)
            found.append((k, t))
    return found


def denied(t):
    return t["status"] == "denied" or (t["status"] == "error" and t.get("error_code") in DENIED_CODES)


def expected_detections(traces):
    """What the rules with fixed limits must find, worked out here the simple way."""
    return {
        "rate_limit, over 20 calls of one tool for one user in 60 s":
            episodes(traces, lambda t: (t["user_sub"], t["tool"]) if t.get("user_sub") else None, 60, 21),
        "rate_limit, over 60 calls for one user in 60 s":
            episodes(traces, lambda t: t.get("user_sub"), 60, 61),
        "failed_auth, 5 denials from one address in 10 min":
            episodes(traces, lambda t: t.get("source_ip") if denied(t) else None, 600, 5),
        "failed_auth, 5 denials for one user in 10 min":
            episodes(traces, lambda t: t.get("user_sub") if denied(t) else None, 600, 5),
    }  # fmt: skip


def overlapping_sessions(traces):
    spans = {}
    for t in traces:
        if session := t.get("session_id"):
            at = parse_time(t["started_at"])
            first, _ = spans.get(session, (at, at))
            spans[session] = (first, at)
    spans = sorted(spans.values())
    return sum(any(b <= end and e >= start for b, e in spans[:i]) for i, (start, end) in enumerate(spans))


def check(path):
    with (gzip.open if path.endswith(".gz") else open)(path, "rb") as file:
        lines = file.read().decode().splitlines()
    traces, ids, problems = [], set(), []
    for number, line in enumerate(lines, 1):
        try:
            t = json.loads(line)
        except ValueError as error:
            problems.append(f"line {number}: not JSON: {error}")
            continue
        reason = refusal(t)
        if reason is None and t["event_id"] in ids:
            reason = "event_id occurs twice"
        if reason is None and traces and parse_time(t["started_at"]) < parse_time(traces[-1]["started_at"]):
            reason = "not in order of started_at"
        if reason is None:
            ids.add(t["event_id"])
            traces.append(t)
        else:
            problems.append(f"line {number}: {reason}")
    for problem in problems[:20]:
        print(f"{path}: {problem}", file=sys.stderr)
    if problems or not traces:
        print(f"{path}: {len(problems)} of {len(lines)} lines are bad", file=sys.stderr)
        return 1
    print_figures(traces)
    return 0


def print_figures(traces):
    def counts(values):
        return ", ".join(f"{name} {n}" for name, n in collections.Counter(values).most_common())

    injected = [t["attributes"]["injected"] for t in traces if "injected" in t.get("attributes", {})]
    print(f"traces      {len(traces)}")
    print(f"users       {len({t['user_sub'] for t in traces if 'user_sub' in t})}")
    print(f"sessions    {len({t['session_id'] for t in traces if 'session_id' in t})}"
          f" ({overlapping_sessions(traces)} begin during another)")  # fmt: skip
    print(f"time range  {traces[0]['started_at']} to {traces[-1]['started_at']}")
    print(f"status      {counts(t['status'] for t in traces)}")
    print(f"errors      {counts(t['error_code'] for t in traces if t['status'] == 'error')}")
    print(f"injected    {counts(injected)}")
    print(f"tools       {counts(t['tool'] for t in traces)}")
    print(f"by date     {counts(t['started_at'][:10] for t in traces)}")
    for rule, found in expected_detections(traces).items():
        print(f"{rule}: {len(found)}")
        for key, t in found:
            about = " ".join(key) if isinstance(key, tuple) else key
            print(f"    {about}, decided by {t['event_id']} at {t['started_at']}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", help="gpt-4o-airline.json of tau-bench, also gzipped")
    parser.add_argument("out", nargs="?", help="the file to write, e.g. examples/airline-traces.ndjson.gz")
    parser.add_argument("--check", metavar="FILE", help="only check this file and print its figures")
    arguments = parser.parse_args()
    if arguments.check and not arguments.source:
        return check(arguments.check)
    if arguments.check or not arguments.out:
        parser.error("give SOURCE and OUT, or --check FILE")
    make(arguments.source, arguments.out)
    return check(arguments.out)


if __name__ == "__main__":
    sys.exit(main())
