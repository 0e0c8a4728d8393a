//! Regressions, named after the symptom.

use mini_lb::pd::{Batch, Merge, PrefillData, merge};
use support::Pair;
use support::pair::serve;

/// Every response had `Connection: keep-alive`, and an HTTP/1.0 client waited for a close that did not come.
#[tokio::test]
async fn a_client_that_asks_for_close_gets_it() {
    if support::bridge::is_asked_for() {
        return; // needs a client of HTTP/1.1
    }
    let mut pair = Pair::start().await;
    for (version, more) in [
        ("1.1", "connection: close\r\n"),
        ("1.0", ""),
        ("1.1", "connection: close\r\nexpect: 100-continue\r\n"),
    ] {
        let mut client = pair.balancer.client().await;
        client
            .send(format!(
                "POST /generate HTTP/{version}\r\nhost: balancer\r\n{more}content-length: 12\r\n\r\n{{\"text\":\"a\"}}"
            ))
            .await;
        serve(pair.next_legs().await).await;
        let answer = String::from_utf8(client.rest().await).unwrap();
        assert!(answer.contains("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(
            answer
                .to_ascii_lowercase()
                .contains("\r\nconnection: close\r\n"),
            "{answer}"
        );
        assert!(answer.ends_with("\r\n\r\n{}"), "{answer}");
    }
}

/// Merges two responses of `/generate`.
fn merged(prefill: &str, decode: &str) -> Result<String, String> {
    let side = PrefillData::from_body(
        Merge::InputLogprobs,
        Batch::Single,
        prefill.to_owned().into(),
    );
    let side = side.map_err(|error| error.to_string())?;
    let merged = merge::body(&side, decode.to_owned().into()).map_err(|error| error.to_string())?;
    Ok(String::from_utf8(merged.to_vec()).unwrap())
}

/// A repeated key in prefill's `meta_info` gave two edits of one place, and the splice panicked.
/// Found by the fuzz target `merges`.
#[test]
fn a_logprob_key_that_is_there_twice_counts_with_its_last_value() {
    let twice = r#"{"meta_info":{"input_token_logprobs":[1],"input_token_logprobs":[2]}}"#;
    let decode = r#"{"meta_info":{"input_token_logprobs":[]}}"#;
    let wanted = r#"{"meta_info":{"input_token_logprobs":[2]}}"#;
    assert_eq!(merged(twice, decode).unwrap(), wanted);
    let twice = r#"{"meta_info":{"input_token_logprobs":null,"input_token_logprobs":[]}}"#;
    let wanted = r#"{"meta_info":{"input_token_logprobs":null,"input_token_logprobs":[2]}}"#;
    let prefill = r#"{"meta_info":{"input_token_logprobs":[2]}}"#;
    assert_eq!(merged(prefill, twice).unwrap(), wanted);
}

/// The merge took quadratic time in the number of keys.
#[test]
fn an_answer_with_more_logprob_keys_than_any_worker_has_is_refused() {
    let keys: Vec<String> = (0..100_000)
        .map(|key| format!("\"input_{key}_logprobs\":[]"))
        .collect();
    let many = format!("{{\"meta_info\":{{{}}}}}", keys.join(","));
    let error = merged(&many, "{}").unwrap_err();
    assert!(error.contains("more logprob keys"), "{error}");
}

/// An empty first row that contains white space was taken for one with content.
#[test]
fn an_empty_row_is_filled_however_it_is_written() {
    let prefill = r#"{"meta_info":{"input_token_logprobs":[],"output_token_ids_logprobs":[[7]]}}"#;
    let decode = r#"{"meta_info":{"input_token_logprobs":[],"output_token_ids_logprobs":[[ ]]}}"#;
    assert_eq!(merged(prefill, decode).unwrap(), prefill);
}
