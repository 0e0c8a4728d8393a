//! What an action does to a request: a response in place of the engine's, or a change to the engine's response.

use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};

use serde_json::json;

use super::io::{ConnectionFaults, WireFault};
use super::rule::{Action, End};
use super::{FaultyEvents, ItemFault};
use crate::sim::engine::Engine;
use crate::sim::errors::{Failure, Family};
use crate::sim::render;
use crate::sim::stream::refusal;
use crate::sim::vllm::errors::internal_event;
use crate::sim::wire::{self, Payload, SimResponse};

/// The fault of one request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Fault {
    /// The name of the rule that fired.
    pub(crate) rule: String,
    pub(crate) action: Action,
}

impl Fault {
    /// The part that acts within the engine.
    pub(crate) fn item(&self) -> ItemFault {
        match self.action {
            Action::AbortFinish { tokens } => ItemFault::AbortAfter(tokens),
            Action::LoseKv => ItemFault::LoseKv,
            Action::CrashInTransfer => ItemFault::CrashInTransfer,
            _ => ItemFault::None,
        }
    }

    /// Whether the worker fails to notice that the client left.
    pub(crate) fn is_zombie(&self) -> bool {
        self.action == Action::Zombie
    }

    /// The response in place of the engine's, which does not see the request then. Also prepares the connection.
    pub(crate) async fn replacement(
        &self,
        engine: &Engine,
        connection: &ConnectionFaults,
    ) -> Option<SimResponse> {
        connection.set(self.wire_fault());
        match &self.action {
            Action::Refuse { for_ms } => {
                engine.chaos.refuse(Duration::from_millis(*for_ms));
                connection.reset_on_close();
                Some(wire::cut())
            }
            // Until the client leaves or the worker stops.
            Action::Silence => std::future::pending().await,
            Action::Reset => {
                connection.reset_on_close();
                Some(wire::cut())
            }
            Action::Close => Some(wire::cut()),
            Action::OutOfMemory => {
                connection.crash_on_close();
                let error = match engine.is_vllm() {
                    true => refusal(&Failure::Internal, Family::Vllm),
                    false => wire::internal_error(),
                };
                Some(closing(error))
            }
            Action::Status {
                code,
                body,
                content_type,
                retry_after,
            } => {
                let mut response = wire::json(
                    code.0,
                    body.clone().unwrap_or_else(|| error_body(engine, code.0)),
                );
                if let Some(content_type) = content_type {
                    let value = content_type.0.clone();
                    response.headers_mut().insert(CONTENT_TYPE, value);
                }
                if let Some(seconds) = retry_after {
                    response
                        .headers_mut()
                        .insert(RETRY_AFTER, (*seconds).into());
                }
                Some(response)
            }
            _ => None,
        }
    }

    /// The engine's response with the fault in it.
    pub(crate) async fn apply(
        &self,
        engine: &Engine,
        mut response: SimResponse,
        connection: &ConnectionFaults,
    ) -> SimResponse {
        match &self.action {
            Action::DelayHead { ms } => tokio::time::sleep(Duration::from_millis(*ms)).await,
            Action::ContentType(value) => {
                response.headers_mut().insert(CONTENT_TYPE, value.0.clone());
            }
            // With a wrong length the peer cannot tell where the next response begins.
            Action::ContentLength { .. } => response = closing(response),
            Action::CutAfterEvent {
                end: End::Reset, ..
            } => connection.reset_on_close(),
            _ => {}
        }
        let (mut head, payload) = response.into_parts();
        let payload = match (payload, &self.action) {
            (Payload::Events(events), action) => {
                let error = match action {
                    Action::ErrorEvent { message, .. } => {
                        error_event(engine, message.as_deref().unwrap_or("scripted fault"))
                    }
                    _ => Bytes::new(),
                };
                Payload::Faulty(FaultyEvents::new(events, action.clone(), error))
            }
            (Payload::Whole(mut body), Action::InvalidJson) => {
                body.truncate(body.len().saturating_sub(1));
                head.headers.insert(CONTENT_LENGTH, body.len().into());
                Payload::Whole(body)
            }
            (Payload::Whole(body), Action::CutAfterEvent { .. }) if !body.is_empty() => {
                Payload::Faulty(FaultyEvents::cut())
            }
            (Payload::Whole(body), Action::StallAfterEvent { .. }) if !body.is_empty() => {
                Payload::Stalled
            }
            (payload, _) => payload,
        };
        SimResponse::from_parts(head, payload)
    }

    fn wire_fault(&self) -> Option<WireFault> {
        match self.action {
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

fn closing(mut response: SimResponse) -> SimResponse {
    response
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

/// An error in SGLang's flat shape, or in vLLM's.
fn error_body(engine: &Engine, code: u16) -> String {
    let (message, kind) = ("scripted fault", code.to_string());
    let body = match engine.is_vllm() {
        true => json!({"error":{"message":message,"type":kind,"param":null,"code":code}}),
        false => json!({"object":"error","message":message,"type":kind,"param":null,"code":code}),
    };
    body.to_string()
}

/// The event of SGLang's `/generate`, or vLLM's. Source: SGLang 0.5.23, `entrypoints/http_server.py`; vLLM's transcripts 23.
fn error_event(engine: &Engine, message: &str) -> Bytes {
    if engine.is_vllm() {
        return render::data(&internal_event(message));
    }
    let error = json!({"error":{
        "message":message,"type":"InternalServerError","code":500,"retryable":false}});
    render::data(&error.to_string())
}
