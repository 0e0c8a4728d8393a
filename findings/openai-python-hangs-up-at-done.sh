#!/usr/bin/env bash
# Package: openai 3.57.0 (PyPI, the Python SDK), against a server of this script on 127.0.0.1.
#
# Behaviour: the SDK stops reading a stream at "data: [DONE]" and closes the connection, without reading the end of the body.
# So each stream costs a connection, also when [DONE] and the last chunk (0\r\n\r\n) arrive together. When the last chunk
# comes a moment later, the server sees a client that left in the middle of a response, though the caller has iterated over
# the whole stream. A stream that ends without [DONE] is read to its end, and its connection serves the next request.
#
# Why it surprises: the caller did everything right, the response is complete to it, and an HTTP client usually reads a body
# to its end to keep the connection. Of the two streams, the one that is complete loses its connection.
#
# Consequence for a proxy: a client that leaves after [DONE] has been served. To tell the workers to abort its request, to
# count it as cut short, or to close the connection to the worker is wrong. Under load, each stream brings a new connection.
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
import json
import socket
import sys
import threading

import openai

REQUESTS = 4
CASES = {
    "together": "[DONE] and the last chunk in one write",
    "apart": "[DONE], and the last chunk later",
    "without": "the last chunk, no [DONE]",
}
# The connections, and how many of them the client closed before the last chunk.
STATED = {"together": (REQUESTS, 0), "apart": (REQUESTS, REQUESTS), "without": (1, 0)}
connections = []
case = ""


def event(text):
    data = f"data: {text}\n\n".encode()
    return b"%x\r\n%s\r\n" % (len(data), data)


def chunk(delta, finish):
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    head = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return event(json.dumps({**head, "choices": [choice]}))


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
BODY = chunk({"content": "a"}, None) + chunk({}, "stop")
DONE = event("[DONE]")
END = b"0\r\n\r\n"


def request(file):
    length = 0
    while (line := file.readline()) not in (b"\r\n", b""):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    file.read(length)
    return line != b""


def serve(connection):
    seen = {"requests": 0, "left": 0}
    connections.append(seen)
    with connection, connection.makefile("rb") as file:
        while request(file):
            seen["requests"] += 1
            if case != "apart":
                connection.sendall(HEAD + BODY + (DONE if case == "together" else b"") + END)
                continue
            connection.sendall(HEAD + BODY + DONE)
            # The client has [DONE]; either it closes, or it waits for the end of the body.
            connection.settimeout(1)
            try:
                left = connection.recv(1) == b""
            except TimeoutError:
                left = False
            except ConnectionResetError:
                left = True
            if left:
                seen["left"] += 1
                return
            connection.settimeout(None)
            connection.sendall(END)


def accept(listener):
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


listener = socket.create_server(("127.0.0.1", 0))
threading.Thread(target=accept, args=(listener,), daemon=True).start()
url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
found = {}
for case, how in CASES.items():
    connections.clear()
    client = openai.OpenAI(base_url=url, api_key="k", max_retries=0)
    for _ in range(REQUESTS):
        message = [{"role": "user", "content": "hi"}]
        stream = client.chat.completions.create(model="m", messages=message, stream=True)
        finishes = [part.choices[0].finish_reason for part in stream]
        if finishes[-1] != "stop":
            print("not measured: the stream was not read to its end")
            sys.exit(2)
    client.close()
    left = sum(seen["left"] for seen in connections)
    found[case] = (len(connections), left)
    print(f"{how:38} {REQUESTS} requests, {len(connections)} connections, {left} closed before the last chunk")
if found != STATED:
    print(f"CHANGED: expected {STATED}, found {found}")
    sys.exit(1)
print("as stated: a stream with [DONE] costs its connection, a stream without it does not")
EOF
timeout 60 venv/bin/python probe.py
