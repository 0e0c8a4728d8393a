//! `mini-lb doctor` and vLLM: a healthy pair is fine, and workers of another engine or without a connector are found.

use mini_lb::sim::Worker;
use support::sim::{quick_mooncake, quick_vllm};
use support::{Ended, Worker as Scripted};

use super::doctor::{only, options, run, signed, workers};

async fn examined(prefill: &Worker, decode: &Worker, engine: &str) -> Ended {
    let listed = ["--prefill", &prefill.url(), "--decode", &decode.url()].map(str::to_owned);
    run(&listed, &["--engine", engine]).await
}

#[tokio::test]
async fn a_healthy_pair_of_vllm_generates_without_a_bootstrap_port() {
    let (prefill, decode) = workers(quick_vllm(), quick_vllm()).await;
    let ended = examined(&prefill, &decode, "vllm").await;
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    assert_eq!(signed(&ended, "FAIL"), [""; 0], "{ended:#?}");
    let fine = signed(&ended, "ok").join("\n");
    for found in ["vLLM 0.32.0", "it gives kv_transfer_params", "8 tokens in"] {
        assert!(fine.contains(found), "{found}: {ended:#?}");
    }
}

#[tokio::test]
async fn a_prefill_worker_without_a_connector_is_found() {
    let prefill = Worker::start_ordinary(quick_vllm()).await.unwrap();
    let decode = Worker::start_decode(quick_vllm()).await.unwrap();
    let ended = examined(&prefill, &decode, "vllm").await;
    assert_eq!(ended.code, Some(1), "{ended:#?}");
    let lines = signed(&ended, "FAIL").join("\n");
    for found in ["kv connector", "--kv-transfer-config", "kv_transfer_params"] {
        assert!(lines.contains(found), "{found}: {ended:#?}");
    }
}

#[tokio::test]
async fn the_bootstrap_server_of_mooncake_is_asked_for_its_engine() {
    let (prefill, decode) = workers(quick_mooncake(), quick_mooncake()).await;
    let right = prefill.bootstrap_port().unwrap().to_string();
    let refusing = Scripted::refusing().await;
    let wrong = refusing.rsplit_once(':').unwrap().1.to_owned();
    for (port, code, sign, found) in [
        (&right, 0, "ok", "names its engine"),
        (&wrong, 1, "FAIL", "VLLM_MOONCAKE_BOOTSTRAP_PORT"),
    ] {
        let listed = ["--prefill", &prefill.url(), port, "--decode", &decode.url()];
        let flags = ["--engine", "vllm", "--kv-connector", "mooncake"];
        let ended = run(&listed.map(str::to_owned), &flags).await;
        assert_eq!(ended.code, Some(code), "{ended:#?}");
        let lines = signed(&ended, sign).join("\n");
        assert!(lines.contains(found), "{ended:#?}");
    }
}

#[tokio::test]
async fn workers_of_another_engine_are_found() {
    let (prefill, decode) = workers(quick_vllm(), options()).await;
    let ended = examined(&prefill, &decode, "sglang").await;
    assert_eq!(ended.code, Some(1), "{ended:#?}");
    only(&ended, "FAIL", &["vLLM 0.32.0", "--engine vllm"]);
    let (prefill, decode) = workers(quick_vllm(), options()).await;
    let ended = examined(&prefill, &decode, "vllm").await;
    assert_eq!(ended.code, Some(1), "{ended:#?}");
    only(&ended, "FAIL", &["/version", "--engine sglang"]);
}
