//! Where the workers are: their names, looked up at the start and again and again.
//!
//! A name that is not found takes nobody out: the last address stays, because it is more often the resolver that
//! fails than the worker that has set_address.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use crate::fleet::Worker;

/// Time between two looks at a name.
const AGAIN: Duration = Duration::from_secs(10);

/// A start does not wait longer than this for a resolver: the worker is picked up when it has an address.
const AT_START: Duration = Duration::from_secs(2);

/// The workers that have a name instead of an address.
#[derive(Default)]
pub(crate) struct Names {
    names: Vec<Name>,
}

struct Name {
    worker: Arc<Worker>,
    /// Which address it has, and whether it was found the last time. `None` before the first look.
    known: Option<SocketAddr>,
    found: Option<bool>,
}

impl Names {
    /// One more to be looked up.
    pub(crate) fn add(&mut self, worker: &Arc<Worker>) {
        self.names.push(Name::new(worker));
    }

    /// Looks all of them up, as far as that is quick.
    pub(crate) async fn begin(&mut self) {
        let names = self.names.iter_mut();
        let all = names.map(|name| name.look(system));
        // What is cut off here is looked for again at once by `watch`.
        let _ = tokio::time::timeout(AT_START, join_all(all)).await;
        for name in self.names.iter_mut().filter(|name| name.found.is_none()) {
            name.note(Err(io::ErrorKind::TimedOut.into()));
        }
    }

    /// Looks all of them up, again and again, each for itself.
    pub(crate) async fn watch(&mut self) {
        let names = self.names.iter_mut();
        let all = names.map(|name| name.watch(system));
        join_all(all).await;
        // Without names there is nothing to do, for ever.
        std::future::pending().await
    }
}

/// What the system's resolver says.
async fn system(host: String, port: u16) -> io::Result<Vec<SocketAddr>> {
    Ok(tokio::net::lookup_host((host, port)).await?.collect())
}

impl Name {
    fn new(worker: &Arc<Worker>) -> Self {
        Self {
            worker: worker.clone(),
            known: worker.address(),
            found: None,
        }
    }

    async fn watch<F>(&mut self, mut lookup: impl FnMut(String, u16) -> F)
    where
        F: Future<Output = io::Result<Vec<SocketAddr>>>,
    {
        loop {
            // A worker without an address is waited for, one that has set_address is found soon enough.
            if self.known.is_some() {
                tokio::time::sleep(AGAIN).await;
            }
            self.look(&mut lookup).await;
            if self.known.is_none() {
                tokio::time::sleep(AGAIN / 10).await;
            }
        }
    }

    async fn look<F>(&mut self, mut lookup: impl FnMut(String, u16) -> F)
    where
        F: Future<Output = io::Result<Vec<SocketAddr>>>,
    {
        let origin = self.worker.origin();
        let found = lookup(origin.host.clone(), origin.port).await;
        if let Some(address) = self.note(found) {
            self.worker.set_address(address);
        }
    }

    /// What the resolver has said: a new address, if there is one. A change is a line in the log.
    fn note(&mut self, found: io::Result<Vec<SocketAddr>>) -> Option<SocketAddr> {
        let (role, url) = (self.worker.role(), self.worker.url());
        let addresses = found.and_then(|addresses| match addresses.is_empty() {
            true => Err(io::ErrorKind::NotFound.into()),
            false => Ok(addresses),
        });
        let addresses = match addresses {
            Ok(addresses) => addresses,
            Err(error) => {
                if self.found.replace(false) != Some(false) {
                    let last = self.known;
                    log::warn!(
                        "worker's name not found role={role} worker={url} last_address={last:?} error=\"{error}\""
                    );
                }
                return None;
            }
        };
        let again = self.found.replace(true) == Some(false);
        // A name with several addresses gives them in any order: as long as ours is among them we stay.
        let stays = self.known.filter(|known| addresses.contains(known));
        // SGLang listens on IPv4 unless it is told otherwise, and `localhost` is often both.
        // Source: SGLang 0.5.23 `srt/server_args.py` (`host`).
        let fourth = || addresses.iter().find(|address| address.is_ipv4());
        let address = stays.or_else(|| fourth().or(addresses.first()).copied())?;
        let set_address = self.known.replace(address) != Some(address);
        if set_address || again {
            log::info!("worker's name found role={role} worker={url} address={address}");
        }
        set_address.then_some(address)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use crate::fleet::{Role, WorkerId, WorkerParts};

    fn name() -> Name {
        let parts = WorkerParts::named_for_tests(Role::Decode, "decode", 1);
        Name::new(&Arc::new(Worker::new(WorkerId(0), parts)))
    }

    fn address(last: u8) -> SocketAddr {
        ([10, 0, 0, last], 1).into()
    }

    fn not_found() -> io::Result<Vec<SocketAddr>> {
        Err(io::ErrorKind::NotFound.into())
    }

    #[test]
    fn the_last_address_stays_until_the_name_has_others() {
        let mut name = name();
        for (found, moves_to) in [
            (not_found(), None),
            (Ok(vec![]), None),
            (Ok(vec![address(1), address(2)]), Some(address(1))),
            (Ok(vec![address(2), address(1)]), None),
            (not_found(), None),
            (Ok(vec![]), None),
            (Ok(vec![address(1)]), None),
            (Ok(vec![address(3), address(2)]), Some(address(3))),
            (Ok(vec![([0; 8], 1).into(), address(4)]), Some(address(4))),
            (Ok(vec![([0; 8], 1).into()]), Some(([0; 8], 1).into())),
        ] {
            assert_eq!(name.note(found), moves_to);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_is_dialled_where_its_name_points_now() {
        let mut name = name();
        let worker = name.worker.clone();
        let mut answers = VecDeque::from([
            not_found(),
            Ok(vec![address(1)]),
            not_found(),
            Ok(vec![address(2)]),
        ]);
        let (seen, mut looks) = tokio::sync::mpsc::unbounded_channel();
        let watched = worker.clone();
        let watching = name.watch(move |host, port| {
            assert_eq!((host.as_str(), port), ("decode", 1));
            // Where it is dialled when the next look begins.
            seen.send(watched.address()).unwrap();
            let answer = answers.pop_front();
            async move {
                match answer {
                    Some(answer) => answer,
                    None => std::future::pending().await,
                }
            }
        });
        let dialled = async {
            let mut dialled = Vec::new();
            for _ in 0..5 {
                dialled.push(looks.recv().await.unwrap());
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

    #[test]
    fn an_address_needs_no_look() {
        let address = |host: &str| {
            let parts = WorkerParts::named_for_tests(Role::Decode, host, 1);
            Worker::new(WorkerId(0), parts).address()
        };
        assert_eq!(address("127.0.0.1"), Some(([127, 0, 0, 1], 1).into()));
        let v6: [u16; 8] = [0, 0, 0, 0, 0, 0, 0, 1];
        assert_eq!(address("::1"), Some((v6, 1).into()));
        assert_eq!(address("localhost"), None);
    }
}
