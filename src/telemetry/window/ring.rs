//! A value for each of the last periods of equal length. A period that has passed gives its place to a new one.
//!
//! The time is an argument, in whole seconds from any beginning.

/// The values of the last `N` periods, the present one included.
pub(super) struct Ring<T, const N: usize> {
    /// The length of a period in seconds.
    step: u64,
    slots: Box<[Slot<T>]>,
}

struct Slot<T> {
    /// The number of the period, counted from 1; 0 for a place that was never used.
    period: u64,
    value: T,
}

impl<T: Default, const N: usize> Ring<T, N> {
    /// A ring without a value, with periods of `step` seconds.
    pub(super) fn new(step: u64) -> Self {
        let slot = || Slot {
            period: 0,
            value: T::default(),
        };
        Self {
            step,
            slots: (0..N).map(|_| slot()).collect(),
        }
    }

    /// The value of the period of this second.
    pub(super) fn at(&mut self, second: u64) -> &mut T {
        let period = self.period(second);
        let slot = &mut self.slots[period as usize % N];
        if slot.period != period {
            *slot = Slot {
                period,
                value: T::default(),
            };
        }
        &mut slot.value
    }

    /// The values of the last periods, each with its age in periods; 0 is the present one. Periods without a value are
    /// left out, and the order is none.
    pub(super) fn recent(&self, second: u64) -> impl Iterator<Item = (usize, &T)> {
        let now = self.period(second);
        let used = self.slots.iter().filter(|slot| slot.period > 0);
        used.filter_map(move |slot| {
            let age = now.checked_sub(slot.period)?;
            (age < N as u64).then_some((age as usize, &slot.value))
        })
    }

    /// The length of a period in seconds.
    pub(super) fn step(&self) -> u64 {
        self.step
    }

    fn period(&self, second: u64) -> u64 {
        second / self.step + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(ring: &Ring<u32, 3>, second: u64) -> Vec<(usize, u32)> {
        let mut kept: Vec<_> = ring.recent(second).map(|(age, n)| (age, *n)).collect();
        kept.sort_unstable();
        kept
    }

    #[test]
    fn a_period_is_forgotten_when_as_many_as_the_ring_has_have_begun_after_it() {
        let mut ring = Ring::<u32, 3>::new(10);
        assert_eq!(kept(&ring, 0), []);
        *ring.at(0) += 1;
        *ring.at(9) += 1;
        *ring.at(10) += 5;
        assert_eq!(kept(&ring, 19), [(0, 5), (1, 2)]);
        assert_eq!(kept(&ring, 29), [(1, 5), (2, 2)]);
        assert_eq!(kept(&ring, 30), [(2, 5)]);
        *ring.at(31) += 7;
        assert_eq!(kept(&ring, 31), [(0, 7), (2, 5)]);
        assert_eq!(kept(&ring, 1_000), []);
    }

    #[test]
    fn a_place_that_is_used_again_begins_without_its_old_value() {
        let mut ring = Ring::<u32, 3>::new(1);
        *ring.at(0) += 1;
        *ring.at(3) += 1;
        assert_eq!(kept(&ring, 3), [(0, 1)]);
    }
}
