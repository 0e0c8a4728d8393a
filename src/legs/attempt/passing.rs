//! Decode's response on its way to the client: how its body becomes the client's, and each chunk of it.

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, TRANSFER_ENCODING};
use pingora::http::ResponseHeader;

use super::super::first_event::{Rejection, StreamFields};
use super::super::prefill::{Outcome, PrefillLeg, is_event_stream};
use super::super::response::{Begin, HELD_LIMIT, Response, ResponseError};
use super::{Attempt, LegError};
use crate::endpoint::content_length;
use crate::fleet::Role;
use crate::net::{Coding, Decoder};
use crate::pd::{self, Fields, Leg, Merge, PrefillData};

impl Attempt {
    /// Decode has accepted the request: chooses how its body becomes the client's, after [`Self::join`]. The framing
    /// fields of a merged response are dropped from `head`, because its length changes.
    ///
    /// # Errors
    /// The responses cannot be merged.
    pub(crate) fn begin_response(
        &mut self,
        head: &mut ResponseHeader,
        max_event_bytes: usize,
    ) -> Result<(), LegError> {
        self.streams = is_event_stream(&head.headers);
        let length = content_length(&head.headers);
        // Where prefill's transfer was aborted, no byte is passed on: decode's first one shows which leg is to blame.
        let is_aborted = matches!(self.prefill_state(), Leg::Aborted(_));
        if self.plan.merge == Merge::None || is_aborted {
            self.response = match (self.streams, length) {
                (true, _) => match Coding::of(&head.headers) {
                    Ok(coding) => Response::first_event(self.begin(head, coding)),
                    Err(_) => Response::Unchanged,
                },
                (false, Some(HELD_LIMIT..)) => Response::Unchanged,
                (false, _) => Response::whole(),
            };
            return Ok(());
        }
        self.decoder = self.decoder(head, max_event_bytes)?;
        let data = self.prefill_data()?;
        if length == Some(0) {
            // No chunk will come that could be merged.
            let error = pd::merge::body(&data, Bytes::new()).err();
            return error.map_or(Ok(()), |error| Err(LegError::Merge(error)));
        }
        self.response = if self.streams {
            Response::merged_stream(self.begin(head, None), data, max_event_bytes)
        } else {
            Response::merged_document(data)
        };
        head.remove_header(&CONTENT_ENCODING);
        head.remove_header(&CONTENT_LENGTH);
        head.remove_header(&TRANSFER_ENCODING);
        Ok(())
    }

    /// Decode has refused the request, and its response is the client's: without what the proxy has written into the
    /// request, where the response quotes it, and without compression. One that is longer than [`HELD_LIMIT`] passes as
    /// it is.
    ///
    /// # Errors
    /// It has a coding that is not decoded.
    pub(crate) fn begin_rejection(&mut self, head: &mut ResponseHeader) -> Result<(), LegError> {
        if matches!(content_length(&head.headers), Some(HELD_LIMIT..)) {
            return Ok(());
        }
        self.decoder = self.decoder(head, HELD_LIMIT)?;
        self.response = Response::whole();
        self.rejects = true;
        head.remove_header(&CONTENT_ENCODING);
        head.remove_header(&CONTENT_LENGTH);
        head.remove_header(&TRANSFER_ENCODING);
        Ok(())
    }

    pub(super) fn conceal_in(&self, mut rejection: Box<Rejection>) -> Box<Rejection> {
        rejection.body = self.conceal(rejection.body);
        rejection
    }

    /// A worker's error response without the rooms, the address and the ids that this attempt has injected.
    fn conceal(&self, body: Bytes) -> Bytes {
        let Some(bootstrap) = self.prefill.bootstrap() else {
            return body;
        };
        let fields = Fields {
            bootstrap,
            rooms: self.rooms.as_slice(),
            rank: self.rooms.rank(),
            rids: self.plan.ids.to_inject(),
        };
        let concealed = self.plan.engine.conceal(&body, &self.plan.body, &fields);
        concealed.map_or(body, Bytes::from)
    }

    /// The decoder of a response that is merged; `None` where it is not compressed.
    fn decoder(
        &self,
        head: &ResponseHeader,
        limit: usize,
    ) -> Result<Option<Box<Decoder>>, LegError> {
        let decoder = Coding::of(&head.headers).and_then(|coding| {
            let decoder = coding.map(|coding| Decoder::new(coding, limit));
            decoder.transpose()
        });
        decoder
            .map(|decoder| decoder.map(Box::new))
            .map_err(|error| {
                let url = self.decode.url().to_owned();
                LegError::Failed(Role::Decode, url, error.into())
            })
    }

    fn begin(&self, head: &ResponseHeader, coding: Option<Coding>) -> Begin {
        Begin {
            engine: self.plan.engine,
            route: self.plan.route,
            coding,
            fields: StreamFields::of(&head.headers),
        }
    }

    fn prefill_data(&self) -> Result<PrefillData, LegError> {
        let outcome = self.leg.as_ref().and_then(PrefillLeg::outcome).cloned();
        let Some(Outcome::Served { body, streams }) = outcome else {
            return Err(LegError::Internal("no response of prefill to merge"));
        };
        let (merge, batch) = (self.plan.merge, self.plan.batch);
        let data = match streams {
            true => PrefillData::from_stream(merge, batch, body),
            false => PrefillData::from_body(merge, batch, body),
        };
        data.map_err(LegError::Merge)
    }

    /// The client's bytes for a chunk of decode's body. `end` says that no chunk follows.
    ///
    /// # Errors
    /// The chunk cannot be passed on.
    pub(crate) fn pass(&mut self, chunk: Bytes, end: bool) -> Result<Bytes, ResponseError> {
        let chunk = match &mut self.decoder {
            None => chunk,
            Some(decoder) => {
                let decoded = decoder.decode(&chunk)?;
                if end {
                    decoder.finish()?;
                }
                decoded
            }
        };
        let passed = self.response.pass(chunk, end);
        let mut out = passed.map_err(|error| match error {
            ResponseError::Rejected(rejection) => {
                ResponseError::Rejected(self.conceal_in(rejection))
            }
            other => other,
        })?;
        if self.rejects && end {
            out = self.conceal(out);
        }
        if end {
            self.decode_ended = true;
            self.connection.end_response();
        }
        Ok(out)
    }
}
