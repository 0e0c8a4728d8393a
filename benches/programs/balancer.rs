//! A balancer as a program: its command line with the workers, its start, and its readiness.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use std::{fs, io};

use bytes::Bytes;
use http::{HeaderValue, Request};
use http_body_util::Full;
use mini_lb::bench::fetch;
use mini_lb::pd::Engine;
use tokio::net::TcpSocket;

use super::process::Program;

/// The help for `--target`.
pub const TARGET_HELP: &str = "--target NAME=COMMAND measures another balancer. COMMAND is run by sh with these in it: {port}, {workers} \
    (--prefill URL PORT .. --decode URL .., as sglang_router takes them; without PORT for vLLM), {prefill1}, {bootstrap1}, {decode1}, {single1} \
    and so on, {mini-lb} (the binary). It serves when /health answers 200. For example:\n\
    --target 'sglang-router=python -m sglang_router.launch_router --pd-disaggregation --port {port} {workers}'";

/// The command of mini-lb with its defaults, in front of workers of SGLang.
pub const MINI_LB: &str = "{mini-lb} --host 127.0.0.1 --port {port} {workers}";

/// The command of mini-lb with its defaults, in front of workers of this engine.
pub fn with_defaults(engine: Engine) -> String {
    match engine {
        // Earlier versions, which `--mini-lb` may name, have no other engine and no such flag.
        Engine::Sglang => MINI_LB.to_owned(),
        other => format!("{MINI_LB} --engine {}", other.name()),
    }
}

/// A balancer that does not serve within this time has failed to start.
const START: Duration = Duration::from_secs(120);

/// A running worker.
#[derive(Debug, Clone)]
pub struct Worker {
    pub address: SocketAddr,
    /// Of a prefill worker of SGLang only.
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
    /// The flags that mini-lb, sglang_router and vllm-router share.
    pub fn flags(&self) -> String {
        let mut flags = String::new();
        for worker in self.prefill {
            let _ = write!(flags, "--prefill {} ", worker.url());
            if let Some(port) = worker.bootstrap_port {
                let _ = write!(flags, "{port} ");
            }
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
    port: &ReservedPort,
    log: &Path,
) -> Result<Program, String> {
    let begun = Instant::now();
    let mut program = Program::start(command, log)?;
    while !is_ready(port.address).await {
        if program.has_ended() || begun.elapsed() > START {
            let said = fs::read_to_string(log).unwrap_or_default();
            return Err(format!("{name} did not start: {}", said.trim()));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(program)
}

/// A port for a listener that names it. As long as this is held, the system gives the port to no socket that leaves the
/// choice to it: a worker of another scenario would answer in place of the balancer.
///
/// Source: Linux `net/ipv4/inet_connection_sock.c` (`inet_csk_bind_conflict`): a socket that does not listen, and has
/// `SO_REUSEADDR`, conflicts with no listener that has it too, but with the search for a free port.
#[derive(Debug)]
pub struct ReservedPort {
    pub address: SocketAddr,
    _socket: TcpSocket,
}

impl ReservedPort {
    /// A port that is free now.
    pub fn new() -> Result<ReservedPort, String> {
        let reserved = || {
            let socket = TcpSocket::new_v4()?;
            socket.set_reuseaddr(true)?;
            socket.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
            Ok(ReservedPort {
                address: socket.local_addr()?,
                _socket: socket,
            })
        };
        reserved().map_err(|error: io::Error| error.to_string())
    }

    pub fn number(&self) -> u16 {
        self.address.port()
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(address: SocketAddr, reuse: bool) -> io::Result<TcpSocket> {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(reuse)?;
        socket.bind(address).map(|()| socket)
    }

    #[tokio::test]
    async fn a_reserved_port_is_for_listeners_that_name_it() {
        let port = ReservedPort::new().unwrap();
        let connected = tokio::net::TcpStream::connect(port.address).await;
        assert!(connected.is_err(), "nothing listens there yet");
        // As the search for a free port sees it.
        assert!(bind(port.address, false).is_err());
        let listener = tokio::net::TcpListener::bind(port.address).await.unwrap();
        drop(listener);
        assert!(tokio::net::TcpListener::bind(port.address).await.is_ok());
    }
}
