//! How many requests and connections the descriptors of the process allow.

/// Descriptors that are not for requests: listeners, logs, probes, idle connections.
const RESERVED_FILES: usize = 500;

/// One descriptor for the client and one for each leg; `None` when there is no limit of open files.
pub(crate) fn affordable_requests() -> Option<usize> {
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

/// The descriptors that so many requests and connections of clients need: two for the legs of each request.
#[cfg(feature = "cli")]
pub(crate) fn files_for(requests: usize, connections: usize) -> usize {
    let legs = requests.saturating_mul(2);
    let all = legs.saturating_add(connections.max(requests));
    all.saturating_add(RESERVED_FILES)
}

/// The descriptors for requests; `None` when there is no limit.
fn usable_files() -> Option<usize> {
    Some(open_file_limit()?.saturating_sub(RESERVED_FILES))
}

/// The soft limit of open files of this process; `None` when there is none.
pub(crate) fn open_file_limit() -> Option<usize> {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    open_files(&limits)
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
