//! HTTP/2 to the workers: every exchange of the balancer, over few connections.

use std::time::Duration;

use mini_lb::MiniLbConfig;
use mini_lb::sim::{SimOptions, Worker};
use support::sim::quick;
use support::tls::{Authority, Terminator};
use support::{Balancer, CHAT, post, soon};

/// A simulated pair, which speaks what it is spoken to with, and the balancer in front of it.
struct Served {
    prefill: Worker,
    decode: Worker,
    balancer: Balancer,
}

impl Served {
    async fn start(options: SimOptions, change: fn(MiniLbConfig) -> MiniLbConfig) -> Self {
        let prefill = Worker::start_prefill(options.clone()).await.unwrap();
        let decode = Worker::start_decode(options).await.unwrap();
        let config = MiniLbConfig::new(
            "127.0.0.1".into(),
            0,
            vec![(prefill.url(), prefill.bootstrap_port())],
            vec![decode.url()],
            60,
        );
        let config = config.health_check_interval(None).worker_http2(true);
        Self {
            balancer: Balancer::start(change(config)).await,
            prefill,
            decode,
        }
    }

    /// The connections that each worker has accepted.
    fn connections(&self) -> [u64; 2] {
        [&self.prefill, &self.decode].map(|worker| worker.journal().connections_total())
    }
}

fn slow() -> SimOptions {
    SimOptions {
        time_per_output_token: Duration::from_millis(20),
        ..quick()
    }
}

#[tokio::test]
async fn requests_and_streams_share_one_connection_to_each_worker() {
    let served = Served::start(slow(), |config| config).await;
    let ask = |stream: bool| {
        let body = format!(
            r#"{{"messages":[{{"role":"user","content":"a"}}],"max_tokens":8,"stream":{stream}}}"#
        );
        post(CHAT, &body)
    };
    let mut first = served.balancer.client().await;
    first.send(ask(false)).await;
    let answer = first.answer().await;
    assert_eq!(answer.status(), 200, "{}", answer.text());
    let mut clients = Vec::new();
    for _ in 0..32 {
        let mut client = served.balancer.client().await;
        client.send(ask(true)).await;
        clients.push(client);
    }
    for client in &mut clients {
        let answer = client.answer().await;
        assert!(
            answer.text().ends_with("data: [DONE]\n\n"),
            "{}",
            answer.text()
        );
    }
    assert_eq!(served.connections(), [1, 1]);
    assert!(served.prefill.journal().violations().is_empty());
    assert!(served.decode.journal().violations().is_empty());
}

#[tokio::test]
async fn logprobs_of_the_prompt_are_merged() {
    let served = Served::start(quick(), |config| config).await;
    let mut client = served.balancer.client().await;
    let text = "word ".repeat(1_000);
    let body = format!(
        r#"{{"text":"{text}","return_logprob":true,"logprob_start_len":0,"sampling_params":{{"max_new_tokens":2}}}}"#
    );
    client.send(post("/generate", &body)).await;
    let answer = client.answer().await;
    assert_eq!(answer.status(), 200, "{}", answer.text());
    let merged = &answer.json()["meta_info"]["input_token_logprobs"];
    assert!(
        merged.as_array().is_some_and(|all| !all.is_empty()),
        "{merged}"
    );
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_streams_and_no_other() {
    let served = Served::start(slow(), |config| config).await;
    let ask = |tokens: u32| {
        let body = format!(
            r#"{{"messages":[{{"role":"user","content":"a"}}],"max_tokens":{tokens},"stream":true}}"#
        );
        post(CHAT, &body)
    };
    let (mut leaves, mut stays) = (
        served.balancer.client().await,
        served.balancer.client().await,
    );
    leaves.send(ask(100_000)).await;
    leaves.head().await;
    stays.send(ask(20)).await;
    leaves.reset();
    let answer = stays.answer().await;
    assert!(answer.text().ends_with("data: [DONE]\n\n"));
    soon("the other one ends", async {
        while served.decode.journal().open_rooms() + served.prefill.journal().open_rooms() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(
        served.decode.journal().open_connections(),
        1,
        "it is still there"
    );
}

#[tokio::test]
async fn probes_and_endpoints_without_legs_speak_it_too() {
    let served = Served::start(quick(), |config| {
        config.health_check_interval(Some(Duration::from_millis(50)))
    })
    .await;
    let mut client = served.balancer.client().await;
    for path in ["/health", "/readiness", "/v1/models", "/get_server_info"] {
        client
            .send(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n"))
            .await;
        assert_eq!(client.answer().await.status(), 200, "{path}");
    }
    // The first exchanges may begin at once, each with a connection of its own.
    let connections = served.connections();
    assert!(
        connections.iter().all(|count| *count <= 4),
        "{connections:?}"
    );
}

/// A simulated worker behind TLS, which offers these protocols by ALPN.
async fn encrypted(worker: &Worker, authority: &Authority, alpn: &[&str]) -> Terminator {
    let mut server = Authority::server(&authority.sign(&["127.0.0.1"]), None);
    server.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    Terminator::before(worker.address(), "127.0.0.1", server).await
}

/// A balancer for one pair of `https://` workers that are configured for HTTP/2.
async fn in_front_of(
    (prefill, bootstrap_port): (&Terminator, Option<u16>),
    decode: &Terminator,
    authority: &Authority,
) -> Balancer {
    let workers = (
        vec![(prefill.url.clone(), bootstrap_port)],
        vec![decode.url.clone()],
    );
    let config = MiniLbConfig::new("127.0.0.1".into(), 0, workers.0, workers.1, 60);
    let config = config
        .health_check_interval(None)
        .worker_http2(true)
        .ca_cert_paths(&[&authority.path()]);
    Balancer::start(config).await
}

#[tokio::test]
async fn https_workers_negotiate_it_and_share_one_handshake() {
    let authority = Authority::generate();
    let prefill = Worker::start_prefill(slow()).await.unwrap();
    let decode = Worker::start_decode(slow()).await.unwrap();
    let alpn = ["http/1.1", "h2"];
    let outside = encrypted(&prefill, &authority, &alpn).await;
    let inside = encrypted(&decode, &authority, &alpn).await;
    let port = prefill.bootstrap_port();
    let balancer = in_front_of((&outside, port), &inside, &authority).await;
    let body = r#"{"messages":[{"role":"user","content":"a"}],"max_tokens":8,"stream":true}"#;
    let mut first = balancer.client().await;
    first.send(post(CHAT, body)).await;
    assert_eq!(first.answer().await.status(), 200);
    let before = [outside.handshakes(), inside.handshakes()];
    let mut clients = Vec::new();
    for _ in 0..16 {
        let mut client = balancer.client().await;
        client.send(post(CHAT, body)).await;
        clients.push(client);
    }
    for client in &mut clients {
        let answer = client.answer().await;
        assert!(answer.text().ends_with("data: [DONE]\n\n"), "{answer:?}");
    }
    assert_eq!([outside.handshakes(), inside.handshakes()], before);
    assert!(decode.journal().violations().is_empty());
}

#[tokio::test]
async fn an_https_worker_that_does_not_negotiate_it_is_unreachable() {
    let authority = Authority::generate();
    let prefill = Worker::start_prefill(quick()).await.unwrap();
    let decode = Worker::start_decode(quick()).await.unwrap();
    let outside = encrypted(&prefill, &authority, &["h2"]).await;
    let inside = encrypted(&decode, &authority, &["http/1.1"]).await;
    let port = prefill.bootstrap_port();
    let balancer = in_front_of((&outside, port), &inside, &authority).await;
    let mut client = balancer.client().await;
    client.send(post("/generate", r#"{"text":"a"}"#)).await;
    let answer = client.answer().await;
    assert_eq!(answer.status(), 502, "{answer:?}");
    assert!(answer.text().contains("decode_unreachable"), "{answer:?}");
}
