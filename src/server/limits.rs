//! How many requests and connections the descriptors of the process allow.

/// Descriptors that are not for requests: listeners, logs, probes, idle connections.
const RESERVED_FILES: usize = 500;

/// One descriptor for the client and one for each leg; `None` when there is no limit of open files.
pub(super) fn affordable_requests() -> Option<usize> {
    Some((usable_files()? / 3).max(100))
}

/// The descriptors that the legs of so many requests leave, and at least one connection for each request.
pub(super) fn affordable_connections(requests: usize) -> usize {
    usable_files().map_or(usize::MAX, |files| {
        files
            .saturating_sub(requests.saturating_mul(2))
            .max(requests)
    })
}

/// The descriptors for requests; `None` when there is no limit.
fn usable_files() -> Option<usize> {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    Some(open_files(&limits)?.saturating_sub(RESERVED_FILES))
}

/// The soft limit in the text of `/proc/self/limits`; `None` when there is none.
fn open_files(limits: &str) -> Option<usize> {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_of_open_files_is_read() {
        let limits = |soft: &str| {
            format!(
                "Limit                     Soft Limit           Hard Limit           Units\n\
                 Max open files            {soft}                20000                files\n"
            )
        };
        assert_eq!(open_files(&limits("1024")), Some(1024));
        assert_eq!(open_files(&limits("unlimited")), None);
        assert_eq!(open_files(""), None);
    }
}
