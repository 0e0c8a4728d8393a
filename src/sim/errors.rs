//! The only file that builds error bodies: failures, and their shape in each family of endpoints.
//!
//! Source: transcripts of SGLang 0.5.23 (`err_*`, `d_*`, `x_*`), and where none shows a shape
//! `entrypoints/http_server.py`, `entrypoints/openai/serving_base.py`.

use serde_json::{Value, json};

use super::vllm::{self, errors::Refusal};

/// A family of endpoints whose errors have the same shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// `/generate`.
    Native,
    /// `/v1/chat/completions`, `/v1/completions`.
    OpenAi,
    /// `/v1/responses`.
    Responses,
    /// `/v1/messages`.
    Messages,
    /// vLLM's endpoints.
    Vllm,
    /// vLLM's `/v1/messages`.
    VllmMessages,
}

/// Why a request fails.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Failure {
    /// The body does not match the schema: 400 with pydantic's list of errors. Always a response, never an event.
    Schema(String),
    /// The body does not match the contract of `/generate`: 400 with a bare text.
    Contract(String),
    /// SGLang's own checks, before the engine: 400.
    Invalid(String),
    /// A `ValueError` of the handler: 400 with another type than [`Failure::Invalid`].
    Value(String),
    /// The engine gave the request up. The head of a stream has been sent by then.
    Engine { status: u16, message: String },
    /// The engine refused an item: 400, and in a stream an item that ends as an abort with one token of padding.
    Refused(String),
    /// A refusal of vLLM.
    Vllm(Refusal),
    /// 500 as plain text; by vLLM its JSON.
    Internal,
}

impl Failure {
    pub(crate) fn status(&self) -> u16 {
        match self {
            Failure::Schema(_)
            | Failure::Contract(_)
            | Failure::Invalid(_)
            | Failure::Value(_)
            | Failure::Refused(_) => 400,
            Failure::Engine { status, .. } => *status,
            Failure::Vllm(refusal) => refusal.status,
            Failure::Internal => 500,
        }
    }

    /// The JSON body of the response; none for [`Failure::Internal`].
    pub(crate) fn body(&self, family: Family) -> Option<Value> {
        if matches!(family, Family::Vllm | Family::VllmMessages) {
            return Some(vllm::errors::body(self, family));
        }
        let (message, kind) = match self {
            Failure::Schema(message) => (message, "Bad Request"),
            Failure::Contract(message) => return Some(json!({"error":message})),
            Failure::Invalid(message)
            | Failure::Refused(message)
            | Failure::Engine {
                status: 400,
                message,
            } => (message, "BadRequestError"),
            Failure::Value(message) => (message, "BadRequest"),
            Failure::Engine { message, .. } => (message, "500"),
            Failure::Vllm(_) | Failure::Internal => return None,
        };
        let code = self.status();
        let flat = json!({"object":"error","message":message,"type":kind,"param":null,"code":code});
        let invalid = kind == "BadRequestError";
        Some(match (family, self) {
            (Family::Native, _) if invalid => json!({"error":{"message":message}}),
            (Family::Native | Family::OpenAi, _) => flat,
            (Family::Responses, _) if invalid => {
                json!({"error":{"message":message,"type":"invalid_request_error","param":null,"code":code}})
            }
            (Family::Responses, _) => {
                json!({"error":{"message":message,"type":kind,"param":null,"code":code}})
            }
            (Family::Messages, Failure::Schema(_)) => anthropic("invalid_request_error", message),
            (Family::Messages, _) if invalid => anthropic(kind, message),
            // This family hides the message of a 5xx. vLLM's have returned already.
            (Family::Messages | Family::Vllm | Family::VllmMessages, _) => {
                anthropic("api_error", "Internal server error")
            }
        })
    }

    /// The JSON of the event in a stream whose head has been sent with status 200.
    pub(crate) fn event(&self, family: Family) -> String {
        let (message, status) = match self {
            Failure::Schema(message)
            | Failure::Contract(message)
            | Failure::Invalid(message)
            | Failure::Value(message)
            | Failure::Refused(message) => (message.as_str(), 400),
            Failure::Engine { status, message } => (message.as_str(), *status),
            Failure::Vllm(_) | Failure::Internal => ("Internal Server Error", 500),
        };
        match family {
            Family::Vllm | Family::VllmMessages => vllm::errors::event(self, family),
            Family::Native => json!({"error":{
                "message":message,"type":"invalid_request_error","code":status,"retryable":false}})
            .to_string(),
            // With the spaces of `json.dumps`: this event alone is not written by orjson.
            Family::OpenAi => format!(
                "{{\"error\": {{\"object\": \"error\", \"message\": {}, \"type\": \"{}\", \"param\": null, \"code\": {status}}}}}",
                Value::from(message),
                if status == 400 {
                    "BAD_REQUEST"
                } else {
                    "INTERNAL_SERVER_ERROR"
                },
            ),
            // The `error` of a `response.failed`.
            Family::Responses => json!({"code":"server_error","message":message}).to_string(),
            Family::Messages if status == 400 => {
                anthropic("invalid_request_error", message).to_string()
            }
            Family::Messages => anthropic("api_error", "Internal server error").to_string(),
        }
    }
}

fn anthropic(kind: &str, message: &str) -> Value {
    json!({"type":"error","error":{"type":kind,"message":message}})
}

/// A request without a room on a prefill or decode worker.
pub(crate) fn no_room(rid: &str) -> Failure {
    let message = format!(
        "Invalid request: Disaggregated request received without bootstrap room id. req.rid='{rid}'"
    );
    Failure::Engine {
        status: 400,
        message,
    }
}

pub(crate) fn duplicate_rid(rid: &str) -> Failure {
    Failure::Invalid(format!("Duplicate request ID detected: {rid}"))
}

/// Source: SGLang 0.5.23, a response of an ordinary server.
pub(crate) fn start_beyond_prompt(start: usize, prompt: usize) -> Failure {
    Failure::Refused(format!(
        "req.logprob_start_len={start} is higher than the number of input tokens \
         len(req.origin_input_ids)={prompt}. Please use a smaller logprob_start_len."
    ))
}

/// The phase of the rendezvous in which a request failed; the message of each differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TransferPhase {
    PrefillBootstrap,
    PrefillTransfer,
    DecodeHandshake,
    DecodeTransfer,
}

/// A `KVTransferError` in a phase of the rendezvous.
pub(crate) fn transfer(phase: TransferPhase, rid: &str, room: i128, reason: &str) -> Failure {
    let (what, prefix) = match phase {
        TransferPhase::PrefillBootstrap => ("Prefill bootstrap", "req"),
        TransferPhase::PrefillTransfer => ("Prefill transfer", "req"),
        TransferPhase::DecodeHandshake => ("Decode handshake", "decode_req.req"),
        TransferPhase::DecodeTransfer => ("Decode transfer", "decode_req.req"),
    };
    aborted(format!(
        "{what} failed for request rank=0 {prefix}.rid='{rid}' {prefix}.bootstrap_room={room} \
         with exception KVTransferError(bootstrap_room={room}): {reason}"
    ))
}

/// A room that is live already.
pub(crate) fn duplicate_room(room: i128) -> Failure {
    let reason = "Duplicate or cancelled bootstrap room";
    aborted(format!("KVTransferError(bootstrap_room={room}): {reason}"))
}

/// An abort with status 500.
pub(crate) fn aborted(message: String) -> Failure {
    Failure::Engine {
        status: 500,
        message,
    }
}

/// SGLang's reason for every abort in the rendezvous.
pub(crate) const ABORTED: &str = "Aborted by AbortReq.";

/// SGLang's reason when the transfer itself fails.
/// Source: SGLang 0.5.23, `disaggregation/common/conn.py`, `failure_exception`.
pub(crate) const LOST_KV: &str = "Failed due to an unknown reason from another rank";

/// SGLang's reason where the rank of the room is not the one that a rank takes itself for.
/// Source: SGLang 0.5.23, `disaggregation/common/conn.py` (`CommonKVSender`).
pub(crate) fn rank_conflict(room: i128, rank: usize) -> String {
    format!(
        "follow_bootstrap_room conflict: dispatched to dp_rank 0 but bootstrap_room {room} implies dp_rank {rank}. Set \
         SGLANG_DISAGGREGATION_FORCE_QUERY_PREFILL_DP_RANK=1 to allow mixed routing."
    )
}

/// A timeout in a state of `KVPoll`.
pub(crate) fn timed_out(room: i128, after: std::time::Duration, state: &str) -> String {
    format!(
        "Request {room} timed out after {:.1}s in KVPoll.{state}",
        after.as_secs_f64()
    )
}

pub(crate) fn lost_prefill(bootstrap_address: &str) -> String {
    format!("Lost connection with prefill instance (bootstrap_addr: {bootstrap_address})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_failure_has_a_shape_per_family() {
        let failure = Failure::Invalid("m".to_owned());
        let bodies = [
            Family::Native,
            Family::OpenAi,
            Family::Responses,
            Family::Messages,
        ]
        .map(|family| failure.body(family).unwrap_or_default().to_string());
        assert_eq!(
            bodies,
            [
                r#"{"error":{"message":"m"}}"#,
                r#"{"object":"error","message":"m","type":"BadRequestError","param":null,"code":400}"#,
                r#"{"error":{"message":"m","type":"invalid_request_error","param":null,"code":400}}"#,
                r#"{"type":"error","error":{"type":"BadRequestError","message":"m"}}"#,
            ]
        );
    }

    #[test]
    fn a_transfer_failure_reads_as_in_the_transcript() {
        let timeout = timed_out(8001, std::time::Duration::from_secs(10), "Bootstrapping");
        let failure = transfer(TransferPhase::PrefillBootstrap, "84d0", 8001, &timeout);
        let message = match failure {
            Failure::Engine {
                status: 500,
                message,
            } => message,
            other => unreachable!("{other:?}"),
        };
        assert_eq!(
            message,
            "Prefill bootstrap failed for request rank=0 req.rid='84d0' req.bootstrap_room=8001 with exception \
             KVTransferError(bootstrap_room=8001): Request 8001 timed out after 10.0s in KVPoll.Bootstrapping"
        );
    }
}
