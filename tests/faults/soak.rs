//! The soak of `examples/soak.rs` for some seconds.

use std::time::Duration;

use support::soak;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_soak_loses_nothing_and_leaves_nothing_behind() {
    let plan = soak::Plan {
        binary: env!("CARGO_BIN_EXE_mini-lb").into(),
        load: Duration::from_secs(5),
        report: Duration::from_secs(1),
        kills: Duration::from_secs(2),
        clients: 8,
        upgrades: 1,
        seed: 1,
    };
    let verdict = soak::run(plan, |line| println!("{line}")).await;
    assert!(verdict.broken.is_empty(), "{verdict}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_that_changes_under_a_load_loses_no_request() {
    let changes = soak::changes::Changes {
        binary: env!("CARGO_BIN_EXE_mini-lb").into(),
        time: None,
        additions: 100,
        restarts: 20,
        kills: 2,
        flips: 10,
        reloads: 50,
        clients: 6,
    };
    let verdict = soak::changes::run(changes, |line| println!("{line}")).await;
    assert!(verdict.broken.is_empty(), "{verdict}");
}
