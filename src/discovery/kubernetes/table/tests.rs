//! Sequences of steps, as a watch brings them.

#![allow(clippy::unwrap_used)]

use super::*;

fn place(last: u8) -> Place {
    Place {
        address: [10, 0, 0, last].into(),
        port: 30000,
        bootstrap_port: None,
    }
}

fn reading(name: &str, state: Result<Place, Why>) -> Vec<Reading> {
    let uid = format!("uid-of-{name}");
    let name = name.to_owned();
    vec![Reading { name, uid, state }]
}

fn listed(name: &str, state: Result<Place, Why>) -> Step {
    Step::Listed(name.to_owned(), reading(name, state))
}

fn applied(name: &str, state: Result<Place, Why>) -> Step {
    Step::Applied(name.to_owned(), reading(name, state))
}

fn lost(name: &str, why: Why) -> Remark {
    let name = name.to_owned();
    Remark::Lost { name, why }
}

fn places(table: &Table) -> Vec<u8> {
    let last = |place: &Place| match place.address {
        std::net::IpAddr::V4(address) => address.octets()[3],
        std::net::IpAddr::V6(_) => 255,
    };
    table.places().keys().map(last).collect()
}

#[test]
fn a_pod_comes_gets_ready_gets_unready_terminates_and_goes() {
    let mut table = Table::default();
    assert_eq!(table.take(Step::Begin), None);
    assert_eq!(table.take(listed("a", Err(Why::NoAddress))), None);
    assert_eq!(table.take(Step::End), Some(vec![]));
    assert!(places(&table).is_empty());
    for (step, remarks, left) in [
        (applied("a", Err(Why::NotReady)), vec![], vec![]),
        (applied("a", Ok(place(1))), vec![], vec![1]),
        (applied("b", Ok(place(2))), vec![], vec![1, 2]),
        (
            applied("a", Err(Why::NotReady)),
            vec![lost("a", Why::NotReady)],
            vec![2],
        ),
        (applied("a", Ok(place(1))), vec![], vec![1, 2]),
        (
            applied("a", Err(Why::NoAddress)),
            vec![lost("a", Why::NoAddress)],
            vec![2],
        ),
        (applied("a", Ok(place(3))), vec![], vec![2, 3]),
        (
            applied("a", Err(Why::Terminating)),
            vec![lost("a", Why::Terminating)],
            vec![2],
        ),
        (Step::Deleted("a".to_owned()), vec![], vec![2]),
        // Its labels match no longer.
        (
            Step::Deleted("b".to_owned()),
            vec![Remark::MatchesNothing, lost("b", Why::Gone)],
            vec![],
        ),
    ] {
        assert_eq!(table.take(step.clone()), Some(remarks), "{step:?}");
        assert_eq!(places(&table), left, "{step:?}");
    }
    assert_eq!(table.take(Step::Deleted("b".to_owned())), None);
}

#[test]
fn a_change_that_concerns_no_worker_is_none() {
    let mut table = Table::default();
    assert_eq!(table.take(applied("a", Ok(place(1)))), Some(vec![]));
    assert_eq!(table.take(applied("a", Ok(place(1)))), None);
}

#[test]
fn a_list_that_is_read_anew_replaces_the_last_one_at_its_end() {
    let mut table = Table::default();
    table.take(listed("a", Ok(place(1))));
    table.take(listed("b", Ok(place(2))));
    table.take(Step::End);
    table.take(Step::Begin);
    table.take(listed("b", Ok(place(2))));
    // It broke, and begins again.
    table.take(Step::Begin);
    assert_eq!(places(&table), [1, 2]);
    table.take(listed("c", Ok(place(3))));
    assert_eq!(places(&table), [1, 2]);
    let remarks = table.take(Step::End).unwrap();
    assert_eq!(remarks, [lost("a", Why::Gone), lost("b", Why::Gone)]);
    assert_eq!(places(&table), [3]);
}

#[test]
fn a_selector_that_matches_nothing_is_said_once_until_it_matches() {
    let mut table = Table::default();
    let mut relist = |objects: &[&str]| {
        table.take(Step::Begin);
        for name in objects {
            table.take(listed(name, Err(Why::NotReady)));
        }
        table.take(Step::End).unwrap()
    };
    assert_eq!(relist(&[]), [Remark::MatchesNothing]);
    assert_eq!(relist(&[]), []);
    assert_eq!(relist(&["a"]), [Remark::MatchesAgain]);
    assert_eq!(relist(&["a", "b"]), []);
    assert_eq!(relist(&[]), [Remark::MatchesNothing]);
}

#[test]
fn a_mistake_is_said_once_and_again_when_it_is_another() {
    let mut table = Table::default();
    let wrong = |text: &str| Err(Why::Unusable(text.to_owned()));
    let mut said = |state| table.take(applied("a", state)).unwrap_or_default().len();
    assert_eq!(said(wrong("x")), 1);
    assert_eq!(said(wrong("x")), 0);
    assert_eq!(said(wrong("y")), 1);
    assert_eq!(said(Ok(place(1))), 0);
    assert_eq!(said(wrong("y")), 1);
}

#[test]
fn a_pod_that_two_slices_describe_is_one_worker_with_its_first_address() {
    let mut table = Table::default();
    let v6 = Place {
        address: [0xfd00, 0, 0, 0, 0, 0, 0, 7].into(),
        ..place(0)
    };
    let of_slice = |slice: &str, place| Step::Applied(slice.to_owned(), reading("a", Ok(place)));
    for (first, second) in [(place(1), v6), (v6, place(1))] {
        table.take(of_slice("slice-1", first));
        table.take(of_slice("slice-2", second));
        assert_eq!(places(&table), [1]);
    }
    // The same endpoint is in two slices of a family while the controller moves it.
    table.take(of_slice("slice-3", place(1)));
    assert_eq!(places(&table), [1]);
    table.take(Step::Deleted("slice-1".to_owned()));
    table.take(Step::Deleted("slice-2".to_owned()));
    assert_eq!(places(&table), [1]);
    // One slice still says that it is not ready.
    table.take(Step::Applied(
        "slice-4".to_owned(),
        reading("a", Err(Why::NotReady)),
    ));
    assert_eq!(places(&table), [1]);
}
