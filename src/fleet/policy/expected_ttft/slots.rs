//! Sets of workers, each of which has a small number: which of them hold a block.
//!
//! Most blocks are held by a few workers, and some, such as those of a system prompt, by all. The first kind takes no
//! allocation, and the second one a bit for each worker.

/// The number of a worker.
pub(super) type Slot = u32;

/// How many are listed before they are bits.
const LISTED: usize = 3;

/// Some slots.
#[derive(Debug)]
pub(super) enum SlotSet {
    /// The first so many of the list.
    Listed(u8, [Slot; LISTED]),
    Bits(Box<Bits>),
}

/// A bit for each slot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Bits(Vec<u64>);

impl Default for SlotSet {
    fn default() -> Self {
        Self::Listed(0, [0; LISTED])
    }
}

impl SlotSet {
    /// These slots as bits.
    pub(super) fn of(slots: impl Iterator<Item = Slot>) -> Self {
        Self::Bits(Box::new(slots.collect()))
    }

    pub(super) fn insert(&mut self, slot: Slot) {
        match self {
            Self::Bits(bits) => bits.insert(slot),
            Self::Listed(len, slots) => {
                let listed = usize::from(*len);
                if slots[..listed].contains(&slot) {
                    return;
                }
                if listed < LISTED {
                    slots[listed] = slot;
                    *len += 1;
                    return;
                }
                let mut bits = Bits::default();
                slots.iter().for_each(|slot| bits.insert(*slot));
                bits.insert(slot);
                *self = Self::Bits(Box::new(bits));
            }
        }
    }

    pub(super) fn remove(&mut self, slot: Slot) {
        match self {
            Self::Bits(bits) => bits.remove(slot),
            Self::Listed(len, slots) => {
                let listed = &mut slots[..usize::from(*len)];
                if let Some(place) = listed.iter().position(|other| *other == slot) {
                    listed.swap(place, listed.len() - 1);
                    *len -= 1;
                }
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::Listed(len, _) => *len == 0,
            Self::Bits(bits) => bits.is_empty(),
        }
    }

    /// The same as bits.
    pub(super) fn bits(&self) -> Bits {
        match self {
            Self::Bits(bits) => (**bits).clone(),
            Self::Listed(len, slots) => slots[..usize::from(*len)].iter().copied().collect(),
        }
    }

    /// The memory that it has allocated, in bytes.
    pub(super) fn allocated(&self) -> usize {
        match self {
            Self::Listed(..) => 0,
            Self::Bits(bits) => size_of::<Bits>() + size_of_val(&*bits.0),
        }
    }
}

impl Bits {
    fn insert(&mut self, slot: Slot) {
        let word = slot as usize / 64;
        if self.0.len() <= word {
            // Without the spare capacity of a vector that grows.
            self.0.reserve_exact(word + 1 - self.0.len());
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (slot % 64);
    }

    fn remove(&mut self, slot: Slot) {
        if let Some(word) = self.0.get_mut(slot as usize / 64) {
            *word &= !(1 << (slot % 64));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// Keeps those that are in the other set as well. The others, where there are any.
    pub(super) fn keep(&mut self, other: &SlotSet) -> Option<Bits> {
        let other = match other {
            SlotSet::Bits(bits) if self.is_within(bits) => return None,
            SlotSet::Bits(bits) => bits,
            SlotSet::Listed(len, slots) => {
                let listed = slots[..usize::from(*len)].iter();
                let shared: Bits = listed.copied().filter(|slot| self.has(*slot)).collect();
                if shared.count() == self.count() {
                    return None;
                }
                return Some(std::mem::replace(self, shared).without(self));
            }
        };
        let gone = self.clone().without(other);
        let words = self.0.iter_mut().zip(&other.0);
        words.for_each(|(word, other)| *word &= other);
        self.0.truncate(other.0.len());
        Some(gone)
    }

    fn is_within(&self, other: &Bits) -> bool {
        let (shared, rest) = self.0.split_at(self.0.len().min(other.0.len()));
        let mut words = shared.iter().zip(&other.0);
        words.all(|(word, other)| word & !other == 0) && rest.iter().all(|word| *word == 0)
    }

    fn without(mut self, other: &Bits) -> Self {
        let words = self.0.iter_mut().zip(&other.0);
        words.for_each(|(word, other)| *word &= !other);
        self
    }

    fn has(&self, slot: Slot) -> bool {
        let word = self.0.get(slot as usize / 64);
        word.is_some_and(|word| word >> (slot % 64) & 1 == 1)
    }

    fn count(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    pub(super) fn each(&self, mut visit: impl FnMut(Slot)) {
        self.each_until(|slot| {
            visit(slot);
            true
        });
    }

    /// The same, until `visit` returns false.
    pub(super) fn each_until(&self, mut visit: impl FnMut(Slot) -> bool) {
        for (index, word) in (0..).zip(&self.0) {
            let mut rest = *word;
            while rest != 0 {
                if !visit(index * 64 + rest.trailing_zeros()) {
                    return;
                }
                rest &= rest - 1;
            }
        }
    }
}

impl FromIterator<Slot> for Bits {
    fn from_iter<I: IntoIterator<Item = Slot>>(slots: I) -> Self {
        let mut bits = Self::default();
        slots.into_iter().for_each(|slot| bits.insert(slot));
        bits
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn set(slots: &[Slot]) -> SlotSet {
        let mut set = SlotSet::default();
        slots.iter().for_each(|slot| set.insert(*slot));
        set
    }

    fn listed(bits: &Bits) -> Vec<Slot> {
        let mut slots = Vec::new();
        bits.each(|slot| slots.push(slot));
        slots
    }

    #[test]
    fn a_set_has_what_was_put_in_and_not_taken_out_whatever_its_size() {
        let mut one = SlotSet::default();
        let mut other = BTreeSet::new();
        let mut number = 7_u32;
        for step in 0..2000 {
            number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let slot = (number >> 16) % if step < 1000 { 5 } else { 300 };
            if number.is_multiple_of(3) {
                one.remove(slot);
                other.remove(&slot);
            } else {
                one.insert(slot);
                other.insert(slot);
            }
            assert_eq!(one.is_empty(), other.is_empty());
            assert!(other.iter().copied().eq(listed(&one.bits())), "{step}");
        }
    }

    #[test]
    fn what_is_not_kept_is_told() {
        for (first, second, kept, gone) in [
            (&[1, 2, 300][..], &[2, 5][..], vec![2], vec![1, 300]),
            (
                &[1, 2, 3, 4, 300],
                &[3, 4, 5, 6, 7],
                vec![3, 4],
                vec![1, 2, 300],
            ),
            (&[9], &[1, 2, 3, 9, 500], vec![9], vec![]),
            (&[], &[1], vec![], vec![]),
        ] {
            let mut bits = set(first).bits();
            let others = bits.keep(&set(second));
            let shown = others.as_ref().map(listed).unwrap_or_default();
            assert_eq!((listed(&bits), shown), (kept, gone));
        }
    }
}
