//! The live requests. Each has a slot, which it writes to at each of its steps; what happens more often is read from where
//! the request keeps it, so that an event costs nothing here.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::super::Record;
use super::row::Row;

/// Slots that wait for their next request. A wave of requests leaves no more.
const SPARE: usize = 256;

/// The steps of a live request that its own task does not write to the slot.
pub(crate) trait Progress: Send + Sync {
    /// When prefill's response ended.
    fn prefill_end(&self) -> Option<Instant> {
        None
    }

    /// When the first byte went to the client.
    fn first_byte(&self) -> Option<Instant> {
        None
    }

    /// Whole events that went to the client.
    fn events(&self) -> u64 {
        0
    }
}

/// The slots of all live requests.
#[derive(Default)]
pub(super) struct Live(Mutex<Slots>);

#[derive(Default)]
struct Slots {
    /// In no order. Each slot knows its place.
    live: Vec<Arc<Slot>>,
    spare: Vec<Arc<Slot>>,
    /// The number of the last request.
    number: u64,
}

#[derive(Default)]
struct Slot {
    /// In [`Slots::live`].
    place: AtomicUsize,
    state: Mutex<Option<State>>,
}

struct State {
    record: Record,
    /// Those of prefill's leg and of the response, once both legs are sent.
    progress: [Option<Arc<dyn Progress>>; 2],
}

/// A request that is followed, until this is dropped.
pub(crate) struct LiveRequest {
    slot: Arc<Slot>,
    live: Arc<Live>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while a lock is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Live {
    /// Follows this request. It gets a number, unless it is a sample, which has that of its request.
    pub(super) fn begin(self: &Arc<Self>, record: &mut Record) -> LiveRequest {
        let slot = {
            let mut slots = lock(&self.0);
            if record.sample.is_none() {
                slots.number += 1;
                record.number = slots.number;
            }
            let slot = slots.spare.pop().unwrap_or_default();
            slot.place.store(slots.live.len(), Ordering::Relaxed);
            slots.live.push(slot.clone());
            slot
        };
        *lock(&slot.state) = Some(State {
            record: record.clone(),
            progress: [None, None],
        });
        LiveRequest {
            slot,
            live: self.clone(),
        }
    }

    /// All live requests, the oldest first. Samples are with their request.
    pub(super) fn rows(&self) -> Vec<Arc<Row>> {
        let slots = lock(&self.0).live.clone();
        let records = slots.iter().filter_map(|slot| slot.record());
        let (samples, mut requests): (Vec<_>, Vec<_>) =
            records.partition(|record| record.sample.is_some());
        requests.sort_unstable_by_key(|record| record.number);
        for sample in samples {
            let request = requests.binary_search_by_key(&sample.number, |record| record.number);
            if let Ok(index) = request {
                requests[index].sampled.push(Arc::new(sample));
            }
        }
        let rows = requests.into_iter().map(|mut record| {
            gather(&mut record);
            Arc::new(Row::of(&record))
        });
        rows.collect()
    }
}

/// Completes the record of a request by those of its samples: it is as far as the first of them.
fn gather(record: &mut Record) {
    record.sampled.sort_unstable_by_key(|sample| sample.sample);
    record.samples = record.samples.max(record.sampled.len());
    let first = record.sampled.iter().min_by_key(|sample| {
        let at = sample.times.decode_first.or(sample.times.sent);
        (sample.times.decode_first.is_none(), at.is_none(), at)
    });
    if let Some(first) = first {
        let (started, read) = (record.times.started, record.times.read);
        record.times = first.times;
        (record.times.started, record.times.read) = (started, read);
        record.streamed = first.streamed;
        record.events = record.sampled.iter().map(|sample| sample.events).sum();
    }
}

impl Slot {
    /// The request as it is now; `None` when it has just ended.
    fn record(&self) -> Option<Record> {
        let (mut record, progress) = {
            let state = lock(&self.state);
            let state = state.as_ref()?;
            (state.record.clone(), state.progress.clone())
        };
        for progress in progress.iter().flatten() {
            let times = &mut record.times;
            times.prefill_end = progress.prefill_end().or(times.prefill_end);
            times.first_byte = progress.first_byte().or(times.first_byte);
            record.events += progress.events();
        }
        Some(record)
    }
}

impl LiveRequest {
    /// Notes how far the request is.
    pub(crate) fn note(&self, now: &Record) {
        if let Some(State { record, .. }) = &mut *lock(&self.slot.state) {
            record.times = now.times;
            record.queued = now.queued;
            record.rooms = now.rooms;
            record.request_bytes = now.request_bytes;
            record.status = now.status;
            record.streamed = now.streamed;
            record.suspect = now.suspect;
            record.samples = now.samples;
            if record.pair.is_none() || record.attempts != now.attempts {
                record.attempts = now.attempts;
                record.pair.clone_from(&now.pair);
                record.forecast.clone_from(&now.forecast);
                record.spread = now.spread;
            }
            if record.failed.len() != now.failed.len() {
                record.failed.clone_from(&now.failed);
            }
        }
    }

    /// Notes that both legs are sent, and where their progress is read.
    pub(crate) fn note_legs(&self, now: &Record, progress: [Option<Arc<dyn Progress>>; 2]) {
        self.note(now);
        if let Some(state) = &mut *lock(&self.slot.state) {
            state.progress = progress;
        }
    }

    /// Notes that the attempt is over and another one is to come.
    pub(crate) fn note_retry(&self, now: &Record) {
        self.note(now);
        if let Some(State { record, progress }) = &mut *lock(&self.slot.state) {
            *progress = [None, None];
            let times = &mut record.times;
            (times.selected, times.sent) = (None, None);
            (times.prefill_head, times.prefill_end) = (None, None);
        }
    }
}

impl Drop for LiveRequest {
    fn drop(&mut self) {
        // Dropped outside of the lock.
        let _ended = lock(&self.slot.state).take();
        let mut slots = lock(&self.live.0);
        let place = self.slot.place.load(Ordering::Relaxed);
        let slot = slots.live.swap_remove(place);
        if let Some(moved) = slots.live.get(place) {
            moved.place.store(place, Ordering::Relaxed);
        }
        if slots.spare.len() < SPARE {
            slots.spare.push(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::pd::Route;

    fn record() -> Record {
        let mut record = Record::new(Instant::now());
        record.route = Some(Route::Generate);
        record
    }

    #[test]
    fn slots_are_used_again_and_each_request_is_there_until_it_ends() {
        let live = Arc::<Live>::default();
        let mut requests: Vec<_> = (0..600).map(|_| live.begin(&mut record())).collect();
        assert_eq!(live.rows().len(), 600);
        // From the front, so that others move to its place.
        while requests.len() > 1 {
            drop(requests.swap_remove(0));
            assert_eq!(lock(&live.0).live.len(), requests.len());
        }
        let slots = lock(&live.0);
        assert_eq!(slots.spare.len(), SPARE);
        assert!(Arc::ptr_eq(&slots.live[0], &requests[0].slot));
    }

    #[test]
    fn samples_are_shown_with_their_request() {
        let live = Arc::<Live>::default();
        let (mut other, mut request) = (record(), record());
        let _other = live.begin(&mut other);
        let _request = live.begin(&mut request);
        assert_eq!((other.number, request.number), (1, 2));
        let samples: Vec<_> = [1, 0]
            .into_iter()
            .map(|sample| {
                let mut record = Record {
                    sample: Some(sample),
                    events: 3,
                    ..request.clone()
                };
                let sent = record.times.started + Duration::from_millis(5);
                record.times.sent = Some(sent);
                live.begin(&mut record)
            })
            .collect();
        let rows = live.rows();
        assert_eq!(rows.len(), 2);
        let shown = |row: &Row| serde_json::to_value(super::super::Shown(row, Instant::now()));
        let row = shown(&rows[1]).unwrap_or_default();
        assert_eq!(row["samples"][0]["sample"], 0);
        assert_eq!(row["samples"][1]["sample"], 1);
        assert_eq!(row["events"], 6);
        drop(samples);
    }

    #[test]
    fn the_progress_of_legs_and_response_is_read_when_it_is_shown() {
        struct At(Instant);
        impl Progress for At {
            fn prefill_end(&self) -> Option<Instant> {
                Some(self.0)
            }
        }
        let live = Arc::<Live>::default();
        let mut record = record();
        let request = live.begin(&mut record);
        let at = record.times.started + Duration::from_millis(7);
        record.times.sent = Some(record.times.started);
        request.note_legs(&record, [Some(Arc::new(At(at))), None]);
        let shown = |request: &LiveRequest| request.slot.record().map(|record| record.times);
        assert_eq!(
            shown(&request).and_then(|times| times.prefill_end),
            Some(at)
        );
        request.note_retry(&record);
        assert_eq!(shown(&request).and_then(|times| times.prefill_end), None);
        assert_eq!(shown(&request).and_then(|times| times.sent), None);
    }
}
