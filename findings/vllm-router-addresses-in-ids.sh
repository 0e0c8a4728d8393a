#!/usr/bin/env bash
# Package: vllm-router 0.1.17 (PyPI), prefill/decode mode (NIXL), in front of two stand-in workers of this script.
#
# Behaviour: the router replaces the X-Request-Id of a request by ___prefill_addr_HOST:PORT___decode_addr_HOST:PORT_HEX. vLLM
# makes the id of a response of that header (chatcmpl-VALUE), so that the "id" that a client reads names the addresses of both
# workers. The client's own X-Request-Id reaches no worker; the router repeats it in a header of the response.
#
# Why it surprises: in the P/D protocol of NIXL the workers learn each other's address from kv_transfer_params. The id of a
# response is what applications store, log and show.
#
# Consequence for a proxy: clients learn the inner addresses of the deployment, and an id that a client has chosen to find its
# request in the logs of the workers is not there. A proxy can pass the client's header on: vLLM appends eight digits of its
# own, so that one value may serve both legs.
#
# Exit: 0 the behaviour is as stated, 1 it has changed, 2 it could not be measured. Takes about a minute, mostly download.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

if ! { python3 -m venv venv && venv/bin/pip install -q --disable-pip-version-check vllm-router==0.1.17; }; then
  echo 'not measured: the package could not be installed'
  exit 2
fi

cat >probe.py <<'EOP'
import http.client
import http.server
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time

legs = []


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
        self.respond({"object": "list", "data": [{"id": "m", "object": "model"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        legs.append((self.server.role, self.headers["X-Request-Id"]))
        params = body.get("kv_transfer_params") or {}
        if params.get("do_remote_decode"):
            params = {"do_remote_prefill": True, "do_remote_decode": False, "remote_block_ids": [[1]],
                      "remote_engine_id": "e", "remote_request_id": "r", "remote_host": "127.0.0.1", "remote_port": 1}
        else:
            params = None
        # As vLLM makes the id.
        self.respond({"id": f"chatcmpl-{self.headers['X-Request-Id']}", "object": "chat.completion", "choices": [],
                      "usage": {}, "kv_transfer_params": params})


def worker(role):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Worker)
    server.role = role
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"127.0.0.1:{server.server_port}"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def ask(method, path, body=None, headers={}):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json", **headers})
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def ready():
    try:
        return ask("GET", "/health")[0] == 200
    except OSError:
        return False


signal.signal(signal.SIGTERM, lambda *_: sys.exit(2))
port = free_port()
prefill, decode = worker("prefill"), worker("decode")
command = ["venv/bin/vllm-router", "--vllm-pd-disaggregation", "--host", "127.0.0.1"]
command += ["--port", str(port), "--prometheus-port", str(free_port()), "--policy", "round_robin"]
command += ["--prefill", f"http://{prefill}", "--decode", f"http://{decode}"]
router = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
try:
    deadline = time.monotonic() + 60
    while not ready():
        if time.monotonic() > deadline or router.poll() is not None:
            print("not measured: the router did not become ready")
            sys.exit(2)
        time.sleep(0.2)
    request = '{"model":"m","messages":[{"role":"user","content":"hi"}],"max_tokens":4}'
    status, headers, body = ask("POST", "/v1/chat/completions", request, {"X-Request-Id": "mine-1"})
    if status != 200 or {role for role, _ in legs} != {"prefill", "decode"}:
        print(f"not measured: the request was answered with {status}, legs {legs}")
        sys.exit(2)
    got = json.loads(body)["id"]
    print(f"workers                     prefill {prefill}, decode {decode}")
    for role, value in legs:
        print(f"X-Request-Id at {role:7}     {value}")
    print(f"id of the response          {got}")
    print(f"X-Request-Id of the response {headers['X-Request-Id']}")
finally:
    router.terminate()
    try:
        router.wait(10)
    except subprocess.TimeoutExpired:
        router.kill()
        router.wait()
wanted = re.compile(rf"chatcmpl-___prefill_addr_{prefill}___decode_addr_{decode}_[0-9a-f]+")
if not wanted.fullmatch(got) or any("mine-1" in (value or "") for _, value in legs):
    print("CHANGED: the id does not name the two workers, or the client's id reaches a worker")
    sys.exit(1)
print("as stated: the id of the response names the addresses of both workers")
EOP
timeout 120 venv/bin/python probe.py
