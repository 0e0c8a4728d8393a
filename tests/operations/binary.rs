//! The program as a user starts it: command lines, files, signals, exit codes and output.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};

use mini_lb::sim::{SimOptions, Worker};
use nix::sys::resource::{Resource, getrlimit};
use support::mini_lb;
use support::program::{get, post_json};
use support::{Client, Exchange, Process, Signal, post};

/// A free port, because the program does not print which one it got for port 0.
/// A balancer from flags alone, as the line for `sglang_router.launch_router` has them.
async fn serve(prefill: &[&str], decode: &str, more: &[&str]) -> (Process, SocketAddr) {
    let mut line = vec!["--pd-disaggregation", "--mini-lb", "--host", "127.0.0.1"];
    // Without probes, because workers of tests count the requests that they get.
    line.extend(["--port", "0", "--disable-health-check", "--prefill"]);
    line.extend(prefill);
    line.extend(["--decode", decode]);
    line.extend(more);
    let mut program = mini_lb!(&line);
    let address = program.address().await;
    (program, address)
}

fn is_closed(address: SocketAddr) -> bool {
    TcpStream::connect(address).is_err()
}

/// The path and the body of a command that the demo prints.
fn pasted(url: &str, data: &str) -> (String, String) {
    let url = url
        .split_whitespace()
        .find(|word| word.starts_with("http://"));
    let path = url.unwrap().splitn(4, '/').nth(3).unwrap();
    let (_, quoted) = data.split_once('\'').unwrap();
    let (body, _) = quoted.rsplit_once('\'').unwrap();
    (format!("/{path}"), body.to_owned())
}

#[tokio::test]
async fn the_demo_answers_what_it_tells_to_paste_and_leaves_nothing_behind() {
    let mut demo = mini_lb!(&["demo", "--port", "0", "--prefills", "1", "--decodes", "1"]);
    let prefill = demo.address_in("prefill").await;
    let decode = demo.address_in("decode").await;
    let balancer = demo.address_in("mini-lb").await;
    let mut answers = Vec::new();
    for _ in 0..3 {
        let (url, data) = (demo.line("curl").await, demo.line("-d").await);
        assert!(url.contains(&balancer.to_string()), "{url}");
        let (path, body) = pasted(&url, &data);
        let answer = post_json(balancer, &path, &body).await;
        assert_eq!(answer.status(), 200, "{path}: {}", answer.text());
        answers.push(answer);
    }
    let text = answers[0].json()["choices"][0]["message"]["content"].clone();
    assert!(!text.as_str().unwrap().is_empty());
    assert!(answers[1].text().ends_with("data: [DONE]\n\n"));
    let logprobs = answers[2].json()["meta_info"]["input_token_logprobs"].clone();
    assert!(!logprobs.as_array().unwrap().is_empty());

    demo.signal(Signal::Interrupt).await;
    let ended = demo.end().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for address in [prefill, decode, balancer] {
        assert!(is_closed(address), "{address} is still listened on");
    }
}

/// The output and exit code of a program whose port is taken.
async fn refuses_a_busy_port(command: &[&str], more: &[&str]) {
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = busy.local_addr().unwrap().port().to_string();
    let line = [command, &["--port", &port], more].concat();
    let ended = mini_lb!(&line).end().await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert_eq!(ended.lines.len(), 1, "{ended:?}");
    let said = format!("mini-lb: cannot listen on 127.0.0.1:{port}: ");
    assert!(ended.lines[0].starts_with(&said), "{ended:?}");
}

#[tokio::test]
async fn a_busy_port_is_one_clear_line_and_no_success() {
    let workers = [
        "--prefill",
        "http://127.0.0.1:1",
        "--decode",
        "http://127.0.0.1:2",
    ];
    refuses_a_busy_port(&["--host", "127.0.0.1"], &workers).await;
}

#[tokio::test]
async fn a_busy_port_ends_the_demo_too() {
    refuses_a_busy_port(&["demo"], &[]).await;
}

#[tokio::test]
async fn a_configuration_is_checked_without_starting() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    std::fs::write(path, "prefill: [http://a:1]\ndecode: [http://b:1]\n").unwrap();
    let ended = mini_lb!(&["-c", path, "-t"]).end().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(
        ended.lines,
        ["configuration ok: 1 prefill, 1 decode, listening on 0.0.0.0:30000"]
    );

    std::fs::write(
        path,
        "prot: 1\nprefill: [http://a:1]\ndecode: [http://b:1]\n",
    )
    .unwrap();
    let ended = mini_lb!(&["-c", path, "-t"]).end().await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let said = format!("mini-lb: {path}:1: prot: unknown key, did you mean `port`?");
    assert_eq!(ended.lines, [said]);
}

#[tokio::test]
async fn the_effective_configuration_names_where_each_value_comes_from() {
    let workers = ["--prefill", "http://a:1", "8998", "--decode", "http://b:1"];
    let line = [&workers[..], &["--port", "1234", "--print-config"]].concat();
    let ended = mini_lb!(&line).end().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for line in ["port: 1234  # flag --port", "policy: random  # default"] {
        assert!(ended.lines.iter().any(|found| found == line), "{ended:?}");
    }
}

#[tokio::test]
async fn a_mistyped_flag_is_refused_with_the_right_one() {
    let ended = mini_lb!(&["--prefil", "http://a:1"]).end().await;
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.text().contains("'--prefill'"), "{ended:?}");
}

#[tokio::test]
async fn a_line_of_launch_router_serves() {
    let prefill = Worker::start_prefill(SimOptions::default()).await.unwrap();
    let decode = Worker::start_decode(SimOptions::default()).await.unwrap();
    let (url, port) = (prefill.url(), prefill.bootstrap_port().unwrap().to_string());
    let more = ["--policy", "cache_aware", "--request-id-headers", "x-id"];
    let (balancer, address) = serve(&[&url, &port], &decode.url(), &more).await;
    let answer = post_json(address, "/generate", r#"{"text":"Hello"}"#).await;
    assert_eq!(answer.status(), 200, "{}", answer.text());

    balancer.signal(Signal::Interrupt).await;
    let ended = balancer.end().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let said = |part: &str| {
        ended
            .lines
            .iter()
            .filter(|line| line.contains(part))
            .count()
    };
    assert_eq!(said("--request-id-headers is accepted"), 1, "{ended:?}");
    assert_eq!(said("cache_aware"), 1, "{ended:?}");
    assert_eq!(said("path=/generate status=200 ended=ok"), 1, "{ended:?}");
}

#[tokio::test]
async fn a_file_serves() {
    let prefill = Worker::start_prefill(SimOptions::default()).await.unwrap();
    let decode = Worker::start_decode(SimOptions::default()).await.unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let yaml = format!(
        "host: 127.0.0.1\nport: 0\nprefill:\n- {{url: {}, bootstrap_port: {}}}\ndecode: [{}]\nthreads: 1\n",
        prefill.url(),
        prefill.bootstrap_port().unwrap(),
        decode.url()
    );
    std::fs::write(file.path(), yaml).unwrap();
    let mut balancer = mini_lb!(&["-c", file.path().to_str().unwrap()]);
    let address = balancer.address().await;
    let answer = post_json(address, "/generate", r#"{"text":"Hello"}"#).await;
    assert_eq!(answer.status(), 200, "{}", answer.text());
}

/// Starts the binary under a `ulimit` of the shell.
fn limited(limit: &str, stderr: &str, arguments: &[&str]) -> Process {
    let mut command = std::process::Command::new("sh");
    // Without the trap a write beyond the limit would kill the process, while a full disk only fails the write.
    let script = format!("trap '' XFSZ; ulimit {limit}; exec \"$@\" {stderr}");
    command.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_mini-lb")]);
    command.args(arguments);
    Process::of(command)
}

#[tokio::test]
async fn a_soft_limit_of_open_files_is_raised_and_a_hard_one_stays() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    for (limit, files) in [("-S -n 256", hard.min(65_536)), ("-n 256", 256)] {
        let workers = [
            "--prefill",
            "http://127.0.0.1:1",
            "--decode",
            "http://127.0.0.1:2",
        ];
        let line = [&["--host", "127.0.0.1", "--port", "0"], &workers[..]].concat();
        let mut process = limited(limit, "", &line);
        let metrics = get(process.address().await, "/metrics").await;
        let metric = format!("\nprocess_max_fds {files}\n");
        assert!(
            metrics.text().contains(&metric),
            "{limit}: {}",
            metrics.text()
        );
    }
}

#[tokio::test]
async fn a_process_without_a_free_descriptor_answers_what_it_can_and_recovers() {
    let prefill = support::Worker::listen().await;
    let decode = support::Worker::listen().await;
    let urls = (prefill.url(), decode.url());
    let (of_prefill, of_decode) = (prefill.serve("200 OK", "{}"), decode.serve("200 OK", "{}"));
    let line = [
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "--disable-health-check",
    ];
    let workers = ["--prefill", &urls.0, "8998", "--decode", &urls.1];
    let mut balancer = limited("-n 96", "", &[&line[..], &workers].concat());
    let address = balancer.address().await;
    let mut first = Client::connect(address).await;
    let health = "GET /health HTTP/1.1\r\nhost: balancer\r\n\r\n";
    first.send(health).await;
    assert_eq!(first.answer().await.status(), 200);
    // More than its descriptors. The system queues the connections that the process does not accept.
    let mut crowd = Vec::new();
    for _ in 0..150 {
        crowd.push(Client::connect(address).await);
    }
    balancer.line("Too many open files").await;
    // Accepted clients get responses, with legs as far as there are connections to workers.
    first.send(health).await;
    assert_eq!(first.answer().await.status(), 200);
    let generate = post("/generate", r#"{"text":"a"}"#);
    let mut second = crowd.swap_remove(0);
    second.send(&generate).await;
    let answer = second.answer().await;
    assert_eq!(answer.status(), 503, "{}", answer.text());
    assert_eq!(answer.header("x-mini-lb-error"), Some("overloaded"));
    drop((second, crowd));
    let mut after = Client::connect(address).await;
    for client in [&mut after, &mut first] {
        client.send(&generate).await;
        let answer = client.answer().await;
        assert_eq!(answer.status(), 200, "{}", answer.text());
    }
    let served = |legs: &AtomicUsize| legs.load(Ordering::SeqCst) >= 2;
    support::soon("both legs of both requests", async {
        while !served(&of_prefill) || !served(&of_decode) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    drop((first, after));
    balancer.signal(Signal::Terminate).await;
    assert_eq!(balancer.end().await.code, Some(0));
}

#[tokio::test]
async fn a_process_whose_log_is_on_a_full_disk_serves_on_and_ends_well() {
    const FULL: u64 = 4 << 10;
    let prefill = Worker::start_prefill(SimOptions::default()).await.unwrap();
    let decode = Worker::start_decode(SimOptions::default()).await.unwrap();
    let (url, port) = (prefill.url(), prefill.bootstrap_port().unwrap().to_string());
    let log = tempfile::NamedTempFile::new().unwrap();
    let decodes = decode.url();
    let line = [
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "--prefill",
        &url,
        &port,
        "--decode",
        &decodes,
    ];
    // The unit is 512 bytes.
    let to = format!("2>'{}'", log.path().display());
    let balancer = limited(&format!("-f {}", FULL / 512), &to, &line);
    let address = support::soon("the line that it listens", async {
        loop {
            let lines = std::fs::read_to_string(log.path()).unwrap();
            let mut found = lines
                .lines()
                .filter_map(|line| line.rsplit_once("listening address="));
            if let Some(address) = found.next().and_then(|(_, address)| address.parse().ok()) {
                return address;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    // Each request logs a line of more than 200 bytes.
    let few = r#"{"text":"Hello","sampling_params":{"max_new_tokens":1}}"#;
    for _ in 0..30 {
        let answer = post_json(address, "/generate", few).await;
        assert_eq!(answer.status(), 200, "{}", answer.text());
    }
    assert_eq!(std::fs::metadata(log.path()).unwrap().len(), FULL);
    balancer.signal(Signal::Terminate).await;
    assert_eq!(balancer.end().await.code, Some(0));
}

#[tokio::test]
async fn what_nobody_reads_is_no_panic() {
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = busy.local_addr().unwrap().port().to_string();
    let workers = [
        "--prefill",
        "http://a:1",
        "--decode",
        "http://b:1",
        "--host",
        "127.0.0.1",
    ];
    for (more, to, code) in [
        (["--print-config"].as_slice(), ">/dev/full", 1),
        (&["-t"], ">/dev/full", 1),
        (&["--port", &port], "2>/dev/full", 1),
    ] {
        let ended = limited("-n 96", to, &[&workers[..], more].concat())
            .end()
            .await;
        assert_eq!(ended.code, Some(code), "{more:?} {ended:?}");
        assert!(!ended.text().contains("panicked"), "{ended:?}");
    }
}

/// A request in the middle of its stream: the legs, and the client, which has read the first event.
async fn live_stream(
    address: SocketAddr,
    prefill: &mut support::Worker,
    decode: &mut support::Worker,
) -> (Exchange, Exchange, Client) {
    let mut client = Client::connect(address).await;
    client
        .send(post("/generate", r#"{"text":"a","stream":true}"#))
        .await;
    let (prefill, mut decode) = (prefill.request().await, decode.request().await);
    decode.begin_stream().await;
    decode.chunk("data: {\"text\":\"b\"}\n\n").await;
    client.head().await;
    assert_eq!(client.chunk().await.unwrap(), "data: {\"text\":\"b\"}\n\n");
    (prefill, decode, client)
}

#[tokio::test]
async fn sigterm_lets_a_live_stream_finish() {
    let mut prefill = support::Worker::listen().await;
    let mut decode = support::Worker::listen().await;
    let (mut balancer, address) = serve(&[&prefill.url(), "8998"], &decode.url(), &[]).await;
    let (prefill, mut decode, mut client) = live_stream(address, &mut prefill, &mut decode).await;

    balancer.signal(Signal::Terminate).await;
    balancer.line("leaving").await;
    decode.chunk("data: [DONE]\n\n").await;
    decode.chunk("").await;
    prefill.answer("200 OK", r#"{"text":"b"}"#).await;
    assert_eq!(client.chunk().await.unwrap(), "data: [DONE]\n\n");
    assert_eq!(client.chunk().await, None);

    let ended = balancer.end().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(is_closed(address));
}

#[tokio::test]
async fn sigint_cuts_a_live_stream() {
    let mut prefill = support::Worker::listen().await;
    let mut decode = support::Worker::listen().await;
    let (balancer, address) = serve(&[&prefill.url(), "8998"], &decode.url(), &[]).await;
    let (prefill, decode, mut client) = live_stream(address, &mut prefill, &mut decode).await;

    balancer.signal(Signal::Interrupt).await;
    assert_eq!(client.rest().await, b"");
    prefill.closed().await;
    decode.closed().await;
    assert_eq!(balancer.end().await.code, Some(0));
}

#[tokio::test]
async fn sigterm_without_traffic_does_not_wait_for_the_grace_period() {
    let (balancer, address) = serve(&["http://127.0.0.1:1"], "http://127.0.0.1:2", &[]).await;
    assert_eq!(get(address, "/health").await.status(), 200);
    balancer.signal(Signal::Terminate).await;
    // The grace period is 300 s, longer than a test waits.
    assert_eq!(balancer.end().await.code, Some(0));
}
