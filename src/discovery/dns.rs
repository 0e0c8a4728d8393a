//! DNS: the addresses of workers whose URL has a name, looked up at the start and then at an interval.
//!
//! A failed lookup changes nothing: the last addresses stay, because it is more often the resolver that fails than the
//! worker that has moved. Which of several addresses is used is `net`'s choice.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use super::follow::follow;
use crate::fleet::{Fleet, Worker, WorkerId};

/// Between two lookups of a name that has an address.
const LOOKUP_INTERVAL: Duration = Duration::from_secs(10);

/// Between two lookups of a name that has none yet.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// How long the start waits for the resolver. A worker that is found later serves from then on.
const START_TIMEOUT: Duration = Duration::from_secs(2);

/// The names of the fleet's members.
pub(crate) struct Names {
    fleet: Arc<Fleet>,
    /// What [`Names::begin`] has looked up, until [`Names::watch`] goes on with it.
    begun: HashMap<WorkerId, Name>,
}

struct Name {
    worker: Arc<Worker>,
    /// The addresses of the last lookup that found some, sorted.
    known: Vec<SocketAddr>,
    /// Whether the last lookup found one; `None` before the first.
    found: Option<bool>,
}

impl Names {
    pub(crate) fn new(fleet: Arc<Fleet>) -> Self {
        Self {
            fleet,
            begun: HashMap::new(),
        }
    }

    /// Looks up the names of all members, for at most [`START_TIMEOUT`].
    pub(crate) async fn begin(&mut self) {
        let mut names: Vec<_> = self
            .fleet
            .members()
            .workers()
            .filter_map(Name::of)
            .collect();
        let lookups = names.iter_mut().map(|name| name.look_up(system));
        // A lookup that is cut off here is repeated at once by `watch`.
        let _ = tokio::time::timeout(START_TIMEOUT, join_all(lookups)).await;
        for name in names.iter_mut().filter(|name| name.found.is_none()) {
            name.note(Err(io::ErrorKind::TimedOut.into()));
        }
        let begun = names.into_iter().map(|name| (name.worker.id(), name));
        self.begun = begun.collect();
    }

    /// Looks up the names of all members again and again, for ever.
    pub(crate) async fn watch(&mut self) {
        self.watch_by(system).await;
    }

    async fn watch_by<F>(&mut self, lookup: impl FnMut(String, u16) -> F + Clone)
    where
        F: Future<Output = io::Result<Vec<SocketAddr>>>,
    {
        let begun = &mut self.begun;
        follow(&self.fleet, |worker| {
            let name = begun.remove(&worker.id()).or_else(|| Name::of(worker));
            let lookup = lookup.clone();
            async move {
                if let Some(mut name) = name {
                    name.watch(lookup).await;
                }
            }
        })
        .await;
    }
}

/// A lookup by the system's resolver.
async fn system(host: String, port: u16) -> io::Result<Vec<SocketAddr>> {
    Ok(tokio::net::lookup_host((host, port)).await?.collect())
}

impl Name {
    /// `None` for a worker whose URL has an address.
    fn of(worker: &Arc<Worker>) -> Option<Self> {
        worker.origin().literal().is_none().then(|| Self {
            worker: worker.clone(),
            known: worker.addresses().all().to_vec(),
            found: None,
        })
    }

    async fn watch<F>(&mut self, mut lookup: impl FnMut(String, u16) -> F)
    where
        F: Future<Output = io::Result<Vec<SocketAddr>>>,
    {
        loop {
            if !self.known.is_empty() {
                tokio::time::sleep(LOOKUP_INTERVAL).await;
            }
            self.look_up(&mut lookup).await;
            if self.known.is_empty() {
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
        }
    }

    async fn look_up<F>(&mut self, mut lookup: impl FnMut(String, u16) -> F)
    where
        F: Future<Output = io::Result<Vec<SocketAddr>>>,
    {
        let origin = self.worker.origin();
        let found = lookup(origin.host.clone(), origin.port).await;
        if let Some(addresses) = self.note(found) {
            self.worker.set_addresses(addresses);
        }
    }

    /// Notes the result of a lookup, and logs a change. The worker's addresses, if they are others than before.
    fn note(&mut self, found: io::Result<Vec<SocketAddr>>) -> Option<Vec<SocketAddr>> {
        let (role, url) = (self.worker.role(), self.worker.url());
        let addresses = found.and_then(|addresses| match addresses.is_empty() {
            true => Err(io::ErrorKind::NotFound.into()),
            false => Ok(addresses),
        });
        let mut addresses = match addresses {
            Ok(addresses) => addresses,
            Err(error) => {
                if self.found.replace(false) != Some(false) {
                    let last = &self.known;
                    log::warn!(
                        "worker's name not found role={role} worker={url} last_addresses={last:?} error=\"{error}\""
                    );
                }
                return None;
            }
        };
        let found_again = self.found.replace(true) == Some(false);
        // `localhost` is often IPv4 and IPv6, and SGLang listens on IPv4 by default.
        // Source: SGLang 0.5.23 `srt/server_args.py` (`host`).
        addresses.sort_by_key(SocketAddr::is_ipv6);
        // A resolver gives several addresses in any order, which is no change.
        let mut sorted = addresses.clone();
        sorted.sort();
        let moved = sorted != self.known;
        if moved || found_again {
            log::info!("worker's name found role={role} worker={url} addresses={addresses:?}");
        }
        self.known = sorted;
        moved.then_some(addresses)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::VecDeque;

    use tokio::sync::mpsc::unbounded_channel;

    use super::*;
    use crate::fleet::{BreakerLimits, Members, Policies, Role, WorkerParts};

    fn fleet() -> Arc<Fleet> {
        Arc::new(Fleet::new(Policies::random(), BreakerLimits::default()))
    }

    fn worker(fleet: &Fleet, host: &str) -> Arc<Worker> {
        fleet.new_worker(WorkerParts::plain(Role::Decode, host, 1))
    }

    fn name() -> Name {
        Name::of(&worker(&fleet(), "decode")).unwrap()
    }

    fn address(last: u8) -> SocketAddr {
        ([10, 0, 0, last], 1).into()
    }

    fn not_found() -> io::Result<Vec<SocketAddr>> {
        Err(io::ErrorKind::NotFound.into())
    }

    #[test]
    fn the_last_addresses_stay_until_the_name_has_others() {
        let mut name = name();
        let v6 = || SocketAddr::from(([0; 8], 1));
        let (one, two) = (address(1), address(2));
        for (found, moves_to) in [
            (not_found(), None),
            (Ok(vec![]), None),
            (Ok(vec![one, two]), Some(vec![one, two])),
            (Ok(vec![two, one]), None),
            (not_found(), None),
            (Ok(vec![]), None),
            (Ok(vec![one]), Some(vec![one])),
            (Ok(vec![v6(), two, one]), Some(vec![two, one, v6()])),
            (Ok(vec![v6()]), Some(vec![v6()])),
        ] {
            assert_eq!(name.note(found), moves_to);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_is_dialled_where_its_name_points_now() {
        let mut name = name();
        let worker = name.worker.clone();
        let mut results = VecDeque::from([
            not_found(),
            Ok(vec![address(1)]),
            not_found(),
            Ok(vec![address(2)]),
        ]);
        let (seen, mut lookups) = unbounded_channel();
        let watched = worker.clone();
        let watching = name.watch(move |host, port| {
            assert_eq!((host.as_str(), port), ("decode", 1));
            // Where it is dialled when the next lookup begins.
            seen.send(watched.address()).unwrap();
            let result = results.pop_front();
            async move {
                match result {
                    Some(result) => result,
                    None => std::future::pending().await,
                }
            }
        });
        let dialled = async {
            let mut dialled = Vec::new();
            for _ in 0..5 {
                dialled.push(lookups.recv().await.unwrap());
            }
            dialled
        };
        let dialled = tokio::select! {
            () = watching => unreachable!("it watches for ever"),
            dialled = dialled => dialled,
        };
        let (first, second) = (Some(address(1)), Some(address(2)));
        assert_eq!(dialled, [None, None, first, first, second]);
    }

    #[tokio::test(start_paused = true)]
    async fn names_of_new_members_are_looked_up_and_those_of_removed_ones_no_longer() {
        let fleet = fleet();
        let [stays, leaves, comes] = ["stays", "leaves", "comes"].map(|host| worker(&fleet, host));
        let literal = worker(&fleet, "10.0.0.9");
        fleet.replace(Members::new([stays.clone(), leaves, literal]));
        let mut names = Names::new(fleet.clone());
        let (seen, mut lookups) = unbounded_channel();
        let watching = names.watch_by(move |host, _| {
            seen.send(host).unwrap();
            async { Ok(vec![address(1)]) }
        });
        let steps = async {
            let mut next = async |count| {
                let mut hosts = Vec::new();
                for _ in 0..count {
                    hosts.push(lookups.recv().await.unwrap());
                }
                hosts.sort();
                hosts
            };
            assert_eq!(next(2).await, ["leaves", "stays"]);
            fleet.replace(Members::new([stays.clone(), comes.clone()]));
            assert_eq!(next(1).await, ["comes"]);
            for _ in 0..3 {
                assert_eq!(next(2).await, ["comes", "stays"]);
            }
        };
        tokio::select! {
            () = watching => unreachable!("it watches for ever"),
            () = steps => {}
        }
        assert_eq!(
            (stays.address(), comes.address()),
            (Some(address(1)), Some(address(1)))
        );
    }

    #[test]
    fn an_address_needs_no_lookup() {
        let fleet = fleet();
        for (host, address) in [
            ("127.0.0.1", Some(([127, 0, 0, 1], 1).into())),
            ("::1", Some(([0u16, 0, 0, 0, 0, 0, 0, 1], 1).into())),
            ("localhost", None),
        ] {
            let worker = worker(&fleet, host);
            assert_eq!(worker.address(), address);
            assert_eq!(Name::of(&worker).is_none(), address.is_some());
        }
    }
}
