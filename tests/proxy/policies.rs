//! Which workers get the requests under each policy, through the whole proxy.

use std::collections::BTreeSet;
use std::time::Duration;

use mini_lb::MiniLbConfig;
use mini_lb::config::Policy;
use mini_lb::sim::{self, SimOptions};
use serde_json::json;
use support::sim::quick;
use support::{Balancer, Exchange, TwoPairs, post};

/// The indexes of the prefill and of the decode worker of the next attempt, whose legs stay open.
async fn chosen(pairs: &mut TwoPairs) -> ((usize, usize), (Exchange, Exchange)) {
    let ((prefill, one), (decode, other)) = pairs.next_legs().await;
    ((prefill, decode), (one, other))
}

/// Sends a request with these further header lines and body, and serves it. The pair that got it.
async fn served(pairs: &mut TwoPairs, fields: &str, body: &str) -> (usize, usize) {
    let request = post("/generate", body).replacen("\r\n\r\n", &format!("\r\n{fields}\r\n"), 1);
    pairs.client.send(request).await;
    let (pair, legs) = chosen(pairs).await;
    support::pair::serve(legs).await;
    assert_eq!(pairs.client.answer().await.status(), 200);
    pair
}

#[tokio::test]
async fn round_robin_takes_workers_in_turn() {
    let mut pairs = TwoPairs::with(|config| config.policy(Policy::RoundRobin)).await;
    let mut turns = Vec::new();
    for _ in 0..4 {
        turns.push(served(&mut pairs, "", "{}").await);
    }
    assert_eq!(turns, [(0, 0), (1, 1), (0, 0), (1, 1)]);
}

#[tokio::test]
async fn each_role_may_have_a_policy_of_its_own() {
    let mut pairs = TwoPairs::with(|config| {
        let config = config.set("prefill_policy", "round_robin");
        config.set("decode_policy", "least_requests")
    })
    .await;
    let mut turns = Vec::new();
    let mut open = Vec::new();
    for _ in 0..4 {
        let mut client = pairs.balancer.client().await;
        client.send(post("/generate", "{}")).await;
        let ((prefill, decode), legs) = chosen(&mut pairs).await;
        turns.push((prefill, decode));
        open.push((client, legs));
    }
    let prefill: Vec<_> = turns.iter().map(|(prefill, _)| *prefill).collect();
    assert_eq!(prefill, [0, 1, 0, 1]);
    let on_first = turns.iter().filter(|(_, decode)| *decode == 0).count();
    assert_eq!(on_first, 2, "{turns:?}");
}

#[tokio::test]
async fn least_tokens_sends_short_prompts_past_a_long_one() {
    let mut pairs = TwoPairs::with(|config| config.policy(Policy::LeastTokens)).await;
    let long = format!(r#"{{"text":"{}"}}"#, "a".repeat(100_000));
    let mut client = pairs.balancer.client().await;
    client.send(post("/generate", &long)).await;
    let ((busy, _), _legs) = chosen(&mut pairs).await;
    let mut open = Vec::new();
    for _ in 0..3 {
        let mut client = pairs.balancer.client().await;
        client.send(post("/generate", r#"{"text":"b"}"#)).await;
        let ((prefill, _), legs) = chosen(&mut pairs).await;
        assert_ne!(prefill, busy);
        open.push((client, legs));
    }
}

#[tokio::test]
async fn the_requests_of_a_session_stay_on_their_workers() {
    let mut pairs = TwoPairs::with(|config| {
        let config = config.policy(Policy::Session);
        config.set("session_header", "x-conversation")
    })
    .await;
    let by_header = |name: &str, session| (format!("{name}: s{session}\r\n"), "{}".to_owned());
    let by_body = |session| (String::new(), format!(r#"{{"user":"s{session}"}}"#));
    let mut workers = BTreeSet::new();
    // Ports are parts of the hashes: one worker of a role gets all of 8 sessions once in 64 runs, all of 24 once in four million.
    for session in 0..24 {
        let mut of_session = Vec::new();
        for (fields, body) in [
            by_header("x-conversation", session),
            by_header("X-SMG-Routing-Key", session),
            by_body(session),
        ] {
            of_session.push(served(&mut pairs, &fields, &body).await);
        }
        assert!(
            of_session.iter().all(|pair| *pair == of_session[0]),
            "{of_session:?}"
        );
        workers.extend([of_session[0].0, 2 + of_session[0].1]);
    }
    assert_eq!(workers.len(), 4, "sessions are spread over the workers");
}

/// The URL of the prefill worker that a request with this text is sent to.
async fn prefill_of(balancer: &Balancer, text: &str) -> String {
    let body = json!({ "text": text, "sampling_params": { "max_new_tokens": 1 } }).to_string();
    let mut client = balancer.client().await;
    client.send(post("/generate", &body)).await;
    let answer = client.answer().await;
    assert_eq!(answer.status(), 200, "{}", answer.text());
    answer.header("x-mini-lb-prefill").unwrap().to_owned()
}

#[tokio::test]
async fn expected_ttft_sends_a_prompt_where_its_beginning_was_computed() {
    // A prompt of 20,000 tokens takes 0.2 s, and no time where it is cached.
    let options = || SimOptions {
        prefix_cache: true,
        time_per_prompt_token: Duration::from_micros(10),
        cache_tokens: Some(1 << 20),
        context_length: 1 << 20,
        ..quick()
    };
    let prefills = [
        sim::Worker::start_prefill(options()).await.unwrap(),
        sim::Worker::start_prefill(options()).await.unwrap(),
    ];
    let decode = sim::Worker::start_decode(options()).await.unwrap();
    let workers = prefills
        .iter()
        .map(|worker| (worker.url(), worker.bootstrap_port()));
    let config = MiniLbConfig::new(
        "127.0.0.1".into(),
        0,
        workers.collect(),
        vec![decode.url()],
        60,
    );
    let config = config
        .policy(Policy::ExpectedTtft)
        .set("server_timing", "always");
    let balancer = Balancer::start(config).await;

    let begin = "once upon a time ".repeat(1200);
    let first = prefill_of(&balancer, &format!("{begin}0")).await;
    for number in 1..8 {
        let next = prefill_of(&balancer, &format!("{begin}{number}")).await;
        assert_eq!(next, first, "{number}");
    }
}

#[tokio::test]
async fn decode_workers_share_the_tokens_to_come() {
    let mut pairs = TwoPairs::with(|config| config.policy(Policy::ExpectedTtft)).await;
    let limited = |tokens| json!({"text": "a", "sampling_params": {"max_new_tokens": tokens}});
    let mut open = Vec::new();
    let mut decode = Vec::new();
    for tokens in [2000, 8, 8, 8, 8] {
        let mut client = pairs.balancer.client().await;
        client
            .send(post("/generate", &limited(tokens).to_string()))
            .await;
        let ((_, chosen), legs) = chosen(&mut pairs).await;
        decode.push(chosen);
        open.push((client, legs));
    }
    assert!(
        decode[1..].iter().all(|short| *short != decode[0]),
        "{decode:?}"
    );
}

/// The response to a request that names its workers.
async fn targeted(pairs: &mut TwoPairs, fields: &str) -> support::Answer {
    let request = post("/generate", "{}").replacen("\r\n\r\n", &format!("\r\n{fields}\r\n"), 1);
    pairs.client.send(request).await;
    pairs.client.answer().await
}

#[tokio::test]
async fn a_request_may_name_its_workers_where_that_is_allowed() {
    let mut pairs = TwoPairs::with(|config| config.set("allow_target_headers", true)).await;
    let (prefills, decodes) = (
        pairs.prefills.each_ref().map(support::Worker::url),
        pairs.decodes.each_ref().map(support::Worker::url),
    );
    for (prefill, decode) in [(0, 0), (0, 1), (1, 0), (1, 1), (1, 0), (0, 1)] {
        let fields = format!(
            "x-mini-lb-prefill: {}/\r\nX-Mini-LB-Decode: {}\r\n",
            prefills[prefill], decodes[decode]
        );
        assert_eq!(served(&mut pairs, &fields, "{}").await, (prefill, decode));
    }
    // A URL of the other role is no worker of this one.
    for fields in [
        format!("x-mini-lb-prefill: {}\r\n", decodes[0]),
        "x-mini-lb-decode: http://nowhere:1\r\n".to_owned(),
        "x-mini-lb-decode:\r\n".to_owned(),
    ] {
        let answer = targeted(&mut pairs, &fields).await;
        assert_eq!(answer.outcome(), (400, Some("unknown_target")), "{fields}");
    }
}

#[tokio::test]
async fn a_request_that_names_its_worker_is_not_sent_to_another_one() {
    let mut pairs = TwoPairs::with(|config| config.set("allow_target_headers", true)).await;
    let fields = format!("x-mini-lb-prefill: {}\r\n", pairs.prefills[1].url());
    let request = post("/generate", "{}").replacen("\r\n\r\n", &format!("\r\n{fields}\r\n"), 1);
    pairs.client.send(request).await;
    let ((prefill, leg), _decode) = pairs.next_legs().await;
    assert_eq!(prefill, 1);
    leg.answer("503 Service Unavailable", "{}").await;
    assert_eq!(pairs.client.answer().await.status(), 503);
}

#[tokio::test]
async fn a_request_names_no_worker_by_default_and_workers_see_no_such_header() {
    let mut pairs = TwoPairs::with(|config| config).await;
    let fields = format!("x-mini-lb-prefill: {}\r\n", pairs.prefills[1].url());
    let answer = targeted(&mut pairs, &fields).await;
    assert_eq!(answer.outcome(), (400, Some("unknown_target")));
    assert!(
        answer.text().contains("allow_target_headers"),
        "{}",
        answer.text()
    );
}
