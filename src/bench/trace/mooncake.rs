//! A line of Mooncake's trace format. Source: kvcache-ai/Mooncake, `FAST25-release/traces`.

use std::time::Duration;

use serde_json::{Map, Value};

use super::{BLOCK_TOKENS, TraceRequest};

/// The request of a line.
///
/// # Errors
/// What is wrong with the line.
pub(super) fn request(line: &str) -> Result<TraceRequest, String> {
    let value: Value = serde_json::from_str(line).map_err(|_| "not JSON".to_owned())?;
    let Value::Object(fields) = value else {
        return Err("expected a JSON object".to_owned());
    };
    let milliseconds = field(&fields, "timestamp")?;
    let seconds = milliseconds
        .as_f64()
        .and_then(|milliseconds| Duration::try_from_secs_f64(milliseconds / 1e3).ok());
    let at = seconds.ok_or_else(|| {
        format!("`timestamp`: expected milliseconds of at least 0, got {milliseconds}")
    })?;
    let input_tokens = number(&fields, "input_length")?;
    if input_tokens == 0 {
        return Err("`input_length`: expected at least 1".to_owned());
    }
    let blocks = blocks(&fields)?;
    let expected = input_tokens.div_ceil(BLOCK_TOKENS);
    if blocks.len() != expected {
        return Err(format!(
            "`hash_ids`: {} blocks for {input_tokens} tokens, expected {expected}, one for each {BLOCK_TOKENS}",
            blocks.len()
        ));
    }
    Ok(TraceRequest {
        at,
        input_tokens,
        output_tokens: number(&fields, "output_length")?.max(1),
        blocks,
    })
}

fn field<'a>(fields: &'a Map<String, Value>, name: &str) -> Result<&'a Value, String> {
    fields
        .get(name)
        .ok_or_else(|| format!("`{name}` is missing"))
}

fn number(fields: &Map<String, Value>, name: &str) -> Result<usize, String> {
    let value = field(fields, name)?;
    let number = value
        .as_u64()
        .and_then(|number| usize::try_from(number).ok());
    number.ok_or_else(|| format!("`{name}`: expected a whole number, got {value}"))
}

fn blocks(fields: &Map<String, Value>) -> Result<Vec<u64>, String> {
    let value = field(fields, "hash_ids")?;
    let ids = value.as_array().map(Vec::as_slice);
    let ids: Option<Vec<u64>> = ids.and_then(|ids| ids.iter().map(Value::as_u64).collect());
    ids.ok_or_else(|| "`hash_ids`: expected whole numbers".to_owned())
}
