//! What an engine needs whose decode leg begins with prefill's response.

use std::sync::Arc;

use bytes::Bytes;

use super::super::prefill::{Outcome, PrefillLeg};
use super::Attempt;
use crate::fleet::Worker;
use crate::pd::Injected;

impl Attempt {
    /// Waits for the end of prefill's leg; at once where there is none.
    pub(crate) async fn prefill_ended(&self) {
        if let Some(leg) = &self.leg {
            leg.ended().await;
        }
    }

    /// The body of prefill's response, where it was kept and is a document.
    pub(crate) fn prefill_document(&self) -> Option<&Bytes> {
        match self.leg.as_ref()?.outcome()? {
            Outcome::Served {
                body,
                streams: false,
            } => Some(body),
            _ => None,
        }
    }

    /// Gives up a prefill leg that has ended, for another attempt that begins with its response.
    pub(crate) fn take_prefill(&mut self) -> Option<(Arc<Worker>, PrefillLeg)> {
        Some((self.prefill.clone(), self.leg.take()?))
    }

    /// Sets the body of decode's leg, where prefill's response is part of it.
    pub(crate) fn set_body(&mut self, body: Injected) {
        self.plan.body = body;
    }
}
