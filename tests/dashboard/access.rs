//! The dashboard as other programs see it: who may read it, and what a wrong request gets.

use std::time::Duration;

use support::program::get;
use support::sim::quick;
use support::{Client, post};

use crate::cluster::{Cluster, stream};

async fn one_pair() -> Cluster {
    Cluster::start((1, 1), &quick(), |config| config).await
}

#[tokio::test]
async fn the_page_runs_its_own_script_only_and_no_other_origin_reads_it() {
    let cluster = one_pair().await;
    let mut client = Client::connect(cluster.address()).await;
    for path in ["/dashboard", "/dashboard/data"] {
        let head = "host: balancer\r\norigin: http://other.example\r\n";
        client
            .send(format!("GET {path} HTTP/1.1\r\n{head}\r\n"))
            .await;
        let answer = client.answer().await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.header("access-control-allow-origin"), None);
        assert_eq!(
            answer.header("cross-origin-resource-policy"),
            Some("same-origin")
        );
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(answer.header("cache-control"), Some("no-store"));
    }
    let page = get(cluster.address(), "/dashboard").await;
    let policy = page.header("content-security-policy").unwrap();
    for part in [
        "default-src 'none'",
        "script-src 'sha256-",
        "style-src 'sha256-",
        "connect-src 'self'",
        "frame-ancestors 'none'",
    ] {
        assert!(policy.contains(part), "{policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
}

#[tokio::test]
async fn the_dashboard_needs_the_admin_key_where_there_is_one() {
    let cluster = Cluster::start((1, 1), &quick(), |config| config.admin_api_key("sk-a")).await;
    let mut client = Client::connect(cluster.address()).await;
    for path in ["/dashboard", "/dashboard/data"] {
        client
            .send(format!("GET {path} HTTP/1.1\r\nhost: balancer\r\n\r\n"))
            .await;
        let refused = client.answer().await;
        assert_eq!(refused.outcome(), (401, Some("unauthorized")));
        assert!(
            refused
                .header("www-authenticate")
                .unwrap()
                .starts_with("Basic")
        );
        let login = "authorization: Basic OnNrLWE=\r\n";
        client
            .send(format!(
                "GET {path} HTTP/1.1\r\nhost: balancer\r\n{login}\r\n"
            ))
            .await;
        assert_eq!(client.answer().await.status(), 200);
    }
}

#[tokio::test]
async fn a_wrong_filter_gets_a_clear_error() {
    let cluster = one_pair().await;
    for query in ["prefill=http://127.0.0.1:1", "decode=%zz", "worker=x"] {
        let answer = get(cluster.address(), &format!("/dashboard/data?{query}")).await;
        assert_eq!(answer.outcome(), (400, Some("bad_query")), "{query}");
        let message = answer.json()["error"]["message"].to_string();
        assert!(message.contains("the query"), "{message}");
    }
    let (prefill, decode) = (cluster.prefills[0].url(), cluster.decodes[0].url());
    let right = format!("/dashboard/data?prefill={prefill}&decode={decode}");
    assert_eq!(get(cluster.address(), &right).await.status(), 200);
    let mut client = Client::connect(cluster.address()).await;
    client.send(post("/dashboard/data", "{}")).await;
    assert_eq!(
        client.answer().await.outcome(),
        (405, Some("method_not_allowed"))
    );
}

#[tokio::test]
async fn a_hundred_open_pages_leave_requests_alone() {
    let cluster = one_pair().await;
    let address = cluster.address();
    let pages = (0..100).map(|_| {
        tokio::spawn(async move {
            let mut page = Client::connect(address).await;
            for _ in 0..5 {
                page.send("GET /dashboard/data HTTP/1.1\r\nhost: balancer\r\n\r\n")
                    .await;
                let answer = page.answer().await;
                let outcome = answer.outcome();
                assert!(
                    [(200, None), (503, Some("overloaded"))].contains(&outcome),
                    "{outcome:?}"
                );
            }
        })
    });
    let pages: Vec<_> = pages.collect();
    cluster.load(4, 10, &stream(10, 4)).await;
    for page in pages {
        page.await.unwrap();
    }
    // Open pages share data that is half a second old at most.
    let served = async {
        loop {
            let data = get(address, "/dashboard/data").await.json();
            if data["quarter"]["requests"] == 40 {
                return data["quarter"]["failures"].as_u64();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    assert_eq!(support::soon("40 served requests", served).await, Some(0));
}
