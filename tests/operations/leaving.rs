//! The end of a process: signals, the grace period and upgrades, with the binary.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use mini_lb::sim;
use support::{Client, Signal, post, soon};
use tokio::task::JoinHandle;

use crate::process_pair::{Directory, ProcessPair, succeed};

/// Workers that refuse connections.
const NOWHERE: (&str, &str) = ("http://127.0.0.1:1", "http://127.0.0.1:2");
const READY: &str = "GET /readiness HTTP/1.1\r\nhost: balancer\r\n\r\n";

#[tokio::test]
async fn sigterm_ends_an_idle_process_at_once_and_well() {
    let mut pair = ProcessPair::start("--shutdown-grace-period-secs 3600").await;
    pair.process.signal(Signal::Terminate).await;
    assert!(pair.process.ended().await.success());
}

#[tokio::test]
async fn sigterm_lets_a_stream_finish_and_accepts_nobody_else() {
    let mut pair = ProcessPair::start("").await;
    let mut idle = pair.client().await;
    assert_eq!(pair.generate(&mut idle).await.status(), 200);
    let (mut client, mut decode) = pair.stream().await;
    pair.process.signal(Signal::Terminate).await;
    pair.process.line("leaving").await;
    soon("new clients are refused", async {
        while !pair.refuses_connections().await {}
    })
    .await;
    decode.chunk("data: 2\n\n").await;
    assert_eq!(client.chunk().await.as_deref(), Some("data: 2\n\n"));
    let last = pair.generate(&mut idle).await;
    assert_eq!(
        (last.status(), last.header("connection")),
        (200, Some("close"))
    );
    decode.chunk("data: [DONE]\n\n").await;
    assert_eq!(client.chunk().await.as_deref(), Some("data: [DONE]\n\n"));
    decode.chunk("").await;
    assert_eq!(client.chunk().await, None);
    assert!(pair.process.ended().await.success());
}

#[tokio::test]
async fn while_it_settles_it_serves_everybody_and_says_that_it_is_not_ready() {
    let mut pair = ProcessPair::start("--drain-settle-secs 3600").await;
    let mut client = pair.client().await;
    client.send(READY).await;
    let ready = client.answer().await;
    assert_eq!(
        (ready.status(), ready.header("connection")),
        (200, Some("keep-alive"))
    );
    pair.process.signal(Signal::Terminate).await;
    pair.process.line("leaving").await;
    client.send(READY).await;
    let not_ready = client.answer().await;
    assert_eq!(not_ready.status(), 503);
    assert_eq!(not_ready.header("x-mini-lb-error"), Some("shutting_down"));
    assert_eq!(not_ready.header("connection"), Some("close"));
    let mut client = pair.client().await;
    let answer = pair.generate(&mut client).await;
    assert_eq!(
        (answer.status(), answer.header("connection")),
        (200, Some("close"))
    );
    pair.process.signal(Signal::Interrupt).await;
    assert!(pair.process.ended().await.success());
}

#[tokio::test]
async fn signals_that_do_not_end_the_process_are_logged_and_cut_no_stream() {
    let mut pair = ProcessPair::start("").await;
    let (mut client, mut decode) = pair.stream().await;
    for (signal, line) in [
        (Signal::Hangup, "config reloaded because=\"SIGHUP\""),
        (Signal::User1, "signal ignored signal=SIGUSR1"),
        (Signal::User2, "signal ignored signal=SIGUSR2"),
        (Signal::Hangup, "config reloaded because=\"SIGHUP\""),
    ] {
        pair.process.signal(signal).await;
        pair.process.line(line).await;
    }
    decode.chunk("data: 2\n\n").await;
    assert_eq!(client.chunk().await.as_deref(), Some("data: 2\n\n"));
    decode.chunk("data: [DONE]\n\n").await;
    client.chunk().await.unwrap();
    decode.chunk("").await;
    assert_eq!(client.chunk().await, None);
    pair.process.signal(Signal::Terminate).await;
    assert!(pair.process.ended().await.success());
}

#[tokio::test]
async fn at_the_grace_limit_a_stream_ends_in_an_error_event_and_a_whole_answer_in_503() {
    let mut pair = ProcessPair::start("--shutdown-grace-period-secs 0.2").await;
    let (mut client, decode) = pair.stream().await;
    let mut waiting = pair.client().await;
    waiting.send(post("/generate", "{\"text\":\"a\"}")).await;
    let whole = pair.next_legs().await;
    pair.process.signal(Signal::Terminate).await;
    let event = client.chunk().await.unwrap();
    assert!(
        event.starts_with("event: error\ndata: {\"error\""),
        "{event}"
    );
    assert!(event.contains("shutting down"), "{event}");
    let answer = waiting.answer().await;
    assert_eq!(answer.status(), 503);
    assert_eq!(answer.header("x-mini-lb-error"), Some("shutting_down"));
    decode.closed().await;
    whole.1.closed().await;
    assert!(pair.process.ended().await.success());
}

#[tokio::test]
async fn sigint_does_not_wait_for_a_stream_that_sigterm_waits_for() {
    let mut pair = ProcessPair::start("").await;
    let (mut client, _decode) = pair.stream().await;
    pair.process.signal(Signal::Terminate).await;
    pair.process.line("leaving").await;
    pair.process.signal(Signal::Interrupt).await;
    assert!(pair.process.ended().await.success());
    assert_eq!(client.chunk().await, None);
}

#[tokio::test]
async fn a_process_whose_stderr_is_closed_serves_on_and_ends_well() {
    let mut pair = ProcessPair::start("--log-level debug").await;
    pair.process.hang_up().await;
    let mut client = pair.client().await;
    for _ in 0..10 {
        assert_eq!(pair.generate(&mut client).await.status(), 200);
    }
    drop(client);
    pair.process.signal(Signal::Terminate).await;
    assert!(pair.process.ended().await.success());
}

#[tokio::test]
async fn a_process_whose_stderr_nobody_reads_serves_on_and_ends_well() {
    let mut pair = ProcessPair::start("--log-level trace,pingora=trace").await;
    pair.process.ignore();
    let mut client = pair.client().await;
    // Each request logs some KiB; a pipe holds 64 KiB.
    for _ in 0..200 {
        assert_eq!(pair.generate(&mut client).await.status(), 200);
    }
    drop(client);
    pair.process.signal(Signal::Terminate).await;
    assert!(pair.process.ended().await.success());
}

#[tokio::test]
async fn sigquit_without_a_successor_changes_nothing() {
    let mut pair = ProcessPair::start("").await;
    let (mut client, mut decode) = pair.stream().await;
    pair.process.signal(Signal::Quit).await;
    pair.process
        .line("upgrade failed, this process keeps serving")
        .await;
    let mut other = pair.client().await;
    assert_eq!(pair.generate(&mut other).await.status(), 200);
    decode.chunk("data: 2\n\n").await;
    assert_eq!(client.chunk().await.as_deref(), Some("data: 2\n\n"));
    other.send(READY).await;
    assert_eq!(other.answer().await.status(), 200);
}

#[tokio::test]
async fn a_stream_and_an_idle_client_survive_an_upgrade() {
    let mut pair = ProcessPair::start("").await;
    let mut idle = pair.client().await;
    assert_eq!(pair.generate(&mut idle).await.status(), 200);
    let (mut client, mut decode) = pair.stream().await;
    let mut new = pair.succeed("").await;
    let last = pair.generate(&mut idle).await;
    assert_eq!(
        (last.status(), last.header("connection")),
        (200, Some("close"))
    );
    let mut other = pair.client().await;
    let answer = pair.generate(&mut other).await;
    assert_eq!(
        (answer.status(), answer.header("connection")),
        (200, Some("keep-alive"))
    );
    decode.chunk("data: 2\n\n").await;
    assert_eq!(client.chunk().await.as_deref(), Some("data: 2\n\n"));
    decode.chunk("data: [DONE]\n\n").await;
    assert_eq!(client.chunk().await.as_deref(), Some("data: [DONE]\n\n"));
    decode.chunk("").await;
    assert_eq!(client.chunk().await, None);
    assert!(pair.process.ended().await.success());
    new.signal(Signal::Terminate).await;
    assert!(new.ended().await.success());
}

#[tokio::test]
async fn a_successor_whose_address_is_busy_ends_at_once_and_its_predecessor_goes_on() {
    let mut pair = ProcessPair::start("").await;
    let (mut client, mut decode) = pair.stream().await;
    let busy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = busy.local_addr().unwrap();
    let workers = (pair.prefill.url(), pair.decode.url());
    let more = format!("--upgrade --admin-listen {busy}");
    let port = pair.address.port();
    let workers = (workers.0.as_str(), workers.1.as_str());
    let mut new = pair.directory.start(port, workers, &more);
    new.line("waiting for the sockets of the old process").await;
    pair.process.signal(Signal::Quit).await;
    let why = new.line("mini-lb: ").await;
    let expected = format!("cannot listen on {busy}: another process listens there");
    assert!(why.contains(&expected), "{why}");
    assert!(!new.ended().await.success());
    pair.process
        .line("upgrade failed, this process keeps serving")
        .await;
    let mut other = pair.client().await;
    assert_eq!(pair.generate(&mut other).await.status(), 200);
    decode.chunk("data: 2\n\n").await;
    assert_eq!(client.chunk().await.as_deref(), Some("data: 2\n\n"));
}

#[tokio::test]
async fn a_successor_listens_where_its_predecessor_did_not() {
    let mut pair = ProcessPair::start("").await;
    let mut new = pair.succeed("--admin-listen 127.0.0.1:0").await;
    let admins = new.line("listening for administration address=").await;
    let admins = admins.rsplit_once('=').unwrap().1.parse().unwrap();
    for address in [admins, pair.address] {
        let mut client = Client::connect(address).await;
        client.send(READY).await;
        assert_eq!(client.answer().await.status(), 200);
    }
    assert!(pair.process.ended().await.success());
}

#[tokio::test]
async fn a_successor_without_a_predecessor_says_so_without_an_error_each_second_and_ends() {
    let directory = Directory::new();
    let mut alone = directory.start(0, NOWHERE, "--upgrade --upgrade-wait-secs 0.1");
    let why = alone.line("mini-lb: ").await;
    assert!(
        why.contains("no old process handed over its sockets"),
        "{why}"
    );
    assert!(!alone.ended().await.success());
    let text = alone.end().await.text();
    assert!(!text.contains("ERROR"), "{text}");
    let left: Vec<_> = fs::read_dir(directory.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "only the configuration: {left:?}");
}

#[tokio::test]
async fn an_upgrade_socket_that_cannot_be_made_is_one_clear_line() {
    let directory = Directory::new();
    let long = "a".repeat(200);
    for file in ["missing/up.sock", &long] {
        let path = directory.path().join(file);
        directory.configure(&format!("upgrade_sock: {}\n", path.display()));
        let mut new = directory.start(0, NOWHERE, "--upgrade");
        let why = new.line("mini-lb: ").await;
        assert!(why.contains(file), "{why}");
        assert!(!new.ended().await.success());
        let more = new.lines();
        assert!(more.is_empty(), "{more:?}");
    }
}

/// Clients that request streams and documents in turn, each over one connection as long as it is kept.
struct Load {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    fn begin(address: SocketAddr, clients: usize) -> Self {
        let (stop, served) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicUsize::new(0)),
        );
        let clients = (0..clients)
            .map(|_| tokio::spawn(Self::client(address, stop.clone(), served.clone())))
            .collect();
        Self {
            stop,
            served,
            clients,
        }
    }

    async fn client(address: SocketAddr, stop: Arc<AtomicBool>, served: Arc<AtomicUsize>) {
        let mut client = Client::connect(address).await;
        for turn in 0.. {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            let stream = turn % 2 == 0;
            let body = format!(
                r#"{{"text":"a b c","stream":{stream},"sampling_params":{{"max_new_tokens":8}}}}"#
            );
            client.send(post("/generate", &body)).await;
            let answer = client.answer().await;
            assert_eq!(answer.status(), 200, "{}", answer.text());
            if stream {
                assert!(
                    answer.text().ends_with("data: [DONE]\n\n"),
                    "{}",
                    answer.text()
                );
            }
            served.fetch_add(1, Ordering::Relaxed);
            if answer.header("connection") == Some("close") {
                client = Client::connect(address).await;
            }
        }
    }

    /// Waits until this many more requests were served.
    async fn goes_on(&self, requests: usize) {
        let enough = self.served.load(Ordering::Relaxed) + requests;
        soon("the load goes on", async {
            while self.served.load(Ordering::Relaxed) < enough {
                assert!(!self.clients.iter().all(JoinHandle::is_finished));
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upgrades_under_load_lose_no_request_and_cut_no_stream() {
    let prefill = sim::Worker::start_prefill(sim::SimOptions::default())
        .await
        .unwrap();
    let decode = sim::Worker::start_decode(sim::SimOptions::default())
        .await
        .unwrap();
    let bootstrap = prefill.bootstrap_port().unwrap();
    let urls = (format!("{} {bootstrap}", prefill.url()), decode.url());
    let workers = (urls.0.as_str(), urls.1.as_str());
    let directory = Directory::new();
    let mut process = directory.start(0, workers, "");
    let address = process.address().await;
    let load = Load::begin(address, 4);
    for _ in 0..3 {
        load.goes_on(20).await;
        let new = succeed(&directory, &mut process, address, workers, "").await;
        assert!(process.ended().await.success());
        process = new;
    }
    load.goes_on(20).await;
    load.end().await;
    process.signal(Signal::Terminate).await;
    assert!(process.ended().await.success());
    assert_eq!(
        (
            prefill.journal().open_rooms(),
            decode.journal().open_rooms()
        ),
        (0, 0)
    );
}
