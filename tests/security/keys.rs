//! API keys: which of them a client needs for which endpoint, and which one a worker gets.

use support::{BODY, Pair, post};

use crate::counted::Counted;

fn with_key(path: &str, key: &str) -> String {
    post(path, BODY).replacen(
        "\r\n",
        &format!("\r\nauthorization: Bearer {key}\r\nx-api-key: {key}\r\n"),
        1,
    )
}

#[tokio::test]
async fn without_a_key_nothing_but_health_is_answered_and_no_body_is_read() {
    let mut counted = Counted::with(|config| config.api_key("sk-c").admin_api_key("sk-a")).await;
    for (what, path) in [("legs", "/v1/chat/completions"), ("no path", "/nope")] {
        let mut client = counted.balancer.client().await;
        let request = with_key(path, "sk-x");
        let (head, _) = request.split_once("\r\n\r\n").unwrap();
        client.send(format!("{head}\r\n\r\n")).await;
        let answer = client.answer().await;
        assert_eq!(answer.outcome(), (401, Some("unauthorized")), "{what}");
        assert!(client.rest().await.is_empty(), "{what}");
    }
    let mut client = counted.balancer.client().await;
    for path in ["/health", "/ready", "/liveness"] {
        client
            .send(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n"))
            .await;
        assert_eq!(client.answer().await.status(), 200, "{path}");
    }
    for (path, key, status) in [
        ("/flush_cache", "sk-c", 401),
        ("/generate", "sk-a", 401),
        ("/flush_cache", "sk-a", 200),
        ("/generate", "sk-c", 200),
    ] {
        let mut client = counted.balancer.client().await;
        client.send(with_key(path, key)).await;
        let answer = client.answer().await;
        assert_eq!(answer.status(), status, "{path} {key}");
        let says_which = answer.text().contains("admin_api_key");
        assert_eq!(
            says_which,
            (path, status) == ("/flush_cache", 401),
            "{path} {key}"
        );
    }
    // One flush and one generate request at each worker.
    counted.accepted = 2;
    counted.has_sent_no_more();
}

#[tokio::test]
async fn workers_get_the_shared_key_and_never_one_of_the_file() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "sk-1\n\nsk-2\n").unwrap();
    for (shared, expected) in [(None, None), (Some("sk-c"), Some("Bearer sk-c"))] {
        let mut pair = Pair::with(|config| {
            let config = config.api_key_file(file.path().to_str().unwrap());
            match shared {
                Some(key) => config.api_key(key),
                None => config,
            }
        })
        .await;
        let (prefill, decode) = pair.legs_of(with_key("/generate", "sk-2")).await;
        for leg in [prefill, decode] {
            assert_eq!(leg.request.header("authorization"), expected);
            assert_eq!(leg.request.header("x-api-key"), None);
        }
    }
}
