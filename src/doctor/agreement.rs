//! Whether workers fit together: their facts are compared, and nothing else is known here.
//!
//! Every property is compared with the value that most workers have, so that the line stands at the worker that differs.
//! Source: SGLang 0.5.23 `disaggregation/common/conn.py` (`try_ensure_parallel_info`, `_resolve_rank_mapping`).

use super::facts::{Facts, Sizes};
use super::report::{Check, Status};
use crate::fleet::Role;

/// A worker as it is compared.
pub(super) struct Compared<'a> {
    pub(super) role: Role,
    pub(super) url: &'a str,
    pub(super) facts: &'a Facts,
}

/// A fact that all workers should have in common.
struct Property {
    name: &'static str,
    of: fn(&Facts) -> Option<String>,
    /// The status of a difference: a warning or a problem.
    difference: Status,
    advice: &'static str,
}

const PROPERTIES: [Property; 8] = [
    Property {
        name: "version",
        of: |facts| facts.version.clone(),
        difference: Status::Warn,
        advice: "run the same version of SGLang everywhere: it does not promise transfers between two versions",
    },
    Property {
        name: "served_model_name",
        of: |facts| facts.served_model_name.clone(),
        difference: Status::Fail,
        advice: "start all workers with the same model and the same --served-model-name",
    },
    Property {
        name: "model_path",
        of: |facts| facts.model_path.clone(),
        difference: Status::Warn,
        advice: "make sure that both paths hold the same weights",
    },
    Property {
        name: "context_length",
        of: |facts| facts.context_length.map(|tokens| tokens.to_string()),
        difference: Status::Warn,
        advice: "give all workers the same --context-length, or longer requests are refused by some pairs only",
    },
    Property {
        name: "page_size",
        of: |facts| facts.page_size.map(|tokens| tokens.to_string()),
        difference: Status::Fail,
        advice: "start all workers with the same --page-size",
    },
    Property {
        name: "kv_cache_dtype",
        of: |facts| facts.kv_cache_dtype.clone(),
        difference: Status::Fail,
        advice: "start all workers with the same --kv-cache-dtype",
    },
    Property {
        name: "transfer_backend",
        of: |facts| facts.transfer_backend.clone(),
        difference: Status::Fail,
        advice: "start all workers with the same --disaggregation-transfer-backend",
    },
    Property {
        name: "allocation_policy",
        of: |facts| facts.allocation_policy.clone(),
        difference: Status::Fail,
        advice: "start all workers with the same --disaggregation-decode-allocation-policy",
    },
];

/// The checks of each worker, in the order of the workers.
pub(super) fn compare(workers: &[Compared<'_>]) -> Vec<Vec<Check>> {
    let mut checks: Vec<Vec<Check>> = workers.iter().map(|_| Vec::new()).collect();
    for property in &PROPERTIES {
        let values: Vec<_> = workers
            .iter()
            .map(|worker| (property.of)(worker.facts))
            .collect();
        // Not a property of this version, where no worker tells it.
        let Some(common) = most_common(&values) else {
            continue;
        };
        let holder = values
            .iter()
            .position(|value| value.as_ref() == Some(common));
        let holder = holder.map_or("", |at| workers[at].url);
        for (value, checks) in values.iter().zip(&mut checks) {
            checks.push(property.check(value.as_deref(), common, holder));
        }
    }
    for (worker, checks) in workers.iter().zip(&mut checks) {
        checks.extend(parallelism(worker, workers));
    }
    checks
}

impl Property {
    fn check(&self, value: Option<&str>, common: &str, holder: &str) -> Check {
        match value {
            None => Check::skip(self.name, "not reported by the worker"),
            Some(value) if value == common => Check::ok(self.name, value),
            Some(value) => {
                let message = format!("{value}, but {holder} has {common}");
                match self.difference {
                    Status::Fail => Check::fail(self.name, message, self.advice),
                    _ => Check::warn(self.name, message, self.advice),
                }
            }
        }
    }
}

/// The value that most workers have; of two, that of the earlier worker.
fn most_common(values: &[Option<String>]) -> Option<&String> {
    let count = |value: &String| {
        values
            .iter()
            .flatten()
            .filter(|other| *other == value)
            .count()
    };
    // `max_by_key` gives the last of several.
    values
        .iter()
        .flatten()
        .rev()
        .max_by_key(|value| count(value))
}

/// Why these two cannot be a pair: the name of the first property that does not fit. A request is not worth trying then.
pub(super) fn misfit(prefill: &Facts, decode: &Facts) -> Option<&'static str> {
    let differs = |property: &&Property| {
        let values = ((property.of)(prefill), (property.of)(decode));
        property.difference == Status::Fail
            && matches!(values, (Some(one), Some(other)) if one != other)
    };
    let sizes = || match (prefill.sizes, decode.sizes) {
        (Some(prefill), Some(decode)) => misfit_of_sizes(prefill, decode).map(|_| "parallelism"),
        _ => None,
    };
    PROPERTIES
        .iter()
        .find(differs)
        .map(|property| property.name)
        .or_else(sizes)
}

const PARALLELISM: &str = "parallelism";

/// The sizes of a worker; those of a decode worker against those of each prefill worker.
fn parallelism(worker: &Compared<'_>, all: &[Compared<'_>]) -> Option<Check> {
    let own = worker.facts.sizes?;
    let told = own.told();
    if worker.role == Role::Prefill {
        let method = worker.facts.load_balance_method.as_deref();
        let follows = matches!(method, None | Some("auto" | "follow_bootstrap_room"));
        return Some(match follows || !own.are_replicas() {
            true => Check::ok(PARALLELISM, told),
            false => Check::warn(PARALLELISM, told, LOST_REPLICAS),
        });
    }
    let prefills = all.iter().filter(|other| other.role == Role::Prefill);
    let sizes = prefills.filter_map(|other| Some((other.url, other.facts.sizes?)));
    let mut different = None;
    for (url, prefill) in sizes {
        if let Some(why) = misfit_of_sizes(prefill, own) {
            let message = format!("{told}, but {url} has {}", prefill.told());
            return Some(Check::fail(PARALLELISM, message, why));
        }
        if prefill.attention_tp != own.attention_tp {
            different = Some((url, prefill));
        }
    }
    Some(match different {
        None => Check::ok(PARALLELISM, told),
        Some((url, prefill)) => Check::warn(
            PARALLELISM,
            format!("{told}, but {url} has {}", prefill.told()),
            "SGLang promises no speed for different tensor parallel sizes of attention, except for models with MLA",
        ),
    })
}

/// Source: SGLang 0.5.23 `disaggregation/common/conn.py` (`_register_prefill_dp_rank`), which tells decode `attn_dp_rank`, the rank of
/// attention: 0 on every replica.
const LOST_REPLICAS: &str = "with this --load-balance-method SGLang 0.5.23 tells decode that every prompt is on rank 0: leave the \
     option out, and each request names its rank";

impl Sizes {
    fn told(self) -> String {
        format!("tp {}, dp {}, pp {}", self.tp, self.dp, self.pp)
    }
}

/// The change that two workers need whose sizes allow no transfer of a KV cache; `None` where they allow it.
fn misfit_of_sizes(prefill: Sizes, decode: Sizes) -> Option<&'static str> {
    let (more, less) = (
        prefill.attention_tp.max(decode.attention_tp),
        prefill.attention_tp.min(decode.attention_tp),
    );
    if decode.cp != 1 {
        Some("decode takes no context parallel attention: start it without --attn-cp-size")
    } else if decode.pp != 1 && decode.pp != prefill.pp {
        Some("--pp-size of decode must be 1, or that of prefill")
    } else if more % less != 0 {
        Some("one of the two tensor parallel sizes of attention must be a multiple of the other")
    } else {
        None
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        let text = |text: &str| Some(text.to_owned());
        Facts {
            version: text("0.5.23"),
            served_model_name: text("m"),
            model_path: text("/m"),
            context_length: Some(2048),
            page_size: Some(1),
            kv_cache_dtype: text("auto"),
            transfer_backend: text("mooncake"),
            sizes: Some(sizes(8, 1)),
            ..Facts::default()
        }
    }

    fn sizes(attention_tp: u64, pp: u64) -> Sizes {
        Sizes {
            tp: attention_tp,
            dp: 1,
            attention_dp: 1,
            pp,
            cp: 1,
            attention_tp,
        }
    }

    /// The checks of one prefill worker and two decode workers, of which the last has these facts.
    fn compared(last: &Facts) -> Vec<Vec<Check>> {
        let same = facts();
        compare(&[
            Compared {
                role: Role::Prefill,
                url: "http://p",
                facts: &same,
            },
            Compared {
                role: Role::Decode,
                url: "http://d",
                facts: &same,
            },
            Compared {
                role: Role::Decode,
                url: "http://e",
                facts: last,
            },
        ])
    }

    /// The checks that are not as they should be, with the number of their worker.
    fn bad(checks: &[Vec<Check>]) -> Vec<(usize, &'static str, Status)> {
        let of = |(at, checks): (usize, &Vec<Check>)| {
            let bad = checks.iter().filter(|check| check.status != Status::Ok);
            bad.map(|check| (at, check.name, check.status))
                .collect::<Vec<_>>()
        };
        checks.iter().enumerate().flat_map(of).collect()
    }

    #[test]
    fn each_difference_is_one_line_at_the_worker_that_differs() {
        assert_eq!(bad(&compared(&facts())), []);
        let text = |text: &str| Some(text.to_owned());
        type Change = fn(&mut Facts, Option<String>);
        let cases: [(&str, Status, Change); 7] = [
            ("version", Status::Warn, |facts, other| {
                facts.version = other
            }),
            ("served_model_name", Status::Fail, |facts, other| {
                facts.served_model_name = other
            }),
            ("model_path", Status::Warn, |facts, other| {
                facts.model_path = other
            }),
            ("context_length", Status::Warn, |facts, _| {
                facts.context_length = Some(1)
            }),
            ("page_size", Status::Fail, |facts, _| {
                facts.page_size = Some(64)
            }),
            ("kv_cache_dtype", Status::Fail, |facts, other| {
                facts.kv_cache_dtype = other
            }),
            ("transfer_backend", Status::Fail, |facts, other| {
                facts.transfer_backend = other
            }),
        ];
        for (name, status, change) in cases {
            let mut other = facts();
            change(&mut other, text("other"));
            assert_eq!(bad(&compared(&other)), [(2, name, status)]);
            let is_misfit = misfit(&facts(), &other) == Some(name);
            assert_eq!(is_misfit, status == Status::Fail, "{name}");
        }
    }

    #[test]
    fn replicas_of_prefill_that_the_room_does_not_choose_are_a_warning() {
        let warned = |dp, attention_dp, method: &str| {
            let sizes = Sizes {
                dp,
                attention_dp,
                ..sizes(8 / attention_dp, 1)
            };
            let own = Facts {
                sizes: Some(Sizes { tp: 8, ..sizes }),
                load_balance_method: Some(method.to_owned()),
                ..facts()
            };
            let worker = Compared {
                role: Role::Prefill,
                url: "http://p",
                facts: &own,
            };
            bad(&compare(&[worker])) == [(0, "parallelism", Status::Warn)]
        };
        assert!(warned(2, 1, "round_robin"));
        assert!(!warned(2, 1, "follow_bootstrap_room"));
        assert!(!warned(2, 2, "round_robin"));
        assert!(!warned(1, 1, "round_robin"));
    }

    #[test]
    fn a_worker_that_does_not_tell_is_not_accused() {
        let other = Facts {
            sizes: None,
            ..Facts::default()
        };
        let checks = compared(&other);
        assert!(
            bad(&checks)
                .iter()
                .all(|(at, _, status)| *at == 2 && *status == Status::Skip)
        );
        assert_eq!(misfit(&facts(), &other), None);
        assert!(
            !checks[0]
                .iter()
                .any(|check| check.name == "allocation_policy")
        );
    }

    #[test]
    fn decode_must_be_able_to_take_the_ranks_of_prefill() {
        let of = |tp, pp| Facts {
            sizes: Some(sizes(tp, pp)),
            ..facts()
        };
        for (tp, pp, found) in [
            (8, 1, None),
            (4, 1, Some(Status::Warn)),
            (16, 1, Some(Status::Warn)),
            (3, 1, Some(Status::Fail)),
            (8, 2, Some(Status::Fail)),
        ] {
            let other = of(tp, pp);
            let expected: Vec<_> = found
                .iter()
                .map(|status| (2, "parallelism", *status))
                .collect();
            assert_eq!(bad(&compared(&other)), expected, "tp {tp} pp {pp}");
            let is_misfit = misfit(&facts(), &other).is_some();
            assert_eq!(is_misfit, found == Some(Status::Fail));
        }
    }
}
