//! `mini-lb health`: the exit code and the line of a health check.

use std::net::SocketAddr;

use mini_lb::sim::{SimOptions, Worker};

use support::tls::Authority;
use support::{Ended, Process, mini_lb};
use tokio::net::TcpListener;

/// A balancer that runs for one test, and its workers.
struct Running {
    _workers: [Worker; 2],
    process: Process,
    address: SocketAddr,
}

impl Running {
    async fn start(more: &[&str]) -> Self {
        let prefill = Worker::start_prefill(SimOptions::default()).await.unwrap();
        let decode = Worker::start_decode(SimOptions::default()).await.unwrap();
        let (prefill_url, decode_url) = (prefill.url(), decode.url());
        let workers = ["--prefill", &prefill_url, "--decode", &decode_url];
        let mut process = mini_lb!(&[&ANY_PORT[..], &workers, more].concat());
        let address = process.address().await;
        Self {
            _workers: [prefill, decode],
            process,
            address,
        }
    }
}

const ANY_PORT: [&str; 4] = ["--host", "127.0.0.1", "--port", "0"];

async fn health(more: &[&str]) -> Ended {
    mini_lb!(&[&["health"], more].concat()).end().await
}

async fn is_ready(more: &[&str]) {
    let ended = health(more).await;
    assert_eq!(
        (ended.code, ended.text().as_str()),
        (Some(0), "ready"),
        "{more:?}"
    );
}

/// One line on stderr that begins and goes on like this, and exit code 1.
async fn fails(more: &[&str], begin: &str, part: &str) {
    let ended = health(more).await;
    assert_eq!((ended.code, ended.lines.len()), (Some(1), 1), "{ended:?}");
    let line = &ended.lines[0];
    assert!(
        line.starts_with(&format!("mini-lb: {begin}")) && line.contains(part),
        "{line}"
    );
}

#[tokio::test]
async fn a_balancer_with_a_pair_is_ready_by_its_url_and_by_its_command_line() {
    let running = Running::start(&[]).await;
    let port = running.address.port().to_string();
    is_ready(&["--url", &format!("http://{}", running.address)]).await;
    // It listens on all addresses where its command line says so, and is asked on the loopback address.
    is_ready(&[
        "--host",
        "0.0.0.0",
        "--port",
        &port,
        "--prefill",
        "http://a:1",
        "--decode",
        "http://b:1",
    ])
    .await;
    running.process.signal(support::Signal::Interrupt).await;
}

#[tokio::test]
async fn a_balancer_without_a_pair_is_live_and_not_ready() {
    let mut process = mini_lb!(&[&ANY_PORT[..], &["--watch-config"]].concat());
    let url = format!("http://{}", process.address().await);
    fails(
        &["--url", &url],
        &format!("{url}/readiness: 503"),
        "no pair",
    )
    .await;
    let ended = health(&["--url", &url, "--live"]).await;
    assert_eq!((ended.code, ended.text().as_str()), (Some(0), "live"));
}

#[tokio::test]
async fn the_listener_of_administration_is_asked_where_there_is_one() {
    let running = Running::start(&[]).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    // The other settings are those of a file that has changed since: the process serves with what it has read.
    let text = format!(
        "port: 1\nadmin_listen: {}\nmax_samples: many\n",
        running.address
    );
    std::fs::write(file.path(), text).unwrap();
    is_ready(&["--conf", file.path().to_str().unwrap()]).await;
}

#[tokio::test]
async fn a_listener_with_tls_is_asked_by_the_name_of_no_certificate() {
    let authority = Authority::generate();
    let signed = authority.sign(&["balancer.example"]);
    let (certificate, key) = signed.paths();
    let tls = ["--tls-cert-path", certificate, "--tls-key-path", key];
    let running = Running::start(&tls).await;
    let port = running.address.port().to_string();
    is_ready(&[&tls[..], &["--host", "127.0.0.1", "--port", &port]].concat()).await;
    // A certificate that has been renewed since, on the disk and not in the process.
    let renewed = authority.sign(&["balancer.example"]);
    let renewed = renewed.paths();
    let tls = ["--tls-cert-path", renewed.0, "--tls-key-path", renewed.1];
    is_ready(&[&tls[..], &["--host", "127.0.0.1", "--port", &port]].concat()).await;
}

#[tokio::test]
async fn the_certificate_of_a_url_is_verified() {
    let authority = Authority::generate();
    let signed = authority.sign(&["127.0.0.1"]);
    let (certificate, key) = signed.paths();
    let running = Running::start(&["--tls-cert-path", certificate, "--tls-key-path", key]).await;
    let url = format!("https://{}", running.address);
    is_ready(&["--url", &url, "--ca-cert", &authority.path()]).await;
    let other = Authority::generate();
    fails(&["--url", &url, "--ca-cert", &other.path()], &url, "").await;
    let by_name = format!("https://localhost:{}", running.address.port());
    fails(
        &["--url", &by_name, "--ca-cert", &authority.path()],
        &by_name,
        "",
    )
    .await;
}

#[tokio::test]
async fn a_balancer_that_is_not_there_or_does_not_respond_is_not_ready() {
    fails(
        &["--url", "http://127.0.0.1:1"],
        "http://127.0.0.1:1/readiness: ",
        "cannot be reached",
    )
    .await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    fails(&["--url", &url, "--timeout", "1"], &url, "within 1 s").await;
    fails(&["--port", "0"], "the system chooses the port", "--url").await;
    fails(&["--port", "many"], "--port: `many` is not", "").await;
    fails(&["--url", "ftp://a"], "--url ftp://a: ", "").await;
}
