//! How the process leaves: signals, the grace period, and upgrades, with the real binary.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use mini_lb::sim;
use support::{Client, Exchange, Process, Signal, Worker, post, soon};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

const CHAT: &str = "/v1/chat/completions";
const STREAM: &str = r#"{"stream":true}"#;
const READY: &str = "GET /readiness HTTP/1.1\r\nhost: balancer\r\n\r\n";

/// A configuration file with an upgrade socket of its own.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(TempDir::new().unwrap());
        let directory = place.0.path().display();
        let conf = format!(
            "version: 1\nthreads: 2\nupgrade_sock: {directory}/up.sock\npid_file: {directory}/pid\n"
        );
        fs::write(place.0.path().join("conf.yaml"), conf).unwrap();
        place
    }

    fn start(&self, port: u16, prefill: &str, decode: &str, more: &str) -> Process {
        let conf = self.0.path().join("conf.yaml");
        let arguments = format!(
            "--conf {} --host 127.0.0.1 --port {port} --prefill {prefill} --decode {decode} {more}",
            conf.display()
        );
        let arguments: Vec<_> = arguments.split_whitespace().map(str::to_owned).collect();
        Process::start(env!("CARGO_BIN_EXE_mini-lb"), &arguments)
    }
}

/// A process in front of workers whose every byte the test decides.
struct Stage {
    prefill: Worker,
    decode: Worker,
    place: Place,
    process: Process,
    address: SocketAddr,
}

impl Stage {
    async fn set(more: &str) -> Self {
        let (prefill, decode) = (Worker::listen().await, Worker::listen().await);
        let place = Place::new();
        let urls = (format!("{} 8998", prefill.url()), decode.url());
        let more = format!("--disable-health-check {more}");
        let mut process = place.start(0, &urls.0, &urls.1, &more);
        let address = process.address().await;
        Self {
            prefill,
            decode,
            place,
            process,
            address,
        }
    }

    async fn client(&self) -> Client {
        Client::connect(self.address).await
    }

    /// A stream with its first event.
    async fn stream(&mut self) -> (Client, Exchange) {
        let mut client = self.client().await;
        client.send(post(CHAT, STREAM)).await;
        self.prefill.request().await.answer("200 OK", "{}").await;
        let mut decode = self.decode.request().await;
        decode.begin_stream().await;
        decode.chunk("data: 1\n\n").await;
        client.head().await;
        assert_eq!(client.chunk().await.as_deref(), Some("data: 1\n\n"));
        (client, decode)
    }

    /// A whole answer, through this client's connection.
    async fn generate(&mut self, client: &mut Client) -> support::Answer {
        client.send(post("/generate", "{\"text\":\"a\"}")).await;
        self.prefill.request().await.answer("200 OK", "{}").await;
        self.decode.request().await.answer("200 OK", "{}").await;
        client.answer().await
    }

    async fn is_refused(&self) -> bool {
        TcpStream::connect(self.address).await.is_err()
    }
}

#[tokio::test]
async fn sigterm_ends_an_idle_process_at_once_and_well() {
    let mut stage = Stage::set("--shutdown-grace-period-secs 3600").await;
    stage.process.signal(Signal::Terminate).await;
    assert!(stage.process.ended().await.success());
}

#[tokio::test]
async fn sigterm_lets_a_stream_finish_and_accepts_nobody_else() {
    let mut stage = Stage::set("").await;
    let mut idle = stage.client().await;
    assert_eq!(stage.generate(&mut idle).await.status(), 200);
    let (mut client, mut decode) = stage.stream().await;
    stage.process.signal(Signal::Terminate).await;
    stage.process.line("leaving").await;
    soon("new clients are refused", async {
        while !stage.is_refused().await {}
    })
    .await;
    decode.chunk("data: 2\n\n").await;
    assert_eq!(client.chunk().await.as_deref(), Some("data: 2\n\n"));
    let last = stage.generate(&mut idle).await;
    assert_eq!(
        (last.status(), last.header("connection")),
        (200, Some("close"))
    );
    decode.chunk("").await;
    assert_eq!(client.chunk().await, None);
    assert!(stage.process.ended().await.success());
}

#[tokio::test]
async fn while_it_settles_it_serves_everybody_and_says_that_it_is_not_ready() {
    let mut stage = Stage::set("--drain-settle-secs 3600").await;
    let mut client = stage.client().await;
    client.send(READY).await;
    let ready = client.answer().await;
    assert_eq!(
        (ready.status(), ready.header("connection")),
        (200, Some("keep-alive"))
    );
    stage.process.signal(Signal::Terminate).await;
    stage.process.line("leaving").await;
    client.send(READY).await;
    let not_ready = client.answer().await;
    assert_eq!(not_ready.status(), 503);
    assert_eq!(not_ready.header("x-mini-lb-error"), Some("shutting_down"));
    assert_eq!(not_ready.header("connection"), Some("close"));
    let mut client = stage.client().await;
    let answer = stage.generate(&mut client).await;
    assert_eq!(
        (answer.status(), answer.header("connection")),
        (200, Some("close"))
    );
    stage.process.signal(Signal::Interrupt).await;
    assert!(stage.process.ended().await.success());
}

#[tokio::test]
async fn at_the_grace_limit_a_stream_ends_in_an_error_event_and_a_whole_answer_in_503() {
    let mut stage = Stage::set("--shutdown-grace-period-secs 0.2").await;
    let (mut client, decode) = stage.stream().await;
    let mut waiting = stage.client().await;
    waiting.send(post("/generate", "{\"text\":\"a\"}")).await;
    let whole = (stage.prefill.request().await, stage.decode.request().await);
    stage.process.signal(Signal::Terminate).await;
    let event = client.chunk().await.unwrap();
    assert!(event.starts_with("data: {\"error\""), "{event}");
    assert!(event.contains("shutting down"), "{event}");
    let answer = waiting.answer().await;
    assert_eq!(answer.status(), 503);
    assert_eq!(answer.header("x-mini-lb-error"), Some("shutting_down"));
    decode.closed().await;
    whole.1.closed().await;
    assert!(stage.process.ended().await.success());
}

#[tokio::test]
async fn sigint_does_not_wait_for_a_stream_that_sigterm_waits_for() {
    let mut stage = Stage::set("").await;
    let (mut client, _decode) = stage.stream().await;
    stage.process.signal(Signal::Terminate).await;
    stage.process.line("leaving").await;
    stage.process.signal(Signal::Interrupt).await;
    assert!(stage.process.ended().await.success());
    assert_eq!(client.chunk().await, None);
}

#[tokio::test]
async fn a_process_whose_stderr_is_closed_serves_on_and_ends_well() {
    let mut stage = Stage::set("--log-level debug").await;
    stage.process.hang_up().await;
    let mut client = stage.client().await;
    for _ in 0..10 {
        assert_eq!(stage.generate(&mut client).await.status(), 200);
    }
    drop(client);
    stage.process.signal(Signal::Terminate).await;
    assert!(stage.process.ended().await.success());
}

#[tokio::test]
async fn a_process_whose_stderr_nobody_reads_serves_on_and_ends_well() {
    let mut stage = Stage::set("--log-level trace,pingora=trace").await;
    stage.process.ignore();
    let mut client = stage.client().await;
    // Each of them writes some KiB; a pipe holds 64.
    for _ in 0..200 {
        assert_eq!(stage.generate(&mut client).await.status(), 200);
    }
    drop(client);
    stage.process.signal(Signal::Terminate).await;
    assert!(stage.process.ended().await.success());
}

#[tokio::test]
async fn sigquit_without_a_successor_changes_nothing() {
    let mut stage = Stage::set("").await;
    let (mut client, mut decode) = stage.stream().await;
    stage.process.signal(Signal::Quit).await;
    stage.process.line("no successor for an upgrade").await;
    let mut other = stage.client().await;
    assert_eq!(stage.generate(&mut other).await.status(), 200);
    decode.chunk("data: 2\n\n").await;
    assert_eq!(client.chunk().await.as_deref(), Some("data: 2\n\n"));
    other.send(READY).await;
    assert_eq!(other.answer().await.status(), 200);
}

/// Starts a successor, and lets it take over.
async fn succeed(
    place: &Place,
    old: &mut Process,
    address: SocketAddr,
    workers: (&str, &str),
) -> Process {
    let mut new = place.start(address.port(), workers.0, workers.1, "--upgrade");
    // Pingora's line when it waits at the upgrade socket.
    new.line("No incoming socket transfer").await;
    old.signal(Signal::Quit).await;
    old.line("successor listens").await;
    assert_eq!(new.address().await, address);
    new
}

#[tokio::test]
async fn a_stream_and_an_idle_client_survive_an_upgrade() {
    let mut stage = Stage::set("").await;
    let mut idle = stage.client().await;
    assert_eq!(stage.generate(&mut idle).await.status(), 200);
    let (mut client, mut decode) = stage.stream().await;
    let urls = (
        format!("{} 8998", stage.prefill.url()),
        stage.decode.url() + " --disable-health-check",
    );
    let workers = (urls.0.as_str(), urls.1.as_str());
    let mut new = succeed(&stage.place, &mut stage.process, stage.address, workers).await;
    let last = stage.generate(&mut idle).await;
    assert_eq!(
        (last.status(), last.header("connection")),
        (200, Some("close"))
    );
    let mut other = stage.client().await;
    let answer = stage.generate(&mut other).await;
    assert_eq!(
        (answer.status(), answer.header("connection")),
        (200, Some("keep-alive"))
    );
    decode.chunk("data: 2\n\n").await;
    assert_eq!(client.chunk().await.as_deref(), Some("data: 2\n\n"));
    decode.chunk("").await;
    assert_eq!(client.chunk().await, None);
    assert!(stage.process.ended().await.success());
    new.signal(Signal::Terminate).await;
    assert!(new.ended().await.success());
}

#[tokio::test]
async fn a_successor_whose_address_is_busy_ends_at_once_and_its_predecessor_goes_on() {
    let mut stage = Stage::set("").await;
    let (mut client, mut decode) = stage.stream().await;
    let busy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = busy.local_addr().unwrap();
    let workers = (stage.prefill.url(), stage.decode.url());
    let more = format!("--upgrade --admin-listen {busy}");
    let port = stage.address.port();
    let mut new = stage.place.start(port, &workers.0, &workers.1, &more);
    new.line("No incoming socket transfer").await;
    stage.process.signal(Signal::Quit).await;
    let why = new.line("mini-lb: ").await;
    let expected = format!("cannot listen on {busy}: another process does already");
    assert!(why.contains(&expected), "{why}");
    assert!(!new.ended().await.success());
    stage.process.line("no successor for an upgrade").await;
    let mut other = stage.client().await;
    assert_eq!(stage.generate(&mut other).await.status(), 200);
    decode.chunk("data: 2\n\n").await;
    assert_eq!(client.chunk().await.as_deref(), Some("data: 2\n\n"));
}

#[tokio::test]
async fn a_successor_listens_where_its_predecessor_did_not() {
    let mut stage = Stage::set("").await;
    let workers = (stage.prefill.url(), stage.decode.url());
    let workers = (
        workers.0.as_str(),
        format!("{} --admin-listen 127.0.0.1:0", workers.1),
    );
    let new = succeed(
        &stage.place,
        &mut stage.process,
        stage.address,
        (workers.0, &workers.1),
    );
    let mut new = new.await;
    let admins = new.line("open for administration address=").await;
    let admins = admins.rsplit_once('=').unwrap().1.parse().unwrap();
    for address in [admins, stage.address] {
        let mut client = Client::connect(address).await;
        client.send(READY).await;
        assert_eq!(client.answer().await.status(), 200);
    }
    assert!(stage.process.ended().await.success());
}

#[tokio::test]
async fn a_successor_without_a_predecessor_says_so_and_ends() {
    let place = Place::new();
    let mut alone = place.start(0, "http://127.0.0.1:1", "http://127.0.0.1:2", "--upgrade");
    let why = alone.line("mini-lb: ").await;
    assert!(why.contains("no predecessor gave its sockets"), "{why}");
    assert!(!alone.ended().await.success());
    let left: Vec<_> = fs::read_dir(place.0.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "only the configuration: {left:?}");
}

#[tokio::test]
async fn an_upgrade_socket_that_cannot_be_made_is_one_clear_line() {
    let place = Place::new();
    let long = "a".repeat(200);
    for file in ["missing/up.sock", &long] {
        let path = place.0.path().join(file);
        let conf = format!("upgrade_sock: {}\n", path.display());
        fs::write(place.0.path().join("conf.yaml"), conf).unwrap();
        let mut new = place.start(0, "http://127.0.0.1:1", "http://127.0.0.1:2", "--upgrade");
        let why = new.line("mini-lb: ").await;
        assert!(why.contains(file), "{why}");
        assert!(!new.ended().await.success());
        let more = new.lines();
        assert!(more.is_empty(), "{more:?}");
    }
}

/// Clients that ask for streams and whole answers in turn, one connection for as long as it is kept.
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

    /// Waits until so many more requests were served.
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
    let place = Place::new();
    let mut process = place.start(0, &urls.0, &urls.1, "");
    let address = process.address().await;
    let load = Load::begin(address, 4);
    for _ in 0..3 {
        load.goes_on(20).await;
        let new = succeed(&place, &mut process, address, (&urls.0, &urls.1)).await;
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
