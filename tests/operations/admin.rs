//! The listener for administration: what is served there only, what everywhere, which key workers get, and that it
//! stays until the process has left.

use std::fs;

use support::{BODY, Client, Pair, Process, Signal, Worker, post, soon};
use tempfile::TempDir;
use tokio::net::TcpStream;

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: balancer\r\n\r\n")
}

/// What changes a worker, as the README's table of endpoints has it.
const ADMINISTRATION: [&str; 6] = [
    "/flush_cache",
    "/reset_prefix_cache",
    "/hicache/storage-backend/clear",
    "/abort_request",
    "/start_profile",
    "/stop_profile",
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
    // A preflight and another method are no way around it.
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
        client.send(get("/pause_generation")).await;
        assert_eq!(client.answer().await.status(), 501);
    }
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

/// A process with both listeners, and where it keeps its upgrade socket.
struct Running {
    process: Process,
    place: TempDir,
    clients: std::net::SocketAddr,
    admins: std::net::SocketAddr,
}

impl Running {
    fn start(
        place: &TempDir,
        workers: (&str, &str),
        port: u16,
        admin: &str,
        more: &str,
    ) -> Process {
        let directory = place.path().display();
        let conf = place.path().join("conf.yaml");
        let text = format!(
            "version: 1\nthreads: 2\nupgrade_sock: {directory}/up.sock\npid_file: {directory}/pid\n"
        );
        fs::write(&conf, text).unwrap();
        let line = format!(
            "--conf {} --host 127.0.0.1 --port {port} --admin-listen {admin} --disable-health-check \
             --prefill {} --decode {} {more}",
            conf.display(),
            workers.0,
            workers.1
        );
        let arguments: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
        Process::start(env!("CARGO_BIN_EXE_mini-lb"), &arguments)
    }

    async fn before(prefill: &Worker, decode: &Worker) -> Self {
        let place = TempDir::new().unwrap();
        let urls = (prefill.url(), decode.url());
        let mut process = Self::start(&place, (&urls.0, &urls.1), 0, "127.0.0.1:0", "");
        let clients = process.address().await;
        let line = process.line("open for administration address=").await;
        let admins = line.rsplit_once('=').unwrap().1.parse().unwrap();
        Self {
            process,
            place,
            clients,
            admins,
        }
    }
}

#[tokio::test]
async fn while_streams_end_the_listener_for_administration_says_that_nothing_is_ready() {
    let (mut prefill, mut decode) = Worker::pair().await;
    let mut running = Running::before(&prefill, &decode).await;
    let mut client = Client::connect(running.clients).await;
    client
        .send(post("/generate", r#"{"text":"a","stream":true}"#))
        .await;
    prefill.request().await.answer("200 OK", "{}").await;
    let mut leg = decode.request().await;
    leg.begin_stream().await;
    leg.chunk("data: 1\n\n").await;
    client.head().await;
    assert_eq!(client.chunk().await.as_deref(), Some("data: 1\n\n"));
    let mut idle = Client::connect(running.admins).await;
    idle.send(get("/ready")).await;
    assert_eq!(idle.answer().await.status(), 200);

    running.process.signal(Signal::Terminate).await;
    soon("new clients are refused", async {
        while TcpStream::connect(running.clients).await.is_ok() {}
    })
    .await;
    for (path, status) in [("/ready", 503), ("/health", 200)] {
        let mut admin = Client::connect(running.admins).await;
        admin.send(get(path)).await;
        assert_eq!(admin.answer().await.status(), status, "{path}");
    }
    leg.chunk("").await;
    assert_eq!(client.chunk().await, None);
    // The idle connection for administration does not keep the process.
    drop(client);
    assert!(running.process.ended().await.success());
}

#[tokio::test]
async fn an_upgrade_hands_both_listeners_over() {
    let (prefill, decode) = Worker::pair().await;
    let mut running = Running::before(&prefill, &decode).await;
    let urls = (prefill.url(), decode.url());
    let (port, admins) = (running.clients.port(), running.admins.to_string());
    let workers = (urls.0.as_str(), urls.1.as_str());
    let mut new = Running::start(&running.place, workers, port, &admins, "--upgrade");
    // Pingora's line when it waits at the upgrade socket.
    new.line("No incoming socket transfer").await;
    running.process.signal(Signal::Quit).await;
    running.process.line("successor listens").await;
    new.line("open for administration").await;
    assert!(running.process.ended().await.success());
    for address in [running.clients, running.admins] {
        let mut client = Client::connect(address).await;
        client.send(get("/ready")).await;
        assert_eq!(client.answer().await.status(), 200, "{address}");
    }
    new.signal(Signal::Terminate).await;
    assert!(new.ended().await.success());
}
