//! What an answer of DNS means: the addresses that are workers, their shares, and when to ask again. No I/O.
//!
//! Source: RFC 2782 (priority and weight of a service).

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// The shortest time until a name is asked again, whatever its TTL.
pub(super) const MIN_PAUSE: Duration = Duration::from_secs(1);

/// The longest one: many a zone has a TTL of an hour, and a new worker would wait as long.
pub(super) const MAX_PAUSE: Duration = Duration::from_secs(60);

/// The largest share of a worker, as in the configuration.
const MAX_WEIGHT: u64 = 1000;

/// The workers that a name has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    /// In the order of their addresses, each once.
    pub(super) endpoints: Vec<Endpoint>,
    /// The shortest TTL of the records.
    pub(super) ttl: Duration,
}

/// One worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Endpoint {
    pub(crate) address: SocketAddr,
    /// Its share of the requests, at least 1.
    pub(crate) weight: u32,
}

/// A service (SRV) whose target has been looked up.
#[derive(Debug, Clone)]
pub(super) struct Service {
    pub(super) priority: u16,
    pub(super) weight: u16,
    pub(super) port: u16,
    /// Empty where the target has none.
    pub(super) addresses: Vec<IpAddr>,
}

impl Answer {
    /// Of addresses with this port, which have equal shares.
    pub(super) fn of_addresses(addresses: &[IpAddr], port: u16, ttl: Duration) -> Self {
        let endpoints = addresses.iter().map(|address| Endpoint {
            address: (*address, port).into(),
            weight: 1,
        });
        Self::new(endpoints, ttl)
    }

    /// Of services: those with the lowest priority that have addresses. The others are for the time when none of these is
    /// there.
    pub(super) fn of_services(services: &[Service], ttl: Duration) -> Self {
        let usable = |service: &&Service| !service.addresses.is_empty();
        let first = services.iter().filter(usable).map(|one| one.priority).min();
        let of_first = |service: &&Service| Some(service.priority) == first;
        let chosen: Vec<_> = services.iter().filter(usable).filter(of_first).collect();
        let shares = shares(chosen.iter().map(|service| service.weight));
        let endpoints = chosen.iter().zip(shares).flat_map(|(service, weight)| {
            service.addresses.iter().map(move |address| Endpoint {
                address: (*address, service.port).into(),
                weight,
            })
        });
        Self::new(endpoints, ttl)
    }

    fn new(endpoints: impl Iterator<Item = Endpoint>, ttl: Duration) -> Self {
        let mut seen = HashSet::new();
        // Port 0 cannot be dialled.
        let endpoints = endpoints.filter(|endpoint| endpoint.address.port() > 0);
        let mut endpoints: Vec<_> = endpoints
            .filter(|endpoint| seen.insert(endpoint.address))
            .collect();
        endpoints.sort();
        Self { endpoints, ttl }
    }

    /// The time until the name is asked again.
    pub(super) fn pause(&self) -> Duration {
        self.ttl.clamp(MIN_PAUSE, MAX_PAUSE)
    }
}

/// The shares of workers whose services have these weights: the smallest whole numbers in the same proportion, so that
/// equal weights are 1, at most [`MAX_WEIGHT`]. Weight 0, which is to be chosen hardly ever, is the smallest share.
fn shares(weights: impl Iterator<Item = u16>) -> Vec<u32> {
    let weights: Vec<u64> = weights.map(u64::from).collect();
    let unit = weights.iter().copied().fold(0, gcd).max(1);
    let largest = weights.iter().copied().max().unwrap_or(0) / unit;
    let scaled = weights.iter().map(|weight| match weight / unit {
        share if largest > MAX_WEIGHT => share * MAX_WEIGHT / largest,
        share => share,
    });
    scaled
        .map(|share| u32::try_from(share.max(1)).unwrap_or(1))
        .collect()
}

/// The greatest common divisor; that of 0 and a number is the number.
fn gcd(a: u64, b: u64) -> u64 {
    match b {
        0 => a,
        b => gcd(b, a % b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    fn service(priority: u16, weight: u16, addresses: &[u8]) -> Service {
        Service {
            priority,
            weight,
            port: 30000,
            addresses: addresses.iter().map(|last| address(*last)).collect(),
        }
    }

    fn listed(services: &[Service]) -> Vec<(u8, u32)> {
        let answer = Answer::of_services(services, Duration::ZERO);
        let last = |address: SocketAddr| match address.ip() {
            IpAddr::V4(address) => address.octets()[3],
            IpAddr::V6(_) => 0,
        };
        let endpoints = answer.endpoints.iter();
        endpoints
            .map(|endpoint| (last(endpoint.address), endpoint.weight))
            .collect()
    }

    #[test]
    fn the_ttl_is_honoured_within_bounds() {
        for (ttl, pause) in [(0, 1), (5, 5), (60, 60), (3600, 60)] {
            let ttl = Duration::from_secs(ttl);
            let answer = Answer::of_addresses(&[address(1)], 1, ttl);
            assert_eq!(answer.pause(), Duration::from_secs(pause));
        }
    }

    #[test]
    fn weights_of_services_become_shares_in_the_same_proportion() {
        for (weights, expected) in [
            (&[33, 33, 33][..], &[1, 1, 1][..]),
            (&[60, 20, 20], &[3, 1, 1]),
            (&[0, 0], &[1, 1]),
            (&[0, 5], &[1, 1]),
            (&[0, 7, 3], &[1, 7, 3]),
            (&[65535, 65534, 1], &[1000, 999, 1]),
            (&[], &[]),
        ] {
            assert_eq!(shares(weights.iter().copied()), expected, "{weights:?}");
        }
    }

    #[test]
    fn services_of_a_later_priority_are_for_the_time_when_no_other_has_an_address() {
        let services = [
            service(10, 1, &[1]),
            service(20, 9, &[2]),
            service(10, 3, &[3, 4]),
        ];
        assert_eq!(listed(&services), [(1, 1), (3, 3), (4, 3)]);
        let gone = [service(10, 1, &[]), service(20, 9, &[2])];
        assert_eq!(listed(&gone), [(2, 1)]);
        assert_eq!(listed(&[]), []);
    }

    #[test]
    fn an_address_is_one_worker_however_often_it_is_told() {
        let twice = [service(0, 2, &[1, 1]), service(0, 1, &[1])];
        assert_eq!(listed(&twice), [(1, 2)]);
        let no_port = Service {
            port: 0,
            ..service(0, 1, &[2])
        };
        assert_eq!(listed(&[no_port]), []);
    }
}
