//! What `--version` says of the build: its commit, its target and its features.
//!
//! Source: `build.rs`.

/// The features of the package, and whether this build has them.
const FEATURES: [(&str, bool); 6] = [
    ("bench", cfg!(feature = "bench")),
    ("cli", cfg!(feature = "cli")),
    ("dns", cfg!(feature = "dns")),
    ("kubernetes", cfg!(feature = "kubernetes")),
    ("otel", cfg!(feature = "otel")),
    ("sim", cfg!(feature = "sim")),
];

/// The text behind the program's name, in four lines.
pub(super) fn long() -> String {
    let features: Vec<&str> = FEATURES
        .iter()
        .filter_map(|(name, is_on)| is_on.then_some(*name))
        .collect();
    format!(
        "{}\ncommit: {}\ntarget: {}\nfeatures: {}",
        env!("CARGO_PKG_VERSION"),
        env!("MINI_LB_BUILD_COMMIT"),
        env!("MINI_LB_BUILD_TARGET"),
        features.join(" ")
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_feature_of_the_package_is_named() {
        let manifest = include_str!("../../Cargo.toml");
        let (_, table) = manifest.split_once("\n[features]\n").unwrap_or_default();
        let (table, _) = table.split_once("\n[").unwrap_or_default();
        let of_line = |line: &'static str| line.split_once(" = [").map(|(name, _)| name);
        let of_package: BTreeSet<_> = table.lines().filter_map(of_line).collect();
        let named: BTreeSet<_> = FEATURES
            .iter()
            .map(|(name, _)| *name)
            .chain(["default"])
            .collect();
        assert_eq!(of_package, named);
    }
}
