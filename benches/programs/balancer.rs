//! A balancer as a program: its command line with the workers, its start, and its readiness.

use std::fmt::Write;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Request};
use http_body_util::Full;
use mini_lb::bench::fetch;

use super::process::Program;

/// The help for `--target`.
pub const TARGET_HELP: &str = "--target NAME=COMMAND measures another balancer. COMMAND is run by sh with these in it: {port}, {workers} \
    (--prefill URL PORT .. --decode URL .., as sglang_router takes them), {prefill1}, {bootstrap1}, {decode1}, {single1} \
    and so on, {mini-lb} (the binary). It serves when /health answers 200. For example:\n\
    --target 'sglang-router=python -m sglang_router.launch_router --pd-disaggregation --port {port} {workers}'";

/// The command of mini-lb with its defaults.
pub const MINI_LB: &str = "{mini-lb} --host 127.0.0.1 --port {port} {workers}";

/// A balancer that does not serve within this time has failed to start.
const START: Duration = Duration::from_secs(120);

/// A running worker.
#[derive(Debug, Clone)]
pub struct Worker {
    pub address: SocketAddr,
    /// Of a prefill worker only.
    pub bootstrap_port: Option<u16>,
}

impl Worker {
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// The workers behind a balancer. Ordinary ones are for balancers with one leg.
#[derive(Debug, Clone, Copy)]
pub struct Workers<'a> {
    pub prefill: &'a [Worker],
    pub decode: &'a [Worker],
    pub single: &'a [Worker],
}

impl Workers<'_> {
    /// The flags that mini-lb and sglang_router share.
    pub fn flags(&self) -> String {
        let mut flags = String::new();
        for worker in self.prefill {
            let port = worker.bootstrap_port.unwrap_or_default();
            let _ = write!(flags, "--prefill {} {port} ", worker.url());
        }
        for worker in self.decode {
            let _ = write!(flags, "--decode {} ", worker.url());
        }
        flags
    }

    /// The command line of a `--target`, with ports and URLs in place of their names.
    pub fn command(&self, template: &str, mini_lb: &str, port: u16) -> Command {
        let mut command = Command::new("sh");
        // `exec` replaces the shell, so that it is not measured.
        let line = format!("exec {}", self.filled(template, mini_lb, port));
        command.arg("-c").arg(line);
        without_settings(&mut command);
        command
    }

    fn filled(&self, template: &str, mini_lb: &str, port: u16) -> String {
        let mut line = template
            .replace("{port}", &port.to_string())
            .replace("{mini-lb}", mini_lb)
            .replace("{workers}", &self.flags());
        for (role, workers) in [
            ("prefill", self.prefill),
            ("decode", self.decode),
            ("single", self.single),
        ] {
            for (index, worker) in workers.iter().enumerate() {
                line = line.replace(&format!("{{{role}{}}}", index + 1), &worker.url());
                if let Some(bootstrap_port) = worker.bootstrap_port {
                    let name = format!("{{bootstrap{}}}", index + 1);
                    line = line.replace(&name, &bootstrap_port.to_string());
                }
            }
        }
        line
    }
}

/// Removes the settings of the developer from the environment.
pub fn without_settings(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("MINI_LB_") {
            command.env_remove(name);
        }
    }
}

/// Starts a balancer on this port, and waits until it serves.
pub async fn serving(
    name: &str,
    command: &mut Command,
    port: u16,
    log: &Path,
) -> Result<Program, String> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let begun = Instant::now();
    let mut program = Program::start(command, log)?;
    while !is_ready(address).await {
        if program.has_ended() || begun.elapsed() > START {
            let said = fs::read_to_string(log).unwrap_or_default();
            return Err(format!("{name} did not start: {}", said.trim()));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(program)
}

/// A port that is free now.
pub fn free_port() -> Result<u16, String> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    Ok(address.port())
}

async fn is_ready(address: SocketAddr) -> bool {
    let mut request = Request::new(Full::<Bytes>::default());
    *request.uri_mut() = http::Uri::from_static("/health");
    request
        .headers_mut()
        .insert(http::header::HOST, HeaderValue::from_static("target"));
    let asked = tokio::time::timeout(Duration::from_secs(1), fetch(address, request)).await;
    matches!(asked, Ok(Ok(answer)) if answer.status() == 200)
}
