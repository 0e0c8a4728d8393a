//! The binary and the examples as processes, and single requests to a server.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::{Answer, Client, Process, post};

/// Starts the binary with these arguments. A macro, because Cargo names the binary only to the tests and benches of
/// its own package.
#[macro_export]
macro_rules! mini_lb {
    ($arguments:expr) => {
        $crate::Process::start(env!("CARGO_BIN_EXE_mini-lb"), $arguments)
    };
}

/// Starts an example, which `cargo test` builds beside the tests.
pub fn example(name: &str, arguments: &[&str]) -> Process {
    Process::start(example_path(name), arguments)
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

/// The response to one GET on a new connection.
pub async fn get(address: SocketAddr, path: &str) -> Answer {
    ask(
        address,
        &format!("GET {path} HTTP/1.1\r\nhost: balancer\r\n\r\n"),
    )
    .await
}

/// The response to one POST on a new connection.
pub async fn post_json(address: SocketAddr, path: &str, body: &str) -> Answer {
    ask(address, &post(path, body)).await
}

async fn ask(address: SocketAddr, request: &str) -> Answer {
    let mut client = Client::connect(address).await;
    client.send(request).await;
    client.answer().await
}
