//! The faults, their moments, and what is measured: one row of the table for each reading.

use std::time::Duration;

use super::workers::{Behaviour, First, Then, WorkerId};
use mini_lb::pd::Engine;

/// One fault.
#[derive(Debug, Clone)]
pub struct Scenario {
    pub name: &'static str,
    pub about: &'static str,
    pub engine: Engine,
    /// The directory, or the transcript, with the recorded request and the workers' responses.
    pub recorded: &'static str,
    pub path: &'static str,
    /// The behaviour of each worker.
    pub prefill: Vec<Behaviour>,
    pub decode: Vec<Behaviour>,
    /// Prefill workers that always refuse connections.
    pub refusing: Vec<usize>,
    pub moment: Moment,
    /// Time between two requests of the client.
    pub pause: Duration,
    /// Whether the fault is that the client leaves.
    pub leaves: bool,
    pub readings: &'static [Reading],
}

/// The moment of the fault, from which time is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// When the request is sent.
    Asked,
    /// When both workers have their leg.
    BothLegs,
    /// When prefill has its leg.
    PrefillLeg,
    /// When decode has its leg.
    DecodeLeg,
    /// When both workers have their leg, the client has the first bytes of the body, and prefill has responded if it
    /// does before the fault.
    FirstEvent,
}

/// What is measured of each round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// Time until the client knows the outcome, and the outcome.
    Client,
    /// Time until all legs at prefill have ended.
    PrefillEnds,
    /// Time until all legs at decode have ended.
    DecodeEnds,
    /// Share of the requests that were served.
    Served,
    /// Legs at prefill for one request of the client.
    PrefillRequests,
    /// Legs at decode for one request of the client.
    DecodeRequests,
    /// Whether other legs followed a failed one, and with which rooms.
    Retry,
    /// Whether the client has the logprobs of the prompt, which only prefill computes.
    PromptLogprobs,
    /// The number of rooms of a leg.
    Rooms,
    /// Whether decode got the parameters of one prompt for several.
    OneForAll,
}

pub const SERVE: Behaviour = behaviour(First::Nothing, Then::Serve);
pub const HOLD: Behaviour = behaviour(First::Nothing, Then::Hold);
pub const OPEN: Behaviour = behaviour(First::Opening, Then::Hold);

const CLIENT_AND_DECODE: &[Reading] = &[Reading::Client, Reading::DecodeEnds];
const CLIENT_AND_PREFILL: &[Reading] = &[Reading::Client, Reading::PrefillEnds];
const BOTH_END: &[Reading] = &[Reading::PrefillEnds, Reading::DecodeEnds];
const ALL_THREE: &[Reading] = &[Reading::Client, Reading::PrefillEnds, Reading::DecodeEnds];

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
        Reading::Retry,
    ];
    all.extend(outages(whole, of_one_full));
    all.extend(answers());
    all
}

impl Scenario {
    /// The same scenario without a fault, for the requests that warm the balancer up.
    pub fn without_fault(&self) -> Scenario {
        Scenario {
            prefill: vec![SERVE; self.prefill.len()],
            decode: vec![SERVE; self.decode.len()],
            refusing: Vec::new(),
            moment: Moment::Asked,
            pause: Duration::ZERO,
            leaves: false,
            ..self.clone()
        }
    }

    /// Whether prefill responds before the fault.
    pub fn has_prefill_served(&self) -> bool {
        self.prefill.contains(&SERVE)
    }

    /// The workers that always refuse connections.
    pub fn down(&self) -> impl Iterator<Item = WorkerId> {
        self.refusing.iter().copied().map(WorkerId::Prefill)
    }
}

fn prefill_fails() -> Vec<Scenario> {
    let fails = |name, about, then| Scenario {
        prefill: vec![behaviour(First::Nothing, then)],
        decode: vec![HOLD],
        readings: CLIENT_AND_DECODE,
        ..streamed(name, about)
    };
    vec![
        fails("prefill answers 500", "decode waits", Then::Status(500)),
        fails("prefill closes", "decode waits", Then::Close),
        fails(
            "prefill dies",
            "reset, then refused; decode waits",
            Then::Die,
        ),
    ]
}

fn decode_fails() -> Vec<Scenario> {
    vec![
        Scenario {
            prefill: vec![HOLD],
            decode: vec![behaviour(First::Nothing, Then::Status(500))],
            readings: CLIENT_AND_PREFILL,
            ..streamed("decode answers 500", "prefill is busy")
        },
        Scenario {
            prefill: vec![HOLD],
            decode: vec![behaviour(First::Nothing, Then::Close)],
            readings: CLIENT_AND_PREFILL,
            ..streamed("decode closes", "before its first byte, prefill is busy")
        },
        Scenario {
            prefill: vec![SERVE],
            decode: vec![behaviour(First::Opening, Then::Close)],
            moment: Moment::FirstEvent,
            readings: &[Reading::Client],
            ..streamed("decode cuts a stream", "prefill has answered")
        },
        Scenario {
            prefill: vec![OPEN],
            decode: vec![behaviour(First::Opening, Then::Close)],
            moment: Moment::FirstEvent,
            readings: CLIENT_AND_PREFILL,
            ..streamed(
                "decode cuts a stream early",
                "prefill's answer has begun, not ended",
            )
        },
        Scenario {
            prefill: vec![SERVE],
            decode: vec![behaviour(First::Half, Then::Close)],
            readings: &[Reading::Client],
            ..whole(
                "decode cuts an answer",
                "that is no stream, half of it sent",
            )
        },
    ]
}

fn client_leaves() -> Vec<Scenario> {
    let leaves = |scenario: Scenario| Scenario {
        leaves: true,
        readings: BOTH_END,
        ..scenario
    };
    vec![
        leaves(Scenario {
            prefill: vec![HOLD],
            decode: vec![HOLD],
            ..streamed("client leaves early", "before the first byte of a stream")
        }),
        leaves(Scenario {
            prefill: vec![HOLD],
            decode: vec![HOLD],
            ..whole("client leaves no stream", "both legs at work")
        }),
        Scenario {
            readings: &[Reading::DecodeEnds],
            ..leaves(Scenario {
                prefill: vec![SERVE],
                decode: vec![OPEN],
                moment: Moment::FirstEvent,
                ..streamed("client leaves a stream", "prefill has answered")
            })
        },
        leaves(Scenario {
            prefill: vec![OPEN],
            decode: vec![OPEN],
            moment: Moment::FirstEvent,
            ..streamed(
                "client leaves a young stream",
                "prefill's answer has begun, not ended",
            )
        }),
        leaves(Scenario {
            prefill: vec![HOLD],
            decode: vec![OPEN],
            ..logprobs(
                "client leaves a merge",
                "decode streams, prefill is waited for",
            )
        }),
    ]
}

fn silence() -> Vec<Scenario> {
    let silent = |name, about, prefill, readings| Scenario {
        prefill: vec![prefill],
        decode: vec![HOLD],
        readings,
        ..streamed(name, about)
    };
    vec![
        silent("prefill never answers", "nor does decode", HOLD, ALL_THREE),
        silent(
            "decode never answers",
            "prefill has",
            SERVE,
            CLIENT_AND_DECODE,
        ),
    ]
}

/// Faults of the prefill side that requests of this kind meet all the time. One full worker of two has readings of its own.
pub fn outages(
    whole: fn(&'static str, &'static str) -> Scenario,
    of_one_full: &'static [Reading],
) -> Vec<Scenario> {
    const READINGS: &[Reading] = &[
        Reading::Served,
        Reading::Client,
        Reading::PrefillRequests,
        Reading::DecodeRequests,
    ];
    let of_two = |name, about, prefill| Scenario {
        prefill,
        decode: vec![SERVE],
        moment: Moment::Asked,
        readings: READINGS,
        ..whole(name, about)
    };
    let refuse = "connections, all the time";
    let full = behaviour(First::Nothing, Then::Status(503));
    let one_full = Scenario {
        readings: of_one_full,
        ..of_two(
            "one prefill of two is full",
            "503, the other serves",
            vec![full, SERVE],
        )
    };
    vec![
        Scenario {
            refusing: vec![0],
            ..of_two("one prefill of two refuses", refuse, vec![SERVE, SERVE])
        },
        one_full.clone(),
        Scenario {
            name: "one prefill is full at 5/s",
            about: "the same with five requests a second",
            pause: Duration::from_millis(200),
            ..one_full
        },
        Scenario {
            refusing: vec![0, 1],
            ..of_two("all prefills refuse", refuse, vec![SERVE, SERVE])
        },
        of_two("all prefills are full", "503", vec![full, full]),
    ]
}

fn answers() -> Vec<Scenario> {
    let served = |scenario: Scenario| Scenario {
        prefill: vec![SERVE],
        decode: vec![SERVE],
        moment: Moment::Asked,
        ..scenario
    };
    const LOGPROBS: &[Reading] = &[Reading::Client, Reading::PromptLogprobs];
    vec![
        served(Scenario {
            readings: LOGPROBS,
            ..logprobs("logprobs of the prompt", "in a stream of /generate")
        }),
        served(Scenario {
            readings: LOGPROBS,
            recorded: "gen_logprob",
            ..logprobs("logprobs and no stream", "of the prompt, /generate")
        }),
        served(Scenario {
            readings: &[Reading::Client, Reading::Rooms],
            recorded: "gen_batch",
            ..logprobs("a batch", "of two prompts, /generate")
        }),
    ]
}

fn streamed(name: &'static str, about: &'static str) -> Scenario {
    Scenario {
        name,
        about,
        engine: Engine::Sglang,
        recorded: "chat_stream",
        path: "/v1/chat/completions",
        prefill: Vec::new(),
        decode: Vec::new(),
        refusing: Vec::new(),
        moment: Moment::BothLegs,
        pause: Duration::ZERO,
        leaves: false,
        readings: &[],
    }
}

fn whole(name: &'static str, about: &'static str) -> Scenario {
    Scenario {
        recorded: "chat_nonstream",
        ..streamed(name, about)
    }
}

fn logprobs(name: &'static str, about: &'static str) -> Scenario {
    Scenario {
        recorded: "gen_logprob_stream",
        path: "/generate",
        ..streamed(name, about)
    }
}

pub const fn behaviour(first: First, then: Then) -> Behaviour {
    Behaviour { first, then }
}
