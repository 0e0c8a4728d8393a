//! Keeps one task's worth of work running for each member of the fleet.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::oneshot;

use crate::fleet::{Fleet, Worker, WorkerId};

/// Between two looks at the members: a look takes as long as the list is, and many changes that come one after the other
/// are seen together.
const PAUSE: Duration = Duration::from_millis(20);

/// Runs `watch` for each worker from when it becomes a member until it is removed, where the future is dropped. A
/// change of other members does not disturb it. Never ends.
pub(super) async fn follow<F>(fleet: &Fleet, mut watch: impl FnMut(&Arc<Worker>) -> F)
where
    F: Future<Output = ()>,
{
    let mut changes = fleet.subscribe();
    // Dropping a sender ends the watch of that worker.
    let mut watched: HashMap<WorkerId, oneshot::Sender<()>> = HashMap::new();
    let mut watches = FuturesUnordered::new();
    loop {
        let members = changes.borrow_and_update().clone();
        watched.retain(|id, _| members.contains(*id));
        for worker in members.workers() {
            if let Entry::Vacant(entry) = watched.entry(worker.id()) {
                let (member, removed) = oneshot::channel();
                entry.insert(member);
                let watch = watch(worker);
                watches.push(async move {
                    tokio::select! {
                        biased;
                        _ = removed => {}
                        () = watch => {}
                    }
                });
            }
        }
        drop(members);
        let changed = async {
            tokio::time::sleep(PAUSE).await;
            // Never an error: the fleet is borrowed, and has the sender.
            let _ = changes.changed().await;
        };
        tokio::pin!(changed);
        loop {
            tokio::select! {
                () = &mut changed => break,
                Some(()) = watches.next() => {}
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

    use super::*;
    use crate::fleet::{BreakerLimits, Members, Policies, Role, WorkerParts};

    /// What happens to the watch of a worker, by port.
    #[derive(Debug, PartialEq, Eq)]
    enum Event {
        Begins(u16),
        Ends(u16),
    }

    /// Reports the begin and the drop of a watch.
    struct Watch(u16, UnboundedSender<Event>);

    impl Watch {
        fn begin(worker: &Worker, events: &UnboundedSender<Event>) -> Self {
            let port = worker.origin().port;
            events.send(Event::Begins(port)).unwrap();
            Self(port, events.clone())
        }
    }

    impl Drop for Watch {
        fn drop(&mut self) {
            let _ = self.1.send(Event::Ends(self.0));
        }
    }

    #[tokio::test]
    async fn each_worker_is_watched_for_as_long_as_it_is_a_member() {
        let fleet = Arc::new(Fleet::new(Policies::random(), BreakerLimits::default()));
        let [one, two, three] =
            [1, 2, 3].map(|port| fleet.new_worker(WorkerParts::for_tests(Role::Decode, port)));
        let (events, mut seen) = unbounded_channel();
        let follows = follow(&fleet, |worker| {
            let watch = Watch::begin(worker, &events);
            async move {
                std::future::pending::<()>().await;
                drop(watch);
            }
        });
        let steps = async {
            for (members, expected) in [
                (vec![&one, &two], vec![Event::Begins(1), Event::Begins(2)]),
                (vec![&two, &three], vec![Event::Begins(3), Event::Ends(1)]),
                (vec![&two, &three], vec![]),
                (
                    vec![&one],
                    vec![Event::Begins(1), Event::Ends(2), Event::Ends(3)],
                ),
                (vec![], vec![Event::Ends(1)]),
            ] {
                fleet.replace(Members::new(members.into_iter().cloned()));
                let mut happened = Vec::new();
                while happened.len() < expected.len() {
                    happened.push(seen.recv().await.unwrap());
                }
                happened.sort_by_key(|event| match event {
                    Event::Begins(port) => (0, *port),
                    Event::Ends(port) => (1, *port),
                });
                assert_eq!(happened, expected);
            }
        };
        tokio::select! {
            () = follows => unreachable!("it follows for ever"),
            () = steps => {}
        }
        assert!(seen.try_recv().is_err(), "nothing else has happened");
    }

    #[tokio::test]
    async fn a_watch_that_ends_by_itself_is_not_begun_again() {
        let fleet = Arc::new(Fleet::new(Policies::random(), BreakerLimits::default()));
        let [one, two] =
            [1, 2].map(|port| fleet.new_worker(WorkerParts::for_tests(Role::Decode, port)));
        let (events, mut seen) = unbounded_channel();
        let follows = follow(&fleet, |worker| {
            let watch = Watch::begin(worker, &events);
            async move { drop(watch) }
        });
        let steps = async {
            fleet.replace(Members::new([one.clone()]));
            assert_eq!(seen.recv().await, Some(Event::Begins(1)));
            assert_eq!(seen.recv().await, Some(Event::Ends(1)));
            fleet.replace(Members::new([one, two]));
            assert_eq!(seen.recv().await, Some(Event::Begins(2)));
        };
        tokio::select! {
            () = follows => unreachable!("it follows for ever"),
            () = steps => {}
        }
    }
}
