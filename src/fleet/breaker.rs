//! The circuit breaker of one worker: whether its recent failures set it aside. The time is an argument.
//!
//! A worker that refuses connections is set aside at once, and for longer each time. A worker that fails in another
//! way is set aside after several failures within a window. When its time aside is over, one request tries it (half
//! open), and a success of a real request brings it back. At first it gets a small share of the requests (slow start):
//! its caches are cold, and a policy that prefers idle workers would send it all new requests.
//!
//! Responses about the request or about load (4xx, 429, 503) are no failures.
//!
//! A worker that accepts connections and does not answer a probe in time is not set aside: it may be paused, or busy with
//! long prompts. It is silent, and gets requests only where there is no other worker, until it answers a probe or serves
//! a request.

use std::time::{Duration, Instant};

/// What a leg or a probe says about its worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// It served a request.
    Good,
    /// It responds, with whatever status.
    Present,
    /// It refuses connections.
    Absent,
    /// It failed a request: it closed the connection early, or responded with 5xx.
    Bad,
    /// It accepts connections and did not answer a probe in time.
    Silent,
    /// Nothing: the leg was cancelled, or the response was 4xx, 429 or 503.
    Neutral,
}

/// What is known of a worker's health, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// It gets requests.
    Serving,
    /// It came back a moment ago, and gets less than its share.
    Returning,
    /// It did not answer its last probe, and gets requests only where there is no other.
    Silent,
    /// A request tries whether it serves again.
    OnTrial,
    /// Its failures set it aside.
    SetAside,
    /// The name of its host was not found.
    NoAddress,
    /// It says that it has another role than the one that it is listed with.
    OtherRole,
    /// It is of another engine than the other workers.
    OtherEngine,
    /// It gets no new request, and ends those that it has.
    Draining,
    /// It computes nothing until it is told to continue.
    Paused,
}

impl Condition {
    /// The word for the dashboard.
    pub const fn name(self) -> &'static str {
        match self {
            Condition::Serving => "serving",
            Condition::Returning => "returning",
            Condition::Silent => "silent",
            Condition::OnTrial => "on trial",
            Condition::SetAside => "set aside",
            Condition::NoAddress => "no address",
            Condition::OtherRole => "other role",
            Condition::OtherEngine => "other engine",
            Condition::Draining => "draining",
            Condition::Paused => "paused",
        }
    }
}

/// A change of a worker's health.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// The worker is set aside.
    SetAside,
    /// The worker gets requests again.
    Back,
    /// The worker gets requests only where there is no other.
    FallsSilent,
    /// The worker gets requests as others do.
    AnswersAgain,
}

/// When a worker is set aside, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct BreakerLimits {
    /// Failures in a row, all within the window, that set a worker aside. 0 switches the breaker off.
    pub failures: u32,
    /// Failures that are further apart than this are not counted together.
    pub window: Duration,
    /// Successes of a worker on trial that bring it back.
    pub successes: u32,
    /// How long a failing worker is set aside, and the longest time for one that refuses connections.
    pub pause: Duration,
    /// How long a worker that is back gets less than its share of the requests. Zero switches slow start off.
    pub slow_start: Duration,
}

impl Default for BreakerLimits {
    /// The defaults of `sglang_router.launch_router`, except for the pause: many clients retry for less than its 60 s.
    fn default() -> Self {
        Self {
            failures: 10,
            window: Duration::from_secs(120),
            successes: 3,
            pause: Duration::from_secs(30),
            slow_start: Duration::from_secs(10),
        }
    }
}

impl BreakerLimits {
    /// Why a worker is set aside with this evidence, in the words of the documents.
    pub(super) fn because(&self, evidence: Evidence) -> String {
        match evidence {
            Evidence::Absent => "refuses_connections".to_owned(),
            _ => format!(
                "{} failures in {} s",
                self.failures,
                self.window.as_secs_f64()
            ),
        }
    }
}

/// The part of its share that a worker gets when it has just come back. It grows to the whole until slow start is over.
const FIRST_PART: f64 = 0.1;

/// How long a worker that refuses connections is set aside the first time. Each time doubles it.
const FIRST_ABSENCE: Duration = Duration::from_millis(500);

/// The state of one worker's breaker.
#[derive(Debug, Clone, Default)]
pub(super) struct Breaker {
    state: State,
    absences: u32,
    /// When the worker came back, until slow start is over. `None` for a worker that was never set aside.
    back: Option<Instant>,
    /// Whether the last probe was not answered, and no request was served since.
    silent: bool,
    /// The begin of the last silence, and its end where it is over.
    silence: Option<(Instant, Option<Instant>)>,
}

#[derive(Debug, Clone)]
enum State {
    Closed {
        failures: u32,
        since: Option<Instant>,
    },
    Open {
        until: Instant,
    },
    /// Half open: one request at a time tries the worker.
    Trial {
        successes: u32,
        since: Instant,
        busy: bool,
    },
}

impl Default for State {
    fn default() -> Self {
        State::Closed {
            failures: 0,
            since: None,
        }
    }
}

/// After this long a trial without a result no longer blocks the next one: its request was cancelled.
const TRIAL_FORGOTTEN: Duration = Duration::from_secs(10);

impl Breaker {
    /// Whether the worker may be chosen now.
    pub(super) fn admits(&self, now: Instant) -> bool {
        match self.state {
            State::Closed { .. } => true,
            State::Open { until } => now >= until,
            State::Trial { busy, since, .. } => !busy || now >= since + TRIAL_FORGOTTEN,
        }
    }

    /// Notes that the worker was chosen: if it was set aside, this is its trial.
    pub(super) fn picked(&mut self, now: Instant) {
        match &mut self.state {
            State::Closed { .. } => {}
            State::Open { .. } => {
                self.state = State::Trial {
                    successes: 0,
                    since: now,
                    busy: true,
                };
            }
            State::Trial { since, busy, .. } => {
                *since = now;
                *busy = true;
            }
        }
    }

    /// Notes what a leg or a probe says.
    pub(super) fn note(
        &mut self,
        evidence: Evidence,
        now: Instant,
        limits: &BreakerLimits,
    ) -> Option<Change> {
        self.back.take_if(|back| now >= *back + limits.slow_start);
        let was_silent = self.silent;
        match evidence {
            Evidence::Silent => self.silent = true,
            Evidence::Good | Evidence::Present | Evidence::Absent => self.silent = false,
            Evidence::Bad | Evidence::Neutral => {}
        }
        match (was_silent, self.silent) {
            (false, true) => self.silence = Some((now, None)),
            (true, false) => self.silence = self.silence.map(|(begin, _)| (begin, Some(now))),
            _ => {}
        }
        let changed = self.judge(evidence, now, limits);
        changed.or(match (was_silent, self.silent) {
            (false, true) => Some(Change::FallsSilent),
            (true, false) => Some(Change::AnswersAgain),
            _ => None,
        })
    }

    fn judge(
        &mut self,
        evidence: Evidence,
        now: Instant,
        limits: &BreakerLimits,
    ) -> Option<Change> {
        match evidence {
            Evidence::Good => self.good(now, limits),
            // A probe ends an absence and nothing else: only real requests show whether the worker serves.
            Evidence::Present if self.absences > 0 => self.close(now, limits),
            Evidence::Present | Evidence::Silent => None,
            Evidence::Neutral => {
                if let State::Trial { busy, .. } = &mut self.state {
                    *busy = false;
                }
                None
            }
            Evidence::Absent => {
                let pause = FIRST_ABSENCE * 2u32.saturating_pow(self.absences.min(6));
                self.absences += 1;
                self.open(now + pause.min(limits.pause))
            }
            Evidence::Bad => self.bad(now, limits),
        }
    }

    /// The part of its share that the worker gets now, from [`FIRST_PART`] to 1.
    pub(super) fn part(&self, now: Instant, slow_start: Duration) -> f64 {
        let age = self.back.map(|back| now.saturating_duration_since(back));
        match age.filter(|age| *age < slow_start) {
            None => 1.0,
            Some(age) => FIRST_PART + (1.0 - FIRST_PART) * age.div_duration_f64(slow_start),
        }
    }

    /// Whether another worker is to be chosen, where there is one.
    pub(super) fn is_silent(&self) -> bool {
        self.silent
    }

    /// Whether the last silence had begun by the one time and lasted to the other.
    pub(super) fn was_silent(&self, from: Instant, until: Instant) -> bool {
        self.silence
            .is_some_and(|(begin, end)| begin <= from && end.is_none_or(|end| end >= until))
    }

    /// What it means for the worker now, but for those that are no matter of its health.
    pub(super) fn condition(&self, now: Instant, slow_start: Duration) -> Condition {
        match self.state {
            State::Open { .. } => Condition::SetAside,
            State::Trial { .. } => Condition::OnTrial,
            State::Closed { .. } if self.silent => Condition::Silent,
            State::Closed { .. } if self.part(now, slow_start) < 1.0 => Condition::Returning,
            State::Closed { .. } => Condition::Serving,
        }
    }

    /// Whether the breaker remembers a failure or a silence, or slow start is not over.
    pub(super) fn is_unhealthy(&self) -> bool {
        self.silent
            || self.back.is_some()
            || !matches!(self.state, State::Closed { failures: 0, .. })
    }

    fn good(&mut self, now: Instant, limits: &BreakerLimits) -> Option<Change> {
        match &mut self.state {
            State::Closed { failures, since } => {
                *failures = 0;
                *since = None;
                None
            }
            // A leg that began before the worker was set aside has succeeded.
            State::Open { .. } => self.close(now, limits),
            State::Trial {
                successes, busy, ..
            } => {
                *successes += 1;
                *busy = false;
                // After an absence one success is enough: the worker accepts connections again.
                if *successes >= limits.successes || self.absences > 0 {
                    return self.close(now, limits);
                }
                None
            }
        }
    }

    fn bad(&mut self, now: Instant, limits: &BreakerLimits) -> Option<Change> {
        match &mut self.state {
            State::Closed { failures, since } => {
                if since.is_none_or(|since| now > since + limits.window) {
                    *failures = 0;
                    *since = Some(now);
                }
                *failures += 1;
                if limits.failures == 0 || *failures < limits.failures {
                    return None;
                }
                self.open(now + limits.pause)
            }
            State::Open { .. } => None,
            State::Trial { .. } => self.open(now + limits.pause),
        }
    }

    fn open(&mut self, until: Instant) -> Option<Change> {
        let was_closed = matches!(self.state, State::Closed { .. });
        self.state = State::Open { until };
        self.back = None;
        was_closed.then_some(Change::SetAside)
    }

    fn close(&mut self, now: Instant, limits: &BreakerLimits) -> Option<Change> {
        *self = Self {
            back: (!limits.slow_start.is_zero()).then_some(now),
            ..Self::default()
        };
        Some(Change::Back)
    }
}

#[cfg(test)]
mod tests;
