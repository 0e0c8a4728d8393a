//! A prefill and a decode worker, and the binary in front of them as a process.

use std::fs;
use std::net::SocketAddr;

use support::pair::serve;
use support::{
    Answer, BODY, CHAT, Client, Exchange, Process, STREAM, Signal, Worker, mini_lb, post,
};
use tempfile::TempDir;
use tokio::net::TcpStream;

/// A directory with a configuration file, and the upgrade socket that the file names.
pub(crate) struct Directory(TempDir);

impl Directory {
    pub(crate) fn new() -> Self {
        let directory = Self(TempDir::new().unwrap());
        let path = directory.0.path().display();
        directory.configure(&format!(
            "version: 1\nthreads: 2\nupgrade_sock: {path}/up.sock\npid_file: {path}/pid\n"
        ));
        directory
    }

    pub(crate) fn path(&self) -> &std::path::Path {
        self.0.path()
    }

    /// Replaces the configuration file.
    pub(crate) fn configure(&self, text: &str) {
        fs::write(self.0.path().join("conf.yaml"), text).unwrap();
    }

    /// Starts the binary with this file; `workers` are the values of `--prefill` and `--decode`.
    pub(crate) fn start(&self, port: u16, workers: (&str, &str), more: &str) -> Process {
        let (prefill, decode) = workers;
        let conf = self.0.path().join("conf.yaml");
        let arguments = format!(
            "--conf {} --host 127.0.0.1 --port {port} --prefill {prefill} --decode {decode} {more}",
            conf.display()
        );
        mini_lb!(&arguments.split_whitespace().collect::<Vec<_>>())
    }
}

/// A running process whose workers the test plays.
pub(crate) struct ProcessPair {
    pub(crate) prefill: Worker,
    pub(crate) decode: Worker,
    pub(crate) directory: Directory,
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
}

impl ProcessPair {
    pub(crate) async fn start(more: &str) -> Self {
        let (prefill, decode) = Worker::pair().await;
        let directory = Directory::new();
        let urls = (format!("{} 8998", prefill.url()), decode.url());
        let more = format!("--disable-health-check {more}");
        let mut process = directory.start(0, (&urls.0, &urls.1), &more);
        let address = process.address().await;
        Self {
            prefill,
            decode,
            directory,
            process,
            address,
        }
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(self.address).await
    }

    /// The next request at each worker, prefill's first.
    pub(crate) async fn next_legs(&mut self) -> (Exchange, Exchange) {
        (self.prefill.request().await, self.decode.request().await)
    }

    /// A stream whose first event has arrived.
    pub(crate) async fn stream(&mut self) -> (Client, Exchange) {
        let mut client = self.client().await;
        client.send(post(CHAT, STREAM)).await;
        let (prefill, mut decode) = self.next_legs().await;
        prefill.answer("200 OK", "{}").await;
        decode.begin_stream().await;
        decode.chunk("data: 1\n\n").await;
        client.head().await;
        assert_eq!(client.chunk().await.as_deref(), Some("data: 1\n\n"));
        (client, decode)
    }

    /// A whole response over this client's connection.
    pub(crate) async fn generate(&mut self, client: &mut Client) -> Answer {
        client.send(post("/generate", BODY)).await;
        serve(self.next_legs().await).await;
        client.answer().await
    }

    pub(crate) async fn refuses_connections(&self) -> bool {
        TcpStream::connect(self.address).await.is_err()
    }

    /// Starts a successor at the same address with `more` flags, and lets it take the sockets over.
    pub(crate) async fn succeed(&mut self, more: &str) -> Process {
        let urls = (format!("{} 8998", self.prefill.url()), self.decode.url());
        let more = format!("--disable-health-check {more}");
        let (directory, address) = (&self.directory, self.address);
        succeed(
            directory,
            &mut self.process,
            address,
            (&urls.0, &urls.1),
            &more,
        )
        .await
    }
}

/// Starts a successor of this process, and lets it take the sockets over.
pub(crate) async fn succeed(
    directory: &Directory,
    old: &mut Process,
    address: SocketAddr,
    workers: (&str, &str),
    more: &str,
) -> Process {
    let more = format!("--upgrade {more}");
    let mut new = directory.start(address.port(), workers, &more);
    new.line("waiting for the sockets of the old process").await;
    old.signal(Signal::Quit).await;
    old.line("successor listens").await;
    assert_eq!(new.address().await, address);
    new
}
