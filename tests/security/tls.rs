//! TLS to workers, with an authority, a name and a client certificate; TLS on the listener; and every way in which
//! it fails.

use std::process::Command;
use std::time::Duration;

use mini_lb::{MiniLbConfig, MiniLoadBalancer};
use support::client::Message;
use support::pair::serve;
use support::program::post_json;
use support::tls::{Authority, Terminator};
use support::{BODY, Balancer, Client, Exchange, Process, Worker, config, post, soon};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const HEALTH: &str = "GET /health HTTP/1.1\r\nhost: balancer\r\n\r\n";

/// Number of requests after which reuse of connections is asserted.
const SERVED: usize = 10;

/// Short enough to wait for.
const SHORT: Duration = Duration::from_millis(500);

/// Two workers behind TLS: prefill by a name, decode by an address.
struct Encrypted {
    authority: Authority,
    prefill: Worker,
    decode: Worker,
    terminators: [Terminator; 2],
}

impl Encrypted {
    /// Both demand client certificates of this authority, if it is given.
    async fn start(clients: Option<&Authority>) -> Self {
        let authority = Authority::generate();
        let (prefill, decode) = Worker::pair().await;
        let server = |name: &str| Authority::server(&authority.sign(&[name]), clients);
        let terminators = [
            Terminator::before(prefill.address, "localhost", server("localhost")).await,
            Terminator::before(decode.address, "127.0.0.1", server("127.0.0.1")).await,
        ];
        Self {
            authority,
            prefill,
            decode,
            terminators,
        }
    }

    fn config(&self) -> MiniLbConfig {
        let [prefill, decode] = &self.terminators;
        config(
            std::slice::from_ref(&prefill.url),
            std::slice::from_ref(&decode.url),
        )
        .ca_cert_paths(&[&self.authority.path()])
    }

    async fn legs(&mut self) -> (Exchange, Exchange) {
        (self.prefill.request().await, self.decode.request().await)
    }

    fn handshakes(&self) -> [usize; 2] {
        [0, 1].map(|at: usize| self.terminators[at].handshakes())
    }

    /// Asserts reuse after [`SERVED`] requests in sequence.
    fn have_kept_their_connections(&self) {
        let [prefill, decode] = self.handshakes();
        assert_eq!(decode, 1);
        // Prefill's connection may not be back in the pool when the next request is sent.
        assert!((1..=SERVED / 2).contains(&prefill), "{prefill}");
    }
}

#[tokio::test]
async fn legs_speak_tls_with_a_name_and_with_an_address_and_keep_their_connections() {
    let mut workers = Encrypted::start(None).await;
    let balancer = Balancer::start(workers.config()).await;
    let mut client = balancer.client().await;
    for _ in 0..SERVED {
        client.send(post("/generate", BODY)).await;
        let (prefill, decode) = workers.legs().await;
        let sent = decode.request.json();
        assert_eq!(sent["bootstrap_host"], "localhost");
        assert_eq!(sent["bootstrap_port"], 8998);
        let host = format!(
            "127.0.0.1:{}",
            workers.terminators[1].url.rsplit_once(':').unwrap().1
        );
        assert_eq!(decode.request.header("host"), Some(host.as_str()));
        prefill.answer("200 OK", "{}").await;
        decode.answer("200 OK", "{\"a\":1}").await;
        let answer = client.answer().await;
        assert_eq!((answer.status(), answer.text()), (200, "{\"a\":1}"));
    }
    workers.have_kept_their_connections();
}

#[tokio::test]
async fn a_stream_over_tls_arrives_event_by_event_and_its_leg_ends_with_the_client() {
    let mut workers = Encrypted::start(None).await;
    let balancer = Balancer::start(workers.config()).await;
    let mut client = balancer.client().await;
    client
        .send(post("/generate", r#"{"text":"a","stream":true}"#))
        .await;
    workers.prefill.request().await.answer("200 OK", "{}").await;
    let mut decode = workers.decode.request().await;
    decode.begin_stream().await;
    client_sees(&mut client, &mut decode).await;
    drop(client);
    decode.closed().await;
}

async fn client_sees(client: &mut Client, decode: &mut Exchange) {
    for (index, event) in ["data: 1\n\n", "data: 2\n\n"].into_iter().enumerate() {
        decode.chunk(event).await;
        if index == 0 {
            client.head().await;
        }
        assert_eq!(client.chunk().await.as_deref(), Some(event));
    }
}

#[tokio::test]
async fn probes_and_administration_speak_tls_too() {
    let mut workers = Encrypted::start(None).await;
    let config = workers
        .config()
        .health_check_interval(Some(Duration::from_secs(3600)));
    let balancer = Balancer::start(config).await;
    // The role at the start, and prefill's ranks, and then the first probe.
    let [of_prefill, of_decode] = [&["/server_info"][..], &[]];
    for (worker, more) in [
        (&mut workers.prefill, of_prefill),
        (&mut workers.decode, of_decode),
    ] {
        let expected = [&["/health", "/model_info", "/model_info"], more].concat();
        let mut asked = Vec::new();
        for _ in 0..expected.len() {
            let probe = worker.request().await;
            let path = probe.request.head.split(' ').nth(1).unwrap_or_default();
            asked.push(path.to_owned());
            probe.answer("200 OK", "").await;
        }
        asked.sort();
        assert_eq!(asked, expected);
    }
    let mut client = balancer.client().await;
    client.send(post("/flush_cache", "")).await;
    for worker in [&mut workers.prefill, &mut workers.decode] {
        worker.request().await.answer("200 OK", "flushed").await;
    }
    assert_eq!(client.answer().await.text(), "flushed");
    client
        .send("GET /v1/models HTTP/1.1\r\nhost: balancer\r\n\r\n")
        .await;
    workers.prefill.request().await.answer("200 OK", "{}").await;
    assert_eq!(client.answer().await.status(), 200);
}

#[tokio::test]
async fn a_worker_whose_certificate_does_not_fit_gets_no_byte_and_the_client_the_reason() {
    let (authority, other) = (Authority::generate(), Authority::generate());
    for (host, signer, name, reason) in [
        ("127.0.0.1", &other, "127.0.0.1", "invalid peer certificate"),
        ("127.0.0.1", &authority, "127.0.0.2", "not valid for name"),
        ("127.0.0.1", &authority, "localhost", "not valid for name"),
        ("localhost", &authority, "127.0.0.1", "not valid for name"),
        ("localhost", &authority, "otherhost", "not valid for name"),
    ] {
        let (prefill, mut decode) = Worker::pair().await;
        let server = Authority::server(&signer.sign(&[name]), None);
        let terminator = Terminator::before(prefill.address, host, server).await;
        let config = config(std::slice::from_ref(&terminator.url), &[decode.url()])
            .ca_cert_paths(&[&authority.path()])
            .retries(0);
        let balancer = Balancer::start(config).await;
        let mut client = balancer.client().await;
        client.send(post("/generate", BODY)).await;
        let answer = client.answer().await;
        let what = format!("{host} {name}: {}", answer.text());
        assert_eq!(answer.status(), 502, "{what}");
        let code = answer.header("x-mini-lb-error");
        assert_eq!(code, Some("prefill_unreachable"), "{what}");
        assert!(answer.text().contains(reason), "{what}");
        assert_eq!((prefill.connections(), prefill.has_request()), (0, false));
        decode.request().await.closed().await;
    }
}

#[tokio::test]
async fn decode_is_held_to_its_certificate_as_prefill_is() {
    let authority = Authority::generate();
    let (mut prefill, decode) = Worker::pair().await;
    let server = Authority::server(&authority.sign(&["otherhost"]), None);
    let terminator = Terminator::before(decode.address, "localhost", server).await;
    let config = config(&[prefill.url()], std::slice::from_ref(&terminator.url))
        .ca_cert_paths(&[&authority.path()])
        .retries(0);
    let balancer = Balancer::start(config).await;
    let mut client = balancer.client().await;
    client.send(post("/generate", BODY)).await;
    let answer = client.answer().await;
    assert_eq!(
        answer.outcome(),
        (502, Some("decode_unreachable")),
        "{}",
        answer.text()
    );
    assert_eq!(decode.connections(), 0);
    prefill.request().await.closed().await;
}

#[tokio::test]
async fn a_worker_that_asks_for_a_certificate_gets_it() {
    let clients = Authority::generate();
    let mut workers = Encrypted::start(Some(&clients)).await;
    let shown = clients.sign(&["mini-lb"]);
    let (certificate, key) = shown.paths();
    let balancer = Balancer::start(workers.config().client_cert(certificate, key)).await;
    let mut client = balancer.client().await;
    for _ in 0..SERVED {
        client.send(post("/generate", BODY)).await;
        serve(workers.legs().await).await;
        assert_eq!(client.answer().await.status(), 200);
    }
    workers.have_kept_their_connections();
}

#[tokio::test]
async fn a_worker_that_gets_no_certificate_or_a_strangers_is_not_reached() {
    let clients = Authority::generate();
    let strangers = Authority::generate();
    let stranger = strangers.sign(&["mini-lb"]);
    for shown in [None, Some(&stranger)] {
        let workers = Encrypted::start(Some(&clients)).await;
        let mut config = workers.config().retries(0);
        if let Some(shown) = shown {
            let (certificate, key) = shown.paths();
            config = config.client_cert(certificate, key);
        }
        let balancer = Balancer::start(config).await;
        let mut client = balancer.client().await;
        client.send(post("/generate", BODY)).await;
        let answer = client.answer().await;
        assert_eq!(answer.status(), 502, "{}", answer.text());
        assert!(answer.text().contains("alert"), "{}", answer.text());
        assert_eq!(workers.handshakes(), [0, 0]);
        assert_eq!(
            (workers.prefill.connections(), workers.decode.connections()),
            (0, 0)
        );
    }
}

#[tokio::test]
async fn a_worker_that_never_ends_its_handshake_is_given_up_at_the_connect_timeout() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut decode = Worker::listen().await;
    let url = format!("https://{}", silent.local_addr().unwrap());
    let authority = Authority::generate();
    let config = config(&[url], &[decode.url()])
        .ca_cert_paths(&[&authority.path()])
        .connect_timeout(SHORT)
        .retries(0);
    let balancer = Balancer::start(config).await;
    let mut client = balancer.client().await;
    client.send(post("/generate", BODY)).await;
    let answer = client.answer().await;
    assert_eq!(answer.status(), 504);
    let code = answer.header("x-mini-lb-error");
    assert_eq!(code, Some("prefill_connect_timeout"));
    decode.request().await.closed().await;
}

/// A balancer with TLS on its listener in front of plain workers, and the authority of its certificate.
async fn encrypted(change: impl FnOnce(MiniLbConfig) -> MiniLbConfig) -> (Balancer, Authority) {
    let (prefill, decode) = Worker::pair().await;
    let authority = Authority::generate();
    let signed = authority.sign(&["localhost"]);
    let (certificate, key) = signed.paths();
    let config = config(&[prefill.url()], &[decode.url()]).tls(certificate, key);
    prefill.serve("200 OK", "{}");
    decode.serve("200 OK", "{\"a\":1}");
    (Balancer::start(change(config)).await, authority)
}

#[tokio::test]
async fn clients_speak_tls_to_the_listener_and_keep_their_connection() {
    let (balancer, authority) = encrypted(|config| config).await;
    for alpn in [&[][..], &["http/1.1"]] {
        let mut client = authority.connect(balancer.address, alpn).await.unwrap();
        let chosen = client.get_ref().1.alpn_protocol();
        assert_eq!(chosen.is_some(), !alpn.is_empty());
        for _ in 0..3 {
            let request = post("/generate", BODY);
            client.write_all(request.as_bytes()).await.unwrap();
            let answer = soon("an answer", Message::read(&mut client)).await.unwrap();
            assert_eq!((answer.status(), answer.text()), (200, "{\"a\":1}"));
        }
    }
}

#[tokio::test]
async fn who_speaks_no_tls_or_no_protocol_of_ours_is_sent_away_and_nobody_else() {
    let (balancer, authority) = encrypted(|config| config.set("http2", false)).await;
    let mut plain = balancer.client().await;
    plain.send(HEALTH).await;
    let rest = plain.rest().await;
    // At most a TLS alert, never a byte of HTTP.
    assert!(!rest.starts_with(b"HTTP"), "{rest:?}");
    assert!(authority.connect(balancer.address, &["h2"]).await.is_err());
    let stranger = Authority::generate();
    assert!(stranger.connect(balancer.address, &[]).await.is_err());
    let mut client = authority.connect(balancer.address, &[]).await.unwrap();
    client.write_all(HEALTH.as_bytes()).await.unwrap();
    let answer = soon("an answer", Message::read(&mut client)).await.unwrap();
    assert_eq!(answer.status(), 200);
}

#[tokio::test]
async fn a_handshake_and_the_first_head_have_one_deadline() {
    let (balancer, authority) = encrypted(|config| config.head_timeout(SHORT)).await;
    // No byte, and the beginning of a ClientHello of 512 bytes.
    for beginning in [&b""[..], &[0x16, 3, 1, 2, 0, 1]] {
        let mut client = balancer.client().await;
        client.send(beginning).await;
        assert!(client.rest().await.is_empty());
    }
    for beginning in ["", "GET /health HTTP/1.1\r\nhost: ba"] {
        let mut client = authority.connect(balancer.address, &[]).await.unwrap();
        client.write_all(beginning.as_bytes()).await.unwrap();
        let mut rest = Vec::new();
        let _ = soon("the close", client.read_to_end(&mut rest)).await;
        assert!(rest.is_empty());
    }
}

#[tokio::test]
async fn half_a_head_on_a_used_connection_over_tls_has_its_deadline() {
    let (balancer, authority) = encrypted(|config| config.head_timeout(SHORT)).await;
    let mut client = authority.connect(balancer.address, &[]).await.unwrap();
    client.write_all(HEALTH.as_bytes()).await.unwrap();
    let answer = soon("an answer", Message::read(&mut client)).await.unwrap();
    assert_eq!(answer.header("connection"), Some("keep-alive"));
    client.write_all(&HEALTH.as_bytes()[..10]).await.unwrap();
    let mut rest = Vec::new();
    let _ = soon("the close", client.read_to_end(&mut rest)).await;
    assert!(rest.is_empty());
}

#[tokio::test]
async fn a_clients_failed_handshake_is_no_line_in_the_log() {
    let authority = Authority::generate();
    let signed = authority.sign(&["localhost"]);
    let (certificate, key) = signed.paths();
    let line = format!(
        "--host 127.0.0.1 --port 0 --prefill http://127.0.0.1:1 --decode http://127.0.0.1:2 \
         --disable-health-check --tls-cert-path {certificate} --tls-key-path {key}"
    );
    let arguments: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
    let mut process = Process::start(env!("CARGO_BIN_EXE_mini-lb"), &arguments);
    let address = process.address().await;
    let mut plain = Client::connect(address).await;
    plain.send(HEALTH).await;
    plain.rest().await;
    assert!(Authority::generate().connect(address, &[]).await.is_err());
    // The line of this request would follow the lines of the others.
    let mut client = authority.connect(address, &[]).await.unwrap();
    let request = HEALTH.replace("/health", "/nothing");
    client.write_all(request.as_bytes()).await.unwrap();
    soon("an answer", Message::read(&mut client)).await.unwrap();
    let first = process.line("").await;
    assert!(first.contains("request finished"), "{first}");
}

#[tokio::test]
async fn without_an_authority_of_ones_own_the_systems_vouch_for_workers() {
    let authority = Authority::generate();
    let (prefill, decode) = Worker::pair().await;
    let server = || Authority::server(&authority.sign(&["localhost"]), None);
    let terminators = [
        Terminator::before(prefill.address, "localhost", server()).await,
        Terminator::before(decode.address, "localhost", server()).await,
    ];
    prefill.serve("200 OK", "{}");
    decode.serve("200 OK", "{}");
    let start = |roots: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mini-lb"));
        command.args([
            "--host",
            "127.0.0.1",
            "--port",
            "0",
            "--disable-health-check",
        ]);
        command.args([
            "--prefill",
            &terminators[0].url,
            "--decode",
            &terminators[1].url,
        ]);
        command
            .env("SSL_CERT_FILE", roots)
            .env_remove("SSL_CERT_DIR");
        Process::of(command)
    };
    let mut program = start(&authority.path());
    let address = program.address().await;
    let answer = post_json(address, "/generate", BODY).await;
    assert_eq!(answer.status(), 200, "{}", answer.text());

    let ended = start("/dev/null").end().await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.text().contains("set ca_cert_paths"), "{ended:?}");
}

#[tokio::test]
async fn the_first_worker_with_tls_may_come_later_and_waits_for_authorities() {
    let authority = Authority::generate();
    let (prefill, decode) = Worker::pair().await;
    let server = Authority::server(&authority.sign(&["localhost"]), None);
    let added = Terminator::before(decode.address, "localhost", server).await;
    let prefill_url = prefill.url();
    prefill.serve("200 OK", "{}");
    decode.serve("200 OK", "{}");
    let roots = tempfile::NamedTempFile::new().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_mini-lb"));
    command.args(["--host", "127.0.0.1", "--port", "0"]);
    command.args(["--disable-health-check", "--watch-config"]);
    command.args(["--prefill", &prefill_url]);
    command
        .env("SSL_CERT_FILE", roots.path())
        .env_remove("SSL_CERT_DIR");
    let mut program = Process::of(command);
    let address = program.address().await;
    let body = format!(r#"{{"url":"{}","worker_type":"decode"}}"#, added.url);
    let answer = post_json(address, "/workers?wait_seconds=1.5", &body).await;
    assert_eq!(answer.status(), 504, "{}", answer.text());
    let told = answer.text();
    assert!(
        told.contains("no root certificates for https:// workers"),
        "{told}"
    );
    assert!(
        told.contains("ca-certificates") && told.contains("ca_cert_paths"),
        "{told}"
    );
    std::fs::copy(authority.path(), roots.path()).unwrap();
    program.line("worker serves").await;
    let answer = post_json(address, "/generate", BODY).await;
    assert_eq!(answer.status(), 200, "{}", answer.text());
    assert!(added.handshakes() > 0);
}

#[tokio::test]
async fn what_is_wrong_with_a_file_is_said_at_the_start() {
    let (authority, other) = (Authority::generate(), Authority::generate());
    let (signed, stranger) = (authority.sign(&["a"]), other.sign(&["a"]));
    let (certificate, key) = signed.paths();
    let (_, other_key) = stranger.paths();
    let broken = tempfile::NamedTempFile::new().unwrap();
    let text = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    std::fs::write(broken.path(), text).unwrap();
    let garbled = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(garbled.path(), text.replace("AAAA", "!")).unwrap();
    let (broken, garbled) = (
        broken.path().to_str().unwrap(),
        garbled.path().to_str().unwrap(),
    );
    for (certificate, key, said) in [
        ("none.pem", key, "cannot read none.pem: No such file"),
        (
            certificate,
            "none.pem",
            "tls_key_path: cannot read none.pem: No such file",
        ),
        (certificate, other_key, "the key does not match"),
        (certificate, certificate, "no private key in PEM"),
        (key, key, "tls_cert_path: cannot use"),
        (key, key, "no certificate in PEM"),
        (broken, key, "certificate 1 is not X.509"),
        (garbled, key, "not PEM"),
    ] {
        let config = config(&["http://a:1".into()], &["http://b:1".into()]);
        let refused = MiniLoadBalancer::new(config.tls(certificate, key))
            .err()
            .unwrap();
        let refused = refused.to_string();
        assert!(refused.contains(said), "{refused} has no {said}");
        assert_eq!(refused.lines().count(), 1, "{refused}");
    }
}
