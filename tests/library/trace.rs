//! `mini-lb bench --trace` against simulated workers: what is replayed is what the trace says.

use mini_lb::MiniLbConfig;
use mini_lb::sim::{SimOptions, Worker};
use serde_json::Value;
use support::sim::{SimPair, quick};
use support::{Balancer, mini_lb};

/// Turns of two conversations with one system prompt, in blocks of 512 tokens.
const TRACE: &str = "\
{\"timestamp\": 0, \"input_length\": 1100, \"output_length\": 3, \"hash_ids\": [0, 1, 2]}
{\"timestamp\": 400, \"input_length\": 700, \"output_length\": 5, \"hash_ids\": [0, 3]}
{\"timestamp\": 900, \"input_length\": 1600, \"output_length\": 4, \"hash_ids\": [0, 1, 4, 5]}
";

#[tokio::test]
async fn a_trace_is_replayed_in_its_lengths_and_its_shared_blocks_are_cached() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name).display().to_string();
    std::fs::write(file("trace"), TRACE).unwrap();
    for (more, tokens, cached) in [
        (&[][..], 3_400, 512 + 1_024),
        (&["--trace-prompts", "text"], 3_400, 512 + 1_024),
        (&["--endpoint", "completions"], 3_400, 512 + 1_024),
        // The template begins with five tokens, which all prompts share, that of the warm-up too.
        (&["--endpoint", "chat"], 3_400, 5 + 517 + 1_029),
        (&["--token-scale", "0.1", "--requests", "2"], 180, 51),
    ] {
        let options = SimOptions {
            prefix_cache: true,
            cache_report: true,
            chunked_prefill_tokens: 4_096,
            ..quick()
        };
        let worker = Worker::start_ordinary(options).await.unwrap();
        let (url, trace, json) = (worker.url(), file("trace"), file("out.json"));
        let line = [
            "bench",
            "--url",
            &url,
            "--trace",
            &trace,
            "--speedup",
            "4",
            "--json",
            &json,
            "--slo-ttft-ms",
            "60000",
        ];
        let line: Vec<_> = line.iter().chain(more).copied().collect();
        let ended = mini_lb!(&line).end().await;
        assert_eq!(ended.code, Some(0), "{}", ended.text());
        let read = std::fs::read_to_string(json).unwrap();
        let server = serde_json::from_str::<Value>(&read).unwrap()["levels"][0]["server"].clone();
        assert_eq!(server["prompts"]["tokens"], tokens, "{more:?}");
        assert_eq!(server["prompts"]["cached_tokens"], cached, "{more:?}");
        assert_eq!(server["good"], server["answered"]);
        for words in ["cached tokens: ", "goodput: "] {
            assert!(ended.text().contains(words), "{}", ended.text());
        }
    }
}

#[tokio::test]
async fn the_prefill_workers_of_a_trace_are_told_apart() {
    let options = SimOptions {
        prefix_cache: true,
        ..quick()
    };
    let pair = SimPair::start(options).await;
    let config = MiniLbConfig::new(
        "127.0.0.1".into(),
        0,
        vec![(pair.prefill.url(), pair.prefill.bootstrap_port())],
        vec![pair.decode.url()],
        60,
    );
    let balancer = Balancer::start(config.set("server_timing", "on_request")).await;
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name).display().to_string();
    std::fs::write(file("trace"), TRACE).unwrap();
    let (url, trace, html) = (
        format!("http://{}", balancer.address),
        file("trace"),
        file("out.html"),
    );
    let line = ["bench", "--url", &url, "--trace", &trace, "--html", &html];
    let ended = mini_lb!(&line).end().await;
    assert_eq!(ended.code, Some(0), "{}", ended.text());
    let page = std::fs::read_to_string(html).unwrap();
    for text in [ended.text(), page] {
        assert!(text.contains("prefill worker"), "{text}");
        assert!(text.contains(&pair.prefill.url()), "{text}");
    }
}

#[tokio::test]
async fn a_broken_trace_ends_the_command_with_file_and_line() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("trace.jsonl").display().to_string();
    std::fs::write(&path, TRACE.replace("[0, 3]", "[0]")).unwrap();
    let line = ["bench", "--url", "http://127.0.0.1:9", "--trace", &path];
    let ended = mini_lb!(&line).end().await;
    assert_eq!(ended.code, Some(1), "{}", ended.text());
    let expected = format!("{path}:2: `hash_ids`: 1 blocks for 700 tokens, expected 2");
    assert!(ended.text().contains(&expected), "{}", ended.text());
}
