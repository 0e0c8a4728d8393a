//! Which workers get the requests under each policy, through the whole proxy.

use std::collections::BTreeSet;
use std::time::Duration;

use mini_lb::MiniLbConfig;
use mini_lb::config::Policy;
use mini_lb::sim::{self, Entry, Event, SimOptions};
use serde_json::{Value, json};
use support::sim::{SOON, quick};
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
    for session in 0..8 {
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

/// A prefill worker of four data parallel ranks, a decode worker, and a balancer that asks them what they are.
async fn with_ranks(cache_tokens: usize) -> (sim::Worker, sim::Worker, Balancer) {
    let options = || SimOptions {
        prefix_cache: true,
        // 1.5 s for a prompt of 5,000 tokens.
        time_per_prompt_token: Duration::from_micros(300),
        cache_tokens: Some(cache_tokens),
        context_length: 1 << 20,
        ..quick()
    };
    let of_ranks = SimOptions {
        dp_size: 4,
        ..options()
    };
    let prefill = sim::Worker::start_prefill(of_ranks).await.unwrap();
    let decode = sim::Worker::start_decode(options()).await.unwrap();
    let config = MiniLbConfig::new(
        "127.0.0.1".into(),
        0,
        vec![(prefill.url(), prefill.bootstrap_port())],
        vec![decode.url()],
        60,
    );
    let config = config.policy(Policy::ExpectedTtft);
    let balancer = Balancer::start(config).await;
    // The balancer asks for the ranks when it starts, and requests do not wait for that.
    for attempt in 0.. {
        let id = format!("warm-up-{attempt}");
        let mut client = send(&balancer, &id, "a".into()).await;
        assert_eq!(client.answer().await.status(), 200);
        if !record(&balancer, &id).await["prefill_rank"].is_null() {
            break;
        }
    }
    prefill.journal().clear();
    (prefill, decode, balancer)
}

/// A request with this id and text, sent over a connection of its own.
async fn send(balancer: &Balancer, id: &str, text: Value) -> support::Client {
    let body = json!({ "text": text, "sampling_params": { "max_new_tokens": 1 } });
    let request = post("/generate", &body.to_string());
    let mut client = balancer.client().await;
    let id = format!("\r\nx-request-id: {id}\r\n\r\n");
    client.send(request.replacen("\r\n\r\n", &id, 1)).await;
    client
}

/// What `/debug/requests` knows of the request with this id.
async fn record(balancer: &Balancer, id: &str) -> Value {
    let mut client = balancer.client().await;
    let path = format!("/debug/requests?id={id}");
    client
        .send(format!("GET {path} HTTP/1.1\r\nhost: balancer\r\n\r\n"))
        .await;
    client.answer().await.json()["requests"][0].clone()
}

/// The ranks of the rooms that a prefill worker of four ranks has seen.
fn ranks_of_rooms(prefill: &sim::Worker) -> Vec<u64> {
    let entries = prefill.journal().entries();
    let rooms = entries.iter().filter_map(|entry| match &entry.event {
        Event::RoomPresented { room, .. } => room.parse::<u64>().ok(),
        _ => None,
    });
    rooms.map(|room| room % 4).collect()
}

#[tokio::test]
async fn prompts_wait_and_are_cached_on_the_ranks_of_a_prefill_worker() {
    let (prefill, _decode, balancer) = with_ranks(1 << 20).await;
    let text =
        |group: u64, number: u64| format!("{group}{}{number}", " once upon a time".repeat(1200));
    let mut open = Vec::new();
    for group in 0..4 {
        let text = text(group, 0).into();
        let client = send(&balancer, &format!("first-{group}"), text).await;
        // So that the next one is chosen with this one in its line.
        let is_room = |entry: &Entry| matches!(entry.event, Event::RoomPresented { .. });
        let has_come =
            |seen: &[Entry]| seen.iter().filter(|entry| is_room(entry)).count() > open.len();
        let journal = prefill.journal();
        journal.wait_for(has_come, SOON).await.unwrap();
        open.push(client);
    }
    for client in &mut open {
        assert_eq!(client.answer().await.status(), 200);
    }
    let mut ranks = ranks_of_rooms(&prefill);
    ranks.sort_unstable();
    assert_eq!(ranks, [0, 1, 2, 3], "each prompt has a rank of its own");
    for number in 1..3 {
        for group in 0..4 {
            let id = format!("{group}-{number}");
            let mut client = send(&balancer, &id, text(group, number).into()).await;
            assert_eq!(client.answer().await.status(), 200);
            let first = record(&balancer, &format!("first-{group}")).await;
            let next = record(&balancer, &id).await;
            assert_eq!(first["prefill_rank"], next["prefill_rank"], "{id}");
            let room = ranks_of_rooms(&prefill).last().copied();
            assert_eq!(next["prefill_rank"].as_u64(), room);
            let forecast = &next["forecast"];
            let number = |name: &str| forecast[name].as_u64().unwrap();
            assert!(number("cached_tokens") > 4000, "{forecast}");
            assert!(number("expected_cached_tokens") > 3000, "{forecast}");
        }
    }
    assert!(prefill.journal().violations().is_empty());
}

#[tokio::test]
async fn the_prompts_of_a_batch_are_on_ranks_in_turn() {
    let (prefill, _decode, balancer) = with_ranks(1 << 20).await;
    let mut client = send(&balancer, "batch", json!(["a", "b", "c", "d", "e", "f"])).await;
    assert_eq!(client.answer().await.status(), 200);
    let first = record(&balancer, "batch").await["prefill_rank"]
        .as_u64()
        .unwrap();
    let mut expected: Vec<_> = (0..6).map(|prompt| (first + prompt) % 4).collect();
    let mut ranks = ranks_of_rooms(&prefill);
    ranks.sort_unstable();
    expected.sort_unstable();
    assert_eq!(ranks, expected);
    assert!(prefill.journal().violations().is_empty());
}

#[tokio::test]
async fn a_request_that_names_a_rank_has_its_rooms_there() {
    let (prefill, _decode, balancer) = with_ranks(1 << 20).await;
    for text in [json!("a"), json!("b"), json!(["c", "d", "e"])] {
        let limit = json!({ "max_new_tokens": 1 });
        let body = json!({ "text": text, "sampling_params": limit, "routed_dp_rank": 2 });
        let mut client = balancer.client().await;
        client.send(post("/generate", &body.to_string())).await;
        assert_eq!(client.answer().await.status(), 200);
    }
    assert_eq!(ranks_of_rooms(&prefill), [2; 5]);
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
