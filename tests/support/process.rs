//! The binary as a process of its own: started, signalled, read line by line, and waited for.

#![allow(clippy::unwrap_used, dead_code, unreachable_pub)] // each user has its own part

use std::net::SocketAddr;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// After this long a test that waits has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running mini-lb. Killed when dropped.
pub struct Process {
    child: Child,
    lines: mpsc::UnboundedReceiver<String>,
    reader: JoinHandle<()>,
    /// Whether stderr is left unread.
    hold: watch::Sender<bool>,
}

impl Process {
    /// Starts it; stderr becomes [`Self::line`].
    pub fn start(binary: impl AsRef<Path>, arguments: &[String]) -> Self {
        let mut child = Command::new(binary.as_ref())
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (found, lines) = mpsc::unbounded_channel();
        let (hold, held) = watch::channel(false);
        let reader = tokio::spawn(async move {
            let mut stderr = stderr.lines();
            while let Ok(Some(line)) = stderr.next_line().await {
                if *held.borrow() {
                    return std::future::pending().await;
                }
                // Read to the end even when nobody listens: a full pipe would stop the process.
                let _ = found.send(line);
            }
        });
        Self {
            child,
            lines,
            reader,
            hold,
        }
    }

    /// The next line that has this in it.
    pub async fn line(&mut self, part: &str) -> String {
        let awaited = async {
            let mut seen = Vec::new();
            loop {
                match self.lines.recv().await {
                    Some(line) if line.contains(part) => return line,
                    Some(line) => seen.push(line),
                    None => panic!("ended without {part:?}: {seen:#?}"),
                }
            }
        };
        tokio::time::timeout(PATIENCE, awaited)
            .await
            .unwrap_or_else(|_| panic!("waited in vain for {part:?}"))
    }

    /// The lines that came since the last look.
    pub fn lines(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.lines.try_recv().ok()).collect()
    }

    /// Reads nothing more of its stderr, which stays open.
    pub fn ignore(&self) {
        self.hold.send_replace(true);
    }

    /// Closes the reading end of its stderr.
    pub async fn hang_up(&mut self) {
        self.reader.abort();
        while self.lines.recv().await.is_some() {}
    }

    /// Where it listens, once it does.
    pub async fn address(&mut self) -> SocketAddr {
        let line = self.line("listening address=").await;
        line.rsplit_once('=').unwrap().1.parse().unwrap()
    }

    pub fn id(&self) -> u32 {
        self.child.id().unwrap()
    }

    /// Sends a signal by its name: `TERM`, `QUIT`, `INT`.
    pub async fn signal(&self, name: &str) {
        let command = format!("kill -s {name} {}", self.id());
        let sent = Command::new("sh").arg("-c").arg(command).status().await;
        assert!(sent.unwrap().success());
    }

    /// Waits for the end.
    pub async fn ended(&mut self) -> ExitStatus {
        tokio::time::timeout(PATIENCE, self.child.wait())
            .await
            .expect("waited in vain for the end of the process")
            .unwrap()
    }
}
