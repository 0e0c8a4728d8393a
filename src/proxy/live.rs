//! What a live request shows of itself: its steps are written to the slot that `telemetry` keeps for it; what its legs and
//! its response know is read there.

use std::sync::Arc;
use std::time::Instant;

use super::request::RequestContext;
use super::session::Shared;
use crate::legs::{Attempt, Report};
use crate::telemetry::Progress;

impl Progress for Report {
    fn prefill_end(&self) -> Option<Instant> {
        self.times().end
    }
}

impl Progress for Shared {
    fn first_byte(&self) -> Option<Instant> {
        self.first_byte()
    }

    fn events(&self) -> u64 {
        self.events()
    }
}

impl RequestContext {
    /// Shows how far the request is.
    pub(super) fn show(&self) {
        if let Some(live) = &self.live {
            live.note(&self.record);
        }
    }

    /// Shows that both legs are sent.
    pub(super) fn show_legs(&self) {
        let Some(live) = &self.live else {
            return;
        };
        let report = self.attempt.as_ref().and_then(Attempt::prefill_report);
        let report = report.map(|report| report.clone() as Arc<dyn Progress>);
        let response = self.installed.as_ref();
        let response = response.map(|installed| installed.shared().clone() as Arc<dyn Progress>);
        live.note_legs(&self.record, [report, response]);
    }

    /// Shows that the attempt has failed, and another one is to come.
    pub(super) fn show_retry(&self) {
        if let Some(live) = &self.live {
            live.note_retry(&self.record);
        }
    }
}
