//! The pair that serves a request, with the load on both of its workers.

use std::sync::Arc;
use std::time::Instant;

use super::load::Share;
use super::select::Pair;
use super::{Fleet, Forecast, Load, Worker};
use crate::pd::RoutingKey;

/// The pair of workers that serves one request, and the load that the request puts on each.
///
/// The two halves are separate because the legs end at different times: prefill's when it has responded,
/// decode's when its stream has ended.
pub struct Lease {
    /// The prefill worker's half.
    pub prefill: Load,
    /// The decode worker's half.
    pub decode: Load,
    /// What the policy expects of the prefill worker; `None` where it does not learn.
    pub forecast: Option<Arc<Forecast>>,
}

impl Lease {
    /// Counts the load of this request on the pair. The end of each load serves the queue of `queue_of`.
    pub(super) fn of(
        pair: Pair<'_>,
        request: &RoutingKey,
        now: Instant,
        queue_of: Option<&Arc<Fleet>>,
    ) -> Self {
        pair.prefill.picked(now);
        pair.decode.picked(now);
        let load = |worker: &Arc<Worker>, to_come: u32, spread| {
            let share = Share {
                body_bytes: request.body_bytes,
                to_come: to_come as usize,
                spread,
            };
            worker.load_of(share, queue_of.cloned())
        };
        Self {
            prefill: load(pair.prefill, 0, pair.spread),
            decode: load(pair.decode, request.to_come, None),
            forecast: pair
                .expected
                .map(|expected| Arc::new(Forecast::new(expected))),
        }
    }

    /// The same, whose prefill half tells the policy of this fleet how it ends, where that learns.
    pub(super) fn taught(mut self, fleet: &Arc<Fleet>, request: &RoutingKey) -> Self {
        if let (Some(prefix), Some(forecast)) = (&request.prefix, &self.forecast) {
            let (prefix, forecast) = (prefix.clone(), forecast.clone());
            self.prefill.teach(fleet.clone(), prefix, forecast);
        }
        self
    }
}
