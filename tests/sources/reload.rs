//! SIGHUP reads the file again: what can change does, and what cannot is named.

use std::fs;

use support::pair::serve;
use support::program::{get, post_json};
use support::{Answer, BODY, Client, Process, Signal, Worker, mini_lb, post};

use crate::configured::{Configured, lists, pair};

/// Asks for `/generate` with this key, where the balancer is to answer by itself.
async fn refused(server: &Configured, key: &str) -> Answer {
    let mut client = server.client().await;
    client.send(with_key(key)).await;
    client.answer().await
}

fn with_key(key: &str) -> String {
    post("/generate", BODY).replacen("\r\n", &format!("\r\nauthorization: Bearer {key}\r\n"), 1)
}

async fn served(client: &mut Client, request: &str, workers: (&mut Worker, &mut Worker)) -> Answer {
    client.send(request).await;
    serve((workers.0.request().await, workers.1.request().await)).await;
    client.answer().await
}

#[tokio::test]
async fn sighup_applies_what_can_change_and_names_it() {
    let (mut prefill, mut decode) = Worker::pair().await;
    let workers = pair(&prefill, &decode);
    let mut server =
        Configured::start(&format!("{workers}api_key: one\nmax_payload_size: 10000")).await;
    assert_eq!(refused(&server, "two").await.status(), 401);
    let line = server
        .reload(&format!(
            "{workers}api_key: two\nmax_payload_size: 5\nqueue_size: 7"
        ))
        .await;
    assert!(
        line.contains("config reloaded because=\"SIGHUP\""),
        "{line}"
    );
    // A worker without a key of its own has that of the clients.
    let changed = "changed=\"api_key,api_key_file,decode,max_payload_size,prefill,queue_size\"";
    assert!(line.contains(changed), "{line}");
    assert_eq!(refused(&server, "one").await.status(), 401);
    assert_eq!(refused(&server, "two").await.status(), 413);
    let line = server.reload(&format!("{workers}api_key: two")).await;
    assert!(line.contains("max_payload_size"), "{line}");
    let mut client = server.client().await;
    let answer = served(&mut client, &with_key("two"), (&mut prefill, &mut decode)).await;
    assert_eq!(answer.status(), 200);
    let line = server.hang_up().await;
    assert!(line.contains("changed=\"\""), "{line}");
}

#[tokio::test]
async fn a_broken_file_changes_nothing_and_says_why_as_the_check_does() {
    let (prefill, decode) = Worker::pair().await;
    let workers = pair(&prefill, &decode);
    let mut server = Configured::start(&format!("{workers}api_key: one")).await;
    let line = server
        .reload(&format!(
            "{workers}api_key: two\nqueue_sise: 3\nmax_samples: many"
        ))
        .await;
    let conf = server.conf();
    let check = mini_lb!(&["--conf", conf.to_str().unwrap(), "-t"]);
    let said = check.end().await.lines.join("; ");
    let said = said.strip_prefix("mini-lb: ").unwrap();
    assert!(line.contains("config not reloaded"), "{line}");
    assert!(line.contains(said), "{line}\n{said}");
    assert_eq!(refused(&server, "two").await.status(), 401);
    fs::remove_file(conf).unwrap();
    let line = server.hang_up().await;
    assert!(line.contains("config not reloaded"), "{line}");
    assert!(line.contains("cannot read"), "{line}");
    let line = server.reload(&workers).await;
    assert!(line.contains("config reloaded"), "{line}");
    let refused = server.metric("mini_lb_config_reloads_total{result=\"refused\"}");
    assert_eq!(refused.await, 2.0);
    let applied = server.metric("mini_lb_config_reloads_total{result=\"applied\"}");
    assert_eq!(applied.await, 1.0);
    let last = server.metric("mini_lb_config_last_reload_seconds").await;
    assert!(last > server.metric("mini_lb_start_time_seconds").await);
}

#[tokio::test]
async fn what_needs_a_new_process_is_named_in_one_line_until_it_is_as_it_runs() {
    let (prefill, decode) = Worker::pair().await;
    let workers = pair(&prefill, &decode);
    let mut server = Configured::start(&workers).await;
    let changed = format!(
        "{workers}admin_listen: 127.0.0.1:0\nlog_json: true\nclient_idle_timeout_secs: 9\nwork_stealing: false"
    );
    for _ in 0..2 {
        server.write(&changed);
        server.process.signal(Signal::Hangup).await;
        let line = server.process.line("need a new process").await;
        let keys = "keys=admin_listen,log_json,work_stealing";
        assert!(line.ends_with(keys), "{line}");
        server.process.line("config reloaded").await;
    }
    server.reload(&workers).await;
    let lines = server.process.lines().join("\n");
    assert!(!lines.contains("need a new process"), "{lines}");
}

#[tokio::test]
async fn a_live_request_keeps_the_values_that_it_began_with() {
    let (mut prefill, mut decode) = Worker::pair().await;
    let workers = pair(&prefill, &decode);
    let mut server = Configured::start(&format!("{workers}disable_retries: true")).await;
    let mut old = server.client().await;
    old.send(post("/generate", BODY)).await;
    let legs = (prefill.request().await, decode.request().await);
    server
        .reload(&format!(
            "{workers}disable_retries: true\nrequest_timeout_secs: 0.05"
        ))
        .await;
    let answer = post_json(server.address, "/generate", BODY).await;
    assert_eq!(answer.status(), 504);
    serve(legs).await;
    assert_eq!(old.answer().await.status(), 200);
}

#[tokio::test]
async fn the_level_of_the_log_changes() {
    let (prefill, decode) = Worker::pair().await;
    let workers = pair(&prefill, &decode);
    let mut server = Configured::start(&workers).await;
    server.write(&format!("{workers}log_level: error"));
    server.process.signal(Signal::Hangup).await;
    // The line of this reload is no error: the metric tells.
    let series = "mini_lb_config_reloads_total{result=\"applied\"}";
    while server.metric(series).await < 1.0 {}
    assert_eq!(get(server.address, "/unseen").await.status(), 404);
    server.reload(&format!("{workers}log_level: info")).await;
    assert_eq!(get(server.address, "/seen").await.status(), 404);
    server.process.line("/seen").await;
    server.process.signal(Signal::Terminate).await;
    let ended = server.process.end().await;
    assert!(!ended.text().contains("/unseen"), "{}", ended.text());
}

#[tokio::test]
async fn workers_come_and_go_with_the_file() {
    let (mut first, mut decode) = Worker::pair().await;
    let mut second = Worker::listen().await;
    let (one, two) = (first.url(), second.url());
    let mut server = Configured::start(&lists(std::slice::from_ref(&one), &[decode.url()])).await;
    let mut client = server.client().await;
    let request = post("/generate", BODY);
    served(&mut client, &request, (&mut first, &mut decode)).await;
    let mut live = server.client().await;
    live.send(&request).await;
    let legs = (first.request().await, decode.request().await);
    server.write(&lists(std::slice::from_ref(&two), &[decode.url()]));
    server.process.signal(Signal::Hangup).await;
    // A new worker is probed before it serves, and the other one serves until then.
    let probes = [second.request().await, second.request().await];
    served(&mut client, &request, (&mut first, &mut decode)).await;
    for probe in probes {
        probe.answer("200 OK", "{}").await;
    }
    let line = server.process.line("config reloaded").await;
    assert!(line.contains("changed=\"prefill\""), "{line}");
    for _ in 0..3 {
        served(&mut client, &request, (&mut second, &mut decode)).await;
    }
    // The worker that has left ends what it has.
    serve(legs).await;
    assert_eq!(live.answer().await.status(), 200);
}

#[tokio::test]
async fn a_start_without_workers_needs_a_source_that_may_bring_some() {
    let refused = mini_lb!(&["--decode", "http://127.0.0.1:1"]).end().await;
    assert_ne!(refused.code, Some(0));
    assert!(
        refused
            .text()
            .contains("at least one prefill worker is required")
    );
    let (prefill, decode) = Worker::pair().await;
    let workers = pair(&prefill, &decode);
    prefill.serve("200 OK", "{}");
    decode.serve("200 OK", "{}");
    let mut server = Configured::start("watch_config: true\ndisable_health_check: true").await;
    assert_eq!(server.readiness().await, 503);
    let answer = post_json(server.address, "/generate", BODY).await;
    assert_eq!(answer.status(), 503);
    assert_eq!(answer.header("x-mini-lb-error"), Some("no_prefill"));
    server
        .reload(&format!("watch_config: true\n{workers}"))
        .await;
    server.is_ready(200).await;
    let answer = post_json(server.address, "/generate", BODY).await;
    assert_eq!(answer.status(), 200);
}

#[tokio::test]
async fn a_limit_of_the_workers_comes_and_goes() {
    let (mut prefill, mut decode) = Worker::pair().await;
    let workers = pair(&prefill, &decode);
    let mut server = Configured::start(&workers).await;
    server
        .reload(&format!(
            "{workers}max_concurrent_requests: 1\nqueue_size: 0"
        ))
        .await;
    let mut first = server.client().await;
    first.send(post("/generate", BODY)).await;
    let legs = (prefill.request().await, decode.request().await);
    let full = post_json(server.address, "/generate", BODY).await;
    assert_eq!(full.status(), 429);
    server
        .reload(&format!(
            "{workers}max_concurrent_requests: 1\nqueue_size: 1"
        ))
        .await;
    let mut waiting = server.client().await;
    waiting.send(post("/generate", BODY)).await;
    while server.metric("mini_lb_queued_requests").await < 1.0 {}
    // Without a limit it waits no longer.
    server.reload(&workers).await;
    serve((prefill.request().await, decode.request().await)).await;
    assert_eq!(waiting.answer().await.status(), 200);
    serve(legs).await;
    assert_eq!(first.answer().await.status(), 200);
}

#[tokio::test]
async fn relative_paths_of_a_process_in_the_background_are_those_of_its_start() {
    let (prefill, decode) = Worker::pair().await;
    let directory = tempfile::TempDir::new().unwrap();
    let path = directory.path();
    let write = |name: &str, text: &str| fs::write(path.join(name), text).unwrap();
    write("keys", "one\n");
    write(
        "conf.yaml",
        &format!(
            "host: 127.0.0.1\nport: 0\nthreads: 2\npid_file: pid\nerror_log: log\nupgrade_sock: sock\napi_key_file: keys\n{}",
            pair(&prefill, &decode)
        ),
    );
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_mini-lb"));
    command.current_dir(path).args(["-c", "conf.yaml", "-d"]);
    let started = Process::of(command).end().await;
    assert_eq!(started.code, Some(0), "{}", started.text());
    let log = || fs::read_to_string(path.join("log")).unwrap_or_default();
    write("keys", "two\n");
    let pid = fs::read_to_string(path.join("pid")).unwrap();
    let kill = |signal: &str| {
        let mut kill = std::process::Command::new("kill");
        assert!(kill.args([signal, pid.trim()]).status().unwrap().success());
    };
    kill("-HUP");
    support::soon("the reload", async {
        while !log().contains("config reloaded") {
            assert!(!log().contains("config not reloaded"), "{}", log());
            tokio::task::yield_now().await;
        }
    })
    .await;
    kill("-INT");
    assert!(log().contains("changed=\"api_key_file\""), "{}", log());
}
