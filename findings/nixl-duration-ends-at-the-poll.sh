#!/usr/bin/env bash
# Package: nixl-cu12 1.5.1 (PyPI), UCX backend over TCP, on the CPU. The bindings need numpy; torch is only needed for
# tensors and is not installed.
#
# Behaviour: for a transfer that is still under way when it has been posted, xferDuration in its telemetry ends when the caller
# asks check_xfer_state, not when the data has arrived. 64 bytes that are in place after a few milliseconds are reported as
# a transfer of two seconds if the caller asks for the first time after two seconds. The agent's progress thread is on, so that
# the transfer completes in the meantime.
#
# Why it surprises: the name, the unit (microseconds) and the field beside it (postDuration) suggest the time of the data
# movement, and the agent has a thread that drives the transfer to its end. vLLM (read, not run here) publishes the value as
# vllm:nixl_xfer_time_seconds, documented as the duration of the transfer, and computes the throughput in its log from it.
#
# Consequence for a proxy: an engine asks between two steps of its loop, so the metric contains the rest of the step during
# which the data came. It grows with the batch of the decode worker while the network is idle. A policy that reads it as the
# speed of the link between a prefill and a decode worker measures the load of the decode worker, which it knows already.
#
# Exit: 0 the behaviour is as stated, 1 it has changed, 2 it could not be measured. Takes about a minute, mostly download.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

if ! { python3 -m venv venv && venv/bin/pip install -q --disable-pip-version-check numpy==2.4.6 &&
  venv/bin/pip install -q --disable-pip-version-check --no-deps nixl-cu12==1.5.1; }; then
  echo 'not measured: the packages could not be installed'
  exit 2
fi

cat >probe.py <<'EOF'
import sys
import time

import numpy
from nixl_cu12._api import nixl_agent, nixl_agent_config

SIZE = 64


def agent(name):
    return nixl_agent(name, nixl_agent_config(backends=["UCX"], capture_telemetry=True))


def wait_until(condition, seconds):
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > seconds:
            print("not measured: the transfer did not complete in time")
            sys.exit(2)
        time.sleep(0.0005)
    return time.monotonic() - start


prefill, decode = agent("prefill"), agent("decode")
source = numpy.full(SIZE, 7, dtype=numpy.uint8)
target = numpy.zeros(SIZE, dtype=numpy.uint8)
prefill.register_memory([(source.ctypes.data, SIZE, 0, "")], "DRAM")
decode.register_memory([(target.ctypes.data, SIZE, 0, "")], "DRAM")
decode.add_remote_agent(prefill.get_agent_metadata())
local = decode.get_xfer_descs([(target.ctypes.data, SIZE, 0)], "DRAM")
remote = decode.get_xfer_descs([(source.ctypes.data, SIZE, 0)], "DRAM")


def transfer(pause):
    """One read of 64 bytes whose state is asked `pause` seconds after the data is there."""
    target[:] = 0
    handle = decode.initialize_xfer("READ", local, remote, "prefill")
    if decode.transfer(handle) != "PROC":
        print("not measured: the transfer was over when it was posted")
        sys.exit(2)
    arrived = wait_until(lambda: bool((target == 7).all()), 5)
    time.sleep(pause)
    wait_until(lambda: decode.check_xfer_state(handle) == "DONE", 5)
    reported = decode.get_xfer_telemetry(handle).xferDuration / 1e6
    decode.release_xfer_handle(handle)
    return arrived, reported


transfer(0)  # connects the two agents
print("data in place after   first asked after   xferDuration")
seen = {}
for pause in (0.5, 1.0, 2.0):
    arrived, seen[pause] = transfer(pause)
    print(f"{arrived * 1e3:14.1f} ms {pause:15.1f} s + {seen[pause]:12.3f} s")
    if arrived > pause / 2:
        print("not measured: the machine is too slow for these pauses")
        sys.exit(2)
if all(reported >= pause for pause, reported in seen.items()):
    print("as stated: the reported duration follows the moment of the question, not that of the data")
else:
    print("CHANGED: the reported duration is shorter than the pause before the question")
    sys.exit(1)
EOF

# TCP over loopback: with shared memory the transfer would be over before the call that posts it returns.
export UCX_TLS=tcp UCX_NET_DEVICES=lo NIXL_LOG_LEVEL=ERROR
timeout 60 venv/bin/python probe.py
