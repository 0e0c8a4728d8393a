//! A line of Azure's LLM inference traces, which say nothing about prefixes: each prompt is one of its own.
//!
//! Source: Azure/AzurePublicDataset, `AzureLLMInferenceDataset2023.md` and `AzureLLMInferenceDataset2024.md`.

use std::time::Duration;

use super::{BLOCK_TOKENS, TraceRequest};

const NAMES: [&str; 3] = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"];

/// Where the columns are, in the order of [`NAMES`].
pub(super) struct Columns {
    places: [usize; 3],
    count: usize,
}

impl Columns {
    /// # Errors
    /// When a column is missing.
    pub(super) fn read(head: &str) -> Result<Columns, String> {
        let names: Vec<&str> = head.split(',').map(str::trim).collect();
        let mut places = [0; 3];
        for (place, wanted) in places.iter_mut().zip(NAMES) {
            let found = names.iter().position(|name| *name == wanted);
            *place = found.ok_or_else(|| {
                format!(
                    "no column `{wanted}`; expected {} or a JSON object in each line",
                    NAMES.join(",")
                )
            })?;
        }
        Ok(Columns {
            places,
            count: names.len(),
        })
    }

    /// The request of a line; `number` makes its prompt differ from all others.
    ///
    /// # Errors
    /// What is wrong with the line.
    pub(super) fn request(&self, line: &str, number: u64) -> Result<TraceRequest, String> {
        let cells: Vec<&str> = line.split(',').map(str::trim).collect();
        if cells.len() != self.count {
            return Err(format!(
                "expected {} columns, got {}",
                self.count,
                cells.len()
            ));
        }
        let [time, context, generated] = self.places.map(|place| cells[place]);
        let at = time_of_day_and_date(time).ok_or_else(|| {
            format!(
                "`{}`: expected a time like 2023-11-16 18:17:03.979, got {time:?}",
                NAMES[0]
            )
        })?;
        // Azure has requests without prompt tokens.
        let input_tokens = tokens(NAMES[1], context)?.max(1);
        let blocks = input_tokens.div_ceil(BLOCK_TOKENS) as u64;
        Ok(TraceRequest {
            at,
            input_tokens,
            output_tokens: tokens(NAMES[2], generated)?.max(1),
            blocks: (0..blocks).map(|block| (number << 32) + block).collect(),
        })
    }
}

fn tokens(name: &str, text: &str) -> Result<usize, String> {
    text.parse()
        .map_err(|_| format!("`{name}`: expected a whole number, got {text:?}"))
}

/// The time since 1970 of `2023-11-16 18:15:46.6805900` or `2024-05-10 00:00:00.009930+00:00`, without the zone.
fn time_of_day_and_date(text: &str) -> Option<Duration> {
    let (date, time) = text.split_once([' ', 'T'])?;
    let time = time.split(['+', 'Z']).next()?;
    let mut date = date.splitn(3, '-').map(str::parse::<u64>);
    let (year, month, day) = (date.next()?.ok()?, date.next()?.ok()?, date.next()?.ok()?);
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let mut time = time.splitn(3, ':');
    let (hour, minute): (u64, u64) = (time.next()?.parse().ok()?, time.next()?.parse().ok()?);
    let second: f64 = time.next()?.parse().ok()?;
    let seconds = days(year, month, day) * 86_400 + hour * 3_600 + minute * 60;
    Duration::from_secs(seconds).checked_add(Duration::try_from_secs_f64(second).ok()?)
}

/// Days since 1970. The year begins in March, so that the leap day is its last.
fn days(year: u64, month: u64, day: u64) -> u64 {
    let year = if month > 2 { year } else { year - 1 };
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    year * 365 + year / 4 - year / 100 + year / 400 + of_year - 719_468
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_both_years_are_read_wherever_their_columns_are() {
        let columns = Columns::read("ContextTokens,TIMESTAMP,GeneratedTokens").unwrap();
        let first = columns
            .request("4808,2023-11-16 23:59:59.5000000,10", 2)
            .unwrap();
        let second = columns
            .request("0,2023-11-17 00:00:01.250000+00:00,0", 3)
            .unwrap();
        assert_eq!((second.at - first.at).as_millis(), 1_750);
        assert_eq!((first.input_tokens, first.output_tokens), (4808, 10));
        assert_eq!((second.input_tokens, second.output_tokens), (1, 1));
        assert_eq!(first.blocks.len(), 10);
        assert!(!first.blocks.contains(&second.blocks[0]));
    }

    #[test]
    fn days_are_counted_over_leap_days() {
        assert_eq!(days(1970, 1, 1), 0);
        assert_eq!(days(2024, 3, 1) - days(2024, 2, 28), 2);
        assert_eq!(days(2023, 11, 16), 19_677);
    }
}
