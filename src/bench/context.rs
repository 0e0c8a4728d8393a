//! When, where and how a benchmark ran, for people who read its report later.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

/// Options whose value is a secret.
const SECRETS: [&str; 2] = ["--api-key", "--header"];

/// Date, machine, command and version, as pairs of name and value.
pub(super) fn facts() -> [(&'static str, String); 4] {
    [
        ("date", date(seconds_now())),
        ("machine", machine()),
        ("command", command(std::env::args())),
        ("mini-lb", env!("CARGO_PKG_VERSION").to_owned()),
    ]
}

/// Seconds since 1970.
pub(super) fn seconds_now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// `2026-11-29 18:05 UTC`.
fn date(seconds: u64) -> String {
    let (mut days, minutes) = (seconds / 86_400, seconds % 86_400 / 60);
    let is_leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let february = 28 + u64::from(is_leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let (day, hour, minute) = (days + 1, minutes / 60, minutes % 60);
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02} UTC")
}

/// The processor, its cores and the kernel, as far as the system tells them.
fn machine() -> String {
    let file = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpus = file("/proc/cpuinfo");
    let model = cpus.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == "model name").then(|| value.trim().to_owned())
    });
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = file("/proc/sys/kernel/osrelease");
    let system = format!("{} {}", std::env::consts::OS, kernel.trim());
    format!(
        "{}, {cores} cores, {}",
        model.unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
        system.trim()
    )
}

/// The command line, without keys and header values.
fn command(arguments: impl Iterator<Item = String>) -> String {
    let mut shown = Vec::new();
    let mut hides_next = false;
    for argument in arguments {
        let name = argument.split('=').next().unwrap_or_default();
        let is_secret = SECRETS.contains(&name);
        shown.push(match (hides_next, is_secret) {
            (true, _) => "***".to_owned(),
            (false, true) if argument.len() > name.len() => format!("{name}=***"),
            (false, _) => argument.clone(),
        });
        hides_next = !hides_next && is_secret && argument == name;
    }
    shown.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01 00:00 UTC"),
            (951_827_696, "2000-02-29 12:34 UTC"),
            (1_709_251_199, "2024-02-29 23:59 UTC"),
            (1_709_251_200, "2024-03-01 00:00 UTC"),
            (4_102_444_799, "2099-12-31 23:59 UTC"),
        ] {
            assert_eq!(date(seconds), expected);
        }
    }

    #[test]
    fn the_command_has_no_secret() {
        let line = "mini-lb bench --url http://a --api-key sk-1 --header x=sk-2 --header=x=sk-3 --api-key=sk-4 --stream";
        let shown = command(line.split(' ').map(str::to_owned));
        assert_eq!(
            shown,
            "mini-lb bench --url http://a --api-key *** --header *** --header=*** --api-key=*** --stream"
        );
    }
}
