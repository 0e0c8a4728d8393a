//! The programs that read metrics: promtool, the parsers of Prometheus' Python client, and Prometheus itself. Where one is
//! not installed, its test says so.

use std::process::{Command, Stdio};

use support::{BODY, Pair, Process, Signal, mini_lb, post, program, soon};

use super::get;

/// Runs a program with this text on its input; `None` where it is not installed, with a line on stderr that says so.
fn reads(program: &str, arguments: &[&str], input: &str) -> Option<(bool, String)> {
    use std::io::Write;
    let child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else {
        eprintln!("skipped: there is no {program} on this machine");
        return None;
    };
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let ended = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&[ended.stdout, ended.stderr].concat()).into_owned();
    Some((ended.status.success(), said))
}

/// Both formats of a balancer that has served a request and refused one.
async fn texts() -> [String; 2] {
    let mut pair = Pair::start().await;
    pair.client.send(post("/generate", BODY)).await;
    support::pair::serve(pair.next_legs().await).await;
    assert_eq!(pair.client.answer().await.status(), 200);
    pair.client.send(post("/generate", "[")).await;
    assert_eq!(pair.client.answer().await.status(), 400);
    let mut texts = Vec::new();
    for fields in ["", "accept: application/openmetrics-text\r\n"] {
        pair.client.send(get("/metrics", fields)).await;
        texts.push(pair.client.answer().await.text().to_owned());
    }
    texts.try_into().unwrap()
}

#[tokio::test]
async fn promtool_has_nothing_to_say() {
    let [text, _] = texts().await;
    if let Some((accepts, said)) = reads("promtool", &["check", "metrics"], &text) {
        assert!(accepts && said.is_empty(), "{said}");
    }
}

#[tokio::test]
async fn both_parsers_of_the_python_client_read_the_same_metrics() {
    const PARSE: &str = "import sys\n\
        try: from prometheus_client.parser import text_string_to_metric_families as text\n\
        except ImportError: sys.exit(3)\n\
        from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics\n\
        given = sys.stdin.read()\n\
        parse = openmetrics if given.endswith('# EOF\\n') else text\n\
        print(len(list(parse(given))))\n";
    let mut counts = Vec::new();
    for text in texts().await {
        let Some((accepts, said)) = reads("python3", &["-c", PARSE], &text) else {
            return;
        };
        if !accepts && said.is_empty() {
            eprintln!("skipped: there is no prometheus_client for python3 on this machine");
            return;
        }
        assert!(accepts, "{said}");
        counts.push(said);
    }
    assert_eq!(counts[0], counts[1]);
}

#[tokio::test]
async fn prometheus_scrapes_the_demo_and_answers_a_query() {
    let mut demo = mini_lb!(&["demo", "--port", "0", "--prefills", "1", "--decodes", "1"]);
    let balancer = demo.address_in("  mini-lb  ").await;
    assert_eq!(
        program::post_json(balancer, "/generate", BODY)
            .await
            .status(),
        200
    );
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prometheus.yml");
    let scrapes = format!(
        "global: {{scrape_interval: 1s}}\nscrape_configs:\n- job_name: lb\n  static_configs: [{{targets: ['{balancer}']}}]\n"
    );
    std::fs::write(&file, scrapes).unwrap();
    if Command::new("prometheus")
        .arg("--version")
        .output()
        .is_err()
    {
        eprintln!("skipped: there is no prometheus on this machine");
        return;
    }
    let data = folder.path().join("data");
    let mut prometheus = Process::start(
        "prometheus",
        &[
            format!("--config.file={}", file.display()),
            format!("--storage.tsdb.path={}", data.display()),
            "--web.listen-address=127.0.0.1:0".to_owned(),
        ],
    );
    let line = prometheus.line("Listening on").await;
    let address = line.rsplit_once("address=").unwrap().1.trim();
    let address = address.split_whitespace().next().unwrap().parse().unwrap();
    let query = "/api/v1/query?query=sum(mini_lb_requests_total%7Broute%3D%22generate%22%7D)";
    soon("the query has a result", async {
        loop {
            let answer = program::get(address, query).await;
            // 503 until it is ready.
            if answer.status() == 200 && answer.json()["data"]["result"][0]["value"][1] == "1" {
                break;
            }
        }
    })
    .await;
    prometheus.signal(Signal::Terminate).await;
    demo.signal(Signal::Interrupt).await;
}
