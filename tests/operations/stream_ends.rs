//! What the log says of the end of a stream.

use support::Exchange;

use crate::process_pair::ProcessPair;

/// The line of a request whose stream begins, and then goes on as `rest` has it.
async fn line(rest: impl AsyncFnOnce(support::Client, Exchange)) -> String {
    let mut pair = ProcessPair::start("").await;
    let (client, decode) = pair.stream().await;
    rest(client, decode).await;
    pair.process.line("request finished").await
}

#[tokio::test]
async fn a_client_that_leaves_at_the_end_marker_was_served() {
    let line = line(async |mut client, mut decode| {
        decode.chunk("data: [DONE]\n\n").await;
        client.chunk().await.unwrap();
        client.reset();
        decode.chunk("").await;
    })
    .await;
    assert!(line.contains(" status=200 ended=ok "), "{line}");
}

#[tokio::test]
async fn an_error_event_of_the_worker_is_how_the_request_ended() {
    let line = line(async |mut client, mut decode| {
        let event = "data: {\"error\":{\"message\":\"m\",\"code\":503}}\n\n";
        decode.chunk(event).await;
        assert_eq!(client.chunk().await.as_deref(), Some(event));
        decode.chunk("data: [DONE]\n\n").await;
        decode.chunk("").await;
        client.chunk().await.unwrap();
        assert_eq!(client.chunk().await, None);
    })
    .await;
    assert!(line.contains(" status=200 ended=decode_error "), "{line}");
    assert!(
        line.contains("reported an error 503 in its stream"),
        "{line}"
    );
}

#[tokio::test]
async fn a_stream_without_its_marker_is_lost() {
    let line = line(async |mut client, mut decode| {
        decode.chunk("").await;
        assert!(client.chunk().await.unwrap().contains("error"));
    })
    .await;
    assert!(line.contains(" status=200 ended=decode_lost "), "{line}");
}
