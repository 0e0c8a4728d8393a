//! What a worker has told, and those that wait for one worker.

use super::*;
use crate::fleet::{Layout, Spread};

#[tokio::test]
async fn a_wait_for_one_worker_is_not_woken_by_another() {
    let test = test();
    let [one, other] = [1, 2].map(|port| test.list(listed(Role::Prefill, port, First::Serve)));
    let mut turns = [&one, &other].map(|worker| test.registry.turns(&worker.id).unwrap());
    let has_turned = |turns: &[watch::Receiver<()>; 2]| {
        [&turns[0], &turns[1]].map(|turns| turns.has_changed().ok())
    };
    assert_eq!(has_turned(&turns), [Some(false), Some(false)]);
    test.registry.drain(&other.id).unwrap();
    test.registry
        .amend(&one.id, |to| to.parts.weight = 2)
        .unwrap();
    assert_eq!(has_turned(&turns), [Some(false), Some(true)]);
    turns[1].mark_unchanged();
    test.registry.remove(&one.id, Leave::Now).unwrap();
    assert_eq!(has_turned(&turns), [None, Some(false)], "one is gone");
    assert!(test.registry.turns(&one.id).is_none());
}

#[tokio::test]
async fn a_worker_serves_with_the_ranks_that_it_has_told() {
    let test = test();
    let layout = Layout {
        ranks: 4,
        are_replicas: true,
        cache_tokens: None,
    };
    let examine = async |_, _| {
        Ok(Told {
            role: Some(Role::Prefill),
            layout: Some(layout),
            ..Told::default()
        })
    };
    with(&test, examine, async {
        test.list(listed(Role::Decode, 1, First::Serve));
        test.list(listed(Role::Decode, 5, First::Ask { role: true }));
        test.until(5, Some(Life::Serving)).await;
        let lease = test.select().unwrap();
        assert!(lease.prefill.spread().and_then(Spread::named).is_some());
    })
    .await;
}
