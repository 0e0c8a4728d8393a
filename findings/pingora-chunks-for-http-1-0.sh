#!/usr/bin/env bash
# Package: pingora 0.9.1 (crates.io), feature "proxy": a proxy of a few lines in front of one stand-in worker of this script.
#
# Behaviour: a client that asks with HTTP/1.0 gets a chunked response. Pingora asks the worker with HTTP/1.1 whatever the
# client's version is, gets chunks, and passes "Transfer-Encoding: chunked" and the chunks on. It does know the client's
# version: the response says "Connection: close", and the connection is closed after it.
#
# Why it surprises: RFC 9112, section 6.1, forbids Transfer-Encoding in a response unless the request indicates HTTP/1.1 or
# later. The end of the connection alone would frame the body, and Pingora ends it. The worker asked without the proxy keeps the
# rule, so that a client which works with the worker alone gets other bytes when the proxy stands in between.
#
# Consequence for a proxy: a client that knows only HTTP/1.0 takes the sizes of the chunks for a part of the body; in a
# stream of events they are lines that belong to no event. Health probes, benchmark tools and other proxies may still ask
# with 1.0, so the response_filter of a proxy on Pingora has to frame the response by the version of the request.
#
# Exit: 0 the behaviour is as stated, 1 it has changed, 2 it could not be measured. Needs cargo and a C compiler; builds Pingora
# in the temporary folder (two to three minutes of CPU). Its compression library is built with cmake, which comes from PyPI
# where the machine has none.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

mkdir src
cat >Cargo.toml <<'EOF'
[package]
name = "plain-proxy"
version = "0.0.0"
edition = "2021"

[dependencies]
async-trait = "=0.1.89"
pingora = { version = "=0.9.1", default-features = false, features = ["proxy"] }

[profile.dev]
debug = false
incremental = false
EOF
cat >src/main.rs <<'EOF'
use async_trait::async_trait;
use pingora::prelude::*;

/// The address of the worker.
struct PlainProxy(String);

#[async_trait]
impl ProxyHttp for PlainProxy {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(&self, _: &mut Session, _: &mut ()) -> Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(self.0.as_str(), false, String::new())))
    }
}

fn main() {
    let addresses: Vec<String> = std::env::args().skip(1).collect();
    let mut server = Server::new(None).expect("a server");
    server.bootstrap();
    let mut service = http_proxy_service(&server.configuration, PlainProxy(addresses[1].clone()));
    service.add_tcp(&addresses[0]);
    server.add_service(service);
    server.run_forever();
}
EOF

if ! command -v cmake >/dev/null; then
  if ! { python3 -m venv venv && venv/bin/pip install -q --disable-pip-version-check cmake==4.4.5; }; then
    echo 'not measured: there is no cmake'
    exit 2
  fi
  export PATH="$work/venv/bin:$PATH"
fi
if ! CARGO_TARGET_DIR=target cargo build -q; then
  echo 'not measured: the proxy could not be built'
  exit 2
fi

cat >probe.py <<'EOF'
import http.server
import signal
import socket
import subprocess
import sys
import threading
import time

REQUEST = b"GET / HTTP/1.0\r\nHost: worker\r\n\r\n"
versions = []


class Worker(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        versions.append(self.request_version)
        chunked = self.request_version == "HTTP/1.1"
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header(*(("Transfer-Encoding", "chunked") if chunked else ("Connection", "close")))
        self.end_headers()
        event = b"data: hello\n\n"
        self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(event), event) if chunked else event)


def connect(port):
    return socket.create_connection(("127.0.0.1", port), 5)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def ask(port):
    """The bytes of the response, to the end of the connection: its head and its body."""
    with connect(port) as connection:
        connection.settimeout(5)
        connection.sendall(REQUEST)
        response = b""
        while piece := connection.recv(65536):
            response += piece
    head, _, body = response.partition(b"\r\n\r\n")
    return head, body


def accepts(port):
    try:
        connect(port).close()
        return True
    except OSError:
        return False


signal.signal(signal.SIGTERM, lambda *_: sys.exit(2))
worker = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Worker)
threading.Thread(target=worker.serve_forever, daemon=True).start()
port = free_port()
addresses = [f"127.0.0.1:{port}", f"127.0.0.1:{worker.server_port}"]
proxy = subprocess.Popen(["target/debug/plain-proxy", *addresses], stderr=subprocess.DEVNULL)
try:
    deadline = time.monotonic() + 30
    while not accepts(port):
        if time.monotonic() > deadline or proxy.poll() is not None:
            print("not measured: the proxy does not listen")
            sys.exit(2)
        time.sleep(0.1)
    direct_head, direct_body = ask(worker.server_port)
    proxied_head, proxied_body = ask(port)
except OSError as error:
    print("not measured:", error)
    sys.exit(2)
finally:
    proxy.kill()
    proxy.wait()

print("request               ", REQUEST)
print("worker was asked with ", versions[0], "directly,", versions[1], "by the proxy")
for side, head, body in (("worker", direct_head, direct_body), ("proxy", proxied_head, proxied_body)):
    print(f"head from the {side:8}", head)
    print(f"body from the {side:8}", body)
if direct_body != b"data: hello\n\n" or b"chunked" in direct_head.lower():
    print("not measured: the worker itself broke the rule")
    sys.exit(2)
head = proxied_head.lower()
if b"transfer-encoding: chunked" in head and proxied_body == b"D\r\ndata: hello\n\n\r\n0\r\n\r\n":
    print("as stated: the HTTP/1.0 client got chunks")
else:
    print("CHANGED: the HTTP/1.0 client got no chunks")
    sys.exit(1)
EOF
timeout 60 python3 probe.py
