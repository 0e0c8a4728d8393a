//! What the table of paths holds.

use std::collections::BTreeSet;

use super::*;
use crate::pd::Route;

fn find(path: &str) -> Option<&'static Row> {
    super::find(Engine::Sglang, path)
}

#[test]
fn every_route_with_two_legs_has_a_row_and_no_other_path_has_such_a_row() {
    for engine in [Engine::Sglang, Engine::Vllm] {
        for route in Route::ALL {
            let row = super::find(engine, engine.path(route)).unwrap();
            assert_eq!(row.kind, Kind::Legs, "{route:?}");
        }
        for row in rows(engine) {
            let is_route = engine.route(row.path).is_some();
            assert_eq!(row.kind == Kind::Legs, is_route, "{}", row.path);
        }
    }
}

#[test]
fn the_listener_for_metrics_serves_their_page() {
    let row = find(crate::endpoint::METRICS_PATH).unwrap();
    assert_eq!(row.kind, Kind::Page(Page::Metrics));
}

#[test]
fn workers_are_administered_and_pages_are_shown_with_every_engine() {
    for engine in [Engine::Sglang, Engine::Vllm] {
        let kind = |path| super::find(engine, path).map(|row| row.kind);
        assert_eq!(kind("/workers"), Some(Kind::Workers));
        assert_eq!(kind("/workers/http%3A%2F%2Fa%3A1"), Some(Kind::Workers));
        assert_eq!(kind("/dashboard"), Some(Kind::Page(Page::Dashboard)));
    }
}

#[test]
fn a_path_stands_in_the_table_once() {
    for engine in [Engine::Sglang, Engine::Vllm] {
        let paths: BTreeSet<_> = rows(engine).map(|row| row.path).collect();
        assert_eq!(paths.len(), rows(engine).count());
    }
}

#[test]
fn paths_match_exactly_and_a_star_matches_any_path_below() {
    for path in [
        "",
        "/nope",
        "/health/",
        "/Health",
        "/v1/models/",
        "/generate/",
        "//health",
    ] {
        assert!(find(path).is_none(), "{path}");
    }
    for (path, row) in [
        ("/v1/models", "/v1/models"),
        ("/v1/models/tiny", "/v1/models/*"),
        ("/v1/models/meta-llama/Llama-3", "/v1/models/*"),
        ("/v1/responses/resp_1/cancel", "/v1/responses/*"),
        ("/v1/messages/count_tokens", "/v1/messages/count_tokens"),
    ] {
        assert_eq!(find(path).unwrap().path, row);
    }
}

#[test]
fn a_body_is_read_only_if_it_goes_to_a_worker() {
    let reads = |path, method| find(path).unwrap().reads_body(&method);
    assert!(reads("/tokenize", Method::POST));
    assert!(reads("/abort_request", Method::POST));
    assert!(reads("/start_profile", Method::POST));
    assert!(!reads("/start_profile", Method::GET));
    assert!(!reads("/tokenize", Method::PUT));
    assert!(!reads("/health", Method::POST));
    assert!(!reads("/generate", Method::POST));
    assert!(!reads("/v1/embeddings", Method::POST));
}

#[test]
fn a_flush_has_the_time_in_its_query_and_a_margin() {
    let flush = |query: Option<&str>| match find("/reset_prefix_cache").unwrap().kind {
        Kind::Every { path, timeout } => {
            assert_eq!(path, "/flush_cache");
            timeout.of(query)
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(flush(None), MARGIN);
    assert_eq!(flush(Some("timeout=60")), MARGIN + Duration::from_secs(60));
    assert_eq!(
        flush(Some("a=1&timeout=0.5&b")),
        MARGIN + Duration::from_millis(500)
    );
    assert_eq!(
        flush(Some("timeout=1&timeout=2")),
        MARGIN + Duration::from_secs(2)
    );
    for nonsense in [
        "timeout=",
        "timeout=-1",
        "timeout=NaN",
        "timeout=x",
        "notimeout=5",
    ] {
        assert_eq!(flush(Some(nonsense)), MARGIN, "{nonsense}");
    }
    for too_long in ["timeout=1e9", "timeout=86400"] {
        assert_eq!(
            flush(Some(too_long)),
            MARGIN + MAX_QUERY_TIMEOUT,
            "{too_long}"
        );
    }
}

#[test]
fn allow_lists_the_methods_of_the_route_in_sglang_and_head_where_get_only_reads() {
    assert_eq!(find("/generate").unwrap().allow(), "PUT, POST");
    assert_eq!(find("/flush_cache").unwrap().allow(), "GET, POST");
    assert_eq!(find("/v1/models").unwrap().allow(), "GET, HEAD");
}
