//! A request that takes its workers down: it is tried once more and then refused, and the requests that died along with
//! it are served.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mini_lb::MiniLbConfig;
use mini_lb::pd::Role;
use mini_lb::sim::chaos::Script;
use mini_lb::sim::{Event, SimOptions, Worker as SimWorker};
use support::pair::{ROLES, leg_of, serve};
use support::{Answer, BODY, Balancer, Client, Exchange, STREAM, TwoPairs, post, soon};

/// Workers of one role, of which a request with the header of the fault takes down each that it reaches, two of the other,
/// and the balancer in front of them.
pub(crate) struct Fleet {
    pub(crate) prefills: Vec<SimWorker>,
    decodes: Vec<SimWorker>,
    pub(crate) balancer: Balancer,
}

impl Fleet {
    async fn start(fatal_to: Role) -> Self {
        Self::with(fatal_to, [4, 4], |config| config).await
    }

    /// With so many workers of that role that the request is fatal to, so many in all, and this configuration.
    pub(crate) async fn with(
        fatal_to: Role,
        [fatal, workers]: [usize; 2],
        change: impl FnOnce(MiniLbConfig) -> MiniLbConfig,
    ) -> Self {
        let rule = format!(
            "rules: [{{match: {{header: crash, role: {fatal_to}}}, do: crash_in_transfer}}]"
        );
        let options = SimOptions {
            chaos: Script::parse(&rule).unwrap(),
            prompts_at_once: 64,
            time_per_prompt_token: Duration::from_millis(2),
            time_per_output_token: Duration::from_millis(2),
            // A leg whose other leg was lost hears of it soon.
            timers_scale: 0.05,
            ..SimOptions::default()
        };
        let harmless = SimOptions {
            chaos: Script::default(),
            ..options.clone()
        };
        let count = |role| if role == fatal_to { workers } else { 2 };
        let (mut prefills, mut decodes) = (Vec::new(), Vec::new());
        let of = |index| match index < fatal {
            true => options.clone(),
            false => harmless.clone(),
        };
        for index in 0..count(Role::Prefill) {
            prefills.push(SimWorker::start_prefill(of(index)).await.unwrap());
        }
        for index in 0..count(Role::Decode) {
            decodes.push(SimWorker::start_decode(of(index)).await.unwrap());
        }
        let url = |worker: &SimWorker| format!("http://{}", worker.address());
        let config = MiniLbConfig::new(
            "127.0.0.1".into(),
            0,
            prefills
                .iter()
                .map(|worker| (url(worker), worker.bootstrap_port()))
                .collect(),
            decodes.iter().map(url).collect(),
            60,
        )
        .health_check_interval(None);
        let balancer = Balancer::start(change(config)).await;
        Self {
            prefills,
            decodes,
            balancer,
        }
    }

    fn workers(&self) -> impl Iterator<Item = &SimWorker> {
        self.prefills.iter().chain(&self.decodes)
    }

    pub(crate) fn lost(&self) -> usize {
        self.workers().filter(|worker| worker.has_crashed()).count()
    }

    /// Waits until the prefill workers have this many requests.
    pub(crate) async fn has_in_flight(&self, requests: usize) {
        soon("the requests are in flight", async {
            loop {
                let presented = |worker: &SimWorker| {
                    let entries = worker.journal().entries();
                    let is_room = |event: &Event| matches!(event, Event::RoomPresented { .. });
                    entries.iter().filter(|entry| is_room(&entry.event)).count()
                };
                if self.prefills.iter().map(presented).sum::<usize>() >= requests {
                    return;
                }
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

/// A request of this number with a prompt of so many tokens.
pub(crate) fn request(number: usize, tokens: usize, headers: &str) -> String {
    let ids: Vec<_> = (0..tokens)
        .map(|token| (number + token).to_string())
        .collect();
    let body = format!(
        r#"{{"input_ids":[{}],"sampling_params":{{"max_new_tokens":4}}}}"#,
        ids.join(",")
    );
    format!(
        "POST /generate HTTP/1.1\r\nhost: b\r\ncontent-type: application/json\r\n{headers}content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

pub(crate) async fn answer(balancer: std::net::SocketAddr, request: String) -> Answer {
    let mut client = Client::connect(balancer).await;
    client.send(request).await;
    client.answer().await
}

/// The client of the fatal request sends it again until `enough` of its responses say that it is refused.
pub(crate) async fn insist(balancer: std::net::SocketAddr, enough: usize) -> Vec<String> {
    let mut codes = Vec::new();
    while codes
        .iter()
        .filter(|code| *code == "suspect_request")
        .count()
        < enough
    {
        let answer = answer(balancer, request(7, 3, "x-sim-fault: crash\r\n")).await;
        let code = answer.header("x-mini-lb-error").unwrap_or("none");
        codes.push(code.to_owned());
        assert!(codes.len() < 200, "{codes:?}");
    }
    codes
}

async fn a_fatal_request_loses_at_most_two(fatal_to: Role) {
    let fleet = Fleet::start(fatal_to).await;
    let address = fleet.balancer.address;
    let served = Arc::new(AtomicUsize::new(0));
    let mut innocent = tokio::task::JoinSet::new();
    for number in 0..49 {
        let served = served.clone();
        innocent.spawn(async move {
            let answer = answer(address, request(100 * number, 100, "")).await;
            served.fetch_add(usize::from(answer.status() == 200), Ordering::SeqCst);
            (answer.status(), answer.text().to_owned())
        });
    }
    fleet.has_in_flight(49).await;
    let codes = insist(address, 20).await;
    while let Some(done) = soon("the innocent requests", innocent.join_next()).await {
        let (status, text) = done.unwrap();
        assert_eq!(status, 200, "{text}");
    }
    assert_eq!(served.load(Ordering::SeqCst), 49);
    assert!(fleet.lost() <= 2, "{} lost, {codes:?}", fleet.lost());
    // What was refused stays refused, and others are served.
    insist(address, 1).await;
    assert_eq!(answer(address, request(9, 3, "")).await.status(), 200);
}

#[tokio::test]
async fn a_request_that_is_fatal_to_prefill_costs_two_workers_and_no_other_request() {
    a_fatal_request_loses_at_most_two(Role::Prefill).await;
}

#[tokio::test]
async fn a_request_that_is_fatal_to_decode_costs_two_workers_and_no_other_request() {
    a_fatal_request_loses_at_most_two(Role::Decode).await;
}

/// Two pairs without health checks, and the request that is lost with their workers.
async fn two_pairs(window_secs: u64) -> TwoPairs {
    TwoPairs::with(|config| config.suspect_window(Duration::from_secs(window_secs))).await
}

/// Both workers of one attempt get the request, and this role's loses its connection. The other leg.
async fn lose(pairs: &mut TwoPairs, role: Role) -> Exchange {
    let ((_, prefill), (_, decode)) = pairs.next_legs().await;
    let (lost, other) = leg_of(role, (prefill, decode));
    lost.reset();
    other
}

#[tokio::test]
async fn a_request_that_has_lost_two_workers_is_refused_with_the_reason_and_others_are_not() {
    for role in ROLES {
        let mut pairs = two_pairs(60).await;
        pairs.client.send(post("/generate", BODY)).await;
        let _others = [lose(&mut pairs, role).await, lose(&mut pairs, role).await];
        let refused = pairs.client.answer().await;
        assert_eq!(refused.outcome(), (503, Some("suspect_request")));
        assert_eq!(refused.header("x-should-retry"), Some("false"));
        assert!(refused.header("retry-after").is_some());
        let message = refused.json()["message"].to_string();
        let words = [
            format!("the last one was the {role} worker http://127.0.0.1:"),
            "not sent to another one for 60 s (suspect_window_secs)".to_owned(),
        ];
        for words in words {
            assert!(message.contains(&words), "{message}");
        }
        // Bootstrap fields are not the client's, and white space at the end says nothing.
        for same in [
            BODY,
            "{\"text\":\"a\"} \n",
            r#"{"text":"a","bootstrap_room":7}"#,
        ] {
            let mut client = pairs.balancer.client().await;
            client.send(post("/generate", same)).await;
            let again = client.answer().await;
            assert_eq!(again.outcome(), (503, Some("suspect_request")), "{same}");
        }
        // As long, and another request.
        let mut client = pairs.balancer.client().await;
        client.send(post("/generate", r#"{"text":"b"}"#)).await;
        let ((_, prefill), (_, decode)) = pairs.next_legs().await;
        serve((prefill, decode)).await;
        assert_eq!(client.answer().await.status(), 200);
    }
}

/// As [`serve`], on connections that no other request gets: one that is lost before its response is only replaced.
async fn serve_and_close((prefill, decode): (Exchange, Exchange)) {
    for mut leg in [prefill, decode] {
        leg.send(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}",
        )
        .await;
    }
}

#[tokio::test]
async fn a_suspect_that_is_served_is_forgotten() {
    let mut pairs = two_pairs(60).await;
    for _ in 0..3 {
        let mut client = pairs.balancer.client().await;
        client.send(post("/generate", BODY)).await;
        lose(&mut pairs, Role::Prefill).await.closed().await;
        let ((_, prefill), (_, decode)) = pairs.next_legs().await;
        serve_and_close((prefill, decode)).await;
        assert_eq!(client.answer().await.status(), 200);
    }
}

#[tokio::test]
async fn a_stream_that_is_lost_in_its_middle_makes_its_request_a_suspect() {
    let mut pairs = two_pairs(60).await;
    for _ in 0..2 {
        let mut client = pairs.balancer.client().await;
        client.send(post("/generate", STREAM)).await;
        let ((_, prefill), (_, mut decode)) = pairs.next_legs().await;
        prefill.answer("200 OK", "{}").await;
        decode.begin_stream().await;
        decode.chunk("data: {}\n\n").await;
        assert!(client.head().await.contains("200"));
        assert_eq!(client.chunk().await.unwrap(), "data: {}\n\n");
        decode.reset();
        let last = client.chunk().await.unwrap();
        assert!(last.contains("error"), "{last}");
    }
    let mut client = pairs.balancer.client().await;
    client.send(post("/generate", STREAM)).await;
    let refused = client.answer().await;
    assert_eq!(refused.outcome(), (503, Some("suspect_request")));
}

#[tokio::test]
async fn an_equal_request_waits_for_the_trial_and_shares_its_end() {
    for served in [true, false] {
        let mut pairs = two_pairs(60).await;
        pairs.client.send(post("/generate", BODY)).await;
        lose(&mut pairs, Role::Decode).await.closed().await;
        let ((_, prefill), (_, decode)) = pairs.next_legs().await;
        let mut second = pairs.balancer.client().await;
        second.send(post("/generate", BODY)).await;
        // Answered in order, so that the second has been read.
        let mut third = pairs.balancer.client().await;
        third.send("GET /health HTTP/1.1\r\nhost: b\r\n\r\n").await;
        match served {
            true => {
                serve((prefill, decode)).await;
                assert_eq!(pairs.client.answer().await.status(), 200);
                let ((_, prefill), (_, decode)) = pairs.next_legs().await;
                serve((prefill, decode)).await;
                assert_eq!(second.answer().await.status(), 200);
            }
            false => {
                decode.reset();
                for client in [&mut pairs.client, &mut second] {
                    let refused = client.answer().await;
                    assert_eq!(refused.outcome(), (503, Some("suspect_request")));
                }
            }
        }
    }
}

#[tokio::test]
async fn samples_that_die_with_one_worker_are_one_suspect_and_are_served_one_by_one() {
    // An abort would also be a request at a worker.
    let mut pairs = TwoPairs::with(|config| config.set("disable_abort_requests", true)).await;
    let body = r#"{"text":"a","sampling_params":{"n":2}}"#;
    pairs.client.send(post("/generate", body)).await;
    let legs = [pairs.next_legs().await, pairs.next_legs().await];
    let mut decodes = Vec::new();
    for ((_, prefill), (_, decode)) in legs {
        prefill.reset();
        decodes.push(decode);
    }
    for _ in 0..2 {
        let ((_, prefill), (_, decode)) = pairs.next_legs().await;
        let others = pairs.prefills.iter().chain(&pairs.decodes);
        // The second sample comes when the first has been served.
        assert!(others.into_iter().all(|worker| !worker.has_request()));
        prefill.answer("200 OK", "{}").await;
        let sample =
            r#"{"text":"b","output_ids":[1],"meta_info":{"id":"x","completion_tokens":1}}"#;
        decode.answer("200 OK", sample).await;
    }
    let answer = pairs.client.answer().await;
    assert_eq!(answer.status(), 200, "{}", answer.text());
    assert_eq!(answer.json().as_array().map(Vec::len), Some(2));
}

#[tokio::test]
async fn a_suspect_that_does_not_get_its_turn_is_told_so() {
    let mut pairs = TwoPairs::with(|config| config.queue_timeout(Duration::from_millis(50))).await;
    pairs.client.send(post("/generate", BODY)).await;
    lose(&mut pairs, Role::Decode).await.closed().await;
    let trial = pairs.next_legs().await;
    let mut second = pairs.balancer.client().await;
    second.send(post("/generate", BODY)).await;
    let refused = second.answer().await;
    assert_eq!(refused.outcome(), (503, Some("suspect_request")));
    assert!(
        refused.text().contains("did not get its turn"),
        "{}",
        refused.text()
    );
    serve((trial.0.1, trial.1.1)).await;
    assert_eq!(pairs.client.answer().await.status(), 200);
}

#[tokio::test]
async fn without_a_window_no_request_is_a_suspect() {
    let mut pairs = two_pairs(0).await;
    for _ in 0..3 {
        let mut client = pairs.balancer.client().await;
        client.send(post("/generate", BODY)).await;
        let _others = [
            lose(&mut pairs, Role::Prefill).await,
            lose(&mut pairs, Role::Prefill).await,
        ];
        assert_eq!(client.answer().await.outcome(), (502, Some("prefill_lost")));
    }
}

#[tokio::test]
async fn a_request_that_is_fatal_over_connections_of_the_pool_costs_two_workers_as_well() {
    let fleet = Fleet::start(Role::Prefill).await;
    let address = fleet.balancer.address;
    // Connections to all workers are kept.
    let mut warm = tokio::task::JoinSet::new();
    for number in 0..40 {
        warm.spawn(answer(address, request(number, 20, "")));
    }
    while let Some(done) = soon("the first requests", warm.join_next()).await {
        assert_eq!(done.unwrap().status(), 200);
    }
    let codes = insist(address, 3).await;
    assert!(fleet.lost() <= 2, "{} lost, {codes:?}", fleet.lost());
    assert_eq!(answer(address, request(9, 3, "")).await.status(), 200);
}
