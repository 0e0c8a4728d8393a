//! The pictures of the dashboard in README: `MINI_LB_UPDATE_DOCS=1 cargo test --test dashboard pictures` takes them anew.

use std::fs;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use mini_lb::MiniLbConfig;
use mini_lb::sim::SimOptions;
use support::browser::{Browser, Scheme};

use crate::cluster::{Cluster, stream};

/// More would make README slow to load.
const MAX_BYTES: u64 = 250_000;

/// Each picture, and the colours of the page on it.
const PICTURES: [(&str, Scheme); 2] = [
    ("docs/pictures/dashboard-light.png", Scheme::Light),
    ("docs/pictures/dashboard-dark.png", Scheme::Dark),
];

#[tokio::test(flavor = "multi_thread")]
async fn the_pictures_are_small() {
    if std::env::var_os("MINI_LB_UPDATE_DOCS").is_some() {
        take().await;
    }
    for (path, _) in PICTURES {
        let size = fs::metadata(path).unwrap().len();
        assert!(size < MAX_BYTES, "{path} has {size} bytes");
    }
}

/// Two prefill workers that are busy and two decode workers that are not, under a load.
async fn take() {
    let options = SimOptions {
        time_per_prompt_token: Duration::from_micros(60),
        prompts_at_once: 1,
        ..SimOptions::default()
    };
    let polled = |config: MiniLbConfig| config.set("load_poll_interval_secs", "0.2");
    let cluster = Cluster::start((2, 2), &options, polled).await;
    let Some(mut browser) = Browser::start().await else {
        return;
    };
    let pictures = async {
        for (path, scheme) in PICTURES {
            browser
                .open(&cluster.dashboard(), (1280, 1180), scheme)
                .await;
            let enough = "Number(document.getElementById('r-requests-15').textContent) > 300";
            browser.wait_for(enough).await;
            let picture = BASE64_STANDARD.decode(browser.picture().await).unwrap();
            fs::write(path, picture).unwrap();
        }
    };
    let body = stream(900, 40);
    // The load ends with the pictures.
    tokio::select! {
        () = cluster.load(12, 10_000, &body) => {}
        () = pictures => {}
    }
}
