//! The workers that a request names by its head, where the configuration allows it: for trainers that know where a
//! prompt is cached, and to find out which worker is to blame.

use http::{HeaderMap, HeaderName};

use super::{Proxy, Rules};
use crate::endpoint::{DECODE_WORKER, PREFILL_WORKER};
use crate::error::ProxyError;
use crate::fleet::{Role, Targets, WorkerId};

impl Proxy {
    /// The workers that this head names.
    ///
    /// # Errors
    /// It names one that is not a member with that role, or may not name any.
    pub(super) fn targets(
        &self,
        rules: &Rules,
        headers: &HeaderMap,
    ) -> Result<Targets, ProxyError> {
        Ok(Targets {
            prefill: self.target(rules, headers, &PREFILL_WORKER, Role::Prefill)?,
            decode: self.target(rules, headers, &DECODE_WORKER, Role::Decode)?,
        })
    }

    fn target(
        &self,
        rules: &Rules,
        headers: &HeaderMap,
        name: &HeaderName,
        role: Role,
    ) -> Result<Option<WorkerId>, ProxyError> {
        let Some(value) = headers.get(name) else {
            return Ok(None);
        };
        let url = value.to_str().unwrap_or_default().trim_end_matches('/');
        if !rules.limits.allow_target_headers {
            return Err(ProxyError::TargetNotAllowed(name.clone()));
        }
        let members = self.fleet.members();
        let named = members.of(role).iter().find(|worker| worker.url() == url);
        match named {
            Some(worker) => Ok(Some(worker.id())),
            None => Err(ProxyError::UnknownTarget(role, url.to_owned())),
        }
    }
}
