//! Which side makes requests wait, by how much, and which numbers of workers would balance it: a pure function of what was
//! seen in a window. `docs/dashboard.md` has the model in words.
//!
//! A side is a bottleneck where requests queue in front of it, not where a part of the time to the first token (TTFT) is
//! long: without any load most of TTFT is the computation of the prompt. The length of a queue follows from Little's law,
//! the mean number of requests in a stage is its rate times its time, and the part of the time that a side is busy from
//! the queue in front of it (the queue M/D/1).

mod sentence;

use super::{Counts, Part, View};

/// Streams that are needed for an answer.
pub(crate) const ENOUGH: u64 = 20;
/// A side that is busy for less of its time than this is no bottleneck.
const FULL: f64 = 0.7;
/// One side is ahead of the other when it is busier by this factor.
const AHEAD: f64 = 1.25;
/// The share of TTFT from which a wait that no worker shortens is the first thing to mend.
const MOST: f64 = 0.5;
/// The same for attempts that failed.
const FAILING: f64 = 0.3;
/// A mean queue that is shorter than this is noise.
const NO_QUEUE: f64 = 0.5;

/// What was seen in a window.
#[derive(Debug, Clone, Default)]
pub(crate) struct Evidence {
    /// The length of the window in seconds, from its first request on.
    pub(crate) seconds: f64,
    /// Streams that had their first byte.
    pub(crate) streams: u64,
    /// The parts of their TTFT, in seconds, added up.
    pub(crate) read: f64,
    pub(crate) queue: f64,
    pub(crate) retry: f64,
    pub(crate) send: f64,
    pub(crate) prefill: f64,
    pub(crate) decode: f64,
    pub(crate) relay: f64,
    /// The time of all prefill legs, streamed or not, in seconds.
    pub(crate) prefill_legs: f64,
    /// Workers of each role that serve.
    pub(crate) prefills: usize,
    pub(crate) decodes: usize,
    /// The mean time between two events of a stream in seconds: now, and when it was shortest.
    pub(crate) gap: Option<f64>,
    pub(crate) shortest_gap: Option<f64>,
    /// Requests in flight at each role, as a part of what its workers may have at once; `None` without a limit.
    pub(crate) limits: Option<(f64, f64)>,
    /// `None` where the workers' loads are not polled.
    pub(crate) loads: Option<Loads>,
}

/// Means of the workers' own loads: requests in each stage, over all workers of the role.
#[derive(Debug, Clone, Default)]
pub(crate) struct Loads {
    /// At prefill: they wait for decode to reserve memory.
    pub(crate) bootstrap: f64,
    /// At prefill: they wait for computation, or are computed.
    pub(crate) computing: f64,
    /// At prefill: their KV cache is sent.
    pub(crate) sending: f64,
    /// At decode: they wait for memory.
    pub(crate) preallocating: f64,
    /// At decode: the KV cache is there, and they wait for their turn.
    pub(crate) waiting: f64,
    /// At decode: they generate, as a part of what may generate at once, or of the memory; the higher of the two.
    pub(crate) decode_use: f64,
}

/// The side that requests wait for, and its evidence.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Advice {
    pub(crate) verdict: Verdict,
    /// The part of its time that each side is busy, from 0 to 1. That of decode may be unknown.
    pub(crate) prefill_busy: f64,
    pub(crate) decode_busy: Option<f64>,
    /// The shares of TTFT that wait for each side, from 0 to 1.
    pub(crate) shares: Shares,
    /// Prefill and decode workers that would be equally busy, where that is another ratio than now.
    pub(crate) balance: Option<(usize, usize)>,
    /// Whether the loads of the workers told the stages of prefill's leg apart.
    pub(crate) has_loads: bool,
    pub(crate) streams: u64,
}

impl Loads {
    /// Means that are this far on their way from these to others, from 0 to 1.
    pub(crate) fn towards(&self, other: &Self, weight: f64) -> Self {
        let mix = |a: f64, b: f64| a + (b - a) * weight;
        Self {
            bootstrap: mix(self.bootstrap, other.bootstrap),
            computing: mix(self.computing, other.computing),
            sending: mix(self.sending, other.sending),
            preallocating: mix(self.preallocating, other.preallocating),
            waiting: mix(self.waiting, other.waiting),
            decode_use: mix(self.decode_use, other.decode_use),
        }
    }
}

/// What requests wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Too few requests to say.
    NotEnough,
    Prefill,
    Decode,
    /// The KV cache on its way from prefill to decode.
    Transfer,
    /// Both sides are full.
    Both,
    /// Attempts that failed.
    Failures,
    /// Clients that send their request slowly.
    Clients,
    /// Neither side.
    Balanced,
}

/// Shares of TTFT.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Shares {
    pub(crate) prefill: f64,
    pub(crate) transfer: f64,
    pub(crate) decode: f64,
    pub(crate) retry: f64,
    pub(crate) read: f64,
}

impl Verdict {
    /// The word for the page's data.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Verdict::NotEnough => "not_enough",
            Verdict::Prefill => "prefill",
            Verdict::Decode => "decode",
            Verdict::Transfer => "transfer",
            Verdict::Both => "both",
            Verdict::Failures => "failures",
            Verdict::Clients => "clients",
            Verdict::Balanced => "balanced",
        }
    }
}

impl Evidence {
    /// What a view of all requests shows: of the last minute, or of the last 15 where that has too few streams.
    pub(crate) fn of(view: &View) -> Self {
        let period = view.step as f64;
        let oldest = |span: f64| {
            let ages = view.periods.iter().map(|(age, _)| *age);
            ages.filter(|age| (*age as f64) * period < span).max()
        };
        let within = |span: f64| {
            let mut sum = Counts::default();
            for (age, counts) in &view.periods {
                if (*age as f64) * period < span {
                    sum.merge(counts);
                }
            }
            let begun = view.elapsed % period;
            let seconds = oldest(span).map_or(0.0, |age| age as f64 * period + begun);
            (sum, seconds)
        };
        let last_minute = within(60.0);
        let (sum, seconds) = match last_minute.0.streams >= ENOUGH {
            true => last_minute,
            false => within(f64::INFINITY),
        };
        let part = |part: Part| sum.parts_us[part as usize] as f64 / 1e6;
        let gaps = view.periods.iter().filter_map(|(_, counts)| counts.gap());
        Self {
            seconds,
            streams: sum.streams,
            read: part(Part::Read),
            queue: part(Part::Queue),
            retry: part(Part::Retry),
            send: part(Part::Send),
            prefill: part(Part::Prefill),
            decode: part(Part::Decode),
            relay: part(Part::Relay),
            prefill_legs: sum.prefill_us as f64 / 1e6,
            gap: sum.gap(),
            shortest_gap: gaps.reduce(f64::min),
            ..Self::default()
        }
    }
}

/// Judges a window.
pub(crate) fn advise(seen: &Evidence) -> Advice {
    let shares = shares(seen);
    let prefill_busy = prefill_busy(seen);
    let decode_busy = decode_busy(seen);
    let verdict = match seen.streams < ENOUGH || seen.seconds <= 0.0 {
        true => Verdict::NotEnough,
        false => verdict(&shares, sending(seen), prefill_busy, decode_busy),
    };
    let moves = matches!(verdict, Verdict::Prefill | Verdict::Decode);
    let busy = decode_busy
        .filter(|_| moves)
        .map(|busy| (prefill_busy, busy));
    Advice {
        verdict,
        prefill_busy,
        decode_busy,
        shares,
        balance: busy.and_then(|busy| balance(busy, (seen.prefills, seen.decodes))),
        has_loads: seen.loads.is_some(),
        streams: seen.streams,
    }
}

fn verdict(shares: &Shares, sending: f64, prefill: f64, decode: Option<f64>) -> Verdict {
    if shares.retry >= FAILING {
        return Verdict::Failures;
    }
    if shares.read >= MOST {
        return Verdict::Clients;
    }
    if shares.transfer >= MOST && sending >= NO_QUEUE {
        return Verdict::Transfer;
    }
    let known = decode.unwrap_or(0.0);
    match (prefill >= FULL, known >= FULL) {
        (true, true) if prefill > known * AHEAD => Verdict::Prefill,
        (true, true) if known > prefill * AHEAD => Verdict::Decode,
        // Both are nearly full, and requests wait for one of them.
        (true, true) if shares.prefill > 2.0 * shares.decode && prefill > known => Verdict::Prefill,
        (true, true) if shares.decode > 2.0 * shares.prefill && known > prefill => Verdict::Decode,
        (true, true) => Verdict::Both,
        (true, false) => Verdict::Prefill,
        (false, true) => Verdict::Decode,
        (false, false) => Verdict::Balanced,
    }
}

fn shares(seen: &Evidence) -> Shares {
    let ttft =
        seen.read + seen.queue + seen.retry + seen.send + seen.prefill + seen.decode + seen.relay;
    if ttft <= 0.0 {
        return Shares::default();
    }
    let (memory, compute, transfer) = stages(seen);
    // The wait in the balancer's queue is one for the side that has all its requests.
    let for_prefill = seen
        .limits
        .is_some_and(|(prefill, decode)| prefill > decode);
    let (at_prefill, at_decode) = match for_prefill {
        true => (seen.queue, 0.0),
        false => (0.0, seen.queue),
    };
    Shares {
        prefill: (compute + at_prefill) / ttft,
        transfer: transfer / ttft,
        decode: (memory + decode_wait(seen) + at_decode) / ttft,
        retry: seen.retry / ttft,
        read: seen.read / ttft,
    }
}

/// Prefill's part of TTFT, split by the stage in which its requests are: they wait for decode's memory, they are computed,
/// their KV cache is sent. Without loads all of it is computation.
fn stages(seen: &Evidence) -> (f64, f64, f64) {
    let Some(loads) = &seen.loads else {
        return (0.0, seen.prefill, 0.0);
    };
    let all = loads.bootstrap + loads.computing + loads.sending;
    if all <= 0.0 {
        return (0.0, seen.prefill, 0.0);
    }
    let of = |stage: f64| seen.prefill * stage / all;
    (of(loads.bootstrap), of(loads.computing), of(loads.sending))
}

/// The mean number of requests whose KV cache is sent by a prefill worker.
fn sending(seen: &Evidence) -> f64 {
    let (_, _, transfer) = stages(seen);
    if seen.prefill <= 0.0 || seen.prefills == 0 {
        return 0.0;
    }
    let share = transfer / seen.prefill;
    seen.prefill_legs / seen.seconds * share / seen.prefills as f64
}

/// Decode's part of TTFT without the time of one step, which it takes without any load.
fn decode_wait(seen: &Evidence) -> f64 {
    let step = seen.shortest_gap.or(seen.gap).unwrap_or(0.0);
    (seen.decode - step * seen.streams as f64).max(0.0)
}

/// The part of its time that a prefill worker computes, from the mean number of requests in front of it.
fn prefill_busy(seen: &Evidence) -> f64 {
    if seen.seconds <= 0.0 || seen.prefills == 0 {
        return 0.0;
    }
    let requests = match &seen.loads {
        // From the times, and not from the gauges alone, which lag by up to a second.
        Some(loads) => {
            let all = loads.bootstrap + loads.computing + loads.sending;
            let share = if all > 0.0 {
                loads.computing / all
            } else {
                1.0
            };
            seen.prefill_legs / seen.seconds * share
        }
        None => seen.prefill_legs / seen.seconds,
    };
    let mean = requests / seen.prefills as f64;
    // M/D/1 with m requests in queue and service: m = b + b² / (2 (1 - b)).
    1.0 + mean - (1.0 + mean * mean).sqrt()
}

/// The part of its capacity that a decode worker uses: the highest of several signs, each of which can only be too low.
/// `None` where there is no sign.
fn decode_busy(seen: &Evidence) -> Option<f64> {
    if seen.seconds <= 0.0 || seen.decodes == 0 {
        return None;
    }
    let used = seen.loads.as_ref().map(|loads| loads.decode_use);
    // A step for b requests takes s + b t, so that the rate is 1 - s / (s + b t) of the highest.
    let slower = seen.gap.zip(seen.shortest_gap);
    let slower = slower.map(|(gap, shortest)| (1.0 - shortest / gap).max(0.0));
    let slower = slower.filter(|part| *part > 0.1);
    let limit = seen.limits.map(|(_, decode)| decode);
    let signs = [used, slower, limit, queue_at_decode(seen)];
    signs
        .into_iter()
        .flatten()
        .map(|sign| sign.min(1.0))
        .reduce(f64::max)
}

/// The same from the requests that wait for decode; `None` where hardly any does.
fn queue_at_decode(seen: &Evidence) -> Option<f64> {
    let (memory, _, _) = stages(seen);
    let waiting = (memory + decode_wait(seen)) / seen.seconds;
    let polled = seen.loads.as_ref();
    let polled = polled.map_or(0.0, |loads| loads.preallocating + loads.waiting);
    let queue = waiting.max(polled) / seen.decodes as f64;
    // M/D/1 with q requests in the queue: q = b² / (2 (1 - b)).
    (queue >= NO_QUEUE).then(|| (queue * queue + 2.0 * queue).sqrt() - queue)
}

/// The numbers of workers that would be equally busy: of as many workers as there are, or of at least four where they are
/// fewer. `None` where the present numbers come closest.
fn balance(busy: (f64, f64), now: (usize, usize)) -> Option<(usize, usize)> {
    let (prefills, decodes) = (now.0 as f64, now.1 as f64);
    // What a request costs at each side, in workers. Both must be something.
    let cost = (busy.0 * prefills, busy.1 * decodes);
    if cost.0 <= 0.0 || cost.1 <= 0.0 {
        return None;
    }
    let workers = now.0 + now.1;
    // A multiple of what there is, so that rounding leads to no ratio on the other side of the present one.
    let all = workers * 4_usize.div_ceil(workers);
    let share = cost.0 / (cost.0 + cost.1) * all as f64;
    let prefill = (share.round() as usize).clamp(1, all - 1);
    let decode = all - prefill;
    let is_new = prefill * now.1 != decode * now.0;
    let common = if all > workers {
        gcd(prefill, decode)
    } else {
        1
    };
    is_new.then_some((prefill / common, decode / common))
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests;
