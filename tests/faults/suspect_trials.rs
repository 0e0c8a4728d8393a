//! Trials of suspects: many requests that died with one worker, equal ones, and workers that are not well.

use std::time::Duration;

use mini_lb::MiniLbConfig;
use mini_lb::pd::Role;
use support::pair::{ROLES, leg_of, serve};
use support::{BODY, Balancer, Exchange, Pair, TwoPairs, Worker, config, post, soon};
use tokio::task::JoinSet;

use crate::suspects::{Fleet, answer, insist, request};

/// So many different requests with prompts of so many tokens, and what becomes of them: status and text.
fn innocent(fleet: &Fleet, count: usize, tokens: usize) -> JoinSet<(u16, String)> {
    let address = fleet.balancer.address;
    (0..count)
        .map(|number| async move {
            let answer = answer(address, request(tokens * number, tokens, "")).await;
            (answer.status(), answer.text().to_owned())
        })
        .collect()
}

async fn all_are_served(mut requests: JoinSet<(u16, String)>) {
    while let Some(done) = soon("the innocent requests", requests.join_next()).await {
        let (status, text) = done.unwrap();
        assert_eq!(status, 200, "{text}");
    }
}

#[tokio::test]
async fn all_that_died_along_are_served_however_many_and_however_short_the_wait_in_the_queue() {
    let fleet = Fleet::with(Role::Prefill, [1, 2], |config| {
        config.queue_timeout(Duration::from_millis(600))
    })
    .await;
    let requests = innocent(&fleet, 40, 400);
    fleet.has_in_flight(40).await;
    for number in 0.. {
        if fleet.lost() == 1 {
            break;
        }
        // Fatal to the first worker alone.
        let fatal = request(number, 3, "x-sim-fault: crash\r\n");
        let answer = answer(fleet.balancer.address, fatal).await;
        assert_eq!(answer.status(), 200, "{}", answer.text());
    }
    // Some twenty died with it, and take 800 ms each at the one worker that is left.
    all_are_served(requests).await;
    assert_eq!(fleet.lost(), 1);
}

#[tokio::test]
async fn a_fatal_request_among_many_that_share_a_worker_costs_three_workers_at_most() {
    let fleet = Fleet::with(Role::Prefill, [5, 5], |config| {
        config.queue_timeout(Duration::from_millis(800))
    })
    .await;
    let requests = innocent(&fleet, 60, 100);
    fleet.has_in_flight(60).await;
    let codes = insist(fleet.balancer.address, 5).await;
    all_are_served(requests).await;
    assert!(fleet.lost() <= 3, "{} lost, {codes:?}", fleet.lost());
}

#[tokio::test]
async fn one_worker_that_is_lost_again_is_not_taken_for_two() {
    for role in ROLES {
        let mut pair = Pair::start().await;
        let code = match role {
            Role::Prefill => "prefill_lost",
            Role::Decode => "decode_lost",
        };
        for time in 1..=2 {
            let _other = lose(role, pair.legs("/generate", BODY).await);
            pair.bad_gateway(&format!("{role} {time}"), code).await;
        }
        let _other = lose(role, pair.legs("/generate", BODY).await);
        for _ in 0..2 {
            let refused = pair.client.answer().await;
            assert_eq!(refused.outcome(), (503, Some("suspect_request")));
            let lost = format!("the {role} worker http://127.0.0.1:");
            let text = refused.text();
            assert!(text.contains(&lost), "{text}");
            assert!(
                text.contains("was lost 3 times with this request"),
                "{text}"
            );
            pair.client.send(post("/generate", BODY)).await;
        }
    }
}

/// The leg of this role loses its connection. The other one, which must not be dropped before.
fn lose(role: Role, legs: (Exchange, Exchange)) -> Exchange {
    let (lost, other) = leg_of(role, legs);
    lost.reset();
    other
}

/// Two pairs that take turns.
async fn in_turns(change: impl FnOnce(MiniLbConfig) -> MiniLbConfig) -> TwoPairs {
    TwoPairs::with(|config| change(config.set("policy", "round_robin"))).await
}

/// Two equal requests, and the legs of each: no worker has both.
async fn two_equal(pairs: &mut TwoPairs) -> ([support::Client; 2], [(Exchange, Exchange); 2]) {
    let mut clients = [pairs.balancer.client().await, pairs.balancer.client().await];
    let mut legs = Vec::new();
    for client in &mut clients {
        client.send(post("/generate", BODY)).await;
        let ((_, prefill), (_, decode)) = pairs.next_legs().await;
        legs.push((prefill, decode));
    }
    let Ok(legs) = legs.try_into() else {
        panic!("two requests");
    };
    (clients, legs)
}

#[tokio::test]
async fn an_equal_request_is_tried_after_two_workers_were_lost_at_once() {
    for role in ROLES {
        // So that no trial begins in between.
        let mut pairs = in_turns(|config| config.retries(0)).await;
        let (mut clients, legs) = two_equal(&mut pairs).await;
        let _others = legs.map(|legs| lose(role, legs));
        for client in &mut clients {
            assert_eq!(client.answer().await.status(), 502, "{role}");
        }
        pairs.client.send(post("/generate", BODY)).await;
        let ((_, prefill), (_, decode)) = pairs.next_legs().await;
        serve((prefill, decode)).await;
        assert_eq!(pairs.client.answer().await.status(), 200, "{role}");
    }
}

#[tokio::test]
async fn an_equal_request_that_is_served_meanwhile_ends_the_suspicion() {
    for role in ROLES {
        let mut pairs = in_turns(|config| config).await;
        let ([mut suspect, mut other], [lost, runs]) = two_equal(&mut pairs).await;
        let _other_leg = lose(role, lost);
        let ((_, prefill), (_, decode)) = pairs.next_legs().await;
        // It waits for the end of the trial, which does not come.
        let mut third = pairs.balancer.client().await;
        third.send(post("/generate", BODY)).await;
        serve(runs).await;
        assert_eq!(other.answer().await.status(), 200, "{role}");
        let ((_, third_prefill), (_, third_decode)) = pairs.next_legs().await;
        serve((third_prefill, third_decode)).await;
        assert_eq!(third.answer().await.status(), 200, "{role}");
        serve((prefill, decode)).await;
        assert_eq!(suspect.answer().await.status(), 200, "{role}");
    }
}

#[tokio::test]
async fn a_request_that_was_refused_is_taken_again_when_an_equal_one_is_served() {
    for role in ROLES {
        let mut pairs = in_turns(|config| config).await;
        let ([mut suspect, mut other], [lost, runs]) = two_equal(&mut pairs).await;
        let _other_leg = lose(role, lost);
        let ((_, prefill), (_, decode)) = pairs.next_legs().await;
        let _other_leg = lose(role, (prefill, decode));
        let refused = suspect.answer().await;
        assert_eq!(refused.outcome(), (503, Some("suspect_request")));
        serve(runs).await;
        assert_eq!(other.answer().await.status(), 200, "{role}");
        suspect.send(post("/generate", BODY)).await;
        let ((_, prefill), (_, decode)) = pairs.next_legs().await;
        serve((prefill, decode)).await;
        assert_eq!(suspect.answer().await.status(), 200, "{role}");
    }
}

/// A worker of this role that answers, one that refuses connections, and one of the other role.
struct OneIsAway {
    role: Role,
    well: Worker,
    other: Worker,
    away: String,
    balancer: Balancer,
}

impl OneIsAway {
    async fn start(role: Role, queue_timeout: Duration) -> Self {
        let (well, other) = Worker::pair().await;
        let away = Worker::refusing().await;
        let both = [well.url(), away.clone()];
        let config = match role {
            Role::Prefill => config(&both, &[other.url()]),
            Role::Decode => config(&[other.url()], &both),
        };
        let balancer = Balancer::start(config.retries(2).queue_timeout(queue_timeout)).await;
        Self {
            role,
            well,
            other,
            away,
            balancer,
        }
    }

    /// A request is lost with the worker that answers. Its client, and the leg at the other role.
    async fn lose_one(&mut self) -> (support::Client, Exchange) {
        let mut client = self.balancer.client().await;
        client.send(post("/generate", BODY)).await;
        self.well.request().await.reset();
        (client, self.other.request().await)
    }
}

#[tokio::test]
async fn a_suspect_is_not_sent_back_to_the_worker_that_it_was_lost_with_and_is_told_why() {
    for role in ROLES {
        let mut workers = OneIsAway::start(role, Duration::from_millis(700)).await;
        let (mut client, _other) = workers.lose_one().await;
        let refused = client.answer().await;
        let code = match workers.role {
            Role::Prefill => "no_prefill",
            Role::Decode => "no_decode",
        };
        assert_eq!(refused.outcome(), (503, Some(code)), "{}", refused.text());
        let words = format!("no other {role} worker was well within 1 s (queue_timeout_secs)");
        assert!(refused.text().contains(&words), "{}", refused.text());
        assert!(refused.header("retry-after").is_some());
        assert!(!workers.well.has_request());
    }
}

#[tokio::test]
async fn a_suspect_waits_for_a_worker_that_comes_back() {
    for role in ROLES {
        let mut workers = OneIsAway::start(role, Duration::from_secs(60)).await;
        let (mut client, _other) = workers.lose_one().await;
        // That worker has been tried, before or after the loss.
        workers.other.request().await.closed().await;
        let address = workers.away.strip_prefix("http://").unwrap();
        let mut back = Worker::listen_on(address.parse().unwrap()).await;
        workers.other.serve("200 OK", "{}");
        let back = tokio::select! {
            back = back.request() => back,
            answer = client.answer() => panic!("{role} {}", answer.text()),
        };
        back.answer("200 OK", "{}").await;
        assert_eq!(client.answer().await.status(), 200, "{role}");
        assert!(!workers.well.has_request());
    }
}
