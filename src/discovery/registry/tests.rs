//! Workers that come, drain and leave, without a socket: the examination is a function of the test.

use tokio::sync::Semaphore;

use super::*;
use crate::fleet::{BreakerLimits, Members, Policies, Selection, Targets, WorkerParts};
use crate::pd::{Route, RoutingKey};

mod told;

pub(super) const REQUEST: RoutingKey = RoutingKey {
    route: Route::Generate,
    body_bytes: 0,
    prompts: 1,
    session: None,
    prefix: None,
    to_come: 0,
    rank: None,
};

pub(super) struct Test {
    fleet: Arc<Fleet>,
    pub(super) registry: Registry,
}

pub(super) fn test() -> Test {
    let fleet = Arc::new(Fleet::new(Policies::random(), BreakerLimits::default()));
    let describe: Describe = Box::new(|role, description| {
        let port = description.url.rsplit(':').next().unwrap();
        let port = port.parse().map_err(|_| "no port".to_owned())?;
        Ok(WorkerParts::for_tests(role, port))
    });
    Test {
        registry: Registry::new(fleet.clone(), describe),
        fleet,
    }
}

pub(super) fn listed(role: Role, port: u16, first: First) -> Listed {
    Listed {
        parts: WorkerParts::for_tests(role, port),
        first,
        details: Details::default(),
    }
}

fn url(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

impl Test {
    /// A prefill worker with port 1 and a decode worker with port 2.
    fn set_pair(&self) {
        let pair = [(Role::Prefill, 1), (Role::Decode, 2)];
        let listed = pair.map(|(role, port)| listed(role, port, First::Serve));
        self.registry.set(&Source::Config, listed.into());
    }

    fn select(&self) -> Result<crate::fleet::Lease, crate::fleet::NoWorker> {
        let wanted = Selection {
            request: &REQUEST,
            avoid: &[],
            siblings: None,
            targets: Targets::default(),
            now: std::time::Instant::now(),
        };
        self.fleet.select(wanted, rand::random)
    }

    fn ports(&self, role: Role) -> Vec<u16> {
        let members: Arc<Members> = self.fleet.members();
        let workers = members.of(role).iter();
        workers.map(|worker| worker.origin().port).collect()
    }

    fn try_list(&self, listed: Listed) -> Result<(), Conflict> {
        let list = |state: &mut State| state.list(&Source::Api, listed).map(|_| ());
        self.registry.change(list)
    }

    fn list(&self, listed: Listed) -> Shown {
        let url = listed.parts.url.clone();
        self.try_list(listed).unwrap();
        self.registry.find(&url).unwrap()
    }

    fn life(&self, port: u16) -> Option<Life> {
        Some(self.registry.find(&url(port))?.life)
    }

    /// Resolves when the worker is in this state; `None` is gone.
    async fn until(&self, port: u16, life: Option<Life>) {
        let mut changed = self.registry.subscribe();
        while self.life(port) != life {
            changed.changed().await.unwrap();
        }
    }
}

/// Runs the registry, whose workers are examined by `examine`, for as long as the steps take.
async fn with<F>(
    test: &Test,
    examine: impl Fn(Arc<Worker>, First) -> F,
    steps: impl Future<Output = ()>,
) where
    F: Future<Output = Result<Told, Complaint>>,
{
    tokio::select! {
        () = test.registry.run_by(examine) => unreachable!("it runs for ever"),
        () = steps => {}
    }
}

async fn well(_: Arc<Worker>, _: First) -> Result<Told, Complaint> {
    Ok(Told::default())
}

#[test]
fn workers_that_need_no_probe_are_members_at_once_in_the_order_of_their_list() {
    let test = test();
    test.set_pair();
    assert!(test.select().is_ok());
    let more = [
        (Role::Prefill, 1),
        (Role::Decode, 2),
        (Role::Prefill, 9),
        (Role::Prefill, 3),
    ];
    let more = more.map(|(role, port)| listed(role, port, First::Serve));
    test.registry.set(&Source::Config, more.into());
    assert_eq!(test.ports(Role::Prefill), [1, 9, 3]);
}

#[tokio::test]
async fn a_worker_gets_no_request_before_it_is_well() {
    let test = test();
    test.set_pair();
    let permits = Semaphore::new(0);
    let examine = async |_, _| {
        permits.acquire().await.unwrap().forget();
        Ok(Told::default())
    };
    with(&test, examine, async {
        let shown = test.list(listed(Role::Decode, 3, First::Probe));
        assert_eq!(shown.life, Life::Pending);
        assert_eq!(test.ports(Role::Decode), [2]);
        permits.add_permits(1);
        test.until(3, Some(Life::Serving)).await;
        assert_eq!(test.ports(Role::Decode), [2, 3]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_is_not_ready_is_asked_again_and_one_that_contradicts_is_refused() {
    let test = test();
    let asked = std::sync::atomic::AtomicUsize::new(0);
    let examine = |worker: Arc<Worker>, _| {
        let nth = asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let told = match (worker.origin().port, nth) {
            (1, 0..2) => Err(Complaint::ForNow("starting".to_owned())),
            (1, _) => Ok(Told::default()),
            _ => Err(Complaint::Contradicts("it is a teapot".to_owned())),
        };
        async { told }
    };
    with(&test, examine, async {
        test.list(listed(Role::Prefill, 1, First::Probe));
        test.until(1, Some(Life::Serving)).await;
        test.list(listed(Role::Decode, 2, First::Probe));
        test.until(2, Some(Life::Failed)).await;
        let refused = test.registry.find(&url(2)).unwrap();
        assert_eq!(refused.problem.as_deref(), Some("it is a teapot"));
        // It may be added again.
        let again = test.list(listed(Role::Decode, 2, First::Probe));
        assert_ne!(again.id, refused.id);
        test.until(2, Some(Life::Failed)).await;
    })
    .await;
    assert!(test.ports(Role::Decode).is_empty());
}

#[tokio::test]
async fn a_role_that_is_not_known_is_the_one_that_the_worker_says() {
    let test = test();
    let examine = async |_, first| {
        assert_eq!(first, First::Ask { role: true });
        Ok(Told {
            role: Some(Role::Prefill),
            bootstrap_port: Some(8998),
            layout: None,
        })
    };
    with(&test, examine, async {
        let asks = listed(Role::Decode, 5, First::Ask { role: true });
        assert_eq!(test.list(asks).role, None);
        test.until(5, Some(Life::Serving)).await;
    })
    .await;
    let worker = test.registry.find(&url(5)).unwrap().worker;
    assert_eq!(worker.role(), Role::Prefill);
    let bootstrap = worker.bootstrap().unwrap();
    assert_eq!(
        (bootstrap.host(), bootstrap.port()),
        ("127.0.0.1", Some(8998))
    );
    assert_eq!(test.ports(Role::Prefill), [5]);
}

#[tokio::test]
async fn a_worker_that_is_no_longer_listed_gets_no_request_and_is_forgotten_with_its_last_one() {
    let test = test();
    test.set_pair();
    with(&test, well, async {
        let lease = test.select().unwrap();
        test.registry.set(
            &Source::Config,
            vec![listed(Role::Prefill, 1, First::Serve)],
        );
        assert_eq!(test.life(2), Some(Life::Leaving));
        // It is seen, and not even taken where there is no other.
        assert_eq!(test.ports(Role::Decode), [2]);
        assert!(test.select().is_err());
        drop(lease);
        test.until(2, None).await;
        assert!(test.ports(Role::Decode).is_empty());
    })
    .await;
}

#[tokio::test]
async fn a_worker_that_is_listed_again_while_it_drains_is_the_same_worker() {
    let test = test();
    test.set_pair();
    let before = test.registry.find(&url(2)).unwrap();
    let lease = test.select().unwrap();
    test.registry.set(
        &Source::Config,
        vec![listed(Role::Prefill, 1, First::Serve)],
    );
    test.set_pair();
    let after = test.registry.find(&url(2)).unwrap();
    assert!(Arc::ptr_eq(&before.worker, &after.worker));
    assert_eq!((after.life, after.id), (Life::Serving, before.id));
    with(&test, well, async {
        drop(lease);
        tokio::task::yield_now().await;
    })
    .await;
    assert!(test.select().is_ok());
}

#[test]
fn a_list_with_the_other_role_changes_nothing_and_is_told() {
    let test = test();
    test.set_pair();
    let conflict = test.try_list(listed(Role::Prefill, 2, First::Probe));
    assert_eq!(
        conflict.err().map(|conflict| conflict.role),
        Some(Role::Decode)
    );
    test.registry.set(
        &Source::Kubernetes,
        vec![listed(Role::Decode, 1, First::Probe)],
    );
    let conflicts = test.registry.conflicts();
    assert_eq!(conflicts.len(), 1);
    assert_eq!(
        (&conflicts[0].0, &*conflicts[0].1.url),
        (&Source::Kubernetes, &*url(1))
    );
    test.registry.set(&Source::Kubernetes, vec![]);
    assert!(test.registry.conflicts().is_empty());
    assert!(test.select().is_ok());
}

#[test]
fn a_worker_of_two_sources_leaves_with_the_second() {
    let test = test();
    test.set_pair();
    test.registry.set(
        &Source::Dns("d".into()),
        vec![listed(Role::Decode, 2, First::Probe)],
    );
    test.registry.set(
        &Source::Config,
        vec![listed(Role::Prefill, 1, First::Serve)],
    );
    assert_eq!(test.life(2), Some(Life::Serving));
    assert_eq!(
        test.registry.find(&url(2)).unwrap().sources,
        [Source::Dns("d".into())]
    );
    test.registry.set(&Source::Dns("d".into()), vec![]);
    assert_eq!(test.life(2), Some(Life::Leaving));
}

#[test]
fn a_removal_by_name_holds_for_as_long_as_the_source_lists_the_worker() {
    let test = test();
    test.set_pair();
    let removed = test.registry.remove(&url(2), Leave::Now).unwrap();
    assert_eq!(test.registry.find(&removed.id).map(|found| found.id), None);
    test.set_pair();
    assert_eq!(test.life(2), None);
    // Listed by nothing, and then again.
    test.registry.set(
        &Source::Config,
        vec![listed(Role::Prefill, 1, First::Serve)],
    );
    test.set_pair();
    assert_eq!(test.life(2), Some(Life::Serving));
}

#[tokio::test]
async fn a_removal_ends_an_addition_that_is_pending() {
    let test = test();
    let examine = async |_, _| std::future::pending().await;
    with(&test, examine, async {
        let added = test.list(listed(Role::Decode, 2, First::Probe));
        tokio::task::yield_now().await;
        let removed = test
            .registry
            .remove(&added.id, Leave::Within(DRAIN_TIME))
            .unwrap();
        assert_eq!(removed.id, added.id);
        assert!(test.registry.workers().is_empty());
    })
    .await;
}

#[tokio::test]
async fn a_worker_that_drains_serves_again_when_it_is_told_to() {
    let test = test();
    test.set_pair();
    with(&test, well, async {
        let lease = test.select().unwrap();
        let drained = test.registry.drain(&url(2)).unwrap();
        assert_eq!(drained.life, Life::Draining);
        assert!(test.select().is_err());
        drop(lease);
        drained.worker.drained().await;
        // It is listed, and stays.
        assert_eq!(test.life(2), Some(Life::Draining));
        test.registry.probe(&url(2)).unwrap();
        assert!(test.select().is_err(), "it is probed first");
        test.until(2, Some(Life::Serving)).await;
        assert!(test.select().is_ok());
    })
    .await;
}

#[test]
fn other_wishes_for_a_worker_count_without_a_pause() {
    let test = test();
    test.set_pair();
    let before = test.registry.find(&url(2)).unwrap();
    let mut heavier = listed(Role::Decode, 2, First::Serve);
    heavier.parts.weight = 7;
    let of = |listed| vec![self::listed(Role::Prefill, 1, First::Serve), listed];
    test.registry.set(&Source::Config, of(heavier.clone()));
    let after = test.registry.find(&url(2)).unwrap();
    assert!(Arc::ptr_eq(&before.worker, &after.worker));
    assert_eq!(after.worker.weight(), 7);
    // A key is a part of the worker: requests with the old one go on.
    let lease = test.select().unwrap();
    heavier.parts.authorization = Some(http::HeaderValue::from_static("Bearer k"));
    test.registry.set(&Source::Config, of(heavier));
    let keyed = test.registry.find(&url(2)).unwrap();
    assert_eq!(keyed.id, after.id);
    assert!(keyed.worker.authorization().is_some());
    assert_eq!((keyed.worker.in_flight(), lease.decode.in_flight()), (0, 1));
    assert_eq!(test.select().unwrap().decode.id(), keyed.worker.id());
}

#[tokio::test]
async fn a_worker_that_is_switched_serves_in_the_other_role_and_its_list_means_it_still() {
    let test = test();
    test.set_pair();
    with(&test, well, async {
        let before = test.registry.drain(&url(1)).unwrap();
        test.registry.switch(&url(1), Role::Decode, None).unwrap();
        test.until(1, Some(Life::Serving)).await;
        let after = test.registry.find(&url(1)).unwrap();
        assert_eq!(after.id, before.id);
        assert_ne!(after.worker.id(), before.worker.id());
        assert_eq!(test.ports(Role::Decode), [1, 2]);
        assert!(test.ports(Role::Prefill).is_empty());
        test.set_pair();
        assert!(test.registry.conflicts().is_empty());
        assert_eq!(test.ports(Role::Decode), [1, 2]);
    })
    .await;
}

#[test]
fn an_addition_to_two_thousand_workers_makes_no_list_anew() {
    let test = test();
    // A list that is made anew has another address than the one that it replaces, which is there until then.
    let place = || Arc::as_ptr(&test.fleet.members());
    let before = place();
    for port in 1..=2_000 {
        let role = [Role::Prefill, Role::Decode][usize::from(port % 2)];
        let added = test.registry.add(listed(role, port, First::Serve));
        assert!(added.is_ok());
        assert_eq!(place(), before, "at {port}");
    }
    assert_eq!(test.ports(Role::Prefill).len(), 1_000);
    assert_eq!(test.ports(Role::Decode).len(), 1_000);
    assert!(test.select().is_ok());
    for port in 1..=2_000 {
        test.registry.remove(&url(port), Leave::Now).unwrap();
    }
    assert_eq!(test.fleet.members().workers().count(), 0);
}

#[tokio::test]
async fn workers_stand_in_the_order_in_which_they_were_found_well() {
    let test = test();
    let permits = [Semaphore::new(0), Semaphore::new(0), Semaphore::new(0)];
    let examine = async |worker: Arc<Worker>, _| {
        let permit = permits[usize::from(worker.origin().port) - 1].acquire();
        permit.await.unwrap().forget();
        Ok(Told::default())
    };
    with(&test, examine, async {
        for port in 1..=3 {
            test.list(listed(Role::Decode, port, First::Probe));
        }
        for port in [3, 1, 2] {
            permits[usize::from(port) - 1].add_permits(1);
            test.until(port, Some(Life::Serving)).await;
        }
        assert_eq!(test.ports(Role::Decode), [3, 1, 2]);
        // As well where the list is made anew.
        test.registry.remove(&url(1), Leave::Now).unwrap();
        assert_eq!(test.ports(Role::Decode), [3, 2]);
    })
    .await;
}
