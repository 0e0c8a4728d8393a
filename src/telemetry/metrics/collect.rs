//! From the values to the library's encoder, series by series. Gauges are read here, so that they cost nothing until
//! somebody asks.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::exemplar::Exemplar;

use super::Values;
use super::family::{self, Family};
use super::labels::{ROUTES, end_code, end_name};
use super::policy;
use super::process::Process;
use crate::error::{Code, Side};
use crate::fleet::{Condition, Loads, Members, Outcome, Role, Worker};
use crate::histogram::{Histogram, Snapshot};
use crate::telemetry::Part;

type Written = fmt::Result;

/// No series has an exemplar: they would need an id that a client chose.
const NO_EXEMPLAR: Option<&Exemplar<NoLabelSet, u64>> = None;

/// The most pairs that have a series before one of them has failed.
const MAX_PAIRS: usize = 256;

/// One metric being written.
pub(super) struct Series<'a> {
    encoder: MetricEncoder<'a>,
    labels: &'static [&'static str],
}

pub(super) fn begin<'a>(
    encoder: &'a mut DescriptorEncoder<'_>,
    family: &'a Family,
) -> Result<Series<'a>, fmt::Error> {
    let unit = family.unit.as_ref();
    Ok(Series {
        encoder: encoder.encode_descriptor(family.stem, family.help, unit, family.kind)?,
        labels: family.labels,
    })
}

impl Series<'_> {
    pub(super) fn counter<const N: usize>(&mut self, values: [&str; N], count: u64) -> Written {
        let labels = self.labelled(values);
        let mut encoder = self.encoder.encode_family(&labels)?;
        encoder.encode_counter(&count, NO_EXEMPLAR)
    }

    pub(super) fn gauge<const N: usize>(&mut self, values: [&str; N], value: f64) -> Written {
        let labels = self.labelled(values);
        let mut encoder = self.encoder.encode_family(&labels)?;
        // Most are numbers of things, which read better without a fraction.
        match value.fract() == 0.0 && (0.0..9e15).contains(&value) {
            true => encoder.encode_gauge(&(value as i64)),
            false => encoder.encode_gauge(&value),
        }
    }

    fn histogram<const N: usize>(&mut self, values: [&str; N], histogram: &Histogram) -> Written {
        self.snapshot(values, &histogram.snapshot())
    }

    pub(super) fn snapshot<const N: usize>(
        &mut self,
        values: [&str; N],
        now: &Snapshot,
    ) -> Written {
        let labels = self.labelled(values);
        let mut encoder = self.encoder.encode_family(&labels)?;
        encoder.encode_histogram::<NoLabelSet>(now.sum, now.count, &now.buckets, None)
    }

    /// The values, each with its name. A test checks that every series has a value for each.
    fn labelled<'v, const N: usize>(&self, values: [&'v str; N]) -> [(&'static str, &'v str); N] {
        debug_assert_eq!(self.labels.len(), N, "{:?}", self.labels);
        let mut names = self.labels.iter();
        values.map(|value| (names.next().copied().unwrap_or_default(), value))
    }
}

impl fmt::Debug for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Values").finish_non_exhaustive()
    }
}

impl Collector for Values {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Written {
        let to = &mut encoder;
        let members = self.sources.fleet.members();
        self.requests(to)?;
        self.gauges(to)?;
        self.listed(to)?;
        self.workers(to, &members)?;
        policy::encode(to, &self.sources.fleet, &members)?;
        self.pairs(to, &members)?;
        self.counters(to)?;
        self.own(to)
    }
}

impl Values {
    fn requests(&self, to: &mut DescriptorEncoder<'_>) -> Written {
        let mut series = begin(to, &family::REQUESTS)?;
        for ((route, status, end), count) in self.requests.counts() {
            let status = status.to_string();
            series.counter([ROUTES[route], &status, end_name(end)], count)?;
        }
        by_name(to, &family::TTFT, ROUTES, &self.ttft)?;
        let parts = Part::ALL.map(Part::name);
        by_name(to, &family::PARTS, parts, &self.parts)?;
        by_name(to, &family::ITL, ROUTES, self.itl.iter().map(AsRef::as_ref))?;
        by_name(to, &family::E2E, ROUTES, &self.e2e)?;
        by_name(to, &family::QUEUE, ROUTES, &self.queue)
    }

    fn gauges(&self, to: &mut DescriptorEncoder<'_>) -> Written {
        let sources = &self.sources;
        for (family, value) in [
            (&family::INFLIGHT, (sources.inflight)()),
            (&family::QUEUED, sources.fleet.waiting()),
            (&family::PAUSED, usize::from(sources.fleet.is_closed())),
            (&family::ROOMS, sources.rooms.len()),
            (&family::CONNECTIONS, (sources.connections)()),
        ] {
            begin(to, family)?.gauge([], value as f64)?;
        }
        Ok(())
    }

    /// Each state of each role, so that a series is there before the first worker is in it.
    fn listed(&self, to: &mut DescriptorEncoder<'_>) -> Written {
        let listed = (self.sources.listed)();
        let mut series = begin(to, &family::WORKERS)?;
        for role in [Role::Prefill, Role::Decode] {
            for state in ["pending", "serving", "draining", "failed"] {
                let same = listed.iter().filter(|worker| **worker == (role, state));
                series.gauge([role.name(), state], same.count() as f64)?;
            }
        }
        Ok(())
    }

    fn workers(&self, to: &mut DescriptorEncoder<'_>, members: &Members) -> Written {
        let now = Instant::now();
        let is_one_of = |worker: &Worker, conditions: [Condition; 2]| {
            let condition = self.sources.fleet.condition(worker, now);
            f64::from(u8::from(conditions.contains(&condition)))
        };
        type Value<'a> = &'a dyn Fn(&Worker) -> f64;
        let gauges: [(&Family, Value<'_>); 4] = [
            (&family::UP, &|worker| {
                is_one_of(worker, [Condition::Serving, Condition::Returning])
            }),
            (&family::OPEN, &|worker| {
                is_one_of(worker, [Condition::SetAside, Condition::OnTrial])
            }),
            (&family::DRAINING, &|worker| {
                f64::from(u8::from(worker.is_draining()))
            }),
            (&family::WORKER_INFLIGHT, &|worker| {
                worker.in_flight() as f64
            }),
        ];
        for (family, value) in gauges {
            let mut series = begin(to, family)?;
            for worker in members.workers() {
                series.gauge(names(worker), value(worker))?;
            }
        }
        let mut series = begin(to, &family::LEGS)?;
        for worker in members.workers() {
            let [role, url] = names(worker);
            for outcome in Outcome::ALL {
                series.counter([role, url, outcome.name()], worker.tally().count(outcome))?;
            }
        }
        let mut series = begin(to, &family::LEG_TIME)?;
        for worker in members.workers() {
            series.histogram(names(worker), worker.tally().times())?;
        }
        let mut series = begin(to, &family::WORKER_CONNECTIONS)?;
        for worker in members.workers() {
            let [role, url] = names(worker);
            let idle = (self.sources.idle_connections)(worker);
            series.gauge([role, url, "busy"], worker.in_flight() as f64)?;
            series.gauge([role, url, "idle"], idle as f64)?;
        }
        let mut series = begin(to, &family::LOAD)?;
        for worker in members.workers() {
            let [role, url] = names(worker);
            for (what, value) in worker.loads().iter().flat_map(Loads::iter) {
                series.gauge([role, url, what], value)?;
            }
        }
        Ok(())
    }

    /// Each pair where they are few, so that the first failure of one is seen as an increase; else those that have failed.
    fn pairs(&self, to: &mut DescriptorEncoder<'_>, members: &Members) -> Written {
        let failures = self.pair_failures.counts();
        let (prefills, decodes) = (members.of(Role::Prefill), members.of(Role::Decode));
        let few = prefills.len() * decodes.len() <= MAX_PAIRS;
        let mut series = begin(to, &family::PAIRS)?;
        for prefill in prefills {
            for decode in decodes {
                let count = failures.get(&(prefill.id(), decode.id())).copied();
                if few || count.is_some() {
                    series.counter([prefill.url(), decode.url()], count.unwrap_or(0))?;
                }
            }
        }
        Ok(())
    }

    fn counters(&self, to: &mut DescriptorEncoder<'_>) -> Written {
        let mut series = begin(to, &family::RETRIES)?;
        for (reason, count) in self.retries.counts(may_be_retried) {
            series.counter([end_name(reason)], count)?;
        }
        let mut series = begin(to, &family::ABORTS)?;
        for role in [Role::Prefill, Role::Decode] {
            series.counter([role.name()], (self.sources.aborts)(role))?;
        }
        let mut series = begin(to, &family::REFUSED)?;
        for (code, count) in self
            .refused
            .counts(|end| end_code(end).is_some_and(may_refuse))
        {
            series.counter([end_name(code)], count)?;
        }
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let mut series = begin(to, &family::BODIES)?;
        series.counter(["received"], read(&self.received_bytes))?;
        series.counter(["sent"], read(&self.sent_bytes))?;
        begin(to, &family::EVENTS)?.counter(["sent"], read(&self.events))?;
        let mut series = begin(to, &family::SPANS)?;
        series.counter(["queue_full"], read(&self.dropped_spans.queue_full))?;
        series.counter(["export_failed"], read(&self.dropped_spans.export_failed))
    }

    fn own(&self, to: &mut DescriptorEncoder<'_>) -> Written {
        let build = [("version", env!("CARGO_PKG_VERSION"))];
        begin(to, &family::BUILD)?.encoder.encode_info(&build)?;
        begin(to, &family::START)?.gauge([], self.started)?;
        let mut series = begin(to, &family::RELOADS)?;
        for (result, count) in ["applied", "refused"].into_iter().zip(&self.reloads) {
            series.counter([result], count.load(Ordering::Relaxed))?;
        }
        let last = f64::from_bits(self.last_reload.load(Ordering::Relaxed));
        begin(to, &family::LAST_RELOAD)?.gauge([], last)?;
        let process = Process::now();
        if let Some(seconds) = process.cpu_seconds {
            let mut series = begin(to, &family::CPU)?;
            series.encoder.encode_counter(&seconds, NO_EXEMPLAR)?;
        }
        let whole = |count: Option<u64>| count.map(|count| count as f64);
        for (family, value) in [
            (&family::RESIDENT, whole(process.resident_bytes)),
            (&family::VIRTUAL, whole(process.virtual_bytes)),
            (&family::OPEN_FILES, whole(process.open_files)),
            (&family::MAX_FILES, whole(process.max_files)),
            (&family::THREADS, whole(process.threads)),
            (&family::PROCESS_START, process.started_seconds),
        ] {
            if let Some(value) = value {
                begin(to, family)?.gauge([], value)?;
            }
        }
        Ok(())
    }
}

/// One histogram for each name; there may be fewer histograms than names.
fn by_name<'a>(
    to: &mut DescriptorEncoder<'_>,
    family: &Family,
    names: impl IntoIterator<Item = &'a str>,
    histograms: impl IntoIterator<Item = &'a Histogram>,
) -> Written {
    let mut series = begin(to, family)?;
    for (name, histogram) in names.into_iter().zip(histograms) {
        series.histogram([name], histogram)?;
    }
    Ok(())
}

/// The labels of a worker. Its URL has no user and no path, as the configuration demands.
fn names(worker: &Worker) -> [&str; 2] {
    [worker.role().name(), worker.url()]
}

/// Whether an attempt may be retried for this reason, so that its count is there from the first moment on.
fn may_be_retried(end: usize) -> bool {
    matches!(end_name(end), "prefill_rejected" | "decode_rejected")
        || matches!(
            end_code(end),
            Some(
                Code::PrefillUnreachable
                    | Code::DecodeUnreachable
                    | Code::PrefillConnectTimeout
                    | Code::DecodeConnectTimeout
                    | Code::PrefillLost
                    | Code::DecodeLost
            )
        )
}

/// Whether a request gets this error without a worker being asked.
pub(super) fn may_refuse(code: Code) -> bool {
    match code.row().side {
        Side::Client | Side::Proxy => !matches!(code, Code::Internal),
        _ => matches!(code, Code::NoPrefill | Code::NoDecode | Code::NoWorker),
    }
}
