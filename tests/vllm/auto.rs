//! `engine: auto`: the workers tell their engine; and workers of another engine than the one that is known.

use mini_lb::MiniLbConfig;
use mini_lb::sim::{Event, SimOptions, Worker as SimWorker};
use serde_json::{Value, json};
use support::sim::{quick, quick_vllm};
use support::{Answer, Balancer, CHAT, Worker, config, post, soon};

const PROMPT: &str = r#"{"messages":[{"role":"user","content":"a b c"}],"max_tokens":3}"#;

async fn pair(options: SimOptions) -> [SimWorker; 2] {
    [
        SimWorker::start_prefill(options.clone()).await.unwrap(),
        SimWorker::start_decode(options).await.unwrap(),
    ]
}

/// A balancer in front of these workers.
async fn balancer(engine: &str, prefill: &SimWorker, decode: &SimWorker) -> Balancer {
    Balancer::start(configured(engine, &[prefill], decode)).await
}

fn configured(engine: &str, prefills: &[&SimWorker], decode: &SimWorker) -> MiniLbConfig {
    let prefills = prefills.iter();
    let prefills = prefills.map(|prefill| (prefill.url(), prefill.bootstrap_port()));
    let decodes = vec![decode.url()];
    MiniLbConfig::new("127.0.0.1".into(), 0, prefills.collect(), decodes, 60)
        .health_check_interval(None)
        .admin_listen("127.0.0.1:0")
        .set("engine", engine)
}

async fn ask(balancer: &Balancer, request: String) -> Answer {
    let mut client = balancer.client().await;
    client.send(request).await;
    client.answer().await
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: balancer\r\n\r\n")
}

/// Asks for generations until one has this status.
async fn until(balancer: &Balancer, status: u16) -> Answer {
    soon("the status", async {
        loop {
            let answer = ask(balancer, post(CHAT, PROMPT)).await;
            if answer.status() == status {
                return answer;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

async fn admin(balancer: &Balancer, method: &str, path: &str, body: &Value) -> Answer {
    let mut client = balancer.admin().await;
    let body = body.to_string();
    client
        .send(post(path, &body).replacen("POST", method, 1))
        .await;
    client.answer().await
}

fn named(url: &str) -> String {
    format!("/workers/{}", url.replace(':', "%3A").replace('/', "%2F"))
}

#[tokio::test]
async fn the_first_request_already_goes_the_way_of_the_engine_that_the_workers_tell() {
    for (options, own, others) in [
        (quick(), "/generate", "/inference/v1/generate"),
        (quick_vllm(), "/version", "/generate"),
    ] {
        let [prefill, decode] = pair(options).await;
        let balancer = balancer("auto", &prefill, &decode).await;
        let answer = ask(&balancer, post(CHAT, PROMPT)).await;
        assert_eq!(answer.status(), 200, "{own}: {}", answer.text());
        assert_eq!(ask(&balancer, get("/ready")).await.status(), 200);
        assert_ne!(ask(&balancer, get(own)).await.status(), 404, "{own}");
        assert_eq!(ask(&balancer, get(others)).await.status(), 404, "{others}");
    }
}

#[tokio::test]
async fn while_no_worker_has_told_its_engine_requests_are_refused_for_that() {
    let config = config(&[Worker::refusing().await], &[Worker::refusing().await]);
    let balancer = Balancer::start(config.set("engine", "auto")).await;
    for request in [
        post(CHAT, PROMPT),
        post("/generate", r#"{"text":"a"}"#),
        post("/inference/v1/generate", r#"{"token_ids":[1]}"#),
        get("/ready"),
        get("/v1/models"),
    ] {
        let answer = ask(&balancer, request.clone()).await;
        assert_eq!(
            answer.outcome(),
            (503, Some("unknown_engine")),
            "{request} {}",
            answer.text()
        );
        assert!(answer.text().contains("engine: auto"), "{}", answer.text());
        assert!(answer.header("retry-after").is_some(), "{request}");
    }
    assert_eq!(ask(&balancer, get("/health")).await.status(), 200);
    assert_eq!(ask(&balancer, get(CHAT)).await.status(), 405);
    assert_eq!(ask(&balancer, get("/no/such")).await.status(), 404);
}

#[tokio::test]
async fn workers_of_different_engines_are_a_clear_error_until_those_of_one_are_gone() {
    let [foreign, _] = pair(quick()).await;
    let [prefill, decode] = pair(quick_vllm()).await;
    let balancer = balancer("auto", &foreign, &decode).await;
    let answer = ask(&balancer, post(CHAT, PROMPT)).await;
    assert_eq!(answer.outcome(), (503, Some("unknown_engine")));
    for text in [answer.text(), ask(&balancer, get("/ready")).await.text()] {
        assert!(text.contains("1 of sglang and 1 of vllm"), "{text}");
        // Clients do not learn the addresses of workers.
        assert!(!text.contains("127.0.0.1"), "{text}");
    }
    let gone = admin(&balancer, "DELETE", &named(&foreign.url()), &Value::Null).await;
    assert!(gone.status() < 300, "{}", gone.text());
    let new = json!({ "url": prefill.url(), "worker_type": "prefill" });
    let added = admin(&balancer, "POST", "/workers?wait=true", &new).await;
    assert!(added.status() < 300, "{}", added.text());
    until(&balancer, 200).await;
}

#[tokio::test]
async fn a_worker_of_another_engine_is_not_added() {
    let [prefill, decode] = pair(quick_vllm()).await;
    let [foreign, _] = pair(quick()).await;
    for engine in ["auto", "vllm"] {
        let balancer = balancer(engine, &prefill, &decode).await;
        until(&balancer, 200).await;
        let new = json!({ "url": foreign.url(), "worker_type": "prefill" });
        let answer = admin(&balancer, "POST", "/workers?wait=true", &new).await;
        assert_eq!(
            answer.outcome(),
            (422, Some("worker_mismatch")),
            "{engine}: {}",
            answer.text()
        );
        let problem = "it is a worker of sglang, and this balancer has workers of vllm";
        assert!(answer.text().contains(problem), "{}", answer.text());
    }
}

#[tokio::test]
async fn a_worker_of_another_engine_is_not_added_by_a_reload() {
    for engine in ["auto", "vllm"] {
        let [prefill, decode] = pair(quick_vllm()).await;
        let [new, _] = pair(quick_vllm()).await;
        let [foreign, _] = pair(quick()).await;
        let balancer = balancer(engine, &prefill, &decode).await;
        until(&balancer, 200).await;
        let all = [&prefill, &foreign, &new];
        balancer.reload(configured(engine, &all, &decode)).await;
        let entry = |listed: &Value, url: String| {
            let mut workers = listed["workers"].as_array().unwrap().iter();
            workers.find(|worker| worker["url"] == url).cloned()
        };
        let problem = "it is a worker of sglang, and this balancer has workers of vllm";
        soon("the other engine is told", async {
            loop {
                let answer = admin(&balancer, "GET", "/workers", &Value::Null).await;
                let listed: Value = serde_json::from_str(answer.text()).unwrap();
                let state = |url| entry(&listed, url).map(|worker| worker["state"].clone());
                let told = entry(&listed, foreign.url()).map(|worker| worker["problem"].clone());
                if told.as_ref().is_some_and(|told| told == problem)
                    && state(new.url()).is_some_and(|state| state == "serving")
                {
                    assert_ne!(state(foreign.url()).unwrap(), "serving", "{listed}");
                    return;
                }
                tokio::task::yield_now().await;
            }
        })
        .await;
        for _ in 0..8 {
            assert_eq!(ask(&balancer, post(CHAT, PROMPT)).await.status(), 200);
        }
        let asked = foreign.journal().entries().into_iter();
        let mut asked = asked.filter_map(|entry| match entry.event {
            Event::RequestHead { path, .. } => Some(path),
            _ => None,
        });
        assert!(asked.all(|path| path != CHAT), "{engine}");
    }
}

#[tokio::test]
async fn a_worker_of_another_engine_gets_no_request_and_the_response_says_so() {
    for (engine, foreign, own) in [
        ("vllm", quick(), quick_vllm()),
        ("sglang", quick_vllm(), quick()),
    ] {
        let [prefill, _] = pair(foreign).await;
        let [_, decode] = pair(own).await;
        let config = config(&[prefill.url()], &[decode.url()]);
        let probed = config.health_check_interval(Some(std::time::Duration::from_secs(1)));
        let balancer = Balancer::start(probed.set("engine", engine)).await;
        let answer = until(&balancer, 503).await;
        assert_eq!(answer.outcome(), (503, Some("no_prefill")), "{engine}");
        assert!(
            answer.text().contains("are of another engine"),
            "{engine}: {}",
            answer.text()
        );
        let ready = ask(&balancer, get("/ready")).await;
        assert_eq!(ready.status(), 503, "{engine}");
        assert!(
            ready
                .text()
                .contains("workers listed as prefill that are of another engine: 1"),
            "{}",
            ready.text()
        );
    }
}
