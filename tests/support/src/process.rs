//! A program as a child process: started as a user starts it, read line by line, signalled, and waited for.
//!
//! Nothing sleeps: a test waits for a line, or for the end. A process that a failed test leaves behind is killed.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// A test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running program. Killed when dropped.
pub struct Process {
    child: Child,
    /// Lines of stdout and stderr, in the order of arrival. Closed when the process has ended.
    lines: mpsc::UnboundedReceiver<String>,
    /// Lines that [`Self::line`] has read.
    seen: Vec<String>,
    stderr: JoinHandle<()>,
    /// Whether reading has stopped.
    hold: watch::Sender<bool>,
}

/// Signals, with their numbers.
#[derive(Debug, Clone, Copy)]
pub enum Signal {
    Hangup = 1,
    Interrupt = 2,
    Quit = 3,
    User1 = 10,
    User2 = 12,
    Terminate = 15,
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

impl Process {
    pub fn start(binary: impl AsRef<Path>, arguments: &[impl AsRef<str>]) -> Self {
        let mut command = std::process::Command::new(binary.as_ref());
        command.args(arguments.iter().map(AsRef::as_ref));
        Self::of(command)
    }

    pub fn of(mut command: std::process::Command) -> Self {
        // The environment of the developer must not configure the program.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("MINI_LB_") {
                command.env_remove(name);
            }
        }
        let mut child = Command::from(command)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (found, lines) = mpsc::unbounded_channel();
        let (hold, held) = watch::channel(false);
        let stdout = child.stdout.take().unwrap();
        tokio::spawn(read(stdout, found.clone(), held.clone()));
        let stderr = tokio::spawn(read(child.stderr.take().unwrap(), found, held));
        Self {
            child,
            lines,
            seen: Vec::new(),
            stderr,
            hold,
        }
    }

    /// The next line that contains `part`.
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

    /// The lines that have arrived since the last call.
    pub fn lines(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.lines.try_recv().ok()).collect()
    }

    /// Stops reading; the pipes stay open.
    pub fn ignore(&self) {
        self.hold.send_replace(true);
    }

    /// Closes the reading end of its stderr.
    pub async fn hang_up(&mut self) {
        self.stderr.abort();
        // The task owns the reading end, which closes with it.
        let _ = (&mut self.stderr).await;
    }

    /// The address that the process listens on, once it does.
    pub async fn address(&mut self) -> SocketAddr {
        self.address_in("listening address=").await
    }

    /// The address in the next line that contains `part`.
    pub async fn address_in(&mut self, part: &str) -> SocketAddr {
        let line = self.line(part).await;
        let mut words = line.split(|c: char| c.is_whitespace() || c == '=' || c == '/');
        let found = words.find_map(|word| word.parse().ok());
        found.unwrap_or_else(|| panic!("{line}"))
    }

    pub fn id(&self) -> u32 {
        self.child.id().unwrap()
    }

    /// Sends a signal, once the process has a handler for it.
    pub async fn signal(&self, signal: Signal) {
        let pid = self.id();
        let caught = async {
            // Source: proc_pid_status(5), `SigCgt`: a mask in hexadecimal, bit 0 is signal 1.
            while caught_signals(pid) >> (signal as u32 - 1) & 1 == 0 {
                tokio::task::yield_now().await;
            }
        };
        soon(&format!("a handler of {signal:?}"), caught).await;
        let (number, pid) = (format!("-{}", signal as u32), pid.to_string());
        let sent = Command::new("kill").args([number, pid]).status().await;
        assert!(sent.unwrap().success(), "{signal:?} was not sent");
    }

    /// Waits for the end of the process.
    pub async fn ended(&mut self) -> ExitStatus {
        let ended = soon("the end of the process", self.child.wait()).await;
        ended.unwrap()
    }

    /// Waits for the end of the process, and returns every line.
    pub async fn end(mut self) -> Ended {
        while let Some(line) = soon("the end of the process", self.lines.recv()).await {
            self.seen.push(line);
        }
        Ended {
            code: self.ended().await.code(),
            lines: std::mem::take(&mut self.seen),
        }
    }
}

async fn soon<T>(what: &str, awaited: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, awaited)
        .await
        .unwrap_or_else(|_| panic!("timed out waiting for {what}"))
}

async fn read(
    pipe: impl AsyncRead + Unpin,
    found: mpsc::UnboundedSender<String>,
    held: watch::Receiver<bool>,
) {
    let mut lines = BufReader::new(pipe).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if *held.borrow() {
            return std::future::pending().await;
        }
        // Read to the end even when no test wants the lines: a full pipe would block the process.
        let _ = found.send(line);
    }
}

fn caught_signals(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    u64::from_str_radix(mask.unwrap().trim(), 16).unwrap()
}
