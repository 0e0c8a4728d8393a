"""A balancer as a child process."""

from __future__ import annotations

import atexit
import collections
import json
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Optional, Union

from ._binary import binary

__all__ = ["MiniLbError", "MiniLoadBalancer"]

#: A worker: its URL, its URL and the port of its bootstrap server, or the mapping of the configuration file.
Worker = Union[str, tuple[str, Optional[int]], Mapping[str, Any]]

_LISTENING = re.compile(r"listening address=([^\s\"]+)")

#: Lines of the log that are kept.
_LINES = 1000


class MiniLbError(RuntimeError):
    """The balancer did not start, has ended, or was not ready in time. The text has its last lines."""


class MiniLoadBalancer:
    """A load balancer in a process of its own.

    Args:
        prefill: The prefill workers. A pair has the port of the worker's bootstrap server as its second part.
        decode: The decode workers.
        host: The address to listen on.
        port: The port to listen on; 0 is a free one, which :attr:`port` has after the start.
        arguments: More flags for the command line, such as ``["--log-level", "debug"]``.
        settings: Any other key of the configuration file, such as ``policy="least_requests"`` or ``api_key="..."``. They are
            written to a file that only this user can read, and that is removed at the end.

    The balancer is stopped when the interpreter ends. It is a context manager, which starts it and stops it.
    """

    def __init__(
        self,
        prefill: Sequence[Worker],
        decode: Sequence[Worker],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        arguments: Sequence[str] = (),
        **settings: Any,
    ) -> None:
        if isinstance(prefill, str) or isinstance(decode, str):
            raise TypeError("prefill and decode are lists of workers, also where there is one")
        self._settings = {
            **settings,
            "host": host,
            "port": port,
            "prefill": [_worker(worker) for worker in prefill],
            "decode": [_worker(worker) for worker in decode],
        }
        self._arguments = list(arguments)
        self._process: Optional[subprocess.Popen[str]] = None
        self._file: Optional[str] = None
        self._reader: Optional[threading.Thread] = None
        self._lines: collections.deque[str] = collections.deque(maxlen=_LINES)
        self._listens = threading.Event()
        self._address: Optional[str] = None

    def start(self, timeout: float = 60.0) -> MiniLoadBalancer:
        """Starts the process and waits until it listens.

        Args:
            timeout: How long that may take, in seconds.

        Raises:
            MiniLbError: the configuration has a problem, the address is taken, or the time is over.
        """
        if self.is_running:
            raise MiniLbError("the balancer runs already")
        self._listens.clear()
        self._lines.clear()
        self._address = None
        handle, self._file = tempfile.mkstemp(prefix="mini-lb-", suffix=".json")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            # JSON is YAML.
            json.dump(_escaped(self._settings), file, indent=1)
        self._process = subprocess.Popen(
            [binary(), "--conf", self._file, *self._arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        atexit.register(self.stop)
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()
        why = None if self._listens.wait(timeout) else f"did not listen within {timeout:g} s"
        if why is None and self._address is None:
            why = "ended"
        if why is not None:
            self.stop()
            raise MiniLbError(f"the balancer {why}: {self._last_lines()}")
        return self

    def stop(self, timeout: float = 200.0) -> Optional[int]:
        """Ends the process; live requests may finish. Does nothing where none runs.

        Args:
            timeout: How long that may take before the process is killed, in seconds.

        Returns:
            The exit code; ``None`` where no process was started.
        """
        process, self._process = self._process, None
        if process is None:
            return None
        atexit.unregister(self.stop)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        if self._reader is not None:
            self._reader.join()
        if self._file is not None:
            os.unlink(self._file)
            self._file = None
        return code

    def wait_ready(self, timeout: float = 60.0) -> MiniLoadBalancer:
        """Waits until there is a pair of workers for requests.

        Raises:
            MiniLbError: the process has ended, or the time is over.
        """
        deadline = time.monotonic() + timeout
        why = "it was not asked"
        while time.monotonic() < deadline:
            if not self.is_running:
                raise MiniLbError(f"the balancer does not run: {self._last_lines()}")
            try:
                with urllib.request.urlopen(f"{self.url}/readiness", timeout=5.0):
                    return self
            except urllib.error.HTTPError as error:
                why = error.read().decode(errors="replace")
            except OSError as error:
                why = str(error)
            time.sleep(0.05)
        raise MiniLbError(f"the balancer is not ready after {timeout:g} s: {why}")

    @property
    def is_running(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> Optional[int]:
        """The process; ``None`` where none was started."""
        return None if self._process is None else self._process.pid

    @property
    def address(self) -> str:
        """Host and port that it listens on.

        Raises:
            MiniLbError: it was not started.
        """
        if self._address is None:
            raise MiniLbError("the balancer was not started")
        return self._address

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self.address.rsplit(":", 1)[1])

    @property
    def url(self) -> str:
        """The URL for clients on this machine."""
        scheme = "https" if self._settings.get("tls_cert_path") else "http"
        host, port = self.address.rsplit(":", 1)
        reachable = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}
        return f"{scheme}://{reachable.get(host, host)}:{port}"

    @property
    def log(self) -> list[str]:
        """The last lines that it has written, 1000 at most."""
        return list(self._lines)

    def __enter__(self) -> MiniLoadBalancer:
        return self.start()

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.stop()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        with process.stderr as lines:
            for line in lines:
                self._lines.append(line.rstrip("\n"))
                found = _LISTENING.search(line)
                if found and self._address is None:
                    self._address = found.group(1)
                    self._listens.set()
        # It has ended, perhaps before it listened.
        self._listens.set()

    def _last_lines(self) -> str:
        return "; ".join(list(self._lines)[-5:]) or "it wrote nothing"


def _worker(worker: Worker) -> Mapping[str, Any]:
    if isinstance(worker, str):
        return {"url": worker}
    if isinstance(worker, Mapping):
        return worker
    url, port = worker
    return {"url": url} if port is None else {"url": url, "bootstrap_port": port}


def _escaped(value: Any) -> Any:
    """Without references to variables, which the file would have in its texts."""
    if isinstance(value, str):
        return value.replace("${", "$${")
    if isinstance(value, Mapping):
        return {key: _escaped(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_escaped(inner) for inner in value]
    return value
