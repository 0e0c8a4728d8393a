//! `mini-lb doctor` against simulated workers: a healthy pair is all green, and each mistake has a line of its own.

use mini_lb::sim::{Event, Reported, SimOptions, Worker};
use serde_json::Value;
use support::{Ended, Process, mini_lb};
use tokio::net::TcpListener;

/// Few enough requests at once for the smallest usual limit of open files.
pub(crate) fn options() -> SimOptions {
    SimOptions {
        max_running: 16,
        ..SimOptions::default()
    }
}

fn reporting(reported: Reported) -> SimOptions {
    SimOptions {
        reported,
        ..options()
    }
}

/// A prefill worker and a decode worker.
pub(crate) async fn workers(prefill: SimOptions, decode: SimOptions) -> (Worker, Worker) {
    (
        Worker::start_prefill(prefill).await.unwrap(),
        Worker::start_decode(decode).await.unwrap(),
    )
}

/// The flags for one prefill worker with its port.
pub(crate) fn listed(prefill: &Worker) -> [String; 3] {
    let port = prefill.bootstrap_port().unwrap().to_string();
    ["--prefill".to_owned(), prefill.url(), port]
}

/// Runs the command with one worker of each role.
pub(crate) async fn examined(prefill: &Worker, decode: &Worker, more: &[&str]) -> Ended {
    let decode = ["--decode".to_owned(), decode.url()];
    run(&[&listed(prefill)[..], &decode].concat(), more).await
}

pub(crate) async fn run(workers: &[String], more: &[&str]) -> Ended {
    let mut line = vec!["doctor"];
    line.extend(workers.iter().map(String::as_str));
    line.extend(more);
    let process: Process = mini_lb!(&line);
    process.end().await
}

/// The lines with this sign, without it.
pub(crate) fn signed<'a>(ended: &'a Ended, sign: &str) -> Vec<&'a str> {
    let prefix = format!("  {sign:<4}  ");
    let lines = ended.lines.iter();
    lines
        .filter_map(|line| line.strip_prefix(&prefix))
        .collect()
}

/// Asserts that there is exactly one line with this sign, and that it says this.
pub(crate) fn only(ended: &Ended, sign: &str, parts: &[&str]) {
    let lines = signed(ended, sign);
    assert_eq!(lines.len(), 1, "{ended:#?}");
    for part in parts {
        assert!(lines[0].contains(part), "{part}: {lines:#?}");
    }
}

#[tokio::test]
async fn a_healthy_pair_is_all_green() {
    let (prefill, decode) = workers(options(), options()).await;
    let ended = examined(&prefill, &decode, &[]).await;
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    for sign in ["warn", "FAIL", "skip"] {
        assert_eq!(signed(&ended, sign), [""; 0], "{ended:#?}");
    }
    let title = |role: &str, worker: &Worker| format!("{role} {}", worker.url());
    for title in [title("prefill", &prefill), title("decode", &decode)] {
        assert!(ended.lines.contains(&title), "{title}: {ended:#?}");
    }
    let ok = signed(&ended, "ok");
    let pair = format!("{} -> {}", prefill.url(), decode.url());
    let generated = ok.iter().find(|line| line.starts_with(&pair)).unwrap();
    assert!(generated.contains("first token after") && generated.contains("8 tokens"));
    let last = ended.lines.last().unwrap();
    assert_eq!(
        *last,
        format!("ready: 0 problems, 0 warnings, {} ok", ok.len())
    );
}

#[tokio::test]
async fn a_generation_through_replicas_of_prefill_names_its_rank() {
    let replicas = SimOptions {
        dp_size: 64,
        ..options()
    };
    let (prefill, decode) = workers(replicas, options()).await;
    let ended = examined(&prefill, &decode, &[]).await;
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    let ok = signed(&ended, "ok");
    let told = ok.iter().any(|line| line.ends_with("tp 1, dp 64, pp 1"));
    assert!(told, "{ended:#?}");
}

#[tokio::test]
async fn a_worker_that_differs_is_named_with_both_values() {
    let default = Reported::default;
    let problems: [(Reported, &[&str]); 5] = [
        (
            Reported {
                page_size: 64,
                ..default()
            },
            &["page size", "64, but", "has 1", "--page-size"],
        ),
        (
            Reported {
                kv_cache_dtype: "fp8_e4m3".into(),
                ..default()
            },
            &["kv cache dtype", "fp8_e4m3, but", "--kv-cache-dtype"],
        ),
        (
            Reported {
                transfer_backend: "nixl".into(),
                ..default()
            },
            &[
                "transfer backend",
                "nixl, but",
                "--disaggregation-transfer-backend",
            ],
        ),
        (
            Reported {
                pp_size: 2,
                ..default()
            },
            &["parallelism", "pp 2, but", "--pp-size"],
        ),
        (
            Reported {
                tp_size: 3,
                ..default()
            },
            &[],
        ),
    ];
    for (reported, parts) in problems {
        let (prefill, decode) = workers(options(), reporting(reported.clone())).await;
        let ended = examined(&prefill, &decode, &[]).await;
        if parts.is_empty() {
            // 3 is a multiple of 1.
            only(
                &ended,
                "warn",
                &["parallelism", "tp 3, dp 1, pp 1, but", "has tp 1"],
            );
            assert_eq!(ended.code, Some(0), "{ended:#?}");
            continue;
        }
        only(&ended, "FAIL", parts);
        only(&ended, "skip", &["->", "not tried, because"]);
        assert_eq!(ended.code, Some(1), "{ended:#?}");
        assert!(!generated(&decode), "{reported:?}");
    }
}

/// Whether a generation has reached the worker.
pub(crate) fn generated(worker: &Worker) -> bool {
    let entries = worker.journal().entries();
    let is_room = |event: &Event| matches!(event, Event::RoomPresented { .. });
    entries.iter().any(|entry| is_room(&entry.event))
}

#[tokio::test]
async fn another_version_model_or_length_is_told() {
    let default = Reported::default;
    let version = Reported {
        version: "0.5.22".into(),
        ..default()
    };
    let path = Reported {
        model_path: "/models/m".into(),
        ..default()
    };
    let length = SimOptions {
        context_length: 1024,
        ..options()
    };
    for (decode, parts) in [
        (reporting(version), ["version", "0.5.22, but", "0.5.23"]),
        (
            reporting(path),
            ["model path", "/models/m, but", "same weights"],
        ),
        (length, ["context length", "1024, but", "2048"]),
    ] {
        let (prefill, decode) = workers(options(), decode).await;
        let ended = examined(&prefill, &decode, &[]).await;
        only(&ended, "warn", &parts);
        assert_eq!(ended.code, Some(0), "{ended:#?}");
    }
    let other = SimOptions {
        model: "other".into(),
        ..options()
    };
    let (prefill, decode) = workers(options(), other).await;
    let ended = examined(&prefill, &decode, &[]).await;
    only(&ended, "FAIL", &["served model name", "other, but", "sim"]);
    assert_eq!(ended.code, Some(1));
}

#[tokio::test]
async fn a_worker_in_the_wrong_list_is_told_where_it_belongs() {
    let (prefill, decode) = workers(options(), options()).await;
    let swapped = ["--prefill", &decode.url(), "--decode", &prefill.url()].map(str::to_owned);
    let ended = run(&swapped, &[]).await;
    assert_eq!(ended.code, Some(1), "{ended:#?}");
    let lines = signed(&ended, "FAIL");
    assert_eq!(lines.len(), 2, "{ended:#?}");
    assert!(lines[0].contains("it is a decode worker, and is listed with --prefill"));
    assert!(lines[1].contains("it is a prefill worker, and is listed with --decode"));
    let ordinary = Worker::start_ordinary(options()).await.unwrap();
    let ended = examined(&prefill, &ordinary, &[]).await;
    only(
        &ended,
        "FAIL",
        &["role", "ordinary server", "--disaggregation-mode decode"],
    );
}

#[tokio::test]
async fn a_wrong_bootstrap_port_is_told_beside_what_prefill_says() {
    let (prefill, decode) = workers(options(), options()).await;
    let own = prefill.bootstrap_port().unwrap().to_string();
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let other = free.local_addr().unwrap().port().to_string();
    drop(free);
    let urls = [prefill.url(), decode.url()];
    for (port, parts) in [
        (Some(&other), "is configured, but the worker says"),
        (None, "none is configured"),
    ] {
        let mut line = vec!["--prefill".to_owned(), urls[0].clone()];
        line.extend(port.cloned());
        line.extend(["--decode".to_owned(), urls[1].clone()]);
        let ended = run(&line, &["--pairs", "none"]).await;
        let advice = format!("--prefill {} {own}", urls[0]);
        only(&ended, "FAIL", &["bootstrap port", parts, &advice]);
        assert_eq!(ended.code, Some(1));
    }
    // The pair does not meet, and the command ends at its deadline.
    let line = ["--prefill", &urls[0], &other, "--decode", &urls[1]].map(str::to_owned);
    let ended = run(&line, &["--timeout", "3"]).await;
    let lines = signed(&ended, "FAIL");
    assert_eq!(lines.len(), 2, "{ended:#?}");
    assert!(lines[1].contains("504 first_token_timeout"), "{lines:#?}");
    assert!(lines[1].contains("do not meet"), "{lines:#?}");
}

#[tokio::test]
async fn a_loopback_address_is_a_problem_when_decode_is_elsewhere() {
    let (prefill, _decode) = workers(options(), options()).await;
    let elsewhere = ["--decode".to_owned(), "http://decode.invalid:1".to_owned()];
    let ended = run(&[&listed(&prefill)[..], &elsewhere].concat(), &[]).await;
    let lines = signed(&ended, "FAIL");
    assert_eq!(lines.len(), 2, "{ended:#?}");
    assert!(
        lines[0].contains("looks for 127.0.0.1 on its own machine"),
        "{lines:#?}"
    );
    assert!(lines[0].contains("HOST:"), "{lines:#?}");
    assert!(
        lines[1].contains("the name decode.invalid is not found"),
        "{lines:#?}"
    );
    // The same mistake is no second line about the configuration.
    assert_eq!(signed(&ended, "warn"), [""; 0], "{ended:#?}");
    only(
        &ended,
        "skip",
        &["no prefill worker or no decode worker is usable"],
    );
}

#[tokio::test]
async fn two_prefill_workers_with_one_bootstrap_address_are_told() {
    let (prefill, decode) = workers(options(), options()).await;
    let second = Worker::start_prefill(options()).await.unwrap();
    let port = prefill.bootstrap_port().unwrap().to_string();
    let second = ["--prefill".to_owned(), second.url(), port];
    let decode = ["--decode".to_owned(), decode.url()];
    let line = [&listed(&prefill)[..], &second, &decode].concat();
    let ended = run(&line, &["--pairs", "none"]).await;
    let lines = signed(&ended, "FAIL");
    let told = |part: &str| lines.iter().filter(|line| line.contains(part)).count();
    assert_eq!(told("it is also that of"), 2, "{lines:#?}");
    assert_eq!(told("bootstrap port"), 1, "{lines:#?}");
}

#[tokio::test]
async fn limits_and_deadlines_are_held_against_the_machine_and_the_engine() {
    let (prefill, decode) = workers(options(), options()).await;
    let more = ["--pairs", "none"];
    let short = [&more[..], &["--first-token-timeout-secs", "60"]].concat();
    let ended = examined(&prefill, &decode, &short).await;
    only(
        &ended,
        "warn",
        &["timeouts", "first_token_timeout_secs is 60 s", "300 s"],
    );
    let many = [&more[..], &["--max-inflight-requests", "100000000"]].concat();
    let ended = examined(&prefill, &decode, &many).await;
    only(
        &ended,
        "FAIL",
        &["open files", "max_inflight_requests", "ulimit -n"],
    );
}

#[tokio::test]
async fn the_configuration_of_the_server_is_taken_from_a_file_and_with_the_flags_of_the_router() {
    let (prefill, decode) = workers(options(), options()).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    let yaml = format!(
        "prefill:\n- {{url: {}, bootstrap_port: {}}}\ndecode: [{}]\n",
        prefill.url(),
        prefill.bootstrap_port().unwrap(),
        decode.url()
    );
    std::fs::write(file.path(), yaml).unwrap();
    let path = file.path().to_str().unwrap();
    let ended = run(
        &[],
        &[
            "-c",
            path,
            "--pd-disaggregation",
            "--mini-lb",
            "--policy",
            "cache_aware",
        ],
    )
    .await;
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    only(&ended, "warn", &["configuration", "cache_aware"]);
}

#[tokio::test]
async fn pairs_are_chosen_by_the_flag() {
    let (prefill, decode) = workers(options(), options()).await;
    let second = Worker::start_decode(options()).await.unwrap();
    let decodes = [
        "--decode".to_owned(),
        decode.url(),
        "--decode".to_owned(),
        second.url(),
    ];
    let one_more = Worker::start_prefill(options()).await.unwrap();
    let line = [&listed(&prefill)[..], &listed(&one_more), &decodes].concat();
    for (pairs, count) in [("all", 4), ("each-worker", 2), ("none", 0)] {
        let ended = run(&line, &["--pairs", pairs]).await;
        assert_eq!(ended.code, Some(0), "{ended:#?}");
        let tried = signed(&ended, "ok");
        let tried = tried.iter().filter(|line| line.contains(" -> ")).count();
        assert_eq!(tried, count, "{pairs}: {ended:#?}");
    }
}

#[tokio::test]
async fn a_document_has_what_the_lines_say() {
    let other = Reported {
        page_size: 64,
        ..Reported::default()
    };
    let (prefill, decode) = workers(options(), reporting(other)).await;
    let second = Worker::start_decode(options()).await.unwrap();
    let decodes = [
        "--decode".to_owned(),
        decode.url(),
        "--decode".to_owned(),
        second.url(),
    ];
    let ended = run(&[&listed(&prefill)[..], &decodes].concat(), &["--json"]).await;
    assert_eq!(ended.code, Some(1), "{ended:#?}");
    let document: Value = serde_json::from_str(&ended.text()).unwrap();
    assert_eq!(
        (&document["format"], &document["verdict"]),
        (&1.into(), &"fail".into())
    );
    let counts = (&document["counts"]["fail"], &document["counts"]["skip"]);
    assert_eq!(counts, (&1.into(), &1.into()), "{document:#}");
    let worker = &document["workers"][1];
    assert_eq!(
        (&worker["role"], &worker["url"]),
        (&"decode".into(), &decode.url().into())
    );
    let checks = worker["checks"].as_array().unwrap();
    let page_size = checks
        .iter()
        .find(|check| check["check"] == "page_size")
        .unwrap();
    assert_eq!(page_size["status"], "fail");
    assert!(page_size["message"].is_string() && page_size["advice"].is_string());
    let pairs = document["pairs"].as_array().unwrap();
    assert_eq!(
        (&pairs[0]["status"], &pairs[0]["ttft_ms"]),
        (&"skip".into(), &Value::Null)
    );
    assert_eq!(
        (&pairs[1]["check"], &pairs[1]["status"]),
        (&"generation".into(), &"ok".into())
    );
    assert_eq!(pairs[1]["decode"], second.url());
    let (first, total) = (&pairs[1]["ttft_ms"], &pairs[1]["total_ms"]);
    assert!(
        first.as_f64().unwrap() <= total.as_f64().unwrap(),
        "{document:#}"
    );
}

#[tokio::test]
async fn a_wrong_command_line_or_configuration_is_a_usage_error() {
    for line in [
        &["--pairs", "some"][..],
        &["--timeout", "0"],
        &["--no-such-flag"],
        &[],
        &["--prefill", "ftp://a:1", "--decode", "http://b:1"],
        &["--conf", "/nowhere/conf.yaml"],
    ] {
        let ended = run(&[], line).await;
        assert_eq!(ended.code, Some(2), "{line:?}: {ended:#?}");
        assert!(!ended.lines.is_empty());
    }
}
