//! The faults of `scenarios` for vLLM's workers: decode's leg begins when prefill's has ended, so that a fault finds one leg.

use std::time::Duration;

use mini_lb::pd::Engine;

use super::scenarios::{HOLD, Moment, OPEN, Reading, SERVE, Scenario, behaviour, outages};
use super::workers::{First, Then};

const CLIENT: &[Reading] = &[Reading::Client];
const PREFILL_ENDS: &[Reading] = &[Reading::PrefillEnds];
const DECODE_ENDS: &[Reading] = &[Reading::DecodeEnds];

/// Every fault, in the order of the table.
pub fn all() -> Vec<Scenario> {
    let mut all = prefill_fails();
    all.extend(decode_fails());
    all.extend(client_leaves());
    all.extend(silence());
    let of_one_full = &[
        Reading::Served,
        Reading::Client,
        Reading::PrefillRequests,
        Reading::DecodeRequests,
    ];
    all.extend(outages(whole, of_one_full));
    all.push(Scenario {
        recorded: "04-prompt-list",
        path: "/v1/completions",
        moment: Moment::Asked,
        readings: &[Reading::Client, Reading::OneForAll],
        ..streamed(
            "a list of prompts",
            "whose first one's blocks prefill names",
        )
    });
    all
}

/// A decode worker can still compute the prompt.
fn prefill_fails() -> Vec<Scenario> {
    let fails = |name, about, then| Scenario {
        prefill: vec![behaviour(First::Nothing, then)],
        moment: Moment::PrefillLeg,
        ..streamed(name, about)
    };
    vec![
        fails(
            "prefill answers 500",
            "there is no other",
            Then::Status(500),
        ),
        fails("prefill closes", "there is no other", Then::Close),
        fails("prefill dies", "reset, then refused", Then::Die),
    ]
}

fn decode_fails() -> Vec<Scenario> {
    let fails = |name, about, then| Scenario {
        decode: vec![behaviour(First::Nothing, then)],
        ..streamed(name, about)
    };
    vec![
        fails("decode answers 500", "each time", Then::Status(500)),
        fails("decode closes", "before its first byte", Then::Close),
        Scenario {
            decode: vec![behaviour(First::Opening, Then::Close)],
            moment: Moment::FirstEvent,
            ..streamed("decode cuts a stream", "after its first events")
        },
        Scenario {
            decode: vec![behaviour(First::Half, Then::Close)],
            ..whole(
                "decode cuts an answer",
                "that is no stream, half of it sent",
            )
        },
    ]
}

fn client_leaves() -> Vec<Scenario> {
    let while_prefill_computes = |scenario: Scenario| Scenario {
        prefill: vec![HOLD],
        moment: Moment::PrefillLeg,
        leaves: true,
        readings: PREFILL_ENDS,
        ..scenario
    };
    let while_decode_computes = |scenario: Scenario| Scenario {
        decode: vec![HOLD],
        leaves: true,
        readings: DECODE_ENDS,
        ..scenario
    };
    vec![
        while_prefill_computes(streamed(
            "client leaves early",
            "prefill computes, a stream",
        )),
        while_prefill_computes(whole("client leaves no stream", "prefill computes")),
        while_decode_computes(streamed(
            "client leaves at decode",
            "before the first byte of a stream",
        )),
        while_decode_computes(whole(
            "client leaves decode's document",
            "decode computes, no stream",
        )),
        Scenario {
            decode: vec![OPEN],
            moment: Moment::FirstEvent,
            ..while_decode_computes(streamed("client leaves a stream", "after its first events"))
        },
    ]
}

fn silence() -> Vec<Scenario> {
    vec![
        Scenario {
            prefill: vec![HOLD],
            moment: Moment::PrefillLeg,
            readings: &[Reading::Client, Reading::PrefillEnds],
            ..streamed("prefill never answers", "and is there")
        },
        Scenario {
            decode: vec![HOLD],
            readings: &[Reading::Client, Reading::DecodeEnds],
            ..streamed("decode never answers", "prefill has")
        },
    ]
}

/// A fault of decode's leg of a stream.
fn streamed(name: &'static str, about: &'static str) -> Scenario {
    Scenario {
        name,
        about,
        engine: Engine::Vllm,
        recorded: "02-chat-stream",
        path: "/v1/chat/completions",
        prefill: vec![SERVE],
        decode: vec![SERVE],
        refusing: Vec::new(),
        moment: Moment::DecodeLeg,
        pause: Duration::ZERO,
        leaves: false,
        readings: CLIENT,
    }
}

fn whole(name: &'static str, about: &'static str) -> Scenario {
    Scenario {
        recorded: "01-chat",
        ..streamed(name, about)
    }
}
