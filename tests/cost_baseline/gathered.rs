//! Events of running streams that are gathered from several samples. Nothing of the balancer but `mini_lb::pd` runs here.

use allocation_counter::measure;
use bytes::{Bytes, BytesMut};
use mini_lb::pd::{Engine, Route};

const SAMPLES: usize = 4;
const EVENTS: usize = 100;

/// The events of one sample, as SGLang writes them.
const CHUNK: &str = r#"data: {"id":"ea74aff73aea47de897f800c2cbf32e8","object":"chat.completion.chunk","created":1795955528,"model":"tiny","choices":[{"index":0,"delta":{"reasoning_content":null,"content":" authors"},"logprobs":null,"finish_reason":null,"matched_stop":null}]}"#;
const EVENT: &str = r#"data: {"text":" making","output_ids":[1199],"meta_info":{"id":"f9b41c46330844dba39b2d7a45158ead","finish_reason":null,"prompt_tokens":10,"completion_tokens":1,"cached_tokens":9,"dp_rank":null}}"#;

#[test]
fn an_event_of_a_sample_is_gathered_without_an_allocation() {
    let n = format!(r#"{{"n":{SAMPLES},"sampling_params":{{"n":{SAMPLES}}}}}"#);
    for (route, event) in [
        (Route::Generate, EVENT),
        (Route::ChatCompletions, CHUNK),
        (Route::Completions, CHUNK),
    ] {
        let facts = Engine::Sglang.parse(route, n.as_bytes()).unwrap();
        let mut stream = Engine::Sglang.gather(route, &facts).stream(1 << 20);
        let event = Bytes::from(format!("{event}\n\n"));
        let mut out = BytesMut::with_capacity(2 * EVENTS * event.len());
        // The first event of each sample is scanned.
        for sample in 0..SAMPLES {
            stream.push(sample, event.clone(), &mut out).unwrap();
        }
        let before = out.len();
        let counted = measure(|| {
            for sample in (0..SAMPLES).cycle().take(EVENTS) {
                stream.push(sample, event.clone(), &mut out).unwrap();
            }
        });
        assert_eq!(counted.count_total, 0, "{}", route.name());
        assert!(out.len() - before >= EVENTS * event.len());
    }
}
