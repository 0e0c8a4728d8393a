//! The binary with a configuration file that the test changes.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde_json::Value;
use support::program::get;
use support::{Client, Process, Signal, Worker, mini_lb, soon};
use tempfile::TempDir;

/// A running process with a file of its own.
pub(crate) struct Configured {
    pub(crate) directory: TempDir,
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
}

impl Configured {
    /// Starts with this file, to which a free port and two threads are added.
    pub(crate) async fn start(text: &str) -> Self {
        Self::start_in(TempDir::new().unwrap(), text).await
    }

    /// The same in a directory that is there.
    pub(crate) async fn start_in(directory: TempDir, text: &str) -> Self {
        let conf = directory.path().join("conf.yaml");
        fs::write(&conf, whole(text)).unwrap();
        let mut process = mini_lb!(&["--conf", conf.to_str().unwrap()]);
        let address = process.address().await;
        Self {
            directory,
            process,
            address,
        }
    }

    pub(crate) fn conf(&self) -> PathBuf {
        self.directory.path().join("conf.yaml")
    }

    /// Writes the file anew.
    pub(crate) fn write(&self, text: &str) {
        fs::write(self.conf(), whole(text)).unwrap();
    }

    /// Writes the file anew and sends SIGHUP. The line that says what came of it.
    pub(crate) async fn reload(&mut self, text: &str) -> String {
        self.write(text);
        self.hang_up().await
    }

    /// Sends SIGHUP. The line that says what came of it.
    pub(crate) async fn hang_up(&mut self) -> String {
        self.process.signal(Signal::Hangup).await;
        self.process.line("reloaded").await
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(self.address).await
    }

    /// The status of `/readiness`.
    pub(crate) async fn readiness(&self) -> u16 {
        get(self.address, "/readiness").await.status()
    }

    /// Resolves when `/readiness` has this status.
    pub(crate) async fn is_ready(&self, status: u16) {
        soon("the readiness", async {
            while self.readiness().await != status {}
        })
        .await;
    }

    /// The value of the series of `/metrics` whose line begins so.
    pub(crate) async fn metric(&self, series: &str) -> f64 {
        let text = get(self.address, "/metrics").await.text().to_owned();
        let line = text.lines().find_map(|line| line.strip_prefix(series));
        line.unwrap_or_else(|| panic!("{series} in {text}"))
            .trim()
            .parse()
            .unwrap()
    }

    /// The URLs of the workers in `/metrics`, in alphabetical order, without those that drain.
    pub(crate) async fn workers(&self) -> Vec<String> {
        let text = get(self.address, "/metrics").await.text().to_owned();
        let lines = text.lines();
        let urls = lines.filter_map(|line| {
            let labels = line.strip_prefix("mini_lb_worker_up{")?;
            let url = labels.split("worker=\"").nth(1)?.split('"').next()?;
            line.ends_with(" 1").then(|| url.to_owned())
        });
        let mut urls: Vec<_> = urls.collect();
        urls.sort();
        urls
    }
}

fn whole(text: &str) -> String {
    format!("host: 127.0.0.1\nport: 0\nthreads: 2\n{text}\n")
}

/// Two workers of the test in a file, without probes.
pub(crate) fn pair(prefill: &Worker, decode: &Worker) -> String {
    lists(&[prefill.url()], &[decode.url()])
}

/// These workers in a file, without probes.
pub(crate) fn lists(prefill: &[String], decode: &[String]) -> String {
    let list = |urls: &[String]| -> Value { urls.to_vec().into() };
    format!(
        "disable_health_check: true\nprefill: {}\ndecode: {}\n",
        list(prefill),
        list(decode)
    )
}
