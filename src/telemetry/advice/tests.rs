use super::*;

/// Ten seconds of a cluster of two and two that is hardly used: 100 streams, 20 ms of prefill and 2 of decode.
fn quiet() -> Evidence {
    Evidence {
        seconds: 10.0,
        streams: 100,
        send: 0.1,
        prefill: 2.0,
        decode: 0.2,
        relay: 0.1,
        prefill_legs: 2.0,
        prefills: 2,
        decodes: 2,
        gap: Some(0.002),
        shortest_gap: Some(0.002),
        loads: Some(Loads {
            computing: 0.2,
            decode_use: 0.05,
            ..Loads::default()
        }),
        ..Evidence::default()
    }
}

fn polled(seen: Evidence, loads: Loads) -> Evidence {
    let loads = Some(loads);
    Evidence { loads, ..seen }
}

fn words(seen: &Evidence) -> String {
    advise(seen).to_string().replace('\u{a0}', " ")
}

/// 16 requests wait for two prefill workers all the time.
fn prefill_queue() -> Evidence {
    let loads = Loads {
        computing: 16.0,
        decode_use: 0.23,
        ..Loads::default()
    };
    let seen = Evidence {
        prefill: 160.0,
        prefill_legs: 160.0,
        ..quiet()
    };
    polled(seen, loads)
}

/// 16 requests wait for decode's slots; prefill responds at once.
fn decode_queue() -> Evidence {
    let loads = Loads {
        computing: 0.2,
        waiting: 16.0,
        decode_use: 1.0,
        ..Loads::default()
    };
    let seen = Evidence {
        decode: 160.0,
        ..quiet()
    };
    polled(seen, loads)
}

/// 16 requests wait for decode's memory, which holds prefill's legs up.
fn memory_queue() -> Evidence {
    let loads = Loads {
        bootstrap: 16.0,
        computing: 0.2,
        preallocating: 16.0,
        decode_use: 1.0,
        ..Loads::default()
    };
    let seen = Evidence {
        prefill: 162.0,
        prefill_legs: 162.0,
        ..quiet()
    };
    polled(seen, loads)
}

/// The KV cache of eight requests is on its way all the time.
fn slow_transfer() -> Evidence {
    let loads = Loads {
        computing: 0.2,
        sending: 8.0,
        decode_use: 0.1,
        ..Loads::default()
    };
    let seen = Evidence {
        prefill: 82.0,
        prefill_legs: 82.0,
        ..quiet()
    };
    polled(seen, loads)
}

#[test]
fn requests_that_queue_for_prefill_make_it_prefill_bound() {
    assert_eq!(
        words(&prefill_queue()),
        "Prefill-bound: 100 % of TTFT waits for prefill, which is 94 % busy; decode is 23 % busy; 3P:1D would balance this load."
    );
}

#[test]
fn requests_that_queue_for_slots_or_memory_of_decode_make_it_decode_bound() {
    for seen in [decode_queue(), memory_queue()] {
        let advice = advise(&seen);
        assert_eq!(advice.verdict, Verdict::Decode, "{advice}");
        assert!(
            advice.shares.decode > 0.9 && advice.prefill_busy < 0.2,
            "{advice:?}"
        );
        assert_eq!(advice.balance, Some((1, 3)), "{advice}");
    }
}

#[test]
fn a_slow_transfer_is_no_reason_for_more_workers() {
    let advice = advise(&slow_transfer());
    assert_eq!(advice.verdict, Verdict::Transfer);
    assert_eq!(advice.balance, None);
    assert!(
        words(&slow_transfer()).contains("98 % of TTFT is the transfer")
            || advice.shares.transfer > 0.9
    );
}

#[test]
fn without_a_queue_there_is_no_bottleneck_however_long_prefill_computes() {
    let advice = advise(&quiet());
    assert!(advice.shares.prefill > 0.8);
    assert_eq!(advice.verdict, Verdict::Balanced);
    assert_eq!(
        words(&quiet()),
        "No bottleneck: prefill is 10 % busy, decode is 5 % busy."
    );
}

#[test]
fn both_sides_can_be_full() {
    let mut seen = prefill_queue();
    seen.decode = 160.0;
    seen.loads.as_mut().expect("loads").decode_use = 0.95;
    assert_eq!(advise(&seen).verdict, Verdict::Both);
}

#[test]
fn too_few_requests_are_no_evidence() {
    for streams in [0, ENOUGH - 1] {
        let seen = Evidence {
            streams,
            ..prefill_queue()
        };
        assert_eq!(advise(&seen).verdict, Verdict::NotEnough);
    }
    assert_eq!(advise(&Evidence::default()).verdict, Verdict::NotEnough);
    assert!(
        words(&Evidence::default())
            .starts_with("Not enough streams to say which side is slow: 0 in")
    );
}

#[test]
fn without_loads_the_advice_says_what_it_cannot_tell() {
    let seen = Evidence {
        loads: None,
        ..prefill_queue()
    };
    let advice = advise(&seen);
    assert_eq!(
        (advice.verdict, advice.decode_busy),
        (Verdict::Prefill, None)
    );
    assert_eq!(advice.balance, None);
    let words = words(&seen);
    assert!(words.contains("or slow in the transfer"), "{words}");
    assert!(words.contains("load_poll_interval_secs"), "{words}");
}

#[test]
fn a_rate_of_events_that_falls_is_a_sign_of_a_busy_decode() {
    let seen = Evidence {
        loads: None,
        gap: Some(0.010),
        shortest_gap: Some(0.002),
        ..quiet()
    };
    let advice = advise(&seen);
    assert_eq!(advice.verdict, Verdict::Decode);
    assert!((advice.decode_busy.unwrap_or_default() - 0.8).abs() < 1e-9);
}

#[test]
fn a_wait_in_the_queue_of_the_balancer_is_for_the_side_that_is_at_its_limit() {
    let seen = |limits| Evidence {
        queue: 20.0,
        limits: Some(limits),
        ..quiet()
    };
    let (prefill, decode) = (advise(&seen((1.0, 0.2))), advise(&seen((0.2, 1.0))));
    assert!(prefill.shares.prefill > 0.9 && prefill.shares.decode < 0.1);
    assert!(decode.shares.decode > 0.8);
    assert_eq!(decode.verdict, Verdict::Decode);
}

#[test]
fn failures_and_slow_senders_come_before_any_advice_about_workers() {
    let failing = Evidence {
        retry: 160.0,
        ..prefill_queue()
    };
    assert_eq!(advise(&failing).verdict, Verdict::Failures);
    let slow = Evidence {
        read: 100.0,
        ..quiet()
    };
    assert_eq!(advise(&slow).verdict, Verdict::Clients);
}

#[test]
fn the_balance_is_never_on_the_other_side_of_the_present_numbers() {
    for prefills in 1..8 {
        for decodes in 1..8 {
            for tenth in 2..10 {
                let slack = f64::from(tenth) / 10.0 * 0.75;
                let now = (prefills, decodes);
                if let Some((p, d)) = balance((0.95, slack), now) {
                    assert!(p * decodes > d * prefills, "{now:?} {slack}: {p}P:{d}D");
                }
                if let Some((p, d)) = balance((slack, 0.95), now) {
                    assert!(p * decodes < d * prefills, "{now:?} {slack}: {p}P:{d}D");
                }
            }
        }
    }
    assert_eq!(balance((0.9, 0.3), (1, 1)), Some((3, 1)));
    assert_eq!(balance((0.9, 0.9), (100, 100)), None);
    assert_eq!(balance((0.9, 0.3), (100, 100)), Some((150, 50)));
}

#[test]
fn no_evidence_leads_to_a_number_that_is_none() {
    let hostile = [0.0, 1e-12, 1e12, f64::MAX];
    for a in hostile {
        for b in hostile {
            let seen = Evidence {
                seconds: a,
                prefill: b,
                decode: a,
                prefill_legs: b,
                gap: Some(a),
                shortest_gap: Some(b),
                prefills: 0,
                decodes: 0,
                ..prefill_queue()
            };
            let words = words(&seen);
            assert!(!words.contains("NaN") && !words.contains("inf"), "{words}");
        }
    }
}
