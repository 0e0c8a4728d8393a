//! The configuration that the library builds: the same as that of the command line.

use std::time::Duration;

use mini_lb::config::Policy;

use crate::helpers::{config, library, meaning, temporary, workers};

#[test]
fn the_library_resolves_to_what_the_command_line_resolves_to() {
    let key = temporary("sk-1");
    let line = format!(
        "--host 127.0.0.1 --port 0 --prefill http://a:1 p0:8998 --prefill http://b:1 --decode http://c:1 \
         --request-timeout-secs 60 --connect-timeout-secs 0.1 --max-payload-size 10 --policy random \
         --log-level warn --worker-api-key-file {}",
        key.path().display()
    );
    let mut expected = config(&line, &[]);
    expected.server.threads = 1;
    let found = library(
        &[("http://a:1", Some(8998)), ("b:1", None)],
        &["http://c:1/"],
        60,
    )
    .bootstrap_host(0, "p0")
    .connect_timeout(Duration::from_millis(100))
    .max_payload_size(10)
    .policy(Policy::Random)
    .log_level("warn")
    .worker_api_key("sk-1")
    .threads(1)
    .resolve()
    .unwrap();
    assert_eq!(meaning(found), meaning(expected));
}

#[test]
fn the_library_sets_every_key_by_its_name() {
    let found = library(&[], &[], 60)
        .set("prefill", "http://a:1 8998, http://b:1")
        .set("decode", "http://c:1")
        .set("queue_size", 7)
        .set("slow_start_secs", 0.5)
        .set("disable_retries", true)
        .resolve()
        .unwrap();
    assert_eq!(
        workers(&found),
        ["http://a:1 a:8998", "http://b:1 b:null", "http://c:1"]
    );
    assert_eq!(found.workers.queue_size, 7);
    assert_eq!(
        found.resilience.slow_start,
        Some(Duration::from_millis(500))
    );
    assert_eq!(found.requests.max_retries, 0);

    let found = library(&[("http://a:1", None)], &["http://b:1"], 60)
        .set("queue_sise", 7)
        .set("queue_size", -1)
        .resolve();
    assert_eq!(
        found.unwrap_err().to_string().lines().collect::<Vec<_>>(),
        [
            "queue_sise: unknown key, did you mean `queue_size`?",
            "queue_size: `-1` is not a number of requests",
        ]
    );
}

#[test]
fn the_library_refuses_what_the_command_line_refuses() {
    let found = library(
        &[("http://a:0", Some(0)), ("http://b:1", None)],
        &["http://b:1"],
        0,
    )
    .threads(0)
    .resolve();
    assert_eq!(
        found.unwrap_err().to_string().lines().collect::<Vec<_>>(),
        [
            "request_timeout_secs: `0` is not a number of seconds above 0 and at most a year",
            "prefill_urls[0]: `http://a:0` is not the URL of a worker: the port must be a number from 1 to 65535",
            "prefill_urls[0]: `0` is not a bootstrap port: PORT (1 to 65535), HOST:PORT or none",
            "decode_urls[0]: http://b:1 cannot be both, it is listed as prefill at prefill_urls[1]",
            "threads: must be at least 1",
        ]
    );
    let found = library(&[("http://a:1", None)], &["http://b:1"], 1)
        .worker_api_key("a\r\nb: c")
        .resolve();
    let found = found.unwrap_err().to_string();
    assert_eq!(
        found,
        "worker_api_key: the key has characters that an HTTP header cannot carry"
    );
    let found = library(&[], &[], 1).resolve().unwrap_err().to_string();
    assert_eq!(found.lines().count(), 2, "{found}");
}
