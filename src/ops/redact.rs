//! Masks the secrets in a worker's `/server_info`.
//!
//! Values in, values out. SGLang's response contains its keys: as fields, as the same fields in the state of each rank,
//! and in the command line it was started with, whose words are joined with single spaces and without quotes.
//! Source: SGLang 0.5.23 `server_args.py` (`api_key`, `admin_api_key`, `ssl_keyfile_password`,
//! `_launch_command`), `sampling/watermarking/core.py` (`redact_watermark_command_line`).

use serde_json::Value;

/// Replaces a secret.
const MASK: &str = "***";

/// The options of SGLang that carry a secret. Python's argparse accepts any unambiguous prefix of them as well.
const SECRET_OPTIONS: [&str; 3] = ["--api-key", "--admin-api-key", "--ssl-keyfile-password"];

/// An option without a secret, although it is a prefix of one with a secret.
const KEYFILE: &str = "--ssl-keyfile";

/// The field with the command line.
const COMMAND: &str = "launch_command";

/// Masks every secret in the tree. `null` and empty texts stay: they say that there is no key.
pub(super) fn redact(value: &mut Value) {
    let mut secrets = Vec::new();
    mask_fields(value, &mut secrets);
    // The longest first, because one secret may be a part of another.
    secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    mask_commands(value, &secrets);
}

/// Masks the fields with the name of a secret, and collects their texts.
fn mask_fields(value: &mut Value, secrets: &mut Vec<String>) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| mask_fields(item, secrets)),
        Value::Object(fields) => {
            for (name, field) in fields.iter_mut() {
                match field {
                    field if !is_secret_name(name) => mask_fields(field, secrets),
                    Value::Null | Value::Bool(_) => {}
                    Value::String(text) if text.is_empty() => {}
                    field => {
                        if let Value::String(text) = field {
                            secrets.push(std::mem::take(text));
                        }
                        *field = MASK.into();
                    }
                }
            }
        }
        _ => {}
    }
}

/// Masks the secrets in all command lines.
fn mask_commands(value: &mut Value, secrets: &[String]) {
    match value {
        Value::Array(items) => items
            .iter_mut()
            .for_each(|item| mask_commands(item, secrets)),
        Value::Object(fields) => {
            for (name, field) in fields.iter_mut() {
                match field {
                    Value::String(command) if name == COMMAND => {
                        *command = masked_command(command, secrets);
                    }
                    field => mask_commands(field, secrets),
                }
            }
        }
        _ => {}
    }
}

/// The command line with the values of secret options masked, and known secrets wherever they stand.
fn masked_command(command: &str, secrets: &[String]) -> String {
    let known = secrets.iter().fold(command.to_owned(), |text, secret| {
        text.replace(secret, MASK)
    });
    let mut words = Vec::new();
    let mut rest = known.split(' ').peekable();
    while let Some(word) = rest.next() {
        let (option, inline) = match word.split_once('=') {
            Some((option, value)) => (option, Some(value)),
            None => (word, None),
        };
        if !is_secret_option(option) {
            words.push(word.to_owned());
            continue;
        }
        match inline {
            // A value may have contained spaces, so that its end is unknown: everything up to the next option is dropped.
            Some(value) => {
                words.push(format!("{option}={MASK}"));
                skip_value(value, &mut rest);
            }
            None => {
                words.push(option.to_owned());
                if let Some(value) = rest.next() {
                    words.push(MASK.to_owned());
                    skip_value(value, &mut rest);
                }
            }
        }
    }
    words.join(" ")
}

/// Drops the words that may belong to a value that begins with `first`.
fn skip_value<'a>(first: &str, rest: &mut std::iter::Peekable<impl Iterator<Item = &'a str>>) {
    let quote = first.chars().next().filter(|c| matches!(c, '"' | '\''));
    let Some(quote) = quote else {
        while rest.next_if(|word| !word.starts_with("--")).is_some() {}
        return;
    };
    let mut word = first.get(1..).unwrap_or_default();
    while !word.ends_with(quote) {
        let Some(next) = rest.next() else { return };
        word = next;
    }
}

fn is_secret_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase().replace('-', "_");
    name.contains("api_key") || name.contains("password")
}

fn is_secret_option(word: &str) -> bool {
    let abbreviates = |option: &&str| word.len() > "--".len() && option.starts_with(word);
    word != KEYFILE && SECRET_OPTIONS.iter().any(abbreviates)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn redacted(mut value: Value) -> Value {
        redact(&mut value);
        value
    }

    #[test]
    fn a_secret_is_masked_wherever_it_stands_and_a_missing_one_stays_visible() {
        let before = json!({
            "api_key": "sk-1", "admin_api_key": null, "ssl_keyfile_password": "pw", "ssl_keyfile": "/k.pem",
            "OPENAI-API-KEY": 17, "empty_api_key": "", "has_api_key": true, "port": 31000,
            "internal_states": [{"api_key": "sk-1", "nested": {"api_keys": ["a", "b"]}}],
        });
        let after = json!({
            "api_key": "***", "admin_api_key": null, "ssl_keyfile_password": "***", "ssl_keyfile": "/k.pem",
            "OPENAI-API-KEY": "***", "empty_api_key": "", "has_api_key": true, "port": 31000,
            "internal_states": [{"api_key": "***", "nested": {"api_keys": "***"}}],
        });
        assert_eq!(redacted(before), after);
    }

    #[test]
    fn a_command_line_keeps_its_options_and_loses_its_secrets() {
        let check = |command: &str, expected: &str| {
            let answer = redacted(json!({ "launch_command": command }));
            assert_eq!(answer["launch_command"], expected);
        };
        check(
            "--port 1 --api-key X --tp 2",
            "--port 1 --api-key *** --tp 2",
        );
        check("--api-key=X --tp 2", "--api-key=*** --tp 2");
        check(
            "--admin-api-key a=b --api-key=c=d",
            "--admin-api-key *** --api-key=***",
        );
        check("--api-key a b c --tp 2", "--api-key *** --tp 2");
        check("--api-key 'a --b' --tp 2", "--api-key *** --tp 2");
        check("--api-key=\"a --b\" --tp 2", "--api-key=*** --tp 2");
        check("--api-key \"X\" --tp 2", "--api-key *** --tp 2");
        check("--api-key 'never closed --tp 2", "--api-key ***");
        check("--api-key -starts-with-a-dash", "--api-key ***");
        check("--admin-api X --api=Y", "--admin-api *** --api=***");
        check(
            "--ssl-keyfile /k --ssl-keyfile-password p",
            "--ssl-keyfile /k --ssl-keyfile-password ***",
        );
        check("--tp 2 --api-key", "--tp 2 --api-key");
        check("--tp 2  --model /api-key", "--tp 2  --model /api-key");
        check("", "");
    }

    #[test]
    fn a_known_secret_is_masked_in_a_command_line_of_another_form() {
        let answer = redacted(json!({
            "launch_command": "Engine(model_path='/m', api_key='s k --1', admin_api_key='s k --12')",
            "internal_states": [{"api_key": "s k --1", "admin_api_key": "s k --12"}],
        }));
        assert_eq!(
            answer["launch_command"],
            "Engine(model_path='/m', api_key='***', admin_api_key='***')"
        );
    }

    #[test]
    fn everything_but_secrets_is_left_as_it_is() {
        let text = r#"{"launch_command":null,"b":[1,2.50,"--api-key X"],"model":"api_key","n":1E2,"ü":"\u0000"}"#;
        let before: Value = serde_json::from_str(text).unwrap();
        assert_eq!(redacted(before.clone()).to_string(), before.to_string());
    }
}
