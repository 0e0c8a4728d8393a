//! Bodies so large that their parsing would be felt by others.

use std::sync::mpsc;

use support::pair::serve;
use support::{CHAT, Pair, STREAM, post};
use tokio::runtime::Builder;
use tokio::task::spawn_blocking;

#[test]
fn events_of_a_stream_pass_while_a_large_body_is_parsed() {
    // One thread for everything, and one for long work.
    let runtime = Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .build();
    runtime.unwrap().block_on(async {
        let mut pair = Pair::start().await;
        let (_prefill, mut decode) = pair.legs(CHAT, STREAM).await;
        decode.begin_stream().await;
        decode.chunk("data: 0\n\n").await;
        pair.client.head().await;
        assert_eq!(pair.client.chunk().await.as_deref(), Some("data: 0\n\n"));
        // Long work begins when the test lets it.
        let (release, held) = mpsc::channel::<()>();
        let busy = spawn_blocking(move || held.recv());
        let mut large = pair.balancer.client().await;
        let text = "a".repeat(16 << 20);
        let body = format!("{{\"text\":\"{text}\"}}");
        // Most of it has been read when this returns, because no socket holds as much.
        large.send(post("/generate", &body)).await;
        for event in ["data: 1\n\n", "data: 2\n\n", "data: 3\n\n"] {
            decode.chunk(event).await;
            assert_eq!(pair.client.chunk().await.as_deref(), Some(event));
        }
        let mut small = pair.balancer.client().await;
        small.send(post("/generate", "{\"text\":\"b\"}")).await;
        let legs = pair.next_legs().await;
        assert_eq!(legs.0.request.json()["text"], "b");
        serve(legs).await;
        assert_eq!(small.answer().await.status(), 200);
        assert!(pair.is_idle(), "the large one waits for its turn");
        release.send(()).unwrap();
        busy.await.unwrap().unwrap();
        let legs = pair.next_legs().await;
        assert_eq!(
            legs.1.request.json()["text"].as_str().map(str::len),
            Some(text.len())
        );
        serve(legs).await;
        assert_eq!(large.answer().await.status(), 200);
    });
}
