//! The objects that one watch has seen, and what follows from them: the places of workers, and one line of the log for each
//! change that an operator may ask about.
//!
//! No I/O. A list that is read anew replaces the table at its end and not before, so that no worker goes while it is read.

use std::collections::{BTreeMap, BTreeSet};

use super::reading::{Place, Reading, Why};

/// Workers by their places, each with the name of its pod.
pub(super) type Workers = BTreeMap<Place, String>;

/// The objects of one watch, by namespace and name.
#[derive(Debug, Default)]
pub(super) struct Table {
    objects: BTreeMap<String, Vec<Reading>>,
    /// A list that is being read.
    next: BTreeMap<String, Vec<Reading>>,
    /// Whether there was no object at the last look.
    was_empty: Option<bool>,
    /// What was said last of each pod that is no worker.
    said: BTreeMap<String, Why>,
    /// The pods that were workers at the last look, for what is said next.
    serving: BTreeSet<String>,
}

/// A step of a watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// A list begins.
    Begin,
    /// An object of the list that has begun.
    Listed(String, Vec<Reading>),
    /// The list has ended.
    End,
    /// An object that is new or has changed.
    Applied(String, Vec<Reading>),
    /// An object that is gone, or no longer matches.
    Deleted(String),
}

/// Something to be logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Remark {
    /// The selector matches no object.
    MatchesNothing,
    /// It does again.
    MatchesAgain,
    /// A pod that was a worker is none any more.
    Lost { name: String, why: Why },
    /// A pod that cannot be a worker before somebody changes something.
    Mistaken { name: String, why: Why },
}

impl Table {
    /// Takes a step; what is to be said about it. `None` when the places are what they were.
    pub(super) fn take(&mut self, step: Step) -> Option<Vec<Remark>> {
        match step {
            Step::Begin => {
                self.next.clear();
                return None;
            }
            Step::Listed(key, readings) => {
                self.next.insert(key, readings);
                return None;
            }
            Step::End => {
                self.objects = std::mem::take(&mut self.next);
            }
            Step::Applied(key, readings) => {
                if self.objects.get(&key) == Some(&readings) {
                    return None;
                }
                self.objects.insert(key, readings);
            }
            Step::Deleted(key) => {
                self.objects.remove(&key)?;
            }
        }
        Some(self.remarks())
    }

    /// The workers, each with the name of its pod, by place. A pod that two slices describe is one worker, with its IPv4
    /// address.
    pub(super) fn places(&self) -> Workers {
        let mut by_uid: BTreeMap<&str, Place> = BTreeMap::new();
        let mut places = BTreeMap::new();
        for reading in self.objects.values().flatten() {
            let Ok(place) = reading.state else { continue };
            if !reading.uid.is_empty() {
                // IPv4 sorts before IPv6.
                match by_uid.insert(&reading.uid, place) {
                    Some(other) if other.address < place.address => {
                        by_uid.insert(&reading.uid, other);
                        continue;
                    }
                    Some(other) => {
                        places.remove(&other);
                    }
                    None => {}
                }
            }
            places.insert(place, reading.name.clone());
        }
        places
    }

    fn remarks(&mut self) -> Vec<Remark> {
        let mut remarks = Vec::new();
        let is_empty = self.objects.is_empty();
        match (self.was_empty.replace(is_empty), is_empty) {
            (Some(true), true) | (None | Some(false), false) => {}
            (_, true) => remarks.push(Remark::MatchesNothing),
            (Some(true), false) => remarks.push(Remark::MatchesAgain),
        }
        let serving: BTreeSet<_> = self.places().into_values().collect();
        let readings = self.objects.values().flatten();
        let whys: BTreeMap<_, _> = readings
            .filter_map(|reading| Some((&reading.name, reading.state.as_ref().err()?)))
            .filter(|(name, _)| !serving.contains(*name))
            .collect();
        for name in &self.serving {
            if !serving.contains(name) && !whys.contains_key(name) {
                let (name, why) = (name.clone(), Why::Gone);
                remarks.push(Remark::Lost { name, why });
            }
        }
        for (name, why) in &whys {
            let (name, why) = ((*name).clone(), (*why).clone());
            if self.said.get(&name) == Some(&why) {
                continue;
            }
            if why.is_mistake() {
                remarks.push(Remark::Mistaken { name, why });
            } else if self.serving.contains(&name) {
                remarks.push(Remark::Lost { name, why });
            }
        }
        self.said = whys
            .into_iter()
            .map(|(name, why)| (name.clone(), why.clone()))
            .collect();
        self.serving = serving;
        remarks
    }
}

#[cfg(test)]
mod tests;
