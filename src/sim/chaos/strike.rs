//! What an action does to the request that it strikes: an answer instead, or another shape of the right one.

use std::time::Duration;

use http::HeaderValue;
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};

use super::io::{Orders, WireFault};
use super::rule::{Action, End};
use super::{ItemFault, Shaped};
use crate::sim::engine::Engine;
use crate::sim::wire::{self, Answer, Payload};

/// The fault of one request.
pub(crate) struct Fault(pub(crate) Action);

impl Fault {
    /// What the request's items do wrong.
    pub(crate) fn item(&self) -> ItemFault {
        match self.0 {
            Action::AbortFinish { tokens } => ItemFault::AbortAfter(tokens),
            Action::LoseKv => ItemFault::LoseKv,
            Action::CrashInTransfer => ItemFault::CrashInTransfer,
            _ => ItemFault::None,
        }
    }

    /// Whether the worker misses that the client leaves.
    pub(crate) fn is_zombie(&self) -> bool {
        self.0 == Action::Zombie
    }

    /// The answer of a request that the engine never sees.
    pub(crate) async fn instead(&self, engine: &Engine, orders: &Orders) -> Option<Answer> {
        orders.give(self.on_the_wire());
        match &self.0 {
            Action::Refuse { for_ms } => {
                engine.chaos.refuse(Duration::from_millis(*for_ms));
                orders.end_with_reset();
                Some(wire::cut())
            }
            // The client, or the end of the worker, ends the connection.
            Action::Silence => std::future::pending().await,
            Action::Reset => {
                orders.end_with_reset();
                Some(wire::cut())
            }
            Action::Close => Some(wire::cut()),
            Action::OutOfMemory => {
                orders.die_afterwards();
                Some(closing(wire::unhandled()))
            }
            Action::Status {
                code,
                body,
                content_type,
                retry_after,
            } => {
                let mut answer =
                    wire::json(code.0, body.clone().unwrap_or_else(|| error_body(code.0)));
                if let Some(content_type) = content_type {
                    let value = content_type.0.clone();
                    answer.headers_mut().insert(CONTENT_TYPE, value);
                }
                if let Some(seconds) = retry_after {
                    answer.headers_mut().insert(RETRY_AFTER, (*seconds).into());
                }
                Some(answer)
            }
            _ => None,
        }
    }

    /// The right answer, with the fault in it.
    pub(crate) async fn shape(&self, mut answer: Answer, orders: &Orders) -> Answer {
        match &self.0 {
            Action::DelayHead { ms } => tokio::time::sleep(Duration::from_millis(*ms)).await,
            Action::ContentType(value) => {
                answer.headers_mut().insert(CONTENT_TYPE, value.0.clone());
            }
            // What comes after a wrong length is nobody's next answer.
            Action::ContentLength { .. } => answer = closing(answer),
            Action::CutAfterEvent {
                end: End::Reset, ..
            } => orders.end_with_reset(),
            _ => {}
        }
        let (mut head, payload) = answer.into_parts();
        let payload = match (payload, &self.0) {
            (Payload::Events(events), action) => {
                Payload::Shaped(Shaped::new(events, action.clone()))
            }
            (Payload::Whole(mut body), Action::InvalidJson) => {
                body.truncate(body.len().saturating_sub(1));
                head.headers.insert(CONTENT_LENGTH, body.len().into());
                Payload::Whole(body)
            }
            (Payload::Whole(body), Action::CutAfterEvent { .. }) if !body.is_empty() => {
                Payload::Shaped(Shaped::cut())
            }
            (Payload::Whole(body), Action::StallAfterEvent { .. }) if !body.is_empty() => {
                Payload::Stalled
            }
            (payload, _) => payload,
        };
        Answer::from_parts(head, payload)
    }

    fn on_the_wire(&self) -> Option<WireFault> {
        match self.0 {
            Action::HalfHead => Some(WireFault::HalfHead),
            Action::CutAfterBytes { bytes, end } => Some(WireFault::CutAfter { bytes, end }),
            Action::ContentLength { add } => Some(WireFault::Length(add)),
            Action::BadChunk => Some(WireFault::BadChunk),
            Action::Dribble { bytes } => Some(WireFault::Dribble(
                usize::try_from(bytes.get()).unwrap_or(usize::MAX),
            )),
            _ => None,
        }
    }
}

fn closing(mut answer: Answer) -> Answer {
    answer
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("close"));
    answer
}

/// In SGLang's flat shape.
fn error_body(code: u16) -> String {
    let body = serde_json::json!({"object":"error","message":"scripted fault","type":code.to_string(),
        "param":null,"code":code});
    body.to_string()
}
