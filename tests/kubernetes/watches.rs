//! What becomes of a watch: it breaks, ends, expires, or is told its version; and lists that come in parts.

use super::cluster::{Cluster, FLAGS, Pod, serve};

/// One decode pod comes while there is no watch; both watches are asked for again.
async fn survives(what: &str, interrupt: impl Fn(&Cluster), relists: bool) {
    let mut cluster = Cluster::start().await;
    let (prefill, decode) = (Pod::prefill("p-0").await, Pod::decode("d-0").await);
    let (gone, new) = (Pod::decode("d-1").await, Pod::decode("d-2").await);
    for pod in [&prefill, &decode, &gone] {
        cluster.api.put("pods", pod.object.clone());
    }
    let mut balancer = cluster.balancer(FLAGS);
    let address = balancer.address().await;
    for _ in 0..2 {
        cluster.api.asked("watch").await;
    }
    serve(address, &[&prefill, &decode, &gone]).await;
    cluster.api.all_asked();
    balancer.lines();

    interrupt(&cluster);
    cluster.api.delete("pods", &gone.object);
    cluster.api.put("pods", new.object.clone());
    for _ in 0..2 {
        cluster
            .api
            .asked(if relists { "list" } else { "watch" })
            .await;
    }
    serve(address, &[&prefill, &decode, &new]).await;
    let asked = cluster.api.all_asked();
    let lists = asked.iter().filter(|asked| asked.verb == "list").count();
    assert_eq!(lists, 0, "{what}: {asked:?}");
    let lines = balancer.lines();
    let drains = |line: &&String| line.contains("worker drains");
    let touched = |pod: &Pod| {
        let mut drained = lines.iter().filter(drains);
        drained.any(|line| line.contains(&pod.url()))
    };
    assert!(
        !touched(&prefill) && !touched(&decode),
        "{what}: {lines:#?}"
    );
    let warned = lines.iter().any(|line| line.contains("WARN"));
    assert!(!warned, "{what}: {lines:#?}");
}

#[tokio::test]
async fn a_watch_that_breaks_goes_on_at_its_version() {
    survives("broken", |cluster| cluster.api.break_watches(), false).await;
}

#[tokio::test]
async fn a_watch_that_ends_goes_on_at_its_version() {
    survives("ended", |cluster| cluster.api.end_watches(), false).await;
}

#[tokio::test]
async fn a_watch_whose_version_is_too_old_by_an_event_lists_anew() {
    survives("expired", |cluster| cluster.api.expire_watches(), true).await;
}

#[tokio::test]
async fn a_watch_whose_version_is_too_old_by_a_response_lists_anew() {
    let gone = |cluster: &Cluster| {
        cluster.api.forget();
        cluster.api.break_watches();
    };
    survives("gone", gone, true).await;
}

#[tokio::test]
async fn a_watch_goes_on_at_the_version_of_a_bookmark() {
    let mut cluster = Cluster::start().await;
    let (prefill, decode) = (Pod::prefill("p-0").await, Pod::decode("d-0").await);
    for pod in [&prefill, &decode] {
        cluster.api.put("pods", pod.object.clone());
    }
    let mut balancer = cluster.balancer(FLAGS);
    let address = balancer.address().await;
    for _ in 0..2 {
        let watch = cluster.api.asked("watch").await;
        assert_eq!(watch.query["allowWatchBookmarks"], "true");
    }
    serve(address, &[&prefill, &decode]).await;
    // Everything before is forgotten, and only the bookmark says so.
    cluster.api.forget();
    let version = cluster.api.bookmark();
    cluster.api.end_watches();
    for _ in 0..2 {
        assert_eq!(cluster.api.asked("watch").await.version(), version);
    }
    let new = Pod::decode("d-1").await;
    cluster.api.put("pods", new.object.clone());
    serve(address, &[&prefill, &decode, &new]).await;
    let lists = cluster.api.all_asked();
    assert!(!lists.iter().any(|asked| asked.verb == "list"), "{lists:?}");
}

#[tokio::test]
async fn a_list_that_comes_in_parts_is_read_to_its_end() {
    let mut cluster = Cluster::start().await;
    cluster.api.set_page(1);
    let pods = [
        Pod::prefill("p-0").await,
        Pod::decode("d-0").await,
        Pod::decode("d-1").await,
        Pod::decode("d-2").await,
    ];
    for pod in &pods {
        cluster.api.put("pods", pod.object.clone());
    }
    let mut balancer = cluster.balancer(FLAGS);
    let address = balancer.address().await;
    serve(address, &pods.each_ref()).await;
    let lists = cluster.api.all_asked();
    let parts = lists
        .iter()
        .filter(|asked| asked.query.contains_key("continue"));
    assert_eq!(parts.count(), 2);
}
