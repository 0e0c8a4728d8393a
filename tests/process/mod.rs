//! Programs under test: started as a user starts them, read line by line, ended by signals.
//!
//! Nothing sleeps: a test waits for a line, or for the end. A program that a failed test leaves is killed.

// Each test binary uses its own part of it.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::support::{Answer, Client, post, soon};

/// The binary itself.
pub fn mini_lb(arguments: &[&str]) -> Program {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mini-lb"));
    command.args(arguments);
    Program::start(command)
}

/// An example, which `cargo test` builds beside the tests.
pub fn example(name: &str, arguments: &[&str]) -> Program {
    let mut command = Command::new(example_path(name));
    command.args(arguments);
    Program::start(command)
}

fn example_path(name: &str) -> PathBuf {
    let this_test = std::env::current_exe().unwrap();
    let path = this_test
        .ancestors()
        .nth(2)
        .unwrap()
        .join("examples")
        .join(name);
    assert!(
        path.exists(),
        "{} is not built; `cargo build --examples` builds it",
        path.display()
    );
    path
}

/// Signals that end a program, with their numbers.
#[derive(Debug, Clone, Copy)]
pub enum Signal {
    Interrupt = 2,
    Terminate = 15,
}

fn caught_signals(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    u64::from_str_radix(mask.unwrap().trim(), 16).unwrap()
}

/// A running program.
pub struct Program {
    child: Child,
    /// What it writes on stdout and stderr, in the order of arrival. Closed when it has ended.
    lines: UnboundedReceiver<String>,
    seen: Vec<String>,
}

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    /// The exit code; `None` when a signal killed it.
    pub code: Option<i32>,
    /// Every line that it wrote.
    pub lines: Vec<String>,
}

impl Ended {
    pub fn text(&self) -> String {
        self.lines.join("\n")
    }
}

impl Program {
    pub fn start(mut command: Command) -> Program {
        // The environment of whoever runs the tests must not configure the program.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("MINI_LB_") {
                command.env_remove(name);
            }
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let (write, lines) = unbounded_channel();
        pump(child.stdout.take().unwrap(), write.clone());
        pump(child.stderr.take().unwrap(), write);
        Program {
            child,
            lines,
            seen: Vec::new(),
        }
    }

    /// The first line from here on that has `part` in it.
    pub async fn line(&mut self, part: &str) -> String {
        loop {
            let line = soon(&format!("a line with {part:?}"), self.lines.recv()).await;
            let Some(line) = line else {
                panic!("ended without {part:?}: {:#?}", self.seen);
            };
            self.seen.push(line.clone());
            if line.contains(part) {
                return line;
            }
        }
    }

    /// The address in the first line with `part`.
    pub async fn address(&mut self, part: &str) -> SocketAddr {
        let line = self.line(part).await;
        let words = line.split(|c: char| c.is_whitespace() || c == '=' || c == '/');
        words
            .filter_map(|word| word.parse().ok())
            .next()
            .unwrap_or_else(|| panic!("{line}"))
    }

    /// Sends it a signal, once it listens for that signal.
    pub async fn signal(&self, signal: Signal) {
        let pid = self.child.id();
        let caught = async || {
            // Source: proc_pid_status(5), `SigCgt`: a mask in hexadecimal, bit 0 is signal 1.
            while caught_signals(pid) >> (signal as u32 - 1) & 1 == 0 {
                tokio::task::yield_now().await;
            }
        };
        soon(&format!("a handler of {signal:?}"), caught()).await;
        let (number, pid) = (format!("-{}", signal as u32), pid.to_string());
        let sent = Command::new("kill").args([number, pid]).status().unwrap();
        assert!(sent.success(), "{signal:?} was not sent");
    }

    /// Waits for its end.
    pub async fn end(mut self) -> Ended {
        while let Some(line) = soon("the end of the program", self.lines.recv()).await {
            self.seen.push(line);
        }
        // Both pipes are closed: this returns at once.
        let code = self.child.wait().unwrap().code();
        Ended {
            code,
            lines: std::mem::take(&mut self.seen),
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Both fail when it has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn pump(pipe: impl Read + Send + 'static, lines: UnboundedSender<String>) {
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            if lines.send(line).is_err() {
                return;
            }
        }
    });
}

/// The answer to one GET on a connection of its own.
pub async fn get(address: SocketAddr, path: &str) -> Answer {
    ask(
        address,
        &format!("GET {path} HTTP/1.1\r\nhost: balancer\r\n\r\n"),
    )
    .await
}

/// The answer to one POST on a connection of its own.
pub async fn post_json(address: SocketAddr, path: &str, body: &str) -> Answer {
    ask(address, &post(path, body)).await
}

async fn ask(address: SocketAddr, request: &str) -> Answer {
    let mut client = Client::connect(address).await;
    client.send(request).await;
    client.answer().await
}
