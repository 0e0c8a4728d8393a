//! Tables of the documents follow from the code, from a reference file or from recorded figures.
//!
//! Cells that only people can write are kept: what an endpoint does, why an error occurs. `MINI_LB_UPDATE_DOCS=1`
//! rewrites the tables; without it a test fails with the first row that differs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use clap::Arg;
use mini_lb::cli;
use mini_lb::inside::{Code, FAMILIES, reloads};
use serde_json::Value;
use support::markdown::{
    Cells, backticked, code_or_nothing, hold, is_described, marked, note, quoted, reconciled, rows,
};
use support::program::post_json;
use support::{Balancer, Client, Worker, config};

#[test]
fn every_setting_has_its_row_with_flag_variable_default_and_help() {
    let command = cli::command();
    let mut headings: BTreeMap<String, Vec<Cells>> = BTreeMap::new();
    for argument in command
        .get_arguments()
        .filter(|argument| argument.get_id() != "conf")
    {
        let help = argument
            .get_help()
            .map(ToString::to_string)
            .unwrap_or_default();
        let Some(variable) = note(&help, "env") else {
            continue;
        };
        let meaning = help.split(" [").next().unwrap();
        let row = vec![
            code_or_nothing(argument.get_id().as_str()),
            code_or_nothing(&format!("--{}", argument.get_long().unwrap())),
            code_or_nothing(&variable),
            code_or_nothing(&note(&help, "default").unwrap_or_default()),
            (if reloads(argument.get_id().as_str()) {
                "yes"
            } else {
                "no"
            })
            .to_owned(),
            marked(meaning),
        ];
        let heading = argument.get_help_heading().unwrap().to_owned();
        headings.entry(heading).or_default().push(row);
    }
    assert!(headings.len() > 1);
    let columns = [
        "key in the file",
        "flag",
        "environment variable",
        "default",
        "reload",
        "meaning",
    ];
    for (heading, expected) in headings {
        hold(&format!("settings of {heading}"), &columns, &expected);
    }
}

fn option_row(argument: &Arg) -> Cells {
    let long = argument.get_long().unwrap();
    let help = argument
        .get_help()
        .map(ToString::to_string)
        .unwrap_or_default();
    let takes_value = argument.get_action().takes_values();
    let defaults: Vec<_> = argument
        .get_default_values()
        .iter()
        .map(|value| value.to_string_lossy())
        .collect();
    let default = note(&help, "default").unwrap_or_else(|| defaults.join(","));
    let named = argument.get_value_names().unwrap_or_default().concat();
    let value = match named == long.replace('-', "_").to_uppercase() {
        true if default.parse::<f64>().is_ok() => "N".to_owned(),
        true => "VALUE".to_owned(),
        false => named,
    };
    let option = if takes_value {
        format!("--{long} {value}")
    } else {
        format!("--{long}")
    };
    let mut meaning = marked(help.split(" [default").next().unwrap());
    let values = argument.get_possible_values();
    if takes_value && !values.is_empty() {
        let values: Vec<_> = values
            .iter()
            .map(|value| format!("`{}`", value.get_name()))
            .collect();
        meaning = format!("{meaning}: {}", values.join(", "));
    }
    let default = if takes_value {
        marked_default(&default)
    } else {
        String::new()
    };
    vec![format!("`{option}`"), default, meaning]
}

/// A value is code, a sentence about values is not.
fn marked_default(default: &str) -> String {
    if default.contains(' ') {
        marked(default)
    } else {
        code_or_nothing(default)
    }
}

fn hold_options(name: &str, path: &[&str]) {
    hold_some_options(name, path, |_| true);
}

/// Those that are `wanted`.
fn hold_some_options(name: &str, path: &[&str], wanted: impl Fn(&Arg) -> bool) {
    let mut command = cli::command();
    for part in path {
        command = command.find_subcommand(part).unwrap().clone();
    }
    let shown = |argument: &&Arg| argument.get_long().is_some() && !argument.is_hide_set();
    let expected: Vec<_> = command
        .get_arguments()
        .filter(|argument| shown(argument) && wanted(argument))
        .map(option_row)
        .collect();
    hold(name, &["option", "default", "meaning"], &expected);
}

#[test]
fn the_options_of_simulator_load_generator_rollout_and_doctor_have_their_rows() {
    hold_options("options of sim", &["sim", "prefill"]);
    let command = cli::command();
    let sim = command.find_subcommand("sim").unwrap();
    let common = sim.find_subcommand("prefill").unwrap().clone();
    let is_vllms = |argument: &Arg| {
        let mut common = common.get_arguments();
        !common.any(|other| other.get_long() == argument.get_long())
    };
    hold_some_options("options of sim vllm", &["sim", "vllm-prefill"], is_vllms);
    hold_options("options of rollout", &["rollout"]);
    hold_options("options of bench", &["bench"]);
    let own = |argument: &Arg| argument.get_help_heading() == Some("Doctor");
    hold_some_options("options of doctor", &["doctor"], own);
}

#[test]
fn the_table_of_a_worker_has_the_keys_of_the_reference_file() {
    let text = fs::read_to_string("conf/mini-lb.yaml").unwrap();
    let file: serde_yaml::Value = serde_yaml::from_str(&text).unwrap();
    let worker = file["prefill"][0].as_mapping().unwrap();
    let keys: Vec<_> = worker
        .keys()
        .map(|key| key.as_str().unwrap().to_owned())
        .collect();
    let name = "keys of a worker";
    hold(name, &["key", "meaning"], &reconciled(name, &keys));
    is_described(name);
}

/// The string literals of a source between two lines, the first of each line.
fn literals(path: &str, from: &str, to: &str) -> Vec<String> {
    let source = fs::read_to_string(path).unwrap();
    let (_, rest) = source
        .split_once(from)
        .unwrap_or_else(|| panic!("no {from:?} in {path}"));
    let (part, _) = rest
        .split_once(to)
        .unwrap_or_else(|| panic!("no {to:?} in {path}"));
    let code = part
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    code.filter_map(|line| Some(line.split('"').nth(1)?.to_owned()))
        .collect()
}

/// The methods of a path and what its 501 says, as a running balancer has them. No path takes TRACE.
async fn endpoint(balancer: &Balancer, path: &str) -> (String, String) {
    let path = path.replace('*', "x");
    let mut client = Client::connect(balancer.address).await;
    client
        .send(format!("TRACE {path} HTTP/1.1\r\nhost: balancer\r\n\r\n"))
        .await;
    let answer = client.answer().await;
    let body = answer.json();
    let message = body["message"]
        .as_str()
        .or(body["error"]["message"].as_str())
        .unwrap();
    match answer.status() {
        405 => (answer.header("allow").unwrap().to_owned(), String::new()),
        501 => (
            String::new(),
            message.split_once(": ").unwrap().1.to_owned(),
        ),
        other => panic!("{path}: {other}"),
    }
}

#[tokio::test]
async fn every_path_of_the_program_has_its_row_with_its_methods_or_its_reason() {
    let (prefill, decode) = (Worker::refusing().await, Worker::refusing().await);
    let balancer = Balancer::start(config(&[prefill], &[decode])).await;
    let (mut served, mut refused) = (BTreeMap::new(), Vec::<(String, Vec<String>)>::new());
    let tables = ["static ALL", "static TABLE"];
    let paths = tables.map(|table| literals("src/ops/table.rs", table, "\n];"));
    let paths = paths.concat();
    for path in &paths {
        let (methods, why) = endpoint(&balancer, path).await;
        if why.is_empty() {
            served.insert(path.clone(), methods);
        } else if let Some((_, paths)) = refused.iter_mut().find(|(message, _)| *message == why) {
            paths.push(path.clone());
        } else {
            refused.push((why, vec![path.clone()]));
        }
    }
    let order: Vec<_> = paths
        .into_iter()
        .filter(|path| served.contains_key(path))
        .collect();
    let mut expected = reconciled("endpoints", &order);
    for row in &mut expected {
        let methods: BTreeSet<_> = quoted(&row[0])
            .iter()
            .map(|path| served[path].clone())
            .collect();
        assert_eq!(
            methods.len(),
            1,
            "these paths need rows of their own: {}",
            row[0]
        );
        row[1] = methods.into_iter().next().unwrap();
    }
    hold("endpoints", &["path", "methods", "response"], &expected);
    is_described("endpoints");
    let refused = refused
        .into_iter()
        .map(|(why, paths)| vec![marked(&why), backticked(&paths)]);
    hold(
        "not served",
        &["message", "paths"],
        &refused.collect::<Vec<_>>(),
    );
}

#[test]
fn the_table_of_metrics_is_that_of_the_text() {
    let rows: Vec<Cells> = FAMILIES
        .iter()
        .map(|family| {
            let labels = family.labels.iter().map(|label| format!("`{label}`"));
            vec![
                format!("`{}`", family.name()),
                family.kind().to_owned(),
                labels.collect::<Vec<_>>().join(", "),
                marked(family.help),
            ]
        })
        .collect();
    hold("metrics", &["metric", "kind", "labels", "meaning"], &rows);
}

#[test]
fn the_table_of_codes_is_the_table_of_errors() {
    let rows: Vec<Cells> = Code::ALL
        .into_iter()
        .map(|code| {
            let row = code.row();
            let side = format!("{:?}", row.side).to_lowercase();
            let retry = format!("{:?}", row.retry).to_lowercase();
            let status = row.status.to_string();
            vec![
                format!("`{}`", row.name),
                status,
                side,
                retry,
                row.meaning.to_owned(),
            ]
        })
        .collect();
    hold(
        "codes",
        &["code", "status", "side", "retry", "cause"],
        &rows,
    );
}

#[tokio::test]
async fn errors_have_the_status_and_the_code_that_the_table_says() {
    let told: BTreeMap<_, _> = rows("codes")
        .into_iter()
        .flat_map(|row| {
            quoted(&row[0])
                .into_iter()
                .map(move |code| (code, row[1].clone()))
        })
        .collect();
    let (prefill, decode) = (Worker::refusing().await, Worker::refusing().await);
    let balancer = Balancer::start(config(&[prefill], &[decode]).max_payload_size(64)).await;
    let long = format!(r#"{{"text":"{}"}}"#, "a".repeat(64));
    for (path, body, code) in [
        ("/generate", "{", "invalid_json"),
        (
            "/generate",
            r#"{"text":"a","sampling_params":{"n":200}}"#,
            "too_many_samples",
        ),
        ("/generate", &long, "body_too_large"),
        ("/v1/models", "", "method_not_allowed"),
        ("/v1/embeddings", "{}", "not_served_by_pd"),
        ("/nope", "{}", "not_found"),
        ("/tokenize", "{}", "worker_unreachable"),
    ] {
        let answer = post_json(balancer.address, path, body).await;
        assert_eq!(
            answer.header("x-mini-lb-error"),
            Some(code),
            "{path} {body}"
        );
        assert_eq!(answer.status().to_string(), told[code], "{path} {body}");
    }
}

#[test]
fn the_table_of_modules_is_the_map_of_the_library() {
    let source = fs::read_to_string("src/lib.rs").unwrap();
    let (_, map) = source.split_once("//! | module |").unwrap();
    let map = format!("//! | module |{map}");
    let map = map
        .lines()
        .map_while(|line| line.strip_prefix("//! |"))
        .filter(|line| !line.starts_with("---"))
        .map(|line| line.trim_start());
    let cells = |row: &str| -> Cells {
        let row = row
            .trim_end_matches(" |")
            .replace("[`mod@", "`")
            .replace("[`", "`")
            .replace("`]", "`");
        row.split(" | ").map(str::to_owned).collect()
    };
    let rows: Vec<_> = map.map(cells).collect();
    assert!(rows.len() > 1);
    let heading: Vec<_> = rows[0].iter().map(String::as_str).collect();
    hold("modules", &heading, &rows[1..]);
}

fn figures(name: &str) -> Value {
    let text = fs::read_to_string(format!("docs/pictures/{name}.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn strings(value: &Value) -> Vec<&str> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|cell| cell.as_str().unwrap())
        .collect()
}

#[test]
fn tables_of_measurements_are_the_recorded_figures() {
    for (name, first) in [
        ("cost", "workload"),
        ("growth", "workload"),
        ("faults", "fault"),
    ] {
        let figures = figures(name);
        let mut heading = vec![first];
        heading.extend(strings(&figures["columns"]));
        let row = |row: &Value| {
            let cells = std::iter::once(row[first].as_str().unwrap()).chain(strings(&row["cells"]));
            cells.map(str::to_owned).collect()
        };
        let rows: Vec<Cells> = figures["rows"]
            .as_array()
            .unwrap()
            .iter()
            .map(row)
            .collect();
        hold(name, &heading, &rows);
        let page = fs::read_to_string("docs/benchmarks.md").unwrap();
        let date = figures["date"].as_str().unwrap();
        assert!(page.contains(date), "{name} was measured on {date}");
    }
}

#[test]
fn charts_show_the_recorded_figures() {
    for (name, picture) in [("cost", "cpu"), ("faults", "prefill-fails")] {
        let drawn = fs::read_to_string(format!("docs/pictures/{picture}.svg")).unwrap();
        let figures = figures(name);
        let charted = strings(&figures["charted"]);
        let bars = figures["rows"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|row| row["bar"].is_string());
        for row in bars {
            let bar = row["bar"].as_str().unwrap();
            assert!(drawn.contains(bar), "{picture}.svg lacks {bar}");
            let cells = strings(&figures["columns"])
                .into_iter()
                .zip(strings(&row["cells"]));
            for (_, cell) in cells.filter(|(column, _)| charted.contains(column)) {
                let figure = cell.split([' ', ':']).next().unwrap();
                assert!(
                    drawn.contains(figure),
                    "{picture}.svg, {bar}: {figure} is missing"
                );
            }
        }
    }
}
