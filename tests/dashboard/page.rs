//! The page in a real Chromium. Without one these tests pass with a line that says so.

use std::time::Duration;

use mini_lb::sim::SimOptions;
use serde_json::{Value, json};
use support::browser::{Browser, Scheme};
use support::program::{get, post_json};
use support::sim::quick;
use support::{Client, post};

use crate::cluster::{Cluster, stream};

const DESKTOP: (u32, u32) = (1600, 1200);

/// Whether the page has shown data.
const IS_LIVE: &str = "document.getElementById('link').dataset.state === 'live'";

async fn two_by_two() -> Cluster {
    Cluster::start((2, 2), &quick(), |config| config).await
}

async fn opened(cluster: &Cluster) -> Option<Browser> {
    let mut browser = Browser::start().await?;
    browser
        .open(&cluster.dashboard(), DESKTOP, Scheme::Light)
        .await;
    browser.wait_for(IS_LIVE).await;
    Some(browser)
}

/// Returns when the page shows so many requests of the last 15 minutes.
async fn wait_for_requests(browser: &mut Browser, requests: usize) {
    let shown = format!("document.getElementById('r-requests-15').textContent === '{requests}'");
    browser.wait_for(&shown).await;
}

#[tokio::test]
async fn the_numbers_on_the_page_are_those_of_a_known_load() {
    let cluster = two_by_two().await;
    let Some(mut browser) = opened(&cluster).await else {
        return;
    };
    cluster.load(4, 10, &stream(20, 8)).await;
    let mut client = Client::connect(cluster.address()).await;
    for _ in 0..3 {
        client.send(post("/generate", "no JSON")).await;
        assert_eq!(client.answer().await.status(), 400);
    }
    wait_for_requests(&mut browser, 43).await;
    let data = cluster.data().await;
    for (id, shown) in [
        ("r-requests-1", "43".to_owned()),
        ("r-streams-15", "40".to_owned()),
        ("r-failures-15", "0".to_owned()),
        ("r-events-15", data["quarter"]["events"].to_string()),
        ("n-live", "0".to_owned()),
        ("n-waiting", "0".to_owned()),
    ] {
        assert_eq!(browser.text(id).await, shown, "{id}");
    }
    // Eight tokens and the end.
    assert_eq!(data["quarter"]["events"], 40 * 9);
    assert_eq!(
        browser.text("errors").await.replace("Code15 min", ""),
        "invalid_json3"
    );
    assert_eq!(
        browser.text("routes").await.replace("Route1 min15 min", ""),
        "generate4343"
    );
    let metrics = get(cluster.address(), "/metrics").await;
    let of_metrics = |family: &str| -> f64 {
        let samples = metrics
            .text()
            .lines()
            .filter(|line| line.starts_with(family));
        samples
            .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
            .sum()
    };
    for (id, family) in [
        ("r-requests-15", "mini_lb_requests_total{route=\"generate\""),
        ("r-streams-15", "mini_lb_ttft_seconds_count"),
        ("r-events-15", "mini_lb_events_total{direction=\"sent\"}"),
    ] {
        let shown: f64 = browser.text(id).await.parse().unwrap();
        assert_eq!(shown, of_metrics(family), "{family}: {}", metrics.text());
    }
    let in_map = "[...document.querySelectorAll('#map td button')].reduce((sum, cell) => sum + (Number(cell.textContent) || 0), 0)";
    assert_eq!(browser.value(in_map).await, 40);
    let advice = browser.text("advice-text").await;
    assert_eq!(advice, data["advice"]["text"].as_str().unwrap());
    assert_eq!(browser.complaints, [""; 0]);
}

#[tokio::test]
async fn a_worker_that_is_killed_turns_red_on_the_page() {
    let mut cluster = two_by_two().await;
    let Some(mut browser) = opened(&cluster).await else {
        return;
    };
    let killed = cluster.decodes.remove(1);
    let row = format!(
        "document.querySelector('#workers tr[data-url=\"{}\"]')",
        killed.url()
    );
    browser
        .wait_for(&format!("{row}.dataset.state === 'serving'"))
        .await;
    killed.stop().await;
    browser
        .wait_for(&format!("{row}.classList.contains('bad')"))
        .await;
    let red = "rgb(185, 28, 38)";
    let colour = format!("getComputedStyle({row}.querySelector('.state')).color");
    assert_eq!(browser.value(&colour).await, red);
    let state = browser.value(&format!("{row}.dataset.state")).await;
    assert!(
        ["set aside", "on trial"].contains(&state.as_str().unwrap()),
        "{state}"
    );
    assert_eq!(browser.complaints, [""; 0]);
}

#[tokio::test]
async fn a_cell_of_the_map_filters_everything_and_escape_shows_all_again() {
    let cluster = two_by_two().await;
    let Some(mut browser) = opened(&cluster).await else {
        return;
    };
    cluster.load(4, 10, &stream(20, 4)).await;
    wait_for_requests(&mut browser, 40).await;
    let cell = "document.querySelectorAll('#map td button')[0]";
    let in_cell = browser.value(&format!("{cell}.textContent")).await;
    let in_cell: usize = in_cell.as_str().unwrap().parse().unwrap();
    assert!((1..40).contains(&in_cell), "{in_cell}");
    browser.value(&format!("{cell}.click()")).await;
    wait_for_requests(&mut browser, in_cell).await;
    let rows = "document.querySelectorAll('#workers tbody tr').length";
    assert_eq!(browser.value(rows).await, 2);
    assert_eq!(browser.value(&format!("{cell}.ariaPressed")).await, "true");
    let hash = browser.value("location.hash").await;
    assert!(hash.as_str().unwrap().contains("decode=http"), "{hash}");
    browser.press("Escape").await;
    wait_for_requests(&mut browser, 40).await;
    assert_eq!(browser.value(rows).await, 4);

    // By the keyboard: a row, whose requests are those of its cells.
    let of_row = "[...document.querySelectorAll('#map tbody tr')[1].querySelectorAll('td')].reduce((sum, cell) => sum + (Number(cell.textContent) || 0), 0)";
    let of_row = browser.value(of_row).await.as_u64().unwrap() as usize;
    browser
        .value("document.querySelectorAll('#map tbody th button')[1].focus()")
        .await;
    browser.press("Enter").await;
    wait_for_requests(&mut browser, of_row).await;
    let focus = browser.value("document.activeElement.textContent").await;
    assert_eq!(focus, "P2", "the focus stays while numbers change");
    assert_eq!(browser.complaints, [""; 0]);
}

#[tokio::test]
async fn a_request_is_shown_step_by_step_while_it_runs_and_after() {
    let slow = SimOptions {
        time_per_output_token: Duration::from_secs(600),
        ..quick()
    };
    let cluster = Cluster::start((1, 1), &slow, |config| config).await;
    let Some(mut browser) = opened(&cluster).await else {
        return;
    };
    let in_fall =
        |text: &str| format!("document.getElementById('waterfall').textContent.includes('{text}')");
    cluster.load(1, 3, &stream(20, 1)).await;
    browser
        .wait_for("document.querySelectorAll('#request-rows tr').length === 3")
        .await;
    let second = "document.querySelectorAll('#request-rows button')[1]";
    let id = browser.value(&format!("{second}.textContent")).await;
    browser.value(&format!("{second}.click()")).await;
    browser.wait_for(&in_fall(id.as_str().unwrap())).await;
    browser.wait_for(&in_fall("prefill")).await;

    // Its first event comes at once, and its second one never.
    let mut client = Client::connect(cluster.address()).await;
    let request = post("/generate", &stream(20, 2));
    client
        .send(request.replace("\r\n\r\n", "\r\nx-request-id: job-7\r\n\r\n"))
        .await;
    client.head().await;
    browser
        .value("document.querySelector('input[value=live]').click()")
        .await;
    browser.wait_for(&in_fall("job-7")).await;
    browser.wait_for(&in_fall("stream")).await;
    let ended = "document.querySelector('#request-rows tr').cells[6].textContent";
    assert_eq!(browser.value(ended).await, "live: stream");
    browser
        .wait_for("document.getElementById('n-live').textContent === '1'")
        .await;
    assert_eq!(browser.complaints, [""; 0]);
}

#[tokio::test]
async fn the_page_says_that_the_connection_is_lost_and_when_it_is_back() {
    let cluster = two_by_two().await;
    let Some(mut browser) = opened(&cluster).await else {
        return;
    };
    let offline = |offline: bool| json!({"offline": offline, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1});
    browser
        .call("Network.emulateNetworkConditions", offline(true))
        .await;
    browser
        .wait_for("document.getElementById('link').dataset.state === 'lost'")
        .await;
    assert_eq!(
        browser.text("link-text").await,
        "Connection lost. Trying again."
    );
    let role = browser
        .value("document.getElementById('link').getAttribute('role')")
        .await;
    assert_eq!(role, "status", "a screen reader says it");
    browser
        .call("Network.emulateNetworkConditions", offline(false))
        .await;
    browser.wait_for(IS_LIVE).await;
}

#[tokio::test]
async fn a_pause_stands_out_at_the_top_until_generation_continues() {
    let cluster = two_by_two().await;
    let Some(mut browser) = opened(&cluster).await else {
        return;
    };
    let address = cluster.address();
    let paused = post_json(address, "/pause_generation", r#"{"mode":"in_place"}"#).await;
    assert_eq!(paused.status(), 200);
    browser.wait_for("link.dataset.state === 'held'").await;
    let words = "Live; new requests wait: generation is paused";
    assert_eq!(browser.text("link-text").await, words);
    let amber = browser.value("getComputedStyle(link).color").await;
    assert_eq!(amber, "rgb(138, 90, 0)");
    post_json(address, "/continue_generation", "{}").await;
    browser.wait_for(IS_LIVE).await;
}

#[tokio::test]
async fn of_many_workers_the_one_that_is_not_well_is_named_at_the_top_and_comes_first() {
    let mut cluster = Cluster::start((1, 20), &quick(), |config| config).await;
    let Some(mut browser) = opened(&cluster).await else {
        return;
    };
    assert_eq!(browser.value("unwell.hidden").await, true);
    let killed = cluster.decodes.remove(18);
    let url = killed.url().to_owned();
    killed.stop().await;
    browser.wait_for("!unwell.hidden").await;
    let named = browser.value("unwell.textContent").await;
    assert!(named.as_str().unwrap().starts_with("D19 "), "{named}");
    let first = "document.querySelector('#workers-decode tr').dataset.url";
    browser.wait_for(&format!("{first} === '{url}'")).await;
    // The list scrolls in its box, so that what stands below it is near.
    let box_height = "document.querySelector('#workers .scroll').clientHeight";
    assert!(browser.value(box_height).await.as_u64().unwrap() <= 460);
    assert_eq!(browser.complaints, [""; 0]);
}

#[tokio::test]
async fn no_width_and_no_number_of_workers_breaks_the_layout() {
    for workers in [(2, 2), (1, 30)] {
        let cluster = Cluster::start(workers, &quick(), |config| config).await;
        let Some(mut browser) = opened(&cluster).await else {
            return;
        };
        cluster.load(2, 15, &stream(20, 4)).await;
        wait_for_requests(&mut browser, 30).await;
        for width in [320, 400, 699, 701, 1059, 1061, 1280, 1600, 2560] {
            browser.resize((width, 900), 1.0).await;
            let sizes = browser
                .value("[document.documentElement.scrollWidth, innerWidth]")
                .await;
            assert_eq!(sizes[1], width);
            assert!(
                sizes[0].as_u64() <= sizes[1].as_u64(),
                "{workers:?}: {sizes}"
            );
            let cut = "[...document.querySelectorAll('.panel, #advice, #numbers')].filter(e => e.getBoundingClientRect().right > innerWidth).length";
            assert_eq!(browser.value(cut).await, 0, "{width}");
        }
        assert_eq!(browser.complaints, [""; 0]);
    }
}

#[tokio::test]
async fn text_has_contrast_in_both_schemes_and_every_control_a_name() {
    let cluster = two_by_two().await;
    let Some(mut browser) = Browser::start().await else {
        return;
    };
    for scheme in [Scheme::Light, Scheme::Dark] {
        browser.open(&cluster.dashboard(), DESKTOP, scheme).await;
        browser.wait_for(IS_LIVE).await;
        let poor = browser.value(POOR_CONTRAST).await;
        assert_eq!(poor, json!([]), "{scheme:?}");
    }
    let tree = browser.call("Accessibility.getFullAXTree", json!({})).await;
    let nodes = tree["nodes"].as_array().unwrap();
    let of_role = |role: &str| -> Vec<&Value> {
        nodes
            .iter()
            .filter(|node| node["role"]["value"] == role && node["ignored"] == false)
            .collect()
    };
    for role in [
        "button",
        "radio",
        "region",
        "table",
        "columnheader",
        "rowheader",
        "main",
        "status",
    ] {
        assert!(!of_role(role).is_empty(), "{role}");
    }
    for node in [of_role("button"), of_role("radio"), of_role("region")].concat() {
        let name = node["name"]["value"].as_str().unwrap_or_default();
        assert!(!name.is_empty(), "{node}");
    }
}

/// Texts whose contrast to their background is below 4.5, which WCAG 2.2 asks for at this size (success criterion 1.4.3).
const POOR_CONTRAST: &str = r"(() => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const rgba = (colour) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255]; };
  const over = (top, under) => top.slice(0, 3).map((c, i) => c * top[3] + under[i] * (1 - top[3])).concat(1);
  const background = (e) => { const chain = []; for (let at = e; at; at = at.parentElement) chain.unshift(rgba(getComputedStyle(at).backgroundColor)); return chain.reduce((under, top) => over(top, under), [255, 255, 255, 1]); };
  const light = (c) => { const [r, g, b] = c.map((v) => v / 255).map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const poor = [];
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.checkVisibility() || e.closest('svg, script, style, .hidden, noscript, .skip')) continue;
    const under = background(e);
    const [a, b] = [light(over(rgba(getComputedStyle(e).color), under)), light(under)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) poor.push(e.textContent.slice(0, 30) + ' ' + ratio.toFixed(2));
  }
  return poor;
})()";

#[tokio::test]
async fn the_page_works_with_the_admin_key_as_password() {
    let admin_key = "sk-admin";
    let cluster = Cluster::start((1, 1), &quick(), |config| config.admin_api_key(admin_key)).await;
    let Some(mut browser) = Browser::start().await else {
        return;
    };
    // What a browser sends after its question for a name and a password: `any:sk-admin`.
    let login = json!({"authorization": "Basic YW55OnNrLWFkbWlu"});
    browser.send_headers(login).await;
    browser
        .open(&cluster.dashboard(), DESKTOP, Scheme::Dark)
        .await;
    browser.wait_for(IS_LIVE).await;
    assert_eq!(browser.complaints, [""; 0]);
}
