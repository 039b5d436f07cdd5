#!/usr/bin/env python3
"""A minimal client for an RP: sends traces and receives webhooks. Python 3.9 or newer, standard library only.

    python_rp.py send TOOL [--user SUB] [--status ok|error|denied]   one trace
    python_rp.py batch FILE.ndjson[.gz]                              many, gzipped, up to 1,000 a request
    python_rp.py listen [--port 8787]                                a webhook receiver that verifies

The environment says where and as whom: LOGI_URL (default http://127.0.0.1:7420), CLIENT_ID, PAK (pano_pak_...),
for an app in HMAC mode also PAK_SECRET (pano_sec_...), and for `listen` WEBHOOK_SECRET (whsec_..., several
separated by spaces while a rotation is under way).

Two rules carry all the rest. A trace is safe once it is answered `accepted` or `duplicate`; until then send the
same event_id again, which is always safe. A webhook is delivered at least once: act on each webhook-id once.
"""

import argparse
import base64
import collections
import datetime as dt
import email.utils
import gzip
import hashlib
import hmac
import http.client
import http.server
import json
import os
import random
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid

ATTEMPTS = 8
TIMEOUT_S = 10
BACKOFF_MAX_S = 30
RETRY_AFTER_MAX_S = 300
RESEND = {429, 500, 502, 503, 504}  # not confirmed; any other refusal would be refused again
BATCH_TRACES, BATCH_BYTES = 1000, 4 * 1024 * 1024 - 64 * 1024

SIGNATURE_AGE_S = 300
WEBHOOK_BYTES = 1024 * 1024
WEBHOOKS_REMEMBERED = 10_000


# ---------------------------------------------------------------- sending traces


class Refused(Exception):
    """The server's answer is no, or there was none in time."""


class Client:
    def __init__(self, url, pak, pak_secret=None):
        self.url, self.pak, self.pak_secret = url.rstrip("/"), pak, pak_secret

    def send(self, trace):
        """Sends one trace; returns its event_id and status (`accepted` or `duplicate`) or raises Refused."""
        return self._post("/panopticon/trace", json.dumps(trace).encode(), {"Content-Type": "application/json"})

    def send_batch(self, traces):
        """Sends up to 1,000 traces; returns a result for each, in order. Those `unavailable` are sent again."""
        results, todo = [None] * len(traces), list(range(len(traces)))
        for attempt in range(ATTEMPTS):
            lines = "".join(json.dumps(traces[i], ensure_ascii=False, separators=(",", ":")) + "\n" for i in todo)
            headers = {"Content-Type": "application/x-ndjson", "Content-Encoding": "gzip"}
            answer = self._post("/panopticon/traces", gzip.compress(lines.encode()), headers)
            for i, result in zip(todo, answer["results"]):
                results[i] = result
            todo = [i for i in todo if results[i].get("error") == "unavailable"]
            if not todo:
                break
            if attempt + 1 < ATTEMPTS:
                time.sleep(backoff_s(attempt))
        return results

    def _post(self, path, body, headers):
        problem = None
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(wait_s)
            wait_s = backoff_s(attempt)
            # Signed anew each time: the timestamp must be within five minutes of the server's clock.
            request = urllib.request.Request(self.url + path, body, {**headers, **self._credentials(body)})
            try:
                with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
                    if guard := response.headers.get("X-Panopticon-Guard"):
                        print(f"the guard says {guard}: stop this agent", file=sys.stderr)
                    return json.load(response)
            except urllib.error.HTTPError as error:
                problem = f"{error.code} {error.read(4096).decode(errors='replace')}"
                if error.code not in RESEND:
                    raise Refused(problem) from error
                wait_s = max(wait_s, retry_after_s(error.headers.get("Retry-After")))
            except (OSError, http.client.HTTPException, ValueError) as error:
                problem = f"no answer: {error}"  # it may have been stored all the same: the event_id tells
        raise Refused(f"given up after {ATTEMPTS} attempts: {problem}")

    def _credentials(self, body):
        credentials = {"Authorization": f"Bearer {self.pak}"}
        if self.pak_secret:
            timestamp = str(int(time.time()))
            signed = timestamp.encode() + b"." + body  # the bytes as sent: after compression
            credentials["X-Panopticon-Timestamp"] = timestamp
            credentials["X-Panopticon-Signature"] = hmac_sha256(self.pak_secret.encode(), signed).hex()
        return credentials


def backoff_s(attempt):
    """Doubles from half a second, with jitter, so that clients do not come back all at once."""
    return random.uniform(0.5, 1) * min(BACKOFF_MAX_S, 0.5 * 2**attempt)


def retry_after_s(header):
    """Retry-After as seconds or as an HTTP date; 0 if absent or unreadable."""
    try:
        if header is None or header.strip().isdecimal():
            wait_s = float(header or 0)
        else:
            wait_s = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
    except (TypeError, ValueError):
        return 0
    return min(max(0, wait_s), RETRY_AFTER_MAX_S)


def hmac_sha256(key, message):
    return hmac.new(key, message, hashlib.sha256).digest()


def batches(lines):
    """Groups traces so that no request exceeds the limits on count and bytes (which hold after decompression)."""
    batch, size = [], 0
    for line in filter(bytes.strip, lines):
        if batch and (len(batch) == BATCH_TRACES or size + len(line) > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(json.loads(line))
        size += len(line)
    if batch:
        yield batch


# ---------------------------------------------------------------- receiving webhooks


def key_of(secret):
    """The key that a `whsec_` secret holds in base64."""
    return base64.b64decode(secret.removeprefix("whsec_"), validate=True)


def fresh(timestamp):
    return timestamp.isdecimal() and abs(time.time() - int(timestamp)) <= SIGNATURE_AGE_S


def verify_standard(secrets, headers, body):
    """Standard Webhooks: `webhook-signature` holds `v1,<base64>`, several separated by spaces."""
    message_id, timestamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    signed = f"{message_id}.{timestamp}.".encode() + body
    expected = [b"v1," + base64.b64encode(hmac_sha256(key_of(secret), signed)) for secret in secrets]
    given = headers.get("webhook-signature", "").encode().split()
    return bool(message_id) and fresh(timestamp) and any_equal(given, expected)


def verify_logi(secrets, headers, body):
    """`X-Logi-Signature: t=<unix>,kid=<key id>,v1=<hex>`, keyed like the standard signature."""
    parts = [part.strip().partition("=") for part in headers.get("X-Logi-Signature", "").split(",")]
    timestamp = next((value for name, _, value in parts if name == "t"), "")
    expected = [hmac_sha256(key_of(secret), timestamp.encode() + b"." + body).hex().encode() for secret in secrets]
    given = [value.encode() for name, _, value in parts if name == "v1"]
    return fresh(timestamp) and any_equal(given, expected)


def any_equal(given, expected):
    """Compares in constant time, so that timing tells a forger nothing."""
    return any([hmac.compare_digest(g, e) for g in given for e in expected])


class Receiver(http.server.BaseHTTPRequestHandler):
    timeout = TIMEOUT_S
    secrets = []
    seen, lock = collections.OrderedDict(), threading.Lock()  # a real RP keeps these ids in its database

    def do_POST(self):
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > WEBHOOK_BYTES:
            return self.answer(413)
        body = self.rfile.read(int(length))
        standard = verify_standard(self.secrets, self.headers, body)
        logi = verify_logi(self.secrets, self.headers, body)
        # The standard signature covers the id as well. A receiver needs only one of the two.
        if not standard:
            print("refused: the signature is missing, old or wrong", file=sys.stderr, flush=True)
            return self.answer(401)
        message_id = self.headers["webhook-id"]
        with self.lock:
            if message_id not in self.seen:
                self.act(message_id, body, logi)
                self.seen[message_id] = True
                if len(self.seen) > WEBHOOKS_REMEMBERED:
                    self.seen.popitem(last=False)
        self.answer(204)  # also for what was seen before: anything but 2xx brings it again

    def act(self, message_id, body, logi):
        """Here an RP acts: stop the agent on `killed`, block the user on an anomaly, and so on."""
        message = json.loads(body)
        verified = "both signatures" if logi else "the standard signature"
        print(f"{message['timestamp']} {message['type']} {message_id} ({verified})", flush=True)
        print("  " + json.dumps(message["data"]), flush=True)

    def answer(self, status):
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


# ---------------------------------------------------------------- the command line


def environment(name, default=None):
    value = os.environ.get(name) or default
    if not value:
        print(f"python_rp.py: {name} is not set (see --help)", file=sys.stderr)
        sys.exit(2)
    return value


def client():
    url = environment("LOGI_URL", "http://127.0.0.1:7420")
    return Client(url, environment("PAK"), os.environ.get("PAK_SECRET"))


def command_send(arguments):
    trace = {
        "event_id": str(uuid.uuid4()),  # made once: every attempt carries the same
        "client_id": environment("CLIENT_ID"),
        "user_sub": arguments.user,
        "tool": arguments.tool,
        "status": arguments.status,
        "started_at": dt.datetime.now(dt.timezone.utc).isoformat(timespec="milliseconds"),
        "duration_ms": arguments.duration_ms,
    }
    print(json.dumps(client().send(trace)))


def command_batch(arguments):
    sender, counts = client(), collections.Counter()
    with (gzip.open if arguments.file.endswith(".gz") else open)(arguments.file, "rb") as file:
        for batch in batches(file):
            for trace, result in zip(batch, sender.send_batch(batch)):
                counts[result["status"]] += 1
                if result["status"] not in ("accepted", "duplicate"):
                    print(f"{trace.get('event_id')}: {json.dumps(result)}", file=sys.stderr)
    print(json.dumps(counts))
    if counts.keys() - {"accepted", "duplicate"}:
        raise Refused("not every trace was taken")


def command_listen(arguments):
    Receiver.secrets = environment("WEBHOOK_SECRET").split()
    try:
        [key_of(secret) for secret in Receiver.secrets]
    except ValueError:
        print("python_rp.py: WEBHOOK_SECRET is not whsec_ followed by base64", file=sys.stderr)
        sys.exit(2)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", arguments.port), Receiver)
    print(f"listening on http://127.0.0.1:{server.server_port}/", flush=True)
    server.serve_forever()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="send|batch|listen")
    send = commands.add_parser("send", help="send one trace")
    send.add_argument("tool")
    send.add_argument("--user", help="user_sub: whose data the call touched")
    send.add_argument("--status", choices=["ok", "error", "denied"], default="ok")
    send.add_argument("--duration-ms", type=int, default=12)
    send.set_defaults(run=command_send)
    batch = commands.add_parser("batch", help="send a file of traces, one JSON object a line")
    batch.add_argument("file")
    batch.set_defaults(run=command_batch)
    listen = commands.add_parser("listen", help="receive webhooks on 127.0.0.1, verify and print them")
    listen.add_argument("--port", type=int, default=8787)
    listen.set_defaults(run=command_listen)
    arguments = parser.parse_args()
    try:
        arguments.run(arguments)
    except (Refused, OSError, ValueError) as error:
        print(f"python_rp.py: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
