#!/usr/bin/env bash
# Package: sglang-router 0.3.2 (PyPI), prefill/decode mode, in front of two stand-in workers of this script.
#
# Behaviour: whether the workers get the client's W3C trace context depends on the log level. Without --enable-trace the
# headers traceparent and tracestate pass as they came. With --enable-trace and the default level (info) the router starts a
# new trace: both workers get another trace id, and an empty tracestate. With --enable-trace --log-level warn the client's
# headers pass as they came again.
#
# Why it surprises: tracing cuts the trace when it is switched on, because the router does not continue the context of the
# request. (Trace Context lets a gateway restart a trace at a trust boundary; the help of the flag mentions nothing of the
# kind.) And --log-level is documented as the level of the log: it filters the spans too, so a quieter log ends the router's
# part in tracing, without a message.
#
# Consequence for a proxy: a trace that crosses this router breaks or holds by a flag that is set for another reason, and
# spans of an engine under the client's trace id do not show that the router takes part. A proxy has to keep the filter of
# its log apart from its spans, and a test should hold that both legs get the client's trace id at every log level.
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
import subprocess
import sys
import threading
import time

CLIENT = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "client=1"}
seen = {}


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
        self.rfile.read(int(self.headers["Content-Length"]))
        seen[self.server.role] = {name: self.headers[name] for name in CLIENT}
        self.respond({"text": "", "meta_info": {}})


def worker(role):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Worker)
    server.role = role
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def ask(port, method, path, body=None, headers=()):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request(method, path, body, dict(headers))
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def ready(port):
    try:
        status, body = ask(port, "GET", "/readiness")
        return status == 200 and json.loads(body)["healthy_workers"] == 2
    except (OSError, ValueError):
        return False


def headers_at_the_workers(flags):
    """Starts the router with these flags, sends one request and stops the router."""
    port = free_port()
    command = [sys.executable, "-m", "sglang_router.launch_router", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--pd-disaggregation", "--policy", "round_robin", "--prefill", prefill, "8998", "--decode", decode]
    command += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port()), *flags]
    router = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not ready(port):
            if time.monotonic() > deadline or router.poll() is not None:
                print("not measured: the router did not become ready")
                sys.exit(2)
            time.sleep(0.2)
        seen.clear()
        status, _ = ask(port, "POST", "/generate", '{"text":"hi"}', {"Content-Type": "application/json", **CLIENT})
        if status != 200 or set(seen) != {"prefill", "decode"}:
            print(f"not measured: the request was answered with {status}")
            sys.exit(2)
        return dict(seen)
    finally:
        router.terminate()
        try:
            router.wait(10)
        except subprocess.TimeoutExpired:
            router.kill()
            router.wait()


def verdict(headers):
    if all(got == CLIENT for got in headers.values()):
        return "the client's"
    ids = {(got["traceparent"] or "--").split("-")[1] for got in headers.values()}
    client_id = CLIENT["traceparent"].split("-")[1]
    return "a new trace" if len(ids) == 1 and client_id not in ids and "" not in ids else "something else"


signal.signal(signal.SIGTERM, lambda *_: sys.exit(2))
prefill, decode = worker("prefill"), worker("decode")
# No collector listens at this address: only the headers at the workers count here.
trace = ["--enable-trace", "--otlp-traces-endpoint", f"127.0.0.1:{free_port()}"]
print("client   traceparent:", CLIENT["traceparent"], " tracestate:", CLIENT["tracestate"])
found = []
RUNS = {
    "no flags": [],
    "--enable-trace": trace,
    "--enable-trace --log-level warn": [*trace, "--log-level", "warn"],
}
for name, flags in RUNS.items():
    headers = headers_at_the_workers(flags)
    found.append(verdict(headers))
    print(name)
    for role, got in sorted(headers.items()):
        print(f"  {role:8} traceparent: {got['traceparent']}  tracestate: {got['tracestate']!r}")
if found != ["the client's", "a new trace", "the client's"]:
    print("CHANGED: the workers got", ", ".join(found))
    sys.exit(1)
print("as stated: tracing replaces the client's trace, and a quieter log brings it back")
EOF
timeout 200 venv/bin/python probe.py
