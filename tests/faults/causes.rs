//! The cause stays the cause: when decode's leg ends early, prefill's words about the aborted transfer never decide,
//! not even when they arrive first.

use mini_lb::MiniLbConfig;
use mini_lb::pd::Role;
use mini_lb::sim::chaos::Script;
use mini_lb::sim::{SimOptions, Worker};
use support::pair::{ROLES, leg_of, serve};
use support::sim::quick;
use support::{BODY, Balancer, Exchange, Pair, STREAM, post};

/// SGLang's response of a prefill worker whose decode has gone.
const ABORTED: &str = "{\"object\":\"error\",\"message\":\"Prefill transfer failed for request rank=0 req.rid='r' \
     req.bootstrap_room=7 with exception KVTransferError(bootstrap_room=7): Aborted by AbortReq.\",\"type\":\"500\",\
     \"param\":null,\"code\":500}";

const FAILED: &str = "500 Internal Server Error";

/// Prefill's words about an abort have reached the balancer.
async fn prefill_first(pair: &mut Pair, body: &str) -> Exchange {
    let (mut prefill, decode) = pair.legs("/generate", body).await;
    let length = ABORTED.len();
    let answer = format!(
        "HTTP/1.1 {FAILED}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{ABORTED}"
    );
    prefill.send(answer).await;
    // The balancer closes the connection once it has read the response.
    prefill.closed().await;
    decode
}

#[tokio::test]
async fn a_decode_that_is_lost_after_prefill_told_of_an_abort_is_the_cause() {
    for body in [BODY, STREAM] {
        let mut pair = Pair::start().await;
        let decode = prefill_first(&mut pair, body).await;
        decode.reset();
        pair.bad_gateway(body, "decode_lost").await;
    }
}

#[tokio::test]
async fn what_decode_says_decides_against_prefills_words_about_an_abort() {
    let mut pair = Pair::start().await;
    let decode = prefill_first(&mut pair, BODY).await;
    decode.answer(FAILED, "{\"decode\":1}").await;
    let answer = pair.client.answer().await;
    assert_eq!((answer.status(), answer.text()), (500, "{\"decode\":1}"));
    // In the first event of a stream under 200 as well.
    let mut pair = Pair::start().await;
    let mut decode = prefill_first(&mut pair, STREAM).await;
    decode.begin_stream().await;
    let event = "data: {\"error\":{\"message\":\"of decode\",\"code\":500}}\n\n";
    decode.chunk(event).await;
    let answer = pair.client.answer().await;
    assert_eq!(answer.status(), 500);
    assert!(answer.text().contains("of decode"), "{}", answer.text());
}

#[tokio::test]
async fn prefills_words_about_an_abort_decide_where_decode_says_nothing() {
    let mut pair = Pair::start().await;
    let decode = prefill_first(&mut pair, BODY).await;
    let answer = pair.client.answer().await;
    assert_eq!((answer.status(), answer.text()), (500, ABORTED));
    decode.closed().await;
}

#[tokio::test]
async fn a_worker_that_dies_with_a_request_on_an_idle_connection_was_lost_though_it_refuses_the_next()
 {
    for role in ROLES {
        let mut pair = Pair::start().await;
        let legs = pair.legs("/generate", BODY).await;
        serve(legs).await;
        assert_eq!(pair.client.answer().await.status(), 200);
        let legs = pair.legs("/generate", BODY).await;
        match role {
            Role::Prefill => pair.prefill.stop_listening().await,
            Role::Decode => pair.decode.stop_listening().await,
        }
        let (dying, _other) = leg_of(role, legs);
        dying.reset();
        let answer = pair.bad_gateway("", &format!("{role}_lost")).await;
        assert!(
            answer.text().contains("then it refused"),
            "{}",
            answer.text()
        );
    }
}

/// With several threads, either leg may be heard of first.
#[tokio::test(flavor = "multi_thread")]
async fn a_decode_that_dies_in_the_transfer_is_the_cause_each_time() {
    let rules = "rules: [{match: {role: decode}, do: crash_in_transfer}]";
    let streamed = r#"{"text":"a","stream":true}"#;
    for body in [BODY, streamed].repeat(15) {
        let options = SimOptions {
            chaos: Script::parse(rules).unwrap(),
            ..quick()
        };
        let prefill = Worker::start_prefill(options.clone()).await.unwrap();
        let decode = Worker::start_decode(options).await.unwrap();
        let prefills = vec![(prefill.url(), prefill.bootstrap_port())];
        let config = MiniLbConfig::new("127.0.0.1".into(), 0, prefills, vec![decode.url()], 60)
            .health_check_interval(None);
        let balancer = Balancer::start(config).await;
        let mut client = balancer.client().await;
        client.send(post("/generate", body)).await;
        let answer = client.answer().await;
        assert_eq!(
            answer.outcome(),
            (502, Some("decode_lost")),
            "{}",
            answer.text()
        );
    }
}
