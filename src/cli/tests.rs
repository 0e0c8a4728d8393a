//! The command line beside the table, Pingora's flags and those of sglang_router.

use clap::CommandFactory;

use super::*;
use crate::config::settings::worker_key;
use crate::config::{Environment, Role};

fn serve(line: &[&str]) -> Serve {
    match parse(line.iter().copied()).unwrap() {
        Command::Serve(serve) => *serve,
        #[allow(unreachable_patterns, reason = "as long as there is no subcommand")]
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_command_line_is_consistent() {
    command().debug_assert();
}

#[test]
fn every_flag_of_pingora_is_here() {
    let ours = command();
    for theirs in Opt::command()
        .get_arguments()
        .filter(|arg| !arg.is_hide_set())
    {
        let found = ours
            .get_arguments()
            .find(|arg| arg.get_long() == theirs.get_long());
        let found = found.unwrap_or_else(|| panic!("{theirs} is missing"));
        assert_eq!(found.get_short(), theirs.get_short(), "{theirs}");
    }
}

#[test]
fn every_foreign_flag_warns_once_however_often_it_is_given() {
    for (name, takes) in IGNORED {
        let flag = format!("--{name}");
        let given: &[&str] = match takes {
            Takes::Nothing => &[],
            Takes::One => &["-1"],
            Takes::Some => &["a=b", "c=d"],
            Takes::Any => &["a", "b", "c"],
        };
        let mut line = vec!["mini-lb"];
        for _ in 0..2 {
            line.push(&flag);
            line.extend(given);
        }
        // A flag behind it must not be swallowed.
        line.extend(["--port", "1"]);
        let serve = serve(&line);
        assert_eq!(serve.sources.warnings.len(), 1, "{line:?}");
        assert!(serve.sources.warnings[0].starts_with(&flag), "{line:?}");
        assert_eq!(serve.sources.flags.scalars["port"].value, "1", "{line:?}");
    }
}

#[test]
fn implied_flags_are_silent() {
    let serve = serve(&["mini-lb", "--pd-disaggregation", "--mini-lb", "--mini-lb"]);
    assert!(serve.sources.warnings.is_empty());
}

fn scalar(sources: Sources, environment: Environment<'_>, setting: &Setting) -> (String, Place) {
    let (_, effective) = sources.load(environment).unwrap();
    let given = &effective.0.scalars[setting.key];
    (given.value.clone(), given.place.clone())
}

/// Files that settings name.
struct Files {
    key: tempfile::NamedTempFile,
    roots: tempfile::NamedTempFile,
}

impl Files {
    fn new() -> Files {
        let key = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(key.path(), "sk-1").unwrap();
        let roots = tempfile::NamedTempFile::new().unwrap();
        let authority = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap();
        std::fs::write(roots.path(), authority.cert.pem()).unwrap();
        Files { key, roots }
    }

    /// A value that a setting accepts, and that is not its default unless there is no other.
    fn value(&self, setting: &Setting) -> Option<String> {
        Some(match (setting.key, setting.kind) {
            (_, Kind::Workers(_)) => return None,
            // It needs a selector, and the feature.
            ("service_discovery", _) => return None,
            // A certificate needs its key.
            ("tls_cert_path" | "tls_key_path" | "client_cert_path" | "client_key_path", _) => {
                return None;
            }
            ("admin_listen", _) => "127.0.0.1:1".to_owned(),
            ("host" | "prometheus_host", _) => "::1".to_owned(),
            ("policy" | "prefill_policy" | "decode_policy", _) => "session".to_owned(),
            ("otlp_traces_endpoint", _) => "http://[::1]:4318".to_owned(),
            ("session_header", _) => "x-conversation".to_owned(),
            ("log_level", _) => "warn".to_owned(),
            (_, Kind::Origins) => "https://app.example".to_owned(),
            (_, Kind::Addresses) => "127.0.0.1:53".to_owned(),
            (_, Kind::Labels) => "app=sglang".to_owned(),
            (_, Kind::Paths) => self.roots.path().display().to_string(),
            (_, Kind::Path) => self.key.path().display().to_string(),
            (_, Kind::Word(words)) => {
                let mut others = words.iter().filter(|word| Some(**word) != setting.default);
                others.next()?.to_string()
            }
            (_, Kind::UrlPath) => "/health_generate".to_owned(),
            (_, Kind::Switch) => "true".to_owned(),
            _ => "7".to_owned(),
        })
    }
}

/// The flag of a setting with this value.
fn flag(setting: &Setting, value: &str) -> Vec<String> {
    let mut flag = vec![format!("--{}", setting.flag())];
    if setting.kind != Kind::Switch {
        flag.push(value.to_owned());
    }
    flag
}

/// A command line with a worker of each role, and more.
fn sources(more: &[String]) -> Sources {
    let line = "mini-lb --prefill http://a:1 --decode http://b:1".split(' ');
    let more = more.iter().map(String::as_str);
    serve(&line.chain(more).collect::<Vec<_>>()).sources
}

#[test]
fn every_scalar_option_is_a_flag_a_variable_and_a_key_that_override_in_this_order() {
    let files = Files::new();
    for setting in settings() {
        let Some(value) = files.value(setting) else {
            continue;
        };
        let yaml = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(yaml.path(), format!("{}: {value}\n", setting.key)).unwrap();
        let conf = ["--conf".to_owned(), yaml.path().display().to_string()];
        let flag = flag(setting, &value);
        let unset = |_: &str| None;
        let set = |name: &str| (name == setting.variable()).then(|| value.clone().into());

        let file = Place::File {
            path: yaml.path().into(),
            line: Some(1),
            key: setting.key.to_owned(),
        };
        assert_eq!(
            scalar(sources(&conf), &unset, setting),
            (value.clone(), file)
        );
        let variable = Place::Environment(setting.variable());
        assert_eq!(
            scalar(sources(&conf), &set, setting),
            (value.clone(), variable)
        );
        let all = [&conf[..], &flag].concat();
        assert_eq!(
            scalar(sources(&all), &set, setting),
            (value.clone(), Place::Flag(flag[0].clone()))
        );
        if let Some(default) = setting.default {
            assert_eq!(
                scalar(sources(&[]), &unset, setting),
                (default.to_owned(), Place::Default)
            );
        }
    }
}

/// A row of the table without a field that is filled from it would change nothing.
#[test]
fn every_scalar_option_reaches_the_resolved_configuration() {
    let files = Files::new();
    let resolved = |more: &[String]| {
        let (config, _) = sources(more).load(&|_: &str| None).unwrap();
        format!("{config:?}")
    };
    let default = resolved(&[]);
    for setting in settings() {
        if let Some(value) = files.value(setting) {
            let changed = resolved(&flag(setting, &value));
            assert_ne!(changed, default, "{} has no field", setting.key);
        }
    }
}

#[test]
fn the_reference_file_has_every_key_at_its_default() {
    let text = std::fs::read_to_string("conf/mini-lb.yaml").unwrap();
    let file: serde_yaml::Mapping = serde_yaml::from_str(&text).unwrap();
    for setting in settings() {
        let value = file
            .get(setting.key)
            .unwrap_or_else(|| panic!("{} is missing", setting.key));
        match setting.kind {
            Kind::Workers(role) => {
                let first = value.get(0).unwrap();
                let shown = |key: &&str| role == Role::Decode || first.get(key).is_some();
                assert!(worker_key::of(role).iter().all(shown), "{first:?}");
            }
            _ if setting.key == "port" => assert_eq!(value.as_u64(), Some(8080)),
            _ => {
                let default = setting.default.map_or(serde_yaml::Value::Null, |default| {
                    // `*` is a text, though YAML reads it as an alias.
                    serde_yaml::from_str(default).unwrap_or_else(|_| default.into())
                });
                assert_eq!(*value, default, "{}", setting.key);
            }
        }
    }
}
