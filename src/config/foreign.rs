//! The flags of sglang_router and vllm-router that have no effect here, and the policies of other routers, so that their
//! command lines work unchanged.
//!
//! The command line is built from these tables. A flag that gets an effect moves to `settings.rs`.
//!
//! Source: sglang, sgl-model-gateway/bindings/python/src/sglang_router/router_args.py.

use super::Policy;

/// The values that a flag takes, in the terms of Python's argparse.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Takes {
    /// `store_true`.
    Nothing,
    /// One value.
    One,
    /// `nargs="+"`.
    Some,
    /// `nargs="*"`.
    Any,
}

/// Accepted without a warning: this program always does what they ask for.
pub(crate) const IMPLIED: [&str; 2] = ["pd-disaggregation", "mini-lb"];

/// vllm-router's word for `engine: vllm`.
pub(crate) const VLLM: &str = "vllm-pd-disaggregation";

/// Accepted with a warning.
pub(crate) const IGNORED: &[(&str, Takes)] = &[
    ("worker-urls", Takes::Any),
    ("cache-threshold", Takes::One),
    ("balance-abs-threshold", Takes::One),
    ("balance-rel-threshold", Takes::One),
    ("bucket-adjust-interval-secs", Takes::One),
    ("eviction-interval-secs", Takes::One),
    ("max-tree-size", Takes::One),
    ("max-idle-secs", Takes::One),
    ("assignment-mode", Takes::One),
    ("redis-url", Takes::One),
    ("redis-key-prefix", Takes::One),
    ("dp-aware", Takes::Nothing),
    ("enable-igw", Takes::Nothing),
    ("worker-startup-timeout-secs", Takes::One),
    ("worker-startup-check-interval", Takes::One),
    ("log-dir", Takes::One),
    ("prometheus-duration-buckets", Takes::Some),
    ("request-id-headers", Takes::Any),
    ("rate-limit-tokens-per-second", Takes::One),
    ("retry-initial-backoff-ms", Takes::One),
    ("retry-max-backoff-ms", Takes::One),
    ("retry-backoff-multiplier", Takes::One),
    ("retry-jitter-factor", Takes::One),
    ("health-failure-threshold", Takes::One),
    ("health-success-threshold", Takes::One),
    ("model-path", Takes::One),
    ("tokenizer-path", Takes::One),
    ("chat-template", Takes::One),
    ("tokenizer-cache-enable-l0", Takes::Nothing),
    ("tokenizer-cache-l0-max-entries", Takes::One),
    ("tokenizer-cache-enable-l1", Takes::Nothing),
    ("tokenizer-cache-l1-max-memory", Takes::One),
    ("reasoning-parser", Takes::One),
    ("tool-call-parser", Takes::One),
    ("mcp-config-path", Takes::One),
    ("backend", Takes::One),
    ("history-backend", Takes::One),
    ("oracle-wallet-path", Takes::One),
    ("oracle-tns-alias", Takes::One),
    ("oracle-connect-descriptor", Takes::One),
    ("oracle-username", Takes::One),
    ("oracle-password", Takes::One),
    ("oracle-pool-min", Takes::One),
    ("oracle-pool-max", Takes::One),
    ("oracle-pool-timeout-secs", Takes::One),
    ("postgres-db-url", Takes::One),
    ("postgres-pool-max", Takes::One),
    ("redis-pool-max", Takes::One),
    ("redis-retention-days", Takes::One),
    ("control-plane-api-keys", Takes::Any),
    ("control-plane-audit-enabled", Takes::Nothing),
    ("jwt-issuer", Takes::One),
    ("jwt-audience", Takes::One),
    ("jwt-jwks-uri", Takes::One),
    ("jwt-role-mapping", Takes::Any),
    // vllm-router's.
    ("vllm-discovery-address", Takes::One),
    ("intra-node-data-parallel-size", Takes::One),
];

/// The policies of other routers, each with the one that is nearest to it here.
///
/// Source: router_args.py as above; smg 1.13, docs/configuration/routing.md; vllm-router 0.1.17, `--help`.
const FOREIGN_POLICIES: [(&str, Policy); 8] = [
    ("bucket", Policy::ExpectedTtft),
    ("cache_aware", Policy::ExpectedTtft),
    ("consistent_hash", Policy::Session),
    ("consistent_hashing", Policy::Session),
    ("least_load", Policy::LeastRequests),
    ("manual", Policy::Session),
    ("passthrough", Policy::Random),
    ("prefix_hash", Policy::ExpectedTtft),
];

/// The policy that is nearest to this one of another router.
pub(super) fn nearest_policy(name: &str) -> Option<Policy> {
    let found = FOREIGN_POLICIES
        .into_iter()
        .find(|(foreign, _)| *foreign == name);
    found.map(|(_, policy)| policy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documents_have_every_policy_of_other_routers_and_every_own_one() {
        let document = include_str!("../../docs/policies.md");
        for (foreign, own) in FOREIGN_POLICIES {
            let row = format!("| `{foreign}` | `{}` |", own.name());
            assert!(document.contains(&row), "{row}");
        }
        for own in Policy::ALL {
            let row = format!("| `{}` | ", own.name());
            assert!(document.contains(&row), "{row}");
        }
    }
}
