//! Where decode finds prefill: the port and the address of the bootstrap server, as decode will dial them.
//!
//! The registry itself is asked from this machine, which may have another way to it than decode has: a failure to reach
//! it from here is only a warning.
//! Source: SGLang 0.5.23 `disaggregation/common/conn.py` (`CommonKVBootstrapServer`).

use std::net::{IpAddr, SocketAddr, UdpSocket};

use http::{HeaderValue, StatusCode};
use tokio::net::lookup_host;
use tokio::time::timeout;

use super::ask::{Answer, Asker, Trouble, Visit};
use super::report::{Check, Status};
use crate::addresses::Addresses;
use crate::config::BootstrapSpec;
use crate::fleet::Worker;
use crate::pd::Engine;

pub(super) const PORT: &str = "bootstrap_port";
const ADDRESS: &str = "bootstrap_address";
const SERVER: &str = "bootstrap_server";

/// The checks about the bootstrap server of one prefill worker. Empty for a decode worker, and for one in the wrong list.
pub(super) async fn examine(
    asker: &Asker,
    visit: &Visit,
    prefills: &[&Visit],
    decodes: &[&Visit],
) -> Vec<Check> {
    let Some(bootstrap) = &visit.subject.spec.bootstrap else {
        return Vec::new();
    };
    // The address of vLLM's side channel is part of what prefill tells decode.
    if asker.engine == Engine::Vllm {
        return Vec::new();
    }
    // It has answered and is no prefill worker that can be used: its port says nothing.
    if !visit.facts.is_empty() && !visit.is_usable {
        return Vec::new();
    }
    let elsewhere = decodes
        .iter()
        .find(|decode| !is_here(&decode.subject.worker))
        .map(|decode| decode.subject.worker.url());
    let mut checks = vec![address(bootstrap, visit, prefills, elsewhere)];
    if !visit.facts.is_empty() {
        checks.insert(0, port(bootstrap, visit, decodes));
    }
    let port = bootstrap.port.or(visit.facts.bootstrap_port);
    // With a wrong port or address the answer would be another server's.
    let is_right = checks.iter().all(|check| check.status != Status::Fail);
    if let (Some(port), true, true) = (port, is_right, visit.is_usable) {
        let host = bare(&bootstrap.host);
        checks.push(registry(asker, host, port, elsewhere).await);
    }
    checks
}

/// The configured port against the port that the worker says; where none is configured, against decode's own.
fn port(bootstrap: &BootstrapSpec, visit: &Visit, decodes: &[&Visit]) -> Check {
    let Some(told) = visit.facts.bootstrap_port else {
        return Check::skip(PORT, "not reported by the worker");
    };
    let url = visit.subject.worker.url();
    let advice = format!("give the port behind the URL: --prefill {url} {told}");
    if let Some(configured) = bootstrap.port {
        return match configured == told {
            true => Check::ok(PORT, told.to_string()),
            false => Check::fail(
                PORT,
                format!("{configured} is configured, but the worker says {told}"),
                advice,
            ),
        };
    }
    let other = decodes.iter().find_map(|decode| {
        let own = decode.facts.bootstrap_port?;
        (own != told).then(|| (decode.subject.worker.url(), own))
    });
    match other {
        None => Check::ok(PORT, format!("{told}, which decode takes as its own")),
        Some((decode, own)) => Check::fail(
            PORT,
            format!(
                "none is configured, so {decode} takes its own, {own}, but the worker says {told}"
            ),
            advice,
        ),
    }
}

/// The address that decode dials. `elsewhere` is a decode worker on another machine, if there is one.
fn address(
    bootstrap: &BootstrapSpec,
    visit: &Visit,
    prefills: &[&Visit],
    elsewhere: Option<&str>,
) -> Check {
    let url = visit.subject.worker.url();
    let host = bare(&bootstrap.host);
    let port = bootstrap.port.or(visit.facts.bootstrap_port);
    let advice = format!(
        "give an address of this worker that decode reaches: --prefill {url} HOST:{}",
        port.map_or("PORT".to_owned(), |port| port.to_string())
    );
    if host.parse().is_ok_and(|host: IpAddr| host.is_unspecified()) {
        let message = format!("{host} is no address that decode can dial");
        return Check::fail(ADDRESS, message, advice);
    }
    if let (true, Some(decode)) = (is_loopback(host), elsewhere) {
        let message = format!("decode at {decode} looks for {host} on its own machine");
        return Check::fail(ADDRESS, message, advice);
    }
    let same = |other: &&&Visit| {
        let theirs = other.subject.spec.bootstrap.as_ref();
        other.subject.worker.url() != url && bootstrap.port.is_some() && theirs == Some(bootstrap)
    };
    if let Some(other) = prefills.iter().find(same) {
        let message = format!("it is also that of {}", other.subject.worker.url());
        let advice = "each prefill worker has a bootstrap server: give each its --disaggregation-bootstrap-port";
        return Check::fail(ADDRESS, message, advice);
    }
    let listens = visit.facts.host.as_deref();
    if let (Some(listens), Some(decode)) = (listens.filter(|host| is_loopback(host)), elsewhere) {
        let message =
            format!("the worker listens on {listens} only, and decode at {decode} is elsewhere");
        return Check::warn(ADDRESS, message, "start it with --host 0.0.0.0");
    }
    match port {
        Some(port) => Check::ok(ADDRESS, format!("decode dials {}:{port}", bootstrap.host)),
        None => Check::ok(ADDRESS, format!("decode dials {}", bootstrap.host)),
    }
}

/// The topology, and the address of the first rank.
const TOPOLOGY: &str =
    "/route?prefill_dp_rank=-1&prefill_cp_rank=-1&target_tp_rank=-1&target_pp_rank=-1";
const FIRST_RANK: &str =
    "/route?prefill_dp_rank=0&prefill_cp_rank=0&target_tp_rank=0&target_pp_rank=0";

/// Asks the registry as decode does.
async fn registry(asker: &Asker, host: &str, port: u16, elsewhere: Option<&str>) -> Check {
    let at = format!("{host}:{port}");
    let unseen = |why: &str| {
        Check::warn(
            SERVER,
            format!("{at} cannot be asked from here ({why})"),
            "make sure that the decode workers reach it",
        )
    };
    let found = timeout(asker.patience, lookup_host((host, port))).await;
    let Ok(Ok(found)) = found else {
        return unseen("its name is not found");
    };
    let addresses = Addresses::new(None);
    addresses.set(found.collect());
    let Ok(name) = HeaderValue::try_from(&at) else {
        return unseen("its name cannot be sent");
    };
    let answer = match asker.get_plain(&addresses, &name, TOPOLOGY).await {
        Ok(answer) => answer,
        Err(Trouble::Late) => return unseen("no answer in time"),
        Err(Trouble::Failed(failure)) => return unseen(&failure.to_string()),
    };
    if answer.status == StatusCode::SERVICE_UNAVAILABLE {
        return Check::warn(
            SERVER,
            format!("{at} says that not all ranks of this worker are there yet"),
            "wait until the worker has started",
        );
    }
    if answer.json().is_none() {
        let status = answer.status.as_u16();
        return Check::warn(
            SERVER,
            format!("{at} does not answer as a bootstrap server ({status})"),
            "check that no other program listens there",
        );
    }
    let rank = asker.get_plain(&addresses, &name, FIRST_RANK).await;
    let rank = rank.ok().as_ref().and_then(Answer::json);
    registered(
        &at,
        rank.as_ref().and_then(|rank| rank["rank_ip"].as_str()),
        elsewhere,
    )
}

/// The check of the address that a rank of prefill has registered at `at`.
fn registered(at: &str, rank: Option<&str>, elsewhere: Option<&str>) -> Check {
    match (rank.filter(|rank| is_loopback(rank)), elsewhere) {
        (Some(rank), Some(decode)) => Check::fail(
            SERVER,
            format!("{at} sends decode to {rank}, and decode at {decode} is elsewhere"),
            "start prefill with SGLANG_HOST_IP set to an address that decode reaches",
        ),
        _ => Check::ok(
            SERVER,
            format!("{at} answers, and its ranks are registered"),
        ),
    }
}

/// Whether a worker runs on this machine.
fn is_here(worker: &Worker) -> bool {
    if is_loopback(&worker.origin().host) {
        return true;
    }
    let addresses = worker.addresses().all();
    // Only an address of this machine can be bound.
    let is_own = |address: &SocketAddr| UdpSocket::bind((address.ip(), 0)).is_ok();
    addresses.iter().any(is_own)
}

fn is_loopback(host: &str) -> bool {
    let is_address = |host: IpAddr| host.is_loopback();
    host == "localhost" || host.parse().is_ok_and(is_address)
}

/// An IPv6 address without its brackets.
fn bare(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_on_loopback_is_a_problem_when_decode_is_elsewhere() {
        for (rank, elsewhere, status) in [
            (Some("127.0.0.1"), Some("http://10.0.0.2:1"), Status::Fail),
            (Some("127.0.0.1"), None, Status::Ok),
            (Some("10.0.0.1"), Some("http://10.0.0.2:1"), Status::Ok),
            (None, Some("http://10.0.0.2:1"), Status::Ok),
        ] {
            let check = registered("10.0.0.1:8998", rank, elsewhere);
            assert_eq!(check.status, status, "{check:?}");
        }
    }

    #[test]
    fn loopback_is_an_address_or_the_name_of_it() {
        for (host, expected) in [
            ("127.0.0.1", true),
            ("127.8.8.8", true),
            (bare("[::1]"), true),
            ("localhost", true),
            ("10.0.0.1", false),
            ("prefill", false),
        ] {
            assert_eq!(is_loopback(host), expected, "{host}");
        }
    }
}
