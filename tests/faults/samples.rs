//! Faults of requests for several samples: one that fails ends all, and one that is tried again is tried alone.

use std::collections::HashSet;
use std::time::Duration;

use mini_lb::pd::Role;
use support::pair::{ROLES, leg, leg_of};
use support::samples::{COMPLETIONS, GENERATE, ROUTES, asking, document, event, finish};
use support::{Exchange, Pair, TwoPairs, Worker, post, soon};
use tokio::sync::watch;

type Legs = Vec<(Exchange, Exchange)>;

/// The ids of so many aborts at a worker.
async fn aborted(worker: &mut Worker, count: usize) -> HashSet<String> {
    let mut rids = HashSet::new();
    while rids.len() < count {
        let exchange = worker.request().await;
        if exchange.request.head.contains("/abort_request") {
            rids.insert(exchange.request.json()["rid"].as_str().unwrap().to_owned());
            exchange.answer("200 OK", "").await;
        }
    }
    rids
}

fn rids(legs: &Legs) -> HashSet<String> {
    let rid = |(prefill, _): &(Exchange, Exchange)| prefill.request.json()["rid"].clone();
    legs.iter()
        .map(|legs| rid(legs).as_str().unwrap().to_owned())
        .collect()
}

async fn all_closed(legs: Legs) {
    for (prefill, decode) in legs {
        prefill.closed().await;
        decode.closed().await;
    }
}

#[tokio::test]
async fn one_refusal_ends_all_samples_and_is_the_clients_response() {
    for path in ROUTES {
        for stream in [false, true] {
            for role in ROLES {
                let mut pair = Pair::start().await;
                let mut legs = pair.samples(path, &asking(path, 3, stream), 3).await;
                let (refusing, other) = leg_of(role, legs.pop().unwrap());
                let rids = rids(&legs);
                refusing.answer("400 Bad Request", "{\"error\":1}").await;
                let answer = pair.client.answer().await;
                assert_eq!((answer.status(), answer.text()), (400, "{\"error\":1}"));
                assert!(answer.header("x-request-id").is_some());
                other.closed().await;
                all_closed(legs).await;
                // The other leg of the one that was refused is told as well.
                let counts = match role {
                    Role::Prefill => [2, 3],
                    Role::Decode => [3, 2],
                };
                for (worker, count) in [&mut pair.prefill, &mut pair.decode]
                    .into_iter()
                    .zip(counts)
                {
                    assert!(aborted(worker, count).await.is_superset(&rids), "{path}");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_lost_worker_ends_all_samples_with_one_error() {
    for stream in [false, true] {
        let mut pair = Pair::start().await;
        let mut legs = pair
            .samples(COMPLETIONS, &asking(COMPLETIONS, 2, stream), 2)
            .await;
        let (prefill, decode) = legs.pop().unwrap();
        decode.reset();
        let answer = pair.client.answer().await;
        assert_eq!(answer.outcome(), (502, Some("decode_lost")));
        prefill.closed().await;
        all_closed(legs).await;
    }
}

#[tokio::test]
async fn after_the_first_byte_the_failure_is_one_event_and_the_stream_breaks() {
    for path in ROUTES {
        let mut pair = Pair::start().await;
        let mut legs = pair.samples(path, &asking(path, 2, true), 2).await;
        for (_, decode) in &mut legs {
            decode.begin_stream().await;
            decode.chunk(&event(path, "x")).await;
        }
        let (prefill, decode) = legs.pop().unwrap();
        pair.client.head().await;
        pair.client.chunk().await;
        decode.reset();
        let rest = String::from_utf8(pair.client.rest().await).unwrap();
        assert_eq!(rest.matches("closed the connection").count(), 1, "{rest}");
        assert!(
            !rest.contains("[DONE]") && !rest.ends_with("0\r\n\r\n"),
            "{rest}"
        );
        prefill.closed().await;
        all_closed(legs).await;
    }
}

#[tokio::test]
async fn a_refusal_after_the_first_byte_is_an_event_in_the_workers_words() {
    for (path, body, told) in [
        (
            GENERATE,
            r#"{"error":{"message":"no"}}"#,
            r#"data: {"error":{"message":"no"}}"#,
        ),
        (
            COMPLETIONS,
            r#"{"message":"no"}"#,
            r#"data: {"error":{"message":"no"}}"#,
        ),
    ] {
        let mut pair = Pair::start().await;
        let mut legs = pair.samples(path, &asking(path, 2, true), 2).await;
        legs[0].1.begin_stream().await;
        legs[0].1.chunk(&event(path, "x")).await;
        pair.client.head().await;
        pair.client.chunk().await;
        let (prefill, decode) = legs.pop().unwrap();
        decode.answer("400 Bad Request", body).await;
        let rest = String::from_utf8(pair.client.rest().await).unwrap();
        assert!(rest.contains(told) && !rest.contains("[DONE]"), "{rest}");
        prefill.closed().await;
        all_closed(legs).await;
    }
}

#[tokio::test]
async fn a_workers_error_event_ends_the_stream_as_an_ordinary_server_ends_it() {
    let failed = "data: {\"error\":{\"message\":\"no\",\"code\":500}}\n\n";
    let mut pair = Pair::start().await;
    let mut legs = pair
        .samples(COMPLETIONS, &asking(COMPLETIONS, 2, true), 2)
        .await;
    for (_, decode) in &mut legs {
        decode.begin_stream().await;
        decode.chunk(&event(COMPLETIONS, "x")).await;
    }
    pair.client.head().await;
    pair.client.chunk().await;
    legs[0].1.chunk(failed).await;
    let mut rest = String::new();
    while let Some(piece) = pair.client.chunk().await {
        rest += &piece;
    }
    assert!(
        rest.ends_with(&format!("{failed}data: [DONE]\n\n")),
        "{rest}"
    );
    all_closed(legs).await;
}

#[tokio::test]
async fn a_client_that_leaves_at_the_end_marker_ends_nothing() {
    let mut pair = Pair::start().await;
    let mut legs = pair
        .samples(COMPLETIONS, &asking(COMPLETIONS, 2, true), 2)
        .await;
    for (_, decode) in &mut legs {
        decode.begin_stream().await;
        decode.chunk(&event(COMPLETIONS, "x")).await;
        decode.chunk("data: [DONE]\n\n").await;
    }
    pair.client.head().await;
    while pair.client.chunk().await.is_some() {}
    drop(pair.client);
    for (prefill, mut decode) in legs {
        prefill.answer("200 OK", "{}").await;
        decode.chunk("").await;
        decode.keep();
    }
    // The next request finds the connections of both, and no worker was told to abort.
    let mut client = pair.balancer.client().await;
    client
        .send(post(COMPLETIONS, &asking(COMPLETIONS, 2, false)))
        .await;
    pair.client = client;
    let connections = pair.decode.connections();
    for (prefill, _) in pair.next_samples(2).await {
        assert!(prefill.request.head.starts_with("POST /v1/completions"));
    }
    assert_eq!(pair.decode.connections(), connections);
}

#[tokio::test]
async fn a_client_that_leaves_ends_every_leg_and_the_workers_are_told() {
    for stream in [false, true] {
        let mut pair = Pair::start().await;
        let mut legs = pair
            .samples(GENERATE, &asking(GENERATE, 4, stream), 4)
            .await;
        let rids = rids(&legs);
        if stream {
            legs[0].1.begin_stream().await;
            legs[0].1.chunk(&event(GENERATE, "x")).await;
            pair.client.head().await;
        }
        drop(pair.client);
        all_closed(legs).await;
        assert_eq!(aborted(&mut pair.prefill, 4).await, rids);
        assert_eq!(aborted(&mut pair.decode, 4).await, rids);
    }
}

#[tokio::test]
async fn a_sample_that_fails_is_tried_again_alone() {
    for role in ROLES {
        let mut pairs = TwoPairs::with(|config| config).await;
        pairs
            .client
            .send(post(GENERATE, &asking(GENERATE, 2, true)))
            .await;
        let mut prefills = vec![
            leg(&mut pairs.prefills).await,
            leg(&mut pairs.prefills).await,
        ];
        let mut decodes = vec![leg(&mut pairs.decodes).await, leg(&mut pairs.decodes).await];
        assert_eq!(prefills[0].0, prefills[1].0, "one prefill worker");
        assert_ne!(decodes[0].0, decodes[1].0, "two decode workers");
        let room = |exchange: &Exchange| exchange.request.json()["bootstrap_room"].clone();
        if room(&prefills[0].1) != room(&decodes[0].1) {
            decodes.swap(0, 1);
        }
        // One of them has begun when the other fails.
        let (place, mut begun) = decodes.remove(0);
        begun.begin_stream().await;
        begun.chunk(&event(GENERATE, "first")).await;
        pairs.client.head().await;
        assert!(pairs.client.chunk().await.unwrap().contains("first"));
        let (used, prefill) = prefills.pop().unwrap();
        let (failing, other) = leg_of(role, (prefill, decodes.pop().unwrap().1));
        failing.answer("503 Service Unavailable", "{}").await;
        other.closed().await;
        let ((again, prefill), (_, mut decode)) = pairs.next_legs().await;
        if role == Role::Prefill {
            assert_ne!(again, used, "on another pair ({place})");
        }
        decode.begin_stream().await;
        decode.chunk(&event(GENERATE, "second")).await;
        assert!(pairs.client.chunk().await.unwrap().contains("second"));
        let (_, first_prefill) = prefills.pop().unwrap();
        finish(vec![(first_prefill, begun), (prefill, decode)]).await;
        let mut rest = String::new();
        while let Some(piece) = pairs.client.chunk().await {
            rest += &piece;
        }
        assert_eq!(rest, "data: [DONE]\n\n");
    }
}

#[tokio::test]
async fn a_stream_that_is_late_or_stalls_ends_all_samples() {
    const SHORT: Duration = Duration::from_millis(100);
    let mut pair = Pair::with(|config| config.first_token_timeout(SHORT)).await;
    let legs = pair
        .samples(COMPLETIONS, &asking(COMPLETIONS, 2, true), 2)
        .await;
    let answer = pair.client.answer().await;
    assert_eq!(answer.outcome(), (504, Some("first_token_timeout")));
    all_closed(legs).await;
    let mut pair = Pair::with(|config| config.stream_idle_timeout(SHORT)).await;
    let mut legs = pair
        .samples(COMPLETIONS, &asking(COMPLETIONS, 2, true), 2)
        .await;
    legs[0].1.begin_stream().await;
    legs[0].1.chunk(&event(COMPLETIONS, "x")).await;
    pair.client.head().await;
    let rest = String::from_utf8(pair.client.rest().await).unwrap();
    assert!(rest.contains("stream_idle_timeout_secs"), "{rest}");
    all_closed(legs).await;
}

/// Sends events until the leg closes, and counts the bytes that were written.
fn flood(mut decode: Exchange) -> watch::Receiver<usize> {
    let (count, taken) = watch::channel(0);
    let events = event(COMPLETIONS, &"x".repeat(1 << 10)).repeat(32);
    let piece = format!("{:x}\r\n{events}\r\n", events.len());
    tokio::spawn(async move {
        while decode.try_send(&piece).await.is_ok() {
            count.send_modify(|taken| *taken += events.len());
        }
    });
    taken
}

/// A transfer that has stopped for this long stays stopped.
const STILL: Duration = Duration::from_millis(500);

#[tokio::test]
async fn all_samples_together_are_read_no_faster_than_the_client_reads() {
    let mut pair = Pair::start().await;
    let mut floods = Vec::new();
    for (prefill, mut decode) in pair
        .samples(COMPLETIONS, &asking(COMPLETIONS, 4, true), 4)
        .await
    {
        prefill.answer("200 OK", "{}").await;
        decode.begin_stream().await;
        floods.push(flood(decode));
    }
    let total =
        |floods: &[watch::Receiver<usize>]| floods.iter().map(|f| *f.borrow()).sum::<usize>();
    let mut before = usize::MAX;
    while before != total(&floods) {
        before = total(&floods);
        // The bytes on their way are in the buffers of the sockets; the proxy holds a few pieces of each.
        assert!(
            before < 64 << 20,
            "the client reads nothing, but all bytes were taken"
        );
        tokio::time::sleep(STILL).await;
    }
    pair.client.head().await;
    let mut got = 0;
    while got <= before + (1 << 20) {
        got += pair.client.chunk().await.unwrap().len();
    }
    assert!(total(&floods) > before, "they go on when the client does");
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_given_up_and_all_legs_end() {
    let limit = Duration::from_millis(300);
    let mut pair = Pair::with(|config| config.client_stall_timeout(limit)).await;
    let mut floods = Vec::new();
    let mut prefills = Vec::new();
    for (prefill, mut decode) in pair
        .samples(COMPLETIONS, &asking(COMPLETIONS, 3, true), 3)
        .await
    {
        decode.begin_stream().await;
        floods.push(flood(decode));
        prefills.push(prefill);
    }
    for mut taken in floods {
        soon("the leg is closed", async {
            while taken.changed().await.is_ok() {}
        })
        .await;
    }
    for prefill in prefills {
        prefill.closed().await;
    }
}

#[tokio::test]
async fn with_a_long_prompt_the_others_wait_until_the_first_sample_has_been_prefilled() {
    let mut pair = Pair::start().await;
    let text = "a".repeat(4 << 10);
    let body = format!(r#"{{"text":"{text}","sampling_params":{{"n":3}}}}"#);
    let mut first = pair.samples(GENERATE, &body, 1).await;
    // A request of another client is served meanwhile, and no sample has come.
    let mut other = pair.balancer.client().await;
    other.send(post(GENERATE, "{\"text\":\"b\"}")).await;
    let (prefill, decode) = pair.next_legs().await;
    assert_eq!(prefill.request.json()["text"], "b");
    prefill.answer("200 OK", "{}").await;
    decode.answer("200 OK", "{}").await;
    assert_eq!(other.answer().await.status(), 200);
    assert!(pair.is_idle());
    let (prefill, decode) = first.pop().unwrap();
    prefill.answer("200 OK", "{}").await;
    let mut legs = pair.next_samples(2).await;
    let (prefill, last) = legs.pop().unwrap();
    prefill.answer("200 OK", "{}").await;
    for decode in [decode, last, legs.pop().unwrap().1] {
        decode.answer("200 OK", &document(GENERATE, "x")).await;
    }
    assert_eq!(
        pair.client.answer().await.json().as_array().unwrap().len(),
        3
    );
}

#[tokio::test]
async fn when_the_first_sample_fails_the_waiting_ones_are_never_sent() {
    let mut pair = Pair::start().await;
    let text = "a".repeat(4 << 10);
    let body = format!(r#"{{"text":"{text}","sampling_params":{{"n":3}}}}"#);
    let mut first = pair.samples(GENERATE, &body, 1).await;
    let (prefill, decode) = first.pop().unwrap();
    prefill.answer("400 Bad Request", "{\"error\":2}").await;
    let answer = pair.client.answer().await;
    assert_eq!((answer.status(), answer.text()), (400, "{\"error\":2}"));
    decode.closed().await;
    assert_eq!(aborted(&mut pair.decode, 1).await.len(), 1);
    assert!(pair.is_idle());
}
