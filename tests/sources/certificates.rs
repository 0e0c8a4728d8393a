//! The certificate of the listeners, read again: new handshakes get the new one, and a broken one is refused.

use std::fs;

use support::tls::Authority;
use support::{Client, Worker, soon};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::configured::{Configured, pair};

const HEALTH: &str = "GET /health HTTP/1.1\r\nhost: balancer\r\n\r\n";

#[tokio::test]
async fn new_handshakes_get_the_new_certificate_and_a_broken_one_keeps_the_old() {
    let (prefill, decode) = Worker::pair().await;
    let (one, two) = (Authority::generate(), Authority::generate());
    let directory = TempDir::new().unwrap();
    let [certificate, key] = ["cert.pem", "key.pem"].map(|name| directory.path().join(name));
    let install = |authority: &Authority| {
        let signed = authority.sign(&["localhost"]);
        fs::copy(&signed.certificate, &certificate).unwrap();
        fs::copy(&signed.key, &key).unwrap();
    };
    install(&one);
    let text = format!(
        "{}tls_cert_path: {}\ntls_key_path: {}\n",
        pair(&prefill, &decode),
        certificate.display(),
        key.display()
    );
    let mut server = Configured::start_in(directory, &text).await;
    let mut kept = one.connect(server.address, &[]).await.unwrap();

    install(&two);
    let line = server.hang_up().await;
    assert!(line.contains("changed=\"tls_cert_path\""), "{line}");
    two.connect(server.address, &[]).await.unwrap();
    assert!(one.connect(server.address, &[]).await.is_err());
    // A connection that is open stays.
    kept.write_all(HEALTH.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    soon("the old connection", kept.read_exact(&mut answer))
        .await
        .unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");

    fs::write(&key, "no key").unwrap();
    let line = server.hang_up().await;
    assert!(line.contains("config not reloaded"), "{line}");
    assert!(line.contains("no private key in PEM"), "{line}");
    two.connect(server.address, &[]).await.unwrap();
    // Plain HTTP was never served.
    let mut plain = Client::connect(server.address).await;
    plain.send(HEALTH).await;
    assert!(!plain.rest().await.starts_with(b"HTTP/1.1 200"));
}
