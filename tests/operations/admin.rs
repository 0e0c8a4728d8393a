//! The admin listener: which endpoints only it serves, which key workers get, and that it
//! stays open until the process ends.

use std::net::SocketAddr;

use support::{BODY, Client, Pair, Signal, post, soon};

use crate::process_pair::ProcessPair;

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: balancer\r\n\r\n")
}

/// The endpoints that change a worker, as in the documented table.
const ADMINISTRATION: [&str; 10] = [
    "/flush_cache",
    "/reset_prefix_cache",
    "/hicache/storage-backend/clear",
    "/abort_request",
    "/start_profile",
    "/stop_profile",
    "/pause_generation",
    "/continue_generation",
    "/update_weights_from_disk",
    "/load_lora_adapter",
];

/// Both workers get a request with this key.
async fn both_get(pair: &mut Pair, what: &str, key: Option<&str>) {
    for worker in [&mut pair.prefill, &mut pair.decode] {
        let exchange = worker.request().await;
        assert_eq!(exchange.request.header("authorization"), key, "{what}");
        exchange.answer("200 OK", "{}").await;
    }
}

#[tokio::test]
async fn workers_are_administered_at_their_own_listener_only() {
    let mut pair = Pair::with(|config| config.admin_listen("127.0.0.1:0")).await;
    for path in ADMINISTRATION {
        let mut client = pair.balancer.client().await;
        client.send(post(path, "{\"abort_all\":true}")).await;
        let answer = client.answer().await;
        let outcome = (403, Some("admin_listener_only"));
        assert_eq!(answer.outcome(), outcome, "{path}");
        assert!(answer.text().contains("admin_listen"), "{}", answer.text());
        let mut admin = pair.balancer.admin().await;
        admin.send(post(path, "{\"abort_all\":true}")).await;
        both_get(&mut pair, path, None).await;
        assert_eq!(admin.answer().await.status(), 200, "{path}");
    }
    // A preflight or another method does not get around it.
    for request in [
        "OPTIONS /flush_cache HTTP/1.1\r\nhost: a\r\norigin: b\r\naccess-control-request-method: POST\r\n\r\n",
        "GET /flush_cache?timeout=1 HTTP/1.1\r\nhost: a\r\n\r\n",
    ] {
        let mut client = pair.balancer.client().await;
        client.send(request).await;
        assert_eq!(client.answer().await.status(), 403, "{request}");
    }
    assert!(pair.is_idle());
}

#[tokio::test]
async fn everything_else_is_answered_at_both_listeners() {
    let mut pair = Pair::with(|config| config.admin_listen("127.0.0.1:0")).await;
    for mut client in [pair.balancer.client().await, pair.balancer.admin().await] {
        for path in ["/health", "/ready", "/liveness"] {
            client.send(get(path)).await;
            assert_eq!(client.answer().await.status(), 200, "{path}");
        }
        client.send(get("/server_info")).await;
        both_get(&mut pair, "/server_info", None).await;
        assert_eq!(client.answer().await.status(), 200);
        client.send(post("/generate", BODY)).await;
        both_get(&mut pair, "/generate", None).await;
        assert_eq!(client.answer().await.status(), 200);
        client.send(get("/api/tags")).await;
        assert_eq!(client.answer().await.status(), 501);
    }
}

#[tokio::test]
async fn workers_generate_for_a_probe_only_with_a_key_or_at_the_second_listener() {
    let with_key = |key: &str| {
        format!(
            "GET /health_generate HTTP/1.1\r\nhost: balancer\r\nauthorization: Bearer {key}\r\n\r\n"
        )
    };
    let keys = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(keys.path(), "sk-c").unwrap();
    let keys = keys.path().to_str().unwrap();
    let mut pair = Pair::with(|config| config.api_key_file(keys).admin_listen("127.0.0.1:0")).await;
    let (mut client, admin) = (pair.balancer.client().await, pair.balancer.admin().await);
    for refused in [get("/health_generate"), with_key("sk-x")] {
        client.send(refused).await;
        assert_eq!(client.answer().await.outcome(), (401, Some("unauthorized")));
    }
    assert!(pair.is_idle());
    for (mut sender, request) in [(client, with_key("sk-c")), (admin, get("/health_generate"))] {
        sender.send(request).await;
        both_get(&mut pair, "/health_generate", None).await;
        let answer = sender.answer().await;
        assert_eq!(answer.status(), 200);
        assert!(
            answer.text().contains(&pair.decode.url()),
            "{}",
            answer.text()
        );
    }
}

#[tokio::test]
async fn without_keys_workers_generate_for_a_probe_only_at_the_second_listener() {
    let mut pair = Pair::with(|config| config.admin_listen("127.0.0.1:0")).await;
    pair.client.send(get("/health_generate")).await;
    let answer = pair.client.answer().await;
    assert_eq!(answer.outcome(), (403, Some("admin_listener_only")));
    assert!(pair.is_idle());
    let mut admin = pair.balancer.admin().await;
    admin.send(get("/health_generate")).await;
    both_get(&mut pair, "/health_generate", None).await;
    let answer = admin.answer().await;
    assert_eq!(answer.status(), 200);
    assert!(
        answer.text().contains(&pair.decode.url()),
        "{}",
        answer.text()
    );
}

#[tokio::test]
async fn without_a_second_listener_the_first_serves_all() {
    let mut pair = Pair::start().await;
    let mut client = pair.balancer.client().await;
    client.send(post("/flush_cache", "")).await;
    both_get(&mut pair, "/flush_cache", None).await;
    assert_eq!(client.answer().await.status(), 200);
}

#[tokio::test]
async fn the_key_of_administration_is_asked_for_at_its_listener_too() {
    let mut pair = Pair::with(|config| {
        let config = config.admin_listen("127.0.0.1:0");
        config.admin_api_key("sk-a").worker_admin_api_key("sk-w")
    })
    .await;
    let mut admin = pair.balancer.admin().await;
    admin.send(post("/flush_cache", "")).await;
    assert_eq!(admin.answer().await.status(), 401);
    let with_key =
        post("/flush_cache", "").replacen("\r\n", "\r\nauthorization: Bearer sk-a\r\n", 1);
    admin.send(with_key).await;
    both_get(&mut pair, "/flush_cache", Some("Bearer sk-w")).await;
    assert_eq!(admin.answer().await.status(), 200);
}

#[tokio::test]
async fn workers_get_their_key_for_administration_there_and_nowhere_else() {
    for (shared, elsewhere) in [(None, None), (Some("sk-n"), Some("Bearer sk-n"))] {
        let mut pair = Pair::with(|config| {
            let config = config.worker_admin_api_key("sk-w");
            match shared {
                Some(key) => config.worker_api_key(key),
                None => config,
            }
        })
        .await;
        let mut client = pair.balancer.client().await;
        for path in ADMINISTRATION {
            client.send(post(path, "{}")).await;
            both_get(&mut pair, path, Some("Bearer sk-w")).await;
            assert_eq!(client.answer().await.status(), 200, "{path}");
        }
        client.send(get("/server_info")).await;
        both_get(&mut pair, "/server_info", elsewhere).await;
        assert_eq!(client.answer().await.status(), 200);
        client.send(post("/generate", BODY)).await;
        both_get(&mut pair, "/generate", elsewhere).await;
        assert_eq!(client.answer().await.status(), 200);
    }
}

#[tokio::test]
async fn a_cancelled_leg_is_aborted_with_the_workers_key_for_administration() {
    let mut pair = Pair::with(|config| config.worker_admin_api_key("sk-w").retries(0)).await;
    let mut client = pair.balancer.client().await;
    client.send(post("/generate", BODY)).await;
    let leg = pair.decode.request().await;
    let prefill = pair.prefill.request().await;
    prefill.answer("400 Bad Request", "{}").await;
    assert_eq!(client.answer().await.status(), 400);
    leg.closed().await;
    let abort = pair.decode.request().await;
    assert!(abort.request.head.starts_with("POST /abort_request "));
    assert_eq!(abort.request.header("authorization"), Some("Bearer sk-w"));
}

#[tokio::test]
async fn connections_for_administration_are_not_among_those_of_clients() {
    let mut pair = Pair::with(|config| {
        let config = config.admin_listen("127.0.0.1:0");
        config.max_connections(1).max_connections_per_ip(1)
    })
    .await;
    pair.client.send(get("/health")).await;
    assert_eq!(pair.client.answer().await.status(), 200);
    for _ in 0..3 {
        let mut admin = pair.balancer.admin().await;
        admin.send(get("/health")).await;
        let answer = admin.answer().await;
        assert_eq!(
            (answer.status(), answer.header("connection")),
            (200, Some("keep-alive"))
        );
    }
}

/// A process with both listeners, and the address of the admin listener.
async fn with_admin_listener() -> (ProcessPair, SocketAddr) {
    let mut pair = ProcessPair::start("--admin-listen 127.0.0.1:0").await;
    let line = pair
        .process
        .line("listening for administration address=")
        .await;
    let admins = line.rsplit_once('=').unwrap().1.parse().unwrap();
    (pair, admins)
}

#[tokio::test]
async fn while_streams_end_the_listener_for_administration_says_that_nothing_is_ready() {
    let (mut pair, admins) = with_admin_listener().await;
    let (mut client, mut leg) = pair.stream().await;
    let mut idle = Client::connect(admins).await;
    idle.send(get("/ready")).await;
    assert_eq!(idle.answer().await.status(), 200);

    pair.process.signal(Signal::Terminate).await;
    soon("new clients are refused", async {
        while !pair.refuses_connections().await {}
    })
    .await;
    for (path, status) in [("/ready", 503), ("/health", 200)] {
        let mut admin = Client::connect(admins).await;
        admin.send(get(path)).await;
        assert_eq!(admin.answer().await.status(), status, "{path}");
    }
    leg.chunk("data: [DONE]\n\n").await;
    client.chunk().await.unwrap();
    leg.chunk("").await;
    assert_eq!(client.chunk().await, None);
    // The idle admin connection does not delay the end of the process.
    drop(client);
    assert!(pair.process.ended().await.success());
}

#[tokio::test]
async fn an_upgrade_hands_both_listeners_over() {
    let (mut pair, admins) = with_admin_listener().await;
    let mut new = pair.succeed(&format!("--admin-listen {admins}")).await;
    new.line("listening for administration").await;
    assert!(pair.process.ended().await.success());
    for address in [pair.address, admins] {
        let mut client = Client::connect(address).await;
        client.send(get("/ready")).await;
        assert_eq!(client.answer().await.status(), 200, "{address}");
    }
    new.signal(Signal::Terminate).await;
    assert!(new.ended().await.success());
}
