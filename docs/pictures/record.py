#!/usr/bin/env python3
"""Records a terminal session of the real program for docs/pictures/terminal.svg.

    python3 docs/pictures/record.py target/release/mini-lb

Two shells run in pseudo-terminals at the same time: `mini-lb demo` starts in the first, requests are pasted into the
second. Each becomes an asciinema-v2 file beside this script, and `draw.py` makes the picture of them. Needs bash,
curl, and port 8080 free. Run it at the root of the project. Only Python's standard library is used.
"""

import codecs
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import sys
import tempfile
import termios
import time

HERE = os.path.dirname(os.path.abspath(__file__))
COLUMNS = 108
ROWS = 24
PROMPT = "$ "
KEY_SECONDS = 0.05

# A token takes 0.3 s, so that the stream can be watched; the rules of the file fail only requests that ask for it.
DEMO = "mini-lb demo --output-token-us 300000 --chaos conf/sim/chaos.yaml"
STREAM = r"""curl -N http://127.0.0.1:8080/v1/chat/completions -H 'content-type: application/json' \
    -d '{"model":"sim","messages":[{"role":"user","content":"Hello"}],"stream":true,"max_tokens":8}'"""
REMARK = "# The same when every worker resets the connection:"
FAULT = r"""curl http://127.0.0.1:8080/generate -d '{"text":"Hello"}' -H 'x-sim-fault: reset' \
    -w '\n%{http_code} after %{time_total} s\n'"""


class Terminal:
    """One shell in a pseudo-terminal, and all that it wrote with the time."""

    def __init__(self, name, started, path):
        self.name, self.started, self.events = name, started, []
        self.decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self.child, self.fd = pty.fork()
        if self.child == 0:
            environment = {"PATH": path, "PS1": PROMPT, "TERM": "xterm-256color", "HOME": tempfile.gettempdir()}
            os.execve("/bin/bash", ["bash", "--norc", "--noprofile", "--noediting"], environment)
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))

    def read(self):
        try:
            text = self.decode(os.read(self.fd, 65536))
        except OSError:
            text = ""
        if text:
            self.events.append([round(time.monotonic() - self.started, 3), "o", text])

    def write(self, text):
        os.write(self.fd, text.encode())

    def screen(self):
        return "".join(text for _, _, text in self.events)

    def end(self):
        os.kill(self.child, signal.SIGKILL)
        os.waitpid(self.child, 0)
        os.close(self.fd)

    def save(self):
        header = {"version": 2, "width": COLUMNS, "height": ROWS, "title": self.name, "timestamp": int(time.time())}
        with open(os.path.join(HERE, self.name + ".cast"), "w", encoding="utf-8") as file:
            for line in [header, *self.events]:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def main():
    binary = os.path.abspath(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        os.symlink(binary, os.path.join(folder, "mini-lb"))
        path = folder + ":/usr/bin:/bin"
        started = time.monotonic()
        terminals = [Terminal(name, started, path) for name in ("demo", "client")]
        try:
            play(*terminals)
        finally:
            for terminal in terminals:
                terminal.end()
        for terminal in terminals:
            terminal.save()


def play(demo, client):
    def wait(until, limit=30):
        end = time.monotonic() + limit
        while not until():
            if time.monotonic() > end:
                sys.exit("nothing came within %s s" % limit)
            pause(0.02)

    def pause(seconds):
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            ready, _, _ = select.select([demo.fd, client.fd], [], [], left)
            for terminal in (demo, client):
                if terminal.fd in ready:
                    terminal.read()

    wait(lambda: PROMPT in demo.screen() and PROMPT in client.screen())
    pause(0.8)
    type_in(demo, DEMO, pause)
    demo.write("\n")
    wait(lambda: "max_new_tokens" in demo.screen())
    pause(3)
    paste(client, STREAM, wait)
    pause(1.5)
    client.write("\n")
    wait(lambda: "[DONE]" in client.screen())
    pause(1.5)
    type_in(client, REMARK, pause)
    client.write("\n")
    pause(0.3)
    paste(client, FAULT, wait)
    pause(1.5)
    client.write("\n")
    wait(lambda: re.search(r"\d after [\d.]+ s", client.screen()))
    pause(0.5)


def paste(terminal, lines, wait):
    """Line by line, so that the shell's second prompt stands where it belongs."""
    first, second = lines.split("\n")
    terminal.write(first + "\n")
    wait(lambda: terminal.screen().endswith("> "))
    terminal.write(second)


def type_in(terminal, words, pause):
    for key in words:
        terminal.write(key)
        pause(KEY_SECONDS)


if __name__ == "__main__":
    main()
