//! How a pair of workers is chosen: the policies, and the names by which other routers know them.

use http::HeaderName;

use super::foreign::nearest_policy;
use super::resolve::Resolver;
use super::settings::{find, nearest};

/// How the worker of a role is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Policy {
    /// At random, with a probability in proportion to its weight.
    #[default]
    Random,
    /// Workers in turn.
    RoundRobin,
    /// The one with fewer requests of two random ones.
    PowerOfTwo,
    /// The one with the fewest requests.
    LeastRequests,
    /// The one whose requests have the fewest tokens together, as the lengths of their bodies tell.
    LeastTokens,
    /// The same one for all requests of a session.
    Session,
    /// The prefill worker from which the first token is expected first, and the decode worker whose requests have the fewest
    /// tokens still to come.
    ExpectedTtft,
}

impl Policy {
    /// All of them, in the order of the documentation.
    pub(crate) const ALL: [Policy; 7] = [
        Policy::Random,
        Policy::RoundRobin,
        Policy::PowerOfTwo,
        Policy::LeastRequests,
        Policy::LeastTokens,
        Policy::Session,
        Policy::ExpectedTtft,
    ];

    /// The name in settings.
    pub const fn name(self) -> &'static str {
        match self {
            Policy::Random => "random",
            Policy::RoundRobin => "round_robin",
            Policy::PowerOfTwo => "power_of_two",
            Policy::LeastRequests => "least_requests",
            Policy::LeastTokens => "least_tokens",
            Policy::Session => "session",
            Policy::ExpectedTtft => "expected_ttft",
        }
    }
}

/// The policies of both roles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyConfig {
    /// Chooses the prefill worker.
    pub prefill: Policy,
    /// Chooses the decode worker.
    pub decode: Policy,
    /// The header that names the session of a request, before the usual ones.
    pub session_header: Option<HeaderName>,
}

/// What a value is that is near to no policy.
const ONE_OF: &str = "a policy: there are random, round_robin, power_of_two, least_requests, least_tokens, session and \
     expected_ttft";

impl Resolver<'_> {
    /// `None` where one is not valid, which has been reported.
    pub(super) fn policies(&mut self) -> Option<PolicyConfig> {
        let both = self.policy("policy");
        let prefill = self.policy("prefill_policy");
        let decode = self.policy("decode_policy");
        let session_header = match self.given("session_header") {
            None => Some(None),
            Some(_) => self
                .scalar("session_header", |name| name.parse().ok())
                .map(Some),
        };
        let both = both?.unwrap_or_default();
        Some(PolicyConfig {
            prefill: prefill?.unwrap_or(both),
            decode: decode?.unwrap_or(both),
            session_header: session_header?,
        })
    }

    /// `Some(None)` where it is not given.
    fn policy(&mut self, key: &'static str) -> Option<Option<Policy>> {
        let Some(given) = self.given(key) else {
            return Some(None);
        };
        let name = given.value.as_str();
        if let Some(own) = Policy::ALL.into_iter().find(|policy| policy.name() == name) {
            return Some(Some(own));
        }
        if let Some(policy) = nearest_policy(name) {
            let used = policy.name();
            let place = &given.place;
            self.warnings.push(format!(
                "{place}: {name} is a policy of another router, {used} is used, which is nearest to it"
            ));
            return Some(Some(policy));
        }
        let suggestion = nearest(name, Policy::ALL.map(Policy::name));
        let expected = match suggestion {
            Some(_) => find(key)?.expects,
            None => ONE_OF,
        };
        self.report_value(given, expected, suggestion);
        None
    }
}
