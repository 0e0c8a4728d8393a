//! The workers that a request names: by its head, where the configuration allows it, for trainers that know where a
//! prompt is cached, and to find out which worker is to blame; or by the response that it continues.

use http::{HeaderMap, HeaderName};

use super::request::RequestContext;
use super::{Proxy, Rules};
use crate::endpoint::{DECODE_WORKER, PREFILL_WORKER};
use crate::error::ProxyError;
use crate::fleet::{Role, StoredAt, Targets, WorkerId};
use crate::pd::{ResponseIdSearch, Route};

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

    /// The same, or the pair that has the response of this id, which the body continues. One that is not known is any worker's to judge,
    /// because another balancer may have sent it there.
    ///
    /// # Errors
    /// As for [`Self::targets`]; or the worker of that response is gone.
    pub(super) fn targets_of(
        &self,
        rules: &Rules,
        headers: &HeaderMap,
        previous: Option<String>,
    ) -> Result<Targets, ProxyError> {
        let named = self.targets(rules, headers)?;
        let Some(id) = previous.filter(|_| !named.are_named()) else {
            return Ok(named);
        };
        let Some(StoredAt { prefill, decode }) = self.fleet.stored_responses().find(&id) else {
            return Ok(named);
        };
        let members = self.fleet.members();
        // Decode has the response of a request that it served without a prefill worker.
        let alone = prefill.is_absent();
        match (alone || members.contains(prefill)) && members.contains(decode) {
            true => Ok(Targets {
                prefill: (!alone).then_some(prefill),
                decode: Some(decode),
            }),
            false => Err(ProxyError::ResponseGone(id)),
        }
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

impl RequestContext {
    /// Has the id of decode's response looked for, where its route stores responses.
    pub(super) fn look_for_id(&mut self, route: Route) {
        self.response_id = (route == Route::Responses).then(Box::default);
    }

    /// Looks for the id in the next bytes of decode's response. Where it is found, the pair that has it is remembered.
    pub(super) fn note_response_id(&mut self, chunk: &[u8], proxy: &Proxy) {
        let search: Option<&mut Box<ResponseIdSearch>> = self.response_id.as_mut();
        let (Some(search), Some(pair)) = (search, &self.record.pair) else {
            return;
        };
        if let Some(id) = search.find(chunk) {
            let at = StoredAt {
                prefill: pair.prefill.id(),
                decode: pair.decode.id(),
            };
            proxy.fleet.stored_responses().note(&id, at);
        }
    }
}
