//! The line of a finished request: which attempts failed and where.

use mini_lb::pd::Role;
use support::pair::{ROLES, leg, leg_of};
use support::{BODY, Client, Process, Worker, mini_lb, post};

/// The value of a field of a log line; `None` where the line has no such field.
fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = line.split_once(&format!(" {name}="))?;
    rest.split_whitespace().next()
}

/// Two workers of each role, and a process in front of them.
struct Workers {
    prefills: [Worker; 2],
    decodes: [Worker; 2],
    process: Process,
    client: Client,
}

impl Workers {
    async fn start() -> Self {
        let ((p1, d1), (p2, d2)) = (Worker::pair().await, Worker::pair().await);
        let line = format!(
            "--host 127.0.0.1 --port 0 --disable-health-check --retry-max-retries 2 \
             --prefill {} 8998 --prefill {} 8998 --decode {} --decode {}",
            p1.url(),
            p2.url(),
            d1.url(),
            d2.url()
        );
        let mut process = mini_lb!(&line.split_whitespace().collect::<Vec<_>>());
        let client = Client::connect(process.address().await).await;
        Self {
            prefills: [p1, p2],
            decodes: [d1, d2],
            process,
            client,
        }
    }

    fn url(&self, role: Role, index: usize) -> String {
        match role {
            Role::Prefill => self.prefills[index].url(),
            Role::Decode => self.decodes[index].url(),
        }
    }
}

#[tokio::test]
async fn the_line_names_worker_and_code_of_each_attempt_that_failed() {
    for role in ROLES {
        for (cause, answer) in [("lost", None), ("rejected_503", Some("503 Unavailable"))] {
            let mut workers = Workers::start().await;
            workers.client.send(post("/generate", BODY)).await;
            let (prefill, decode) = (
                leg(&mut workers.prefills).await,
                leg(&mut workers.decodes).await,
            );
            let index = match role {
                Role::Prefill => prefill.0,
                Role::Decode => decode.0,
            };
            let (failing, _other) = leg_of(role, (prefill.1, decode.1));
            match answer {
                Some(status) => failing.answer(status, "{}").await,
                None => failing.reset(),
            }
            let (prefill, decode) = (
                leg(&mut workers.prefills).await,
                leg(&mut workers.decodes).await,
            );
            prefill.1.answer("200 OK", "{}").await;
            decode.1.answer("200 OK", "{}").await;
            assert_eq!(workers.client.answer().await.status(), 200);
            let line = workers.process.line("request finished").await;
            let code = match answer {
                Some(_) => cause.to_owned(),
                None => format!("{role}_{cause}"),
            };
            let failed = format!("{code}@{}", workers.url(role, index));
            assert_eq!(field(&line, "failed"), Some(failed.as_str()), "{line}");
            assert_eq!(field(&line, "attempts"), Some("2"), "{line}");
        }
    }
}
