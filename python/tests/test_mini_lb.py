"""The installed package in front of simulated workers.

pip install ./python && python -m unittest discover -s python/tests
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import unittest
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Dict, Tuple

import mini_lb
from mini_lb import MiniLbError, MiniLoadBalancer


class Simulated:
    """A simulated worker, for as long as a test runs."""

    def __init__(self, role: str) -> None:
        self.process = subprocess.Popen(
            [mini_lb.binary(), "sim", role], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self.process.stdout is not None
        words = self.process.stdout.readline().split()
        self.url = words[1]
        self.bootstrap_port = int(words[3]) if role == "prefill" else None

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def asked(url: str, body: Dict[str, Any], key: str = "") -> Tuple[int, Dict[str, Any]]:
    request = urllib.request.Request(
        f"{url}/generate", json.dumps(body).encode(), {"content-type": "application/json", "x-api-key": key}
    )
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


class Package(unittest.TestCase):
    def setUp(self) -> None:
        self.prefill, self.decode = Simulated("prefill"), Simulated("decode")
        self.addCleanup(self.prefill.stop)
        self.addCleanup(self.decode.stop)
        self.workers = {
            "prefill": [(self.prefill.url, self.prefill.bootstrap_port)],
            "decode": [self.decode.url],
        }

    def test_a_balancer_serves_while_its_block_runs(self) -> None:
        with MiniLoadBalancer(**self.workers) as balancer:
            balancer.wait_ready()
            status, answer = asked(balancer.url, {"text": "Hello"})
            self.assertEqual(status, 200, answer)
            self.assertTrue(answer["text"])
            self.assertTrue(balancer.is_running)
            self.assertTrue(any("listening" in line for line in balancer.log))
            url = balancer.url
        self.assertFalse(balancer.is_running)
        with self.assertRaises(OSError):
            urllib.request.urlopen(f"{url}/health")

    def test_settings_are_those_of_the_file_with_their_types(self) -> None:
        balancer = MiniLoadBalancer(
            **self.workers,
            policy="least_requests",
            api_key="${not-a-variable}",
            max_samples=2,
            disable_health_check=True,
            arguments=["--log-level", "debug"],
        )
        with balancer:
            balancer.wait_ready()
            body = {"text": "a", "sampling_params": {"n": 3}}
            self.assertEqual(asked(balancer.url, body)[0], 401)
            self.assertEqual(asked(balancer.url, body, "${not-a-variable}")[0], 400)
            # No other user of the machine may read the key.
            files = [Path(word) for word in _arguments(balancer.pid) if word.endswith(".json")]
            self.assertEqual(files[0].stat().st_mode & 0o777, 0o600)
        self.assertFalse(files[0].exists())

    def test_it_starts_again_and_its_exit_code_is_that_of_the_process(self) -> None:
        balancer = MiniLoadBalancer(**self.workers)
        self.assertIsNone(balancer.stop())
        for _ in range(2):
            balancer.start().wait_ready()
            self.assertEqual(balancer.stop(), 0)
        balancer.start()
        os.kill(balancer.pid, signal.SIGKILL)
        self.assertEqual(balancer.stop(), -signal.SIGKILL)

    def test_a_problem_of_the_configuration_is_in_the_error(self) -> None:
        with self.assertRaisesRegex(MiniLbError, "polcy: unknown key, did you mean `policy`"):
            MiniLoadBalancer(**self.workers, polcy="random").start()
        with self.assertRaisesRegex(TypeError, "lists of workers"):
            MiniLoadBalancer(prefill="http://127.0.0.1:1", decode=["http://127.0.0.1:2"])
        with MiniLoadBalancer(**self.workers) as balancer:
            with self.assertRaisesRegex(MiniLbError, "cannot listen on"):
                MiniLoadBalancer(**self.workers, port=balancer.port).start()

    def test_without_workers_it_is_not_ready(self) -> None:
        with MiniLoadBalancer([], [], watch_config=True) as balancer:
            with self.assertRaisesRegex(MiniLbError, "no pair of a prefill and a decode worker"):
                balancer.wait_ready(timeout=0.2)

    def test_the_module_is_the_program(self) -> None:
        program = subprocess.Popen(
            [sys.executable, "-m", "mini_lb", "--pd-disaggregation", "--mini-lb", "--port", "0"]
            + ["--host", "127.0.0.1", "--prefill", self.prefill.url, str(self.prefill.bootstrap_port)]
            + ["--decode", self.decode.url],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert program.stderr is not None
        with program.stderr as lines:
            line = next(line for line in lines if "listening address=" in line)
            address = line.split("address=")[1].split()[0]
            self.assertEqual(asked(f"http://{address}", {"text": "Hello"})[0], 200)
            program.send_signal(signal.SIGTERM)
            lines.read()
        self.assertEqual(program.wait(), 0)

    def test_the_command_is_installed_with_the_version_of_the_package(self) -> None:
        command = Path(sys.executable).parent / "mini-lb"
        said = subprocess.run([command, "--version"], check=True, capture_output=True, text=True)
        self.assertEqual(said.stdout.splitlines()[0], f"mini-lb {mini_lb.__version__}")


def _arguments(pid: Any) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


if __name__ == "__main__":
    unittest.main()
