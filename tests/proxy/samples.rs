//! Several samples per prompt: which requests the workers get, and the one response that the client gets.

use std::collections::HashSet;

use mini_lb::MiniLbConfig;
use mini_lb::sim::{self, SimOptions};
use serde_json::{Value, json};
use support::samples::{COMPLETIONS, GENERATE, ROUTES, asking, document, event, finish, index};
use support::sim::quick;
use support::{Balancer, Pair, post};

#[tokio::test]
async fn each_sample_is_a_request_without_n_on_a_pair_of_legs_with_its_own_room_and_id() {
    for path in ROUTES {
        let mut pair = Pair::start().await;
        let legs = pair.samples(path, &asking(path, 3, false), 3).await;
        let mut rooms = HashSet::new();
        let mut rids = HashSet::new();
        for (prefill, decode) in &legs {
            let body = prefill.request.json();
            assert_eq!(body, decode.request.json());
            assert_eq!(
                (&body["n"], &body["sampling_params"]["n"]),
                (&Value::Null, &Value::Null)
            );
            assert_eq!(body["bootstrap_port"], 8998);
            assert_eq!(
                prefill.request.header("x-request-id"),
                legs[0].0.request.header("x-request-id")
            );
            rooms.insert(body["bootstrap_room"].to_string());
            rids.insert(body["rid"].to_string());
        }
        assert_eq!((rooms.len(), rids.len()), (3, 3), "{path}");
        assert!(pair.is_idle());
    }
}

#[tokio::test]
async fn a_batch_stays_a_batch_in_each_sample() {
    let mut pair = Pair::start().await;
    let body = r#"{"text":["a","b"],"sampling_params":{"n":2},"x":1e400}"#;
    let legs = pair.samples(GENERATE, body, 2).await;
    let mut rooms = HashSet::new();
    for (prefill, _) in &legs {
        let body = prefill.request.json();
        assert_eq!(body["text"], json!(["a", "b"]));
        for room in body["bootstrap_room"].as_array().unwrap() {
            rooms.insert(room.to_string());
        }
    }
    assert_eq!(rooms.len(), 4);
    for (prefill, decode) in legs {
        prefill.answer("200 OK", "[]").await;
        let items = format!("[{},{}]", document(GENERATE, "a"), document(GENERATE, "b"));
        decode.answer("200 OK", &items).await;
    }
    let answer = pair.client.answer().await.json();
    let texts: Vec<_> = answer
        .as_array()
        .unwrap()
        .iter()
        .map(|item| &item["text"])
        .collect();
    assert_eq!(texts, ["a", "a", "b", "b"]);
}

#[tokio::test]
async fn the_documents_of_all_samples_become_one_with_its_length_and_the_clients_connection_stays()
{
    for path in ROUTES {
        let mut pair = Pair::start().await;
        for _ in 0..2 {
            let legs = pair.samples(path, &asking(path, 3, false), 3).await;
            // Not in their order: the response has its own.
            for (prefill, decode) in legs.into_iter().rev() {
                prefill.answer("200 OK", "{}").await;
                decode.answer("200 OK", &document(path, "x")).await;
            }
            let answer = pair.client.answer().await;
            assert_eq!(answer.status(), 200, "{}", answer.text());
            let length = answer.body.len().to_string();
            assert_eq!(answer.header("content-length"), Some(length.as_str()));
            assert_eq!(answer.header("transfer-encoding"), None);
            assert!(answer.header("x-request-id").is_some());
            let body = answer.json();
            let list = match path {
                GENERATE => body.as_array().unwrap().len(),
                _ => body["choices"].as_array().unwrap().len(),
            };
            assert_eq!(list, 3, "{path}");
        }
    }
}

#[tokio::test]
async fn a_piece_of_any_sample_goes_out_when_it_comes_in() {
    for path in ROUTES {
        let mut pair = Pair::start().await;
        let mut legs = pair.samples(path, &asking(path, 3, true), 3).await;
        let mut begun = false;
        let mut seen = Vec::new();
        for round in 0..2 {
            for (place, (_, decode)) in legs.iter_mut().enumerate().rev() {
                if round == 0 {
                    decode.begin_stream().await;
                }
                decode.chunk(&event(path, &format!("t{place}"))).await;
                if !std::mem::replace(&mut begun, true) {
                    let head = pair.client.head().await.to_lowercase();
                    assert!(head.contains("transfer-encoding: chunked"), "{head}");
                    assert!(head.contains("text/event-stream"), "{head}");
                    assert!(!head.contains("content-length"), "{head}");
                }
                let piece = pair.client.chunk().await.unwrap();
                assert!(piece.contains(&format!("t{place}")), "{piece}");
                seen.push(index(path, &piece));
            }
        }
        assert_eq!(seen[..3], seen[3..], "the samples keep their index");
        assert_eq!(HashSet::<u64>::from_iter(seen), HashSet::from([0, 1, 2]));
        finish(legs).await;
        let mut rest = String::new();
        while let Some(piece) = pair.client.chunk().await {
            rest += &piece;
        }
        assert!(rest.ends_with("data: [DONE]\n\n"), "{rest}");
        assert_eq!(rest.matches("[DONE]").count(), 1);
        // The connection is kept.
        let legs = pair.samples(path, &asking(path, 2, false), 2).await;
        assert_eq!(legs.len(), 2);
    }
}

#[tokio::test]
async fn a_sample_that_ends_early_does_not_end_the_response() {
    let mut pair = Pair::start().await;
    let mut legs = pair
        .samples(COMPLETIONS, &asking(COMPLETIONS, 2, true), 2)
        .await;
    let (prefill, mut first) = legs.pop().unwrap();
    first.begin_stream().await;
    first.chunk(&event(COMPLETIONS, "only")).await;
    finish(vec![(prefill, first)]).await;
    pair.client.head().await;
    assert!(pair.client.chunk().await.unwrap().contains("only"));
    let (prefill, mut second) = legs.pop().unwrap();
    second.begin_stream().await;
    second.chunk(&event(COMPLETIONS, "late")).await;
    assert!(pair.client.chunk().await.unwrap().contains("late"));
    finish(vec![(prefill, second)]).await;
    assert_eq!(
        pair.client.chunk().await.as_deref(),
        Some("data: [DONE]\n\n")
    );
    assert_eq!(pair.client.chunk().await, None);
}

#[tokio::test]
async fn a_client_of_http_1_0_gets_a_body_that_the_close_ends() {
    if support::bridge::is_asked_for() {
        return; // needs a client of HTTP/1.1
    }
    let mut pair = Pair::start().await;
    let request = post(COMPLETIONS, &asking(COMPLETIONS, 2, true)).replace("HTTP/1.1", "HTTP/1.0");
    pair.client.send(request).await;
    let mut legs = pair.next_samples(2).await;
    for (_, decode) in &mut legs {
        decode.begin_stream().await;
        decode.chunk(&event(COMPLETIONS, "x")).await;
    }
    finish(legs).await;
    let rest = String::from_utf8(pair.client.rest().await).unwrap();
    assert!(!rest.to_lowercase().contains("transfer-encoding"), "{rest}");
    assert!(rest.ends_with("\n\ndata: [DONE]\n\n"), "{rest}");
}

#[tokio::test]
async fn n_of_one_is_a_request_as_any_other() {
    for body in [
        r#"{"text":"a","sampling_params":{"n":1}}"#,
        r#"{"text":"a","sampling_params":{"n":0}}"#,
    ] {
        let mut pair = Pair::start().await;
        let (prefill, decode) = pair.legs(GENERATE, body).await;
        assert!(prefill.request.text().starts_with(&body[..body.len() - 1]));
        prefill.answer("200 OK", "{}").await;
        decode.answer("200 OK", "{\"text\":\"x\"}").await;
        assert_eq!(pair.client.answer().await.text(), "{\"text\":\"x\"}");
        assert!(pair.is_idle());
    }
}

/// Tokens that prefill computed for `n` samples of one long prompt, by workers with a prefix cache.
async fn computed_tokens(n: usize) -> u64 {
    let options = SimOptions {
        prefix_cache: true,
        context_length: 1 << 20,
        ..quick()
    };
    let (mut prefills, mut decodes) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        prefills.push(sim::Worker::start_prefill(options.clone()).await.unwrap());
        decodes.push(sim::Worker::start_decode(options.clone()).await.unwrap());
    }
    let bootstrap = |worker: &sim::Worker| (worker.url(), worker.bootstrap_port());
    let listed = prefills.iter().map(bootstrap).collect();
    let urls = decodes.iter().map(sim::Worker::url).collect();
    let balancer =
        Balancer::start(MiniLbConfig::new("127.0.0.1".into(), 0, listed, urls, 60)).await;
    let ids: Vec<u32> = (1_000..5_000).collect();
    let body = json!({"input_ids": ids, "sampling_params": {"n": n, "max_new_tokens": 1}});
    let mut client = balancer.client().await;
    client.send(post(GENERATE, &body.to_string())).await;
    let answer = client.answer().await;
    assert_eq!(answer.status(), 200, "{}", answer.text());
    let answer = answer.json();
    let items = answer.as_array().cloned().unwrap_or_else(|| vec![answer]);
    assert_eq!(items.len(), n);
    let computed = |item: &Value| {
        let meta = &item["meta_info"];
        meta["prompt_tokens"].as_u64().unwrap() - meta["cached_tokens"].as_u64().unwrap()
    };
    items.iter().map(computed).sum()
}

#[tokio::test]
async fn the_prompt_of_eight_samples_is_computed_once() {
    let (one, eight) = (computed_tokens(1).await, computed_tokens(8).await);
    assert_eq!(one, 4_000);
    assert!(eight <= one + one / 5, "{eight} tokens for eight samples");
}

#[tokio::test]
async fn each_sample_is_merged_with_its_own_prefill() {
    let mut pair = Pair::start().await;
    let body =
        r#"{"text":"a","return_logprob":true,"logprob_start_len":0,"sampling_params":{"n":2}}"#;
    let legs = pair.samples(GENERATE, body, 2).await;
    for (place, (prefill, decode)) in legs.into_iter().enumerate() {
        let item = |logprobs: Value, text: String| {
            json!({"text": text, "output_ids": [1], "meta_info": {"id": "x", "finish_reason": null,
                "prompt_tokens": 1, "completion_tokens": 1, "input_token_logprobs": logprobs,
                "output_token_logprobs": [[-0.5, 1, null]]}})
            .to_string()
        };
        let logprobs = json!([[null, place, null]]);
        prefill
            .answer("200 OK", &item(logprobs, String::new()))
            .await;
        decode
            .answer("200 OK", &item(json!([]), format!("t{place}")))
            .await;
    }
    for item in pair.client.answer().await.json().as_array().unwrap() {
        let own = &item["meta_info"]["input_token_logprobs"][0][1];
        assert_eq!(item["text"], format!("t{own}"));
    }
}

/// SGLang before 0.5.23 streams for every value that Pydantic takes for true.
#[tokio::test]
async fn the_heads_of_the_samples_say_whether_they_are_streams() {
    let mut pair = Pair::start().await;
    for stream in ["\"true\"", "1"] {
        let body = format!(r#"{{"text":"a","stream":{stream},"sampling_params":{{"n":2}}}}"#);
        let mut legs = pair.samples(GENERATE, &body, 2).await;
        for (_, decode) in &mut legs {
            decode.begin_stream().await;
            decode.chunk(&event(GENERATE, "x")).await;
        }
        finish(legs).await;
        let answer = pair.client.answer().await;
        assert_eq!(answer.status(), 200, "{}", answer.text());
        let kind = answer.header("content-type");
        assert_eq!(kind, Some("text/event-stream; charset=utf-8"));
        let events: Vec<_> = answer.text().split_inclusive("\n\n").collect();
        let samples: HashSet<_> = events[..2].iter().map(|e| index(GENERATE, e)).collect();
        assert_eq!(samples, HashSet::from([0, 1]));
        assert_eq!(events[2..], ["data: [DONE]\n\n"]);
    }
    // The other way round: documents, although a stream was asked for.
    let legs = pair.samples(GENERATE, &asking(GENERATE, 2, true), 2).await;
    for (prefill, decode) in legs {
        prefill.answer("200 OK", "{}").await;
        decode.answer("200 OK", &document(GENERATE, "x")).await;
    }
    let answer = pair.client.answer().await;
    assert_eq!(answer.json().as_array().map(Vec::len), Some(2));
}

#[tokio::test]
async fn a_streamed_generate_whose_n_is_refused_gets_the_refusal_as_an_event() {
    let mut pair = Pair::start().await;
    let refused = r#"{"text":"a","stream":true,"return_logprob":[true],"sampling_params":{"n":2}}"#;
    pair.client.send(post(GENERATE, refused)).await;
    let answer = pair.client.answer().await;
    assert_eq!(answer.outcome(), (200, Some("invalid_n")));
    let kind = answer.header("content-type");
    assert_eq!(kind, Some("text/event-stream; charset=utf-8"));
    let message = "Cannot use list return_logprob with parallel_sample_num > 1";
    let (error, done) = answer.text().split_once("\n\n").unwrap();
    let error: Value = serde_json::from_str(error.trim_start_matches("data: ")).unwrap();
    assert_eq!(error["error"]["message"], message);
    assert_eq!(done, "data: [DONE]\n\n");
    // The other endpoints look at the request before they send a head.
    let refused = r#"{"prompt":"a","stream":true,"n":2,"rid":["a","b"]}"#;
    pair.client.send(post(COMPLETIONS, refused)).await;
    let answer = pair.client.answer().await;
    assert_eq!(answer.outcome(), (400, Some("invalid_n")));
    assert!(pair.is_idle());
}

#[tokio::test]
async fn more_samples_than_any_number_holds_are_too_many() {
    let mut pair = Pair::start().await;
    for n in ["9223372036854775808", "18446744073709551616"] {
        let body = format!(r#"{{"text":"a","sampling_params":{{"n":{n}}}}}"#);
        pair.client.send(post(GENERATE, &body)).await;
        let answer = pair.client.answer().await;
        assert_eq!(answer.outcome(), (400, Some("too_many_samples")), "{n}");
    }
    assert!(pair.is_idle());
}
