//! h2spec, a judge of servers of HTTP/2 that others have written, over both ways in.
//!
//! It runs where `MINI_LB_TEST_H2SPEC` names its binary. Source: h2spec 2.6.0, <https://github.com/summerwind/h2spec>.

use std::process::Command;

use support::Pair;
use support::tls::Authority;

/// The only case that it finds fault with, and only without TLS. A connection that begins otherwise than HTTP/2 is one of
/// HTTP/1.1 there, and is refused with a 400 in place of a GOAWAY, which RFC 9113 section 3.4 lets be omitted.
const NOT_HTTP_2: &str = "2: Sends invalid connection preface";

/// The cases that fail, by their names, of all that it has.
async fn failures(h2spec: &str, pair: &Pair, more: &[&str]) -> Vec<String> {
    let port = pair.balancer.address.port().to_string();
    let mut judge = Command::new(h2spec);
    // The response to the path has a body, which some cases need.
    judge.args(["-h", "127.0.0.1", "-p", &port, "-P", "/workers"]);
    judge.args(["--strict", "--timeout", "10"]).args(more);
    let judged = tokio::task::spawn_blocking(move || judge.output());
    let report = String::from_utf8(judged.await.unwrap().unwrap().stdout).unwrap();
    assert!(report.contains("147 tests"), "{report}");
    assert!(report.contains(" 0 skipped"), "{report}");
    // The cases that fail are in the report twice.
    let (_, failed) = report.split_once("Failures:").unwrap_or_default();
    let failed = failed
        .lines()
        .filter_map(|line| line.trim().strip_prefix("× "));
    failed.map(str::to_owned).collect()
}

#[tokio::test]
async fn h2spec_finds_no_fault_but_that_other_bytes_are_http_1() {
    let Ok(h2spec) = std::env::var("MINI_LB_TEST_H2SPEC") else {
        eprintln!("h2spec did not judge: MINI_LB_TEST_H2SPEC names no binary");
        return;
    };
    let plain = Pair::start().await;
    assert_eq!(failures(&h2spec, &plain, &[]).await, [NOT_HTTP_2]);

    let authority = Authority::generate();
    let signed = authority.sign(&["localhost"]);
    let (certificate, key) = signed.paths();
    let encrypted = Pair::with(|config| {
        let config = config.set("tls_cert_path", certificate);
        config.set("tls_key_path", key)
    })
    .await;
    let failed = failures(&h2spec, &encrypted, &["--tls", "--insecure"]).await;
    assert_eq!(failed, [""; 0]);
}
