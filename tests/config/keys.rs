//! Keys of workers, clients and administration: where they come from, and that they are never shown.

use std::fs;

use mini_lb::config::Secret;

use crate::helpers::{library, load, problems, serve, temporary};

#[test]
fn keys_come_from_files_and_are_never_shown() {
    let own = temporary("sk-own\n");
    let shared = temporary("  sk-shared\r\n");
    let file = temporary(&format!(
        "prefill: [{{url: 'http://a:1', api_key: sk-inline}}, {{url: 'http://a:2', api_key_file: {}}}]\n\
         decode: [http://b:1]\n",
        own.path().display()
    ));
    let line = format!(
        "--conf {} --worker-api-key-file {}",
        file.path().display(),
        shared.path().display()
    );
    let (config, effective) = load(&line, &[]).unwrap();
    let keys: Vec<_> = config
        .prefill
        .iter()
        .chain(&config.decode)
        .map(|worker| worker.api_key.as_ref().unwrap())
        .collect();
    assert_eq!(
        keys.iter().map(|key| key.expose()).collect::<Vec<_>>(),
        [&b"sk-inline"[..], b"sk-own", b"sk-shared"]
    );

    let shown = format!("{config:?}{effective}{effective:?}{:?}", serve(&line));
    assert!(!shown.contains("sk-"), "{shown}");
    // The printed stars are not a key.
    let printed = temporary(&effective.to_string());
    let found = problems(&format!("--conf {}", printed.path().display()), &[]);
    assert!(
        found.contains("prefill[0].api_key: the stars are"),
        "{found}"
    );
}

#[test]
fn keys_for_administration_are_the_workers_own_or_the_shared_one_and_never_shown() {
    let own = temporary("sk-own\n");
    let shared = temporary("sk-shared");
    let file = temporary(&format!(
        "prefill: [{{url: 'http://a:1', admin_api_key: sk-inline}}, {{url: 'http://a:2', admin_api_key_file: {0}}}]\n\
         decode: [http://b:1]\nworker_admin_api_key_file: {1}\n",
        own.path().display(),
        shared.path().display()
    ));
    let line = format!("--conf {}", file.path().display());
    let (config, effective) = load(&line, &[]).unwrap();
    let workers = config.prefill.iter().chain(&config.decode);
    let keys: Vec<_> = workers
        .map(|worker| {
            (
                worker.admin_api_key.as_ref().unwrap().expose(),
                &worker.api_key,
            )
        })
        .collect();
    let expected: [&[u8]; 3] = [b"sk-inline", b"sk-own", b"sk-shared"];
    assert_eq!(keys, expected.map(|key| (key, &None)));
    let shown = format!("{config:?}{effective}{effective:?}");
    assert!(!shown.contains("sk-"), "{shown}");
    fs::write(
        file.path(),
        "prefill: [http://a:1]\ndecode: [{url: 'http://b:1', admin_api_key: a, admin_api_key_file: b}]\n",
    )
    .unwrap();
    let found = problems(&line, &[]);
    let said = "set either admin_api_key or admin_api_key_file, not both";
    assert!(found.ends_with(said), "{found}");
}

#[test]
fn keys_of_clients_come_from_an_option_and_a_file_and_are_not_shown() {
    let file = temporary("sk-1\n\n sk-2 \r\nsk-3 # team-c\n");
    let workers = "--prefill http://a:1 --decode http://b:1";
    let line = format!(
        "{workers} --api-key sk-0 --api-key-file {} --admin-api-key sk-a",
        file.path().display()
    );
    let (found, effective) = load(&line, &[]).unwrap();
    let printed = effective.to_string();
    assert!(!printed.contains("sk-"), "{printed}");
    let keys = found.client_keys.api.iter();
    let keys: Vec<_> = keys
        .map(|named| (&named.key, named.name.as_str()))
        .collect();
    let (own, filed) = (
        Secret::new("sk-0"),
        ["sk-1", "sk-2", "sk-3"].map(Secret::new),
    );
    let expected = [
        (&own, "api_key"),
        (&filed[0], "line-1"),
        (&filed[1], "line-3"),
        (&filed[2], "team-c"),
    ];
    assert_eq!(keys, expected);
    assert_eq!(found.client_keys.admin, Some(Secret::new("sk-a")));
    assert_eq!(found.prefill[0].api_key, Some(Secret::new("sk-0")));
    assert!(found.warnings.is_empty(), "{:?}", found.warnings);
}

#[test]
fn a_file_without_keys_is_no_open_door() {
    let file = temporary("\n \n");
    let found = library(&[("http://a:1", None)], &["http://b:1"], 1)
        .api_key_file(file.path().to_str().unwrap())
        .api_key("a b")
        .resolve();
    let found = found.unwrap_err().to_string();
    assert_eq!(
        found,
        "api_key: the key has characters that an HTTP header cannot carry\napi_key_file: must not be empty"
    );
}

#[test]
fn a_file_that_begins_with_a_byte_order_mark_is_read() {
    let key = temporary("\u{feff}sk-w\n");
    let clients = temporary("\u{feff}sk-1\nsk-2\n");
    let file = temporary(&format!(
        "\u{feff}port: 1234\nprefill: [http://a:1]\ndecode: [http://b:1]\nworker_api_key_file: {}\n\
         api_key_file: {}\n",
        key.path().display(),
        clients.path().display()
    ));
    let line = format!("--conf {}", file.path().display());
    let (found, _) = load(&line, &[]).unwrap();
    assert_eq!(found.listen.port, 1234);
    assert_eq!(found.prefill[0].api_key, Some(Secret::new("sk-w")));
    let keys: Vec<_> = found
        .client_keys
        .api
        .iter()
        .map(|named| &named.key)
        .collect();
    assert_eq!(keys, ["sk-1", "sk-2"].map(Secret::new).each_ref());
    let authority = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap();
    let roots = temporary(&format!("\u{feff}{}", authority.cert.pem()));
    let of_roots = format!("{line} --ca-cert-paths {}", roots.path().display());
    assert_eq!(load(&of_roots, &[]).unwrap().0.tls.roots.len(), 1);
    // The mark shifts no line.
    fs::write(file.path(), "\u{feff}port: 1\nprot: 2\n").unwrap();
    let found = problems(&line, &[]);
    assert!(found.contains(":2: prot: unknown key"), "{found}");
}
