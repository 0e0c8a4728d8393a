//! The README's tables name what the program has: no key, path or code is missing, and none is made up.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use support::program::post_json;
use support::{Balancer, Client, Worker, config};

/// The rows of the table behind the comment with this name, as cells without their backticks' surroundings.
fn table(name: &str) -> Vec<Vec<String>> {
    let readme = fs::read_to_string("README.md").unwrap();
    let marker = format!("<!-- table: {name} -->\n");
    let (_, table) = readme
        .split_once(&marker)
        .unwrap_or_else(|| panic!("no {marker}"));
    let rows = table
        .lines()
        .take_while(|line| line.starts_with('|'))
        .skip(2);
    let cells = |row: &str| {
        row.trim_matches('|')
            .split('|')
            .map(|cell| cell.trim().to_owned())
            .collect()
    };
    rows.map(cells).collect()
}

/// What stands in backticks.
fn quoted(cell: &str) -> Vec<String> {
    cell.split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

/// What stands behind `before` in backticks or brackets of a flag's help, up to the bracket.
fn note(help: &str, before: &str) -> Option<String> {
    let (_, rest) = help.split_once(&format!("[{before}: "))?;
    Some(rest.split_once(']')?.0.to_owned())
}

#[test]
fn the_configuration_table_has_every_key_with_its_flag_variable_and_default() {
    let command = mini_lb::cli::command();
    let settings: Vec<_> = command
        .get_arguments()
        .filter(|argument| argument.get_long() != Some("conf"))
        .filter_map(|argument| {
            let help = argument.get_help()?.to_string();
            let variable = note(&help, "env")?;
            let default = note(&help, "default").unwrap_or_default();
            let key = argument.get_id().to_string();
            Some([
                key,
                format!("--{}", argument.get_long()?),
                variable,
                default,
            ])
        })
        .collect();
    assert!(!settings.is_empty());
    let unquoted = |row: Vec<String>| [0, 1, 2, 3].map(|cell| quoted(&row[cell]).concat());
    let told: Vec<_> = table("configuration").into_iter().map(unquoted).collect();
    assert_eq!(told, settings);
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
    let told: Vec<_> = table("worker")
        .iter()
        .flat_map(|row| quoted(&row[0]))
        .collect();
    assert_eq!(told, keys);
}

/// The string literals of a source between two lines.
fn literals(path: &str, from: &str, to: &str) -> Vec<String> {
    let source = fs::read_to_string(path).unwrap();
    let (_, rest) = source
        .split_once(from)
        .unwrap_or_else(|| panic!("no {from:?} in {path}"));
    let (part, _) = rest
        .split_once(to)
        .unwrap_or_else(|| panic!("no {to:?} in {path}"));
    let lines = part
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    lines
        .filter_map(|line| Some(line.split('"').nth(1)?.to_owned()))
        .collect()
}

#[test]
fn the_table_of_endpoints_has_the_paths_of_the_program() {
    let served = literals("src/ops/table.rs", "static TABLE", "\n];");
    let told: Vec<_> = table("endpoints")
        .iter()
        .flat_map(|row| quoted(&row[0]))
        .collect();
    let sorted = |paths: &[String]| paths.iter().cloned().collect::<BTreeSet<_>>();
    assert_eq!(sorted(&told), sorted(&served));
    assert_eq!(
        told.len(),
        served.len(),
        "a path stands in the README twice"
    );
}

/// The answer to a method that no path takes says which ones it does take.
#[tokio::test]
async fn every_endpoint_takes_the_methods_that_the_table_says() {
    let (prefill, decode) = (Worker::refusing().await, Worker::refusing().await);
    let balancer = Balancer::start(config(&[prefill], &[decode])).await;
    for row in table("endpoints") {
        for path in quoted(&row[0]) {
            let path = path.replace('*', "x");
            let mut client = Client::connect(balancer.address).await;
            client
                .send(format!("DELETE {path} HTTP/1.1\r\nhost: balancer\r\n\r\n"))
                .await;
            let answer = client.answer().await;
            let (status, methods, code) = match row[1].as_str() {
                "" => (501, None, "not_served_by_pd"),
                methods => (405, Some(methods), "method_not_allowed"),
            };
            assert_eq!(answer.status(), status, "{path}");
            assert_eq!(answer.header("allow"), methods, "{path}");
            assert_eq!(answer.header("x-mini-lb-error"), Some(code), "{path}");
        }
    }
}

#[test]
fn the_table_of_codes_has_the_codes_of_the_program() {
    let mut codes = literals("src/proxy/error.rs", "fn code(&self)", "\n    }\n");
    codes.extend(literals("src/ops/error.rs", "fn name(self)", "\n    }\n"));
    let codes: BTreeSet<_> = codes.into_iter().collect();
    let told: Vec<_> = table("codes")
        .iter()
        .flat_map(|row| quoted(&row[0]))
        .collect();
    assert_eq!(told.iter().cloned().collect::<BTreeSet<_>>(), codes);
    assert_eq!(told.len(), codes.len(), "a code stands in the README twice");
}

#[tokio::test]
async fn errors_have_the_status_and_the_code_that_the_table_says() {
    let told: BTreeMap<_, _> = table("codes")
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
            r#"{"text":"a","sampling_params":{"n":2}}"#,
            "n_not_supported",
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
fn every_file_that_the_readme_links_to_exists() {
    let readme = fs::read_to_string("README.md").unwrap();
    let links = readme
        .split("](")
        .skip(1)
        .map(|rest| rest.split_once(')').unwrap().0);
    for link in links.filter(|link| !link.starts_with("http") && !link.starts_with('#')) {
        assert!(fs::exists(link).unwrap(), "{link}");
    }
}
