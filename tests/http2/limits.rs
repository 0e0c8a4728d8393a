//! Which listener a connection came in by, and its key: HTTP/2 opens no way around them.

use http::Request;
use support::Pair;
use support::http2::Http2;

async fn status(client: &mut Http2, request: http::request::Builder) -> (u16, Option<String>) {
    let (status, headers, _) = client.send(request, "").await.answer().await;
    let code = headers.get("x-mini-lb-error");
    let code = code.map(|code| code.to_str().unwrap().to_owned());
    (status.as_u16(), code)
}

#[tokio::test]
async fn administration_has_its_own_listener() {
    let pair = Pair::with(|config| config.admin_listen("127.0.0.1:0")).await;
    let workers = || Request::get("http://a/workers");
    let mut client = Http2::connect(pair.balancer.address).await;
    let (refused, code) = status(&mut client, workers()).await;
    assert_eq!(
        (refused, code.as_deref()),
        (403, Some("admin_listener_only"))
    );
    let mut admin = Http2::connect(pair.balancer.admin_address().await).await;
    assert_eq!(status(&mut admin, workers()).await, (200, None));
}

#[tokio::test]
async fn a_key_is_needed_where_one_is_set() {
    let pair = Pair::with(|config| config.set("api_key", "sesame")).await;
    let mut client = Http2::connect(pair.balancer.address).await;
    let models = || Request::get("http://a/v1/models");
    let (refused, code) = status(&mut client, models()).await;
    assert_eq!((refused, code.as_deref()), (401, Some("unauthorized")));
    let keyed = Request::post("http://a/generate").header("authorization", "Bearer sesame");
    let (refused, code) = status(&mut client, keyed).await;
    assert_eq!(
        (refused, code.as_deref()),
        (400, Some("invalid_json")),
        "past the key"
    );
}
