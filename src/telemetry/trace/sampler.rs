//! Which requests are sampled: the samplers that every SDK of OpenTelemetry has by name.
//!
//! Asked before a span is made, so that a request that is not sampled has none. The ratio is decided as in the SDK, so that all
//! participants of a trace decide alike.
//!
//! Source: OpenTelemetry specification, `trace/sdk.md#built-in-samplers`; opentelemetry_sdk 0.31 `trace/sampler.rs`.

/// A sampler.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Sampler {
    /// Whether the client decides where it has a trace.
    pub(super) by_parent: bool,
    pub(super) root: Root,
}

/// The decision about a new trace.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Root {
    Always,
    Never,
    /// This part of 1.
    Ratio(f64),
}

impl Sampler {
    /// That of a configuration that names none.
    pub(super) const DEFAULT: Self = Self {
        by_parent: true,
        root: Root::Always,
    };

    /// The sampler of this name in `OTEL_TRACES_SAMPLER`, with this argument.
    ///
    /// # Errors
    /// What is wrong, in a sentence.
    pub(super) fn named(name: &str, argument: Option<&str>) -> Result<Self, String> {
        let (by_parent, root) = match name.strip_prefix("parentbased_") {
            Some(root) => (true, root),
            None => (false, name),
        };
        let root = match root {
            "always_on" => Root::Always,
            "always_off" => Root::Never,
            "traceidratio" => Root::Ratio(ratio(argument)?),
            _ => {
                return Err(format!(
                    "OTEL_TRACES_SAMPLER: there is no sampler {name:?} here"
                ));
            }
        };
        Ok(Self { by_parent, root })
    }

    /// Whether a request is sampled whose client has, or has not, sampled it.
    pub(super) fn samples(&self, parent: Option<bool>, trace_id: u128) -> bool {
        match (self.by_parent, parent) {
            (true, Some(sampled)) => sampled,
            _ => self.root.samples(trace_id),
        }
    }
}

fn ratio(argument: Option<&str>) -> Result<f64, String> {
    let Some(argument) = argument else {
        return Ok(1.0);
    };
    let ratio = argument.trim().parse().ok();
    ratio
        .filter(|ratio| (0.0..=1.0).contains(ratio))
        .ok_or_else(|| format!("OTEL_TRACES_SAMPLER_ARG: {argument:?} is no number from 0 to 1"))
}

impl Root {
    fn samples(self, trace_id: u128) -> bool {
        match self {
            Root::Always => true,
            Root::Never => false,
            Root::Ratio(ratio) => {
                let below = (ratio * (1_u64 << 63) as f64) as u64;
                (trace_id as u64) >> 1 < below
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_samples_about_that_part_of_all_traces() {
        for ratio in [0.0, 0.01, 0.5, 1.0] {
            let root = Root::Ratio(ratio);
            // Ids that are spread evenly.
            let ids = (0..10_000_u128).map(|n| n * (u64::MAX as u128 / 10_000));
            let sampled = ids.filter(|id| root.samples(*id)).count();
            assert!(
                sampled.abs_diff((ratio * 10_000.0) as usize) <= 1,
                "{ratio}"
            );
        }
    }

    #[test]
    fn a_client_decides_only_where_the_sampler_follows_it() {
        let named = |name| Sampler::named(name, Some("0")).expect("a sampler");
        assert!(named("parentbased_always_off").samples(Some(true), 1));
        assert!(!named("parentbased_always_on").samples(Some(false), 1));
        assert!(!named("parentbased_traceidratio").samples(None, 1));
        assert!(named("always_on").samples(Some(false), 1));
        assert!(!named("traceidratio").samples(Some(true), 1));
    }

    #[test]
    fn other_names_and_ratios_are_refused() {
        assert!(Sampler::named("jaeger_remote", None).is_err());
        for wrong in ["1.1", "-1", "x", "NaN"] {
            assert!(
                Sampler::named("traceidratio", Some(wrong)).is_err(),
                "{wrong}"
            );
        }
    }
}
