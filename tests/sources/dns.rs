//! Workers by names of DNS, with a server that the test runs.

use std::net::{IpAddr, Ipv4Addr};

use support::dns::{DnsServer, Record, Zone};
use support::mock_worker::{MockWorker, reply};
use support::program::post_json;
use support::tls::{Authority, Terminator};
use support::{BODY, Worker, soon};

use crate::configured::Configured;

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A worker that is well, and its port.
async fn worker() -> (MockWorker, u16) {
    let worker = MockWorker::start(|_| async { reply(200, "application/json", "{}") }).await;
    let port = worker.url.rsplit_once(':').unwrap().1.parse().unwrap();
    (worker, port)
}

/// Services on this machine, each with its weight, at the name `local.test`.
fn services(server: &DnsServer, name: &str, ports: &[(u16, u16)]) {
    let records = ports
        .iter()
        .map(|(port, weight)| Record::Service(0, *weight, *port, "local.test".to_owned()));
    server.set(name, Zone::Records(0, records.collect()));
}

async fn named_server() -> DnsServer {
    let server = DnsServer::start().await;
    server.set_addresses("local.test", &[LOCALHOST]);
    server
}

fn file(server: &DnsServer, prefill: &str, decode: &str) -> String {
    format!(
        "disable_health_check: true\ndns_servers: {}\nprefill:\n  - url: {prefill}\n    bootstrap_port: 8998\ndecode:\n  - {decode}\n",
        server.address
    )
}

/// Resolves when these workers are members, and no others.
async fn members(balancer: &Configured, mut urls: Vec<String>) {
    urls.sort();
    soon("the members", async {
        while balancer.workers().await != urls {}
    })
    .await;
}

#[tokio::test]
async fn every_address_of_a_name_is_a_worker_named_by_its_address() {
    let server = named_server().await;
    let (prefill, port) = worker().await;
    let (decode, decode_port) = worker().await;
    let text = file(
        &server,
        &format!("dns+http://local.test:{port}"),
        &format!("dns+http://local.test:{decode_port}"),
    );
    let balancer = Configured::start(&text).await;
    balancer.is_ready(200).await;
    members(&balancer, vec![prefill.url.clone(), decode.url.clone()]).await;
    let answer = post_json(balancer.address, "/generate", BODY).await;
    assert_eq!(answer.status(), 200);
    let seen = decode.seen();
    let sent = seen.iter().find(|seen| seen.target == "/generate").unwrap();
    let body: serde_json::Value = serde_json::from_slice(&sent.body).unwrap();
    assert_eq!(body["bootstrap_host"], "127.0.0.1");
    assert_eq!(body["bootstrap_port"], 8998);
}

#[tokio::test]
async fn services_bring_ports_and_weights_and_an_answer_with_fewer_removes_by_draining() {
    let server = named_server().await;
    let [(one, a), (two, b), (decode, c)] = [worker().await, worker().await, worker().await];
    services(&server, "_p._tcp.test", &[(a, 30), (b, 10)]);
    services(&server, "_d._tcp.test", &[(c, 0)]);
    let text = file(
        &server,
        "srv+http://_p._tcp.test",
        "srv+http://_d._tcp.test",
    );
    let mut balancer = Configured::start(&text).await;
    balancer.is_ready(200).await;
    members(
        &balancer,
        vec![one.url.clone(), two.url.clone(), decode.url.clone()],
    )
    .await;
    services(&server, "_p._tcp.test", &[(b, 10)]);
    members(&balancer, vec![two.url.clone(), decode.url.clone()]).await;
    let line = balancer.process.line("name=srv+http://_p._tcp.test").await;
    assert!(
        line.contains("workers of a name found role=prefill"),
        "{line}"
    );
    services(&server, "_p._tcp.test", &[(a, 1), (b, 1)]);
    members(
        &balancer,
        vec![one.url.clone(), two.url.clone(), decode.url.clone()],
    )
    .await;
}

#[tokio::test]
async fn an_answer_that_fails_and_an_empty_one_keep_the_workers() {
    let server = named_server().await;
    let (prefill, a) = worker().await;
    let (decode, b) = worker().await;
    services(&server, "_p._tcp.test", &[(a, 1)]);
    services(&server, "_d._tcp.test", &[(b, 1)]);
    let text = file(
        &server,
        "srv+http://_p._tcp.test",
        "srv+http://_d._tcp.test",
    );
    let mut balancer = Configured::start(&text).await;
    balancer.is_ready(200).await;
    let all = vec![prefill.url.clone(), decode.url.clone()];
    // SERVFAIL, a name without records, a service without its target, and no such name.
    for (zone, why) in [
        (Zone::Code(2), "error="),
        (Zone::Records(0, Vec::new()), "has no such records"),
        (
            Zone::Records(0, vec![Record::Service(0, 1, a, "gone.test".to_owned())]),
            "has no such records",
        ),
        (Zone::Code(3), "has no such records"),
    ] {
        server.set("_p._tcp.test", zone);
        let line = balancer.process.line("workers of a name not found").await;
        assert!(
            line.contains("name=srv+http://_p._tcp.test kept=1"),
            "{line}"
        );
        assert!(line.contains(why), "{line}");
        services(&server, "_p._tcp.test", &[(a, 1)]);
        balancer.process.line("workers of a name found").await;
    }
    members(&balancer, all).await;
    let answer = post_json(balancer.address, "/generate", BODY).await;
    assert_eq!(answer.status(), 200);
}

#[tokio::test]
async fn a_start_waits_for_a_name_that_comes_later() {
    let server = DnsServer::start().await;
    server.set("local.test", Zone::Silence);
    let (prefill, a) = worker().await;
    let (decode, _) = worker().await;
    let text = file(&server, &format!("dns+http://later.test:{a}"), &decode.url);
    let mut balancer = Configured::start(&text).await;
    balancer.process.line("workers of a name not found").await;
    assert_eq!(balancer.readiness().await, 503);
    let answer = post_json(balancer.address, "/generate", BODY).await;
    assert_eq!(answer.outcome(), (503, Some("no_prefill")));
    server.set_addresses("later.test", &[LOCALHOST]);
    balancer.is_ready(200).await;
    members(&balancer, vec![prefill.url.clone(), decode.url.clone()]).await;
}

#[tokio::test]
async fn over_tls_the_certificate_has_the_name_that_was_asked_for() {
    let server = named_server().await;
    let authority = Authority::generate();
    let (mut prefill, decode) = Worker::pair().await;
    let config = |name: &str| Authority::server(&authority.sign(&[name]), None);
    let good = Terminator::before(prefill.address, "127.0.0.1", config("local.test")).await;
    let bad = Terminator::before(decode.address, "127.0.0.1", config("other.test")).await;
    let port = |url: &str| url.rsplit_once(':').unwrap().1.to_owned();
    let text = file(
        &server,
        &format!("dns+https://local.test:{}", port(&good.url)),
        &format!("dns+https://local.test:{}", port(&bad.url)),
    );
    let mut balancer =
        Configured::start(&format!("{text}ca_cert_paths: {}\n", authority.path())).await;
    for _ in 0..2 {
        let probe = prefill.request().await;
        let host = format!("local.test:{}", port(&good.url));
        assert_eq!(probe.request.header("host"), Some(host.as_str()));
        probe.answer("200 OK", "{}").await;
    }
    // The other one never serves.
    let line = balancer.process.line(&bad.url).await;
    assert!(line.contains("role=decode"), "{line}");
    assert_eq!(balancer.readiness().await, 503);
}

#[tokio::test]
async fn names_come_and_go_with_a_reload() {
    let server = named_server().await;
    let (prefill, a) = worker().await;
    let (decode, b) = worker().await;
    services(&server, "_p._tcp.test", &[(a, 1)]);
    let by_name = file(&server, "srv+http://_p._tcp.test", &decode.url);
    let mut balancer = Configured::start(&by_name).await;
    balancer.is_ready(200).await;
    let line = balancer
        .reload(&file(
            &server,
            &format!("dns+http://local.test:{a}"),
            &decode.url,
        ))
        .await;
    assert!(line.contains("config reloaded"), "{line}");
    balancer.process.line("name=dns+http://local.test").await;
    members(&balancer, vec![prefill.url.clone(), decode.url.clone()]).await;
    let answer = post_json(balancer.address, "/generate", BODY).await;
    assert_eq!(answer.status(), 200);
    // As a worker of its own again.
    let plain = format!(
        "disable_health_check: true\ndns_servers: {}\nprefill: [\"{}\"]\ndecode: [\"http://127.0.0.1:{b}\"]\n",
        server.address, prefill.url
    );
    balancer.reload(&plain).await;
    members(&balancer, vec![prefill.url.clone(), decode.url.clone()]).await;
    balancer.is_ready(200).await;
}
