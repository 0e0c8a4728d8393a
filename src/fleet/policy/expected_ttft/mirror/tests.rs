//! The mirrors beside what workers hold.

use super::*;

fn place(worker: u64) -> Place {
    Place {
        worker: WorkerId(worker),
        rank: 0,
    }
}

fn depth(mirrors: &Mirrors, worker: u64, prompt: &[u64]) -> usize {
    let slot = mirrors.slot(place(worker));
    mirrors.held(prompt, &[slot]).depth(slot)
}

/// The mirrors agree with themselves: the index and the lists name the same blocks.
fn check(mirrors: &Mirrors) {
    let mut listed = 0;
    for cache in mirrors.caches.values() {
        let mut place = cache.newest;
        let mut count = 0;
        while place != NONE {
            let block = &cache.blocks[place as usize];
            assert_eq!(cache.places[&block.hash], place);
            let mut holds = false;
            mirrors.holders[&block.hash]
                .bits()
                .each(|slot| holds |= slot == cache.slot);
            assert!(holds);
            count += 1;
            place = block.older;
        }
        assert_eq!(count, cache.len());
        listed += count;
    }
    let mut held = 0;
    for holders in mirrors.holders.values() {
        holders.bits().each(|_| held += 1);
    }
    assert_eq!(held, listed);
}

#[test]
fn a_worker_holds_the_common_beginning_of_what_it_computed() {
    let mut mirrors = Mirrors::default();
    mirrors.add(place(1), &[1, 2, 3], None);
    mirrors.add(place(2), &[1, 2, 4, 5], None);
    for (prompt, first, second) in [
        (&[1, 2, 3, 9][..], 3, 2),
        (&[1, 2, 4, 5], 2, 4),
        (&[1], 1, 1),
        (&[], 0, 0),
    ] {
        assert_eq!(depth(&mirrors, 1, prompt), first, "{prompt:?}");
        assert_eq!(depth(&mirrors, 2, prompt), second, "{prompt:?}");
    }
    assert_eq!(depth(&mirrors, 3, &[1]), 0);
    check(&mirrors);
}

#[test]
fn the_end_of_the_prompt_that_was_not_used_for_longest_goes_first() {
    let mut mirrors = Mirrors::default();
    let worker = place(1);
    mirrors.add(worker, &[1, 2, 3, 4], None);
    mirrors.add(worker, &[5, 6], None);
    mirrors.add(worker, &[1, 2], None);
    mirrors
        .caches
        .get_mut(&worker)
        .expect("it was added")
        .capacity = 4.0;
    mirrors.add(worker, &[5], None);
    assert_eq!(depth(&mirrors, 1, &[1, 2, 3, 4]), 2);
    assert_eq!(depth(&mirrors, 1, &[5, 6]), 2);
    check(&mirrors);
}

#[test]
fn a_worker_that_lost_its_cache_or_left_holds_nothing_and_the_others_keep_theirs() {
    let mut mirrors = Mirrors::default();
    for worker in 0..200 {
        mirrors.add(place(worker), &[1, 2, 100 + worker], None);
    }
    mirrors.forget(place(70));
    assert_eq!(depth(&mirrors, 70, &[1, 2]), 0);
    mirrors.add(place(70), &[1], None);
    mirrors.retain(|WorkerId(id)| id % 2 == 0);
    for worker in 0..200 {
        let expected = match worker {
            70 => 1,
            worker if worker % 2 == 0 => 3,
            _ => 0,
        };
        assert_eq!(depth(&mirrors, worker, &[1, 2, 100 + worker]), expected);
    }
    check(&mirrors);
    let slots = mirrors.places.len();
    (1000..1100).for_each(|worker| mirrors.add(place(worker), &[1], None));
    assert_eq!(
        mirrors.places.len(),
        slots,
        "slots of workers that are gone are used again"
    );
}

#[test]
fn memory_is_bounded_and_a_worker_that_lacks_blocks_is_given_less() {
    const MAX: usize = 6000;
    let mut mirrors = Mirrors::new(MAX);
    for prompt in 0..2 * MAX as u64 / 100 {
        let blocks: Vec<_> = (0..100).map(|block| prompt * 100 + block).collect();
        mirrors.add(place(prompt % 3), &blocks, None);
    }
    let holders = mirrors.holders.len();
    assert!((MAX / 2..=MAX).contains(&holders), "{holders}");
    let before = mirrors.caches[&place(0)].len();
    (0..10).for_each(|_| mirrors.correct(place(0), false));
    mirrors.add(place(0), &[1], None);
    let after = mirrors.caches[&place(0)].len();
    assert!(after < before * 2 / 3, "{before} {after}");
    check(&mirrors);
}

#[test]
fn the_workers_that_hold_most_of_a_prompt_come_first() {
    let mut mirrors = Mirrors::default();
    for worker in 0..200 {
        let blocks: Vec<_> = (0..1 + worker % 100).collect();
        mirrors.add(place(worker), &blocks, None);
    }
    let prompt: Vec<_> = (0..90).collect();
    let deepest = mirrors.deepest(&prompt, 30);
    assert_eq!(deepest.len(), 30);
    let least = deepest
        .iter()
        .map(|worker| depth(&mirrors, worker.0, &prompt));
    assert_eq!(least.min(), Some(86), "22 hold all of it, then two each");
    assert!(mirrors.deepest(&[1000], 30).is_empty());
    check(&mirrors);
}

#[test]
fn a_worker_that_tells_how_much_fits_holds_no_more() {
    let mut mirrors = Mirrors::default();
    mirrors.add(place(1), &(0..50).collect::<Vec<_>>(), Some(60));
    mirrors.add(place(1), &(100..150).collect::<Vec<_>>(), Some(60));
    assert_eq!(depth(&mirrors, 1, &(0..50).collect::<Vec<_>>()), 10);
    assert_eq!(depth(&mirrors, 1, &(100..150).collect::<Vec<_>>()), 50);
    check(&mirrors);
}

/// 16 workers with 1,000,000 tokens each, 128 to a block, none of which two workers share; and as many blocks as may be,
/// on more workers, each block on several of them.
#[test]
fn all_mirrors_together_take_at_most_64_megabytes() {
    const MEGABYTES: usize = 1_000_000;
    let mut mirrors = Mirrors::default();
    for worker in 0..16 {
        let blocks: Vec<_> = (0..1_000_000 / 128)
            .map(|block| worker << 32 | block)
            .collect();
        mirrors.add(place(worker), &blocks, None);
    }
    assert!(mirrors.bytes() < 20 * MEGABYTES, "{}", mirrors.bytes());
    for (workers, shared_by) in [(9, 1), (2000, 20)] {
        let mut mirrors = Mirrors::default();
        for worker in 0..workers {
            let group = worker / shared_by;
            let share = (MAX_BLOCKS as u64) / workers;
            let blocks: Vec<_> = (0..2 * share).map(|block| group << 32 | block).collect();
            mirrors.add(place(worker), &blocks, None);
        }
        let count: usize = mirrors.blocks().map(|(_, blocks)| blocks).sum();
        assert!(
            count <= MAX_BLOCKS && mirrors.bytes() <= 64 * MEGABYTES,
            "{workers}: {}",
            mirrors.bytes()
        );
    }
}

#[test]
fn what_a_worker_tells_is_not_corrected_by_what_its_prompts_lack() {
    let mut mirrors = Mirrors::default();
    let prompt: Vec<_> = (0..50).collect();
    mirrors.add(place(1), &prompt, Some(60));
    (0..10).for_each(|_| mirrors.correct(place(1), false));
    mirrors.add(place(1), &prompt, Some(60));
    assert_eq!(depth(&mirrors, 1, &prompt), 50);
}
