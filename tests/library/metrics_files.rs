//! The board and the alerts name metrics and labels that exist. The tools that read them judge the rest, where they are
//! installed.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use mini_lb::inside::FAMILIES;
use serde_json::Value;

const BOARD: &str = "conf/grafana/mini-lb.json";
const ALERTS: &str = "conf/prometheus/alerts.yaml";

/// The names of samples that a query may have.
fn samples() -> BTreeSet<String> {
    let endings = ["_bucket", "_sum", "_count"];
    let names = FAMILIES.iter().flat_map(|family| match family.kind() {
        "histogram" => endings
            .iter()
            .map(|ending| format!("{}{ending}", family.name()))
            .collect(),
        _ => vec![family.name()],
    });
    names.collect()
}

/// Every word of a text that begins like a metric of the program or of its process.
fn metrics_in(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("mini_lb_") || word.starts_with("process_"))
        .collect()
}

/// The text of every member with this name, at any depth.
fn members<'a>(value: &'a Value, name: &str, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                if key == name {
                    found.extend(value.as_str());
                }
                members(value, name, found);
            }
        }
        Value::Array(values) => values.iter().for_each(|value| members(value, name, found)),
        _ => {}
    }
}

#[test]
fn the_board_and_the_alerts_name_metrics_that_exist() {
    std::env::set_current_dir(env!("CARGO_MANIFEST_DIR")).unwrap();
    let known = samples();
    for file in [
        BOARD,
        ALERTS,
        "conf/prometheus/alerts.test.yaml",
        "docs/metrics.md",
    ] {
        let text = fs::read_to_string(file).unwrap();
        let named = metrics_in(&text);
        assert!(named.len() >= 8, "{file}: {named:?}");
        for name in named {
            let is_family = FAMILIES.iter().any(|family| family.name() == name);
            let in_prose = is_family && !file.ends_with(".json");
            assert!(known.contains(name) || in_prose, "{file} names {name}");
        }
    }
    // What no panel shows would be measured for nothing.
    let board = fs::read_to_string(BOARD).unwrap();
    for family in FAMILIES {
        let unseen = [
            "mini_lb_start_time_seconds",
            "mini_lb_live_rooms",
            "mini_lb_client_connections",
            // Of the configuration, not of requests.
            "mini_lb_config_reloads_total",
            "mini_lb_config_last_reload_seconds",
            // Of the export of traces, not of requests.
            "mini_lb_spans_dropped_total",
        ];
        let is_own = family.name().starts_with("mini_lb_") && !unseen.contains(&&*family.name());
        assert!(
            !is_own || board.contains(&family.name()),
            "{}",
            family.name()
        );
    }
}

#[test]
fn the_board_has_a_row_for_each_question_and_needs_no_edit() {
    std::env::set_current_dir(env!("CARGO_MANIFEST_DIR")).unwrap();
    let board: Value = serde_json::from_str(&fs::read_to_string(BOARD).unwrap()).unwrap();
    let panels = board["panels"].as_array().unwrap();
    let rows = panels.iter().filter(|panel| panel["type"] == "row");
    let rows: Vec<_> = rows.map(|row| row["title"].as_str().unwrap()).collect();
    assert_eq!(
        rows,
        [
            "Is it healthy?",
            "Where does the first token wait?",
            "Which pair is to blame?",
            "More prefill or more decode?",
            "Was the choice right?"
        ]
    );
    // Every query goes to the source that the user chooses, and every label that it names is one of its metric.
    let mut sources = Vec::new();
    members(&board, "uid", &mut sources);
    sources.retain(|uid| *uid != "mini-lb");
    assert!(
        sources.iter().all(|uid| *uid == "${datasource}"),
        "{sources:?}"
    );
    let labels: BTreeSet<_> = FAMILIES.iter().flat_map(|family| family.labels).collect();
    let mut queries = Vec::new();
    members(&board, "expr", &mut queries);
    assert!(queries.len() > 25, "{}", queries.len());
    for query in queries {
        let grouped = query.split("by (").skip(1);
        let grouped = grouped.filter_map(|rest| rest.split(')').next());
        for label in grouped.flat_map(|list| list.split(", ")) {
            assert!(
                labels.contains(&label) || label == "le",
                "{label} in {query}"
            );
        }
    }
}

#[test]
fn the_alerts_fire_when_they_should() {
    let conf = concat!(env!("CARGO_MANIFEST_DIR"), "/conf/prometheus");
    for arguments in [
        ["check", "rules", "alerts.yaml"],
        ["test", "rules", "alerts.test.yaml"],
    ] {
        let ran = Command::new("promtool")
            .args(arguments)
            .current_dir(conf)
            .output();
        let Ok(ran) = ran else {
            eprintln!("skipped: there is no promtool on this machine");
            return;
        };
        let said = String::from_utf8_lossy(&[ran.stdout, ran.stderr].concat()).into_owned();
        assert!(ran.status.success(), "{said}");
    }
}
