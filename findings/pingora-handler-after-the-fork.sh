#!/usr/bin/env bash
# Package: pingora-core 0.9.1 (crates.io): a program of a few lines that goes to the background with "daemon" and
# "daemon_wait_for_ready".
#
# Behaviour: the parent installs its handler for SIGUSR1 after the fork. The documentation of daemonize says: "the parent registers
# a SIGUSR1 handler before forking". A process inherits the handlers of its parent, and the one in the background has none for
# SIGUSR1. In a second run the program installs one itself before it forks, and there the process in the background has it.
#
# Why it surprises: between the fork and the handler the signal has its default effect, which is to end the parent. The order in
# the documentation has no such moment, so that a reader does not expect one.
#
# Consequence: the process in the background must not be ready before its parent listens. It mostly is not, because a server takes
# longer to start than a parent to build its runtime; on a busy machine the order is chance. A program can install a handler of
# its own before Pingora forks, or let what Pingora waits for take its time.
#
# Exit: 0 the behaviour is as stated, 1 it has changed, 2 it could not be measured. Needs cargo and a C compiler; builds
# pingora-core in the temporary folder (one to two minutes of CPU). Its compression library is built with cmake, which comes from
# PyPI where the machine has none. No signal meets a process without a handler: the one in the background waits for two seconds.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

mkdir src
cat >Cargo.toml <<'EOF'
[package]
name = "in-background"
version = "0.0.0"
edition = "2021"

[dependencies]
async-trait = "=0.1.89"
pingora-core = { version = "=0.9.1", default-features = false }
tokio = { version = "1", features = ["rt", "signal", "time"] }

[profile.dev]
debug = false
incremental = false
EOF
cat >src/main.rs <<'EOF'
use std::time::Duration;

use async_trait::async_trait;
use pingora_core::server::configuration::ServerConf;
use pingora_core::server::{ListenFds, RunArgs, Server, ShutdownWatch};
use pingora_core::services::{ServiceReadyNotifier, ServiceWithDependents};
use tokio::signal::unix::{signal, SignalKind};

/// Writes down the state of the process in the background, and lets it be ready two seconds later.
struct Look(String);

#[async_trait]
impl ServiceWithDependents for Look {
    async fn start_service(
        &mut self,
        _: Option<ListenFds>,
        _: ShutdownWatch,
        _: usize,
        ready: ServiceReadyNotifier,
    ) {
        let status = std::fs::read_to_string("/proc/self/status").expect("the state");
        std::fs::write(&self.0, status).expect("a file");
        tokio::time::sleep(Duration::from_secs(2)).await;
        ready.notify_ready();
        tokio::time::sleep(Duration::from_secs(2)).await;
        std::process::exit(0);
    }

    fn name(&self) -> &str {
        "look"
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [directory, handler] = &arguments[..] else {
        panic!("two arguments");
    };
    if handler == "own-handler" {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        let _ = runtime.block_on(async { signal(SignalKind::user_defined1()).expect("a handler") });
    }
    let conf = ServerConf {
        daemon: true,
        daemon_wait_for_ready: true,
        pid_file: format!("{directory}/pid"),
        error_log: Some(format!("{directory}/log")),
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    let looks = server.add_service(Look(format!("{directory}/status")));
    server.bootstrap_as_a_service().add_dependency(looks);
    server.run(RunArgs::default());
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
  echo 'not measured: the program could not be built'
  exit 2
fi

# Whether the process in the background has a handler for SIGUSR1. Source: proc_pid_status(5), SigCgt.
inherits() {
  mkdir "$1"
  if ! timeout 60 target/debug/in-background "$work/$1" "$1"; then
    echo 'not measured: the parent has ended with an error'
    exit 2
  fi
  mask=$(awk '/^SigCgt:/ { print $2 }' "$1/status")
  echo "$1: the process in the background catches $mask"
  (((16#$mask >> 9) & 1))
}

if ! inherits own-handler; then
  echo 'not measured: a handler is not inherited'
  exit 2
fi
if inherits no-handler; then
  echo 'CHANGED: the handler is there before the fork'
  exit 1
fi
echo 'as stated: the parent forks without a handler for SIGUSR1'
