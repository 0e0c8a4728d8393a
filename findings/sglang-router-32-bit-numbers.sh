#!/usr/bin/env bash
# Package: sglang-router 0.3.2 (PyPI), prefill/decode mode, in front of two stand-in workers of this script.
#
# Behaviour: the router reads the sampling numbers of a request into 32-bit floats and writes the body anew. The workers get
# "temperature":0.10000000149011612 where the client sent 0.1, and "top_p":0.949999988079071 where it sent 0.95. The values of
# logit_bias change in the same way. /generate, /v1/completions and /v1/chat/completions are alike in this.
#
# Why it surprises: such numbers are doubles to the usual clients, to the JSON parsers on the way and to the engine, which is
# Python. Other numbers of the same body keep their value (an integer seed of 2^53 + 1 arrives whole), so nothing hints at the
# loss. A router is expected to choose the workers and to leave the options of a request alone.
#
# Consequence for a proxy: a request has different options with the router and without it. A replay, a record that is keyed by
# the body, or an evaluation with a fixed seed compares two requests that differ, and a nucleus of 0.95 is slightly smaller
# behind the router. A proxy that has to add three fields to a body can splice them into the client's bytes instead.
#
# Exit: 0 the behaviour is as stated, 1 it has changed, 2 it could not be measured. Takes about a minute, mostly download.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

if ! { python3 -m venv venv && venv/bin/pip install -q --disable-pip-version-check sglang-router==0.3.2; }; then
  echo 'not measured: the package could not be installed'
  exit 2
fi

cat >probe.py <<'EOF'
import http.client
import http.server
import json
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

bodies = {}


class Worker(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def respond(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.respond({"model_path": "m", "is_generation": True})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        bodies[self.server.role] = body.decode()
        self.respond({"text": "", "meta_info": {}, "choices": [], "usage": {}})


def worker(role):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Worker)
    server.role = role
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def ask(method, path, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def rounded(value):
    """The value as it comes out of a 32-bit float; integers as they are."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return struct.unpack("f", struct.pack("f", value))[0] if isinstance(value, float) else value


def ready():
    try:
        status, body = ask("GET", "/readiness")
        return status == 200 and json.loads(body)["healthy_workers"] == 2
    except (OSError, ValueError):
        return False


REQUESTS = {
    "/generate": '{"text":"hi","sampling_params":{"temperature":0.1,"top_p":0.95,"min_p":0.05}}',
    "/v1/completions": '{"model":"m","prompt":"hi","temperature":0.1,"top_p":0.95,"frequency_penalty":0.3}',
    "/v1/chat/completions": '{"model":"m","messages":[{"role":"user","content":"hi"}],"temperature":0.1,"top_p":0.95,'
    '"logit_bias":{"7":0.7},"seed":9007199254740993}',
}
NAMES = ("temperature", "top_p", "min_p", "frequency_penalty", "logit_bias", "seed")

signal.signal(signal.SIGTERM, lambda *_: sys.exit(2))
port = free_port()
command = [sys.executable, "-m", "sglang_router.launch_router", "--host", "127.0.0.1", "--port", str(port)]
command += ["--pd-disaggregation", "--policy", "round_robin", "--log-level", "error"]
command += ["--prefill", worker("prefill"), "8998", "--decode", worker("decode")]
command += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())]
router = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
try:
    deadline = time.monotonic() + 60
    while not ready():
        if time.monotonic() > deadline or router.poll() is not None:
            print("not measured: the router did not become ready")
            sys.exit(2)
        time.sleep(0.2)
    changed = []
    for path, request in REQUESTS.items():
        status, _ = ask("POST", path, request)
        if status != 200 or set(bodies) != {"prefill", "decode"}:
            print(f"not measured: {path} was answered with {status}")
            sys.exit(2)
        sent = json.loads(request)
        sent = sent.get("sampling_params", sent)
        for role in sorted(bodies):
            got = json.loads(bodies[role])
            got = got.get("sampling_params", got)
            for name in NAMES:
                if name not in sent:
                    continue
                print(f"{path:21} {role:8} {name:18} sent {json.dumps(sent[name]):17} got {json.dumps(got.get(name))}")
                if got.get(name) != rounded(sent[name]):
                    changed.append(f"{name} of {path} at {role}")
        bodies.clear()
finally:
    router.terminate()
    try:
        router.wait(10)
    except subprocess.TimeoutExpired:
        router.kill()
        router.wait()
if changed:
    print("CHANGED: not the nearest 32-bit float:", ", ".join(changed))
    sys.exit(1)
print("as stated: both workers get the nearest 32-bit float of each number that is not an integer")
EOF
timeout 120 venv/bin/python probe.py
