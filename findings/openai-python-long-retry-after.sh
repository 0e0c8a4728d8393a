#!/usr/bin/env bash
# Package: openai 3.57.0 (PyPI, the Python SDK), against a server of this script on 127.0.0.1.
#
# Behaviour: a 503 with "Retry-After: 121" is not tried again at all, whatever max_retries says. The same 503 without the field, or
# with a Retry-After of a second, is tried again max_retries times.
#
# Why it surprises: a longer Retry-After is a request for patience, and RFC 9110 puts no limit on it. Here the field turns retries
# off, in silence: the caller gets the error of the first response at once, although it asked for retries.
#
# Consequence for a proxy: a Retry-After that should make clients wait must be at most two minutes. A server that writes the
# real time until its recovery, say 300, has its clients fail at once instead.
#
# Exit: 0 the behaviour is as stated, 1 it has changed, 2 it could not be measured. Takes about half a minute.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

if ! { python3 -m venv venv && venv/bin/pip install -q --disable-pip-version-check openai==3.57.0; }; then
  echo 'not measured: the package could not be installed'
  exit 2
fi

cat >probe.py <<'EOF'
import http.server
import sys
import threading

import openai

RETRIES = 2
# By Retry-After, in seconds: the requests that the server gets.
STATED = {None: 1 + RETRIES, "1": 1 + RETRIES, "121": 1, "300": 1}
requests = 0
retry_after = None


class Server(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        global requests
        requests += 1
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(503)
        if retry_after:
            self.send_header("Retry-After", retry_after)
        self.send_header("Content-Length", "0")
        self.end_headers()


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key="k", max_retries=RETRIES)
found = {}
for retry_after in STATED:
    requests = 0
    try:
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
    except openai.InternalServerError as error:
        if error.status_code != 503:
            print(f"not measured: status {error.status_code}")
            sys.exit(2)
    found[retry_after] = requests
    print(f"Retry-After {retry_after or 'absent':6} max_retries {RETRIES}: {requests} requests")
if found != STATED:
    print(f"CHANGED: expected {STATED}, found {found}")
    sys.exit(1)
print("as stated: no retry where Retry-After is above two minutes")
EOF
timeout 60 venv/bin/python probe.py
