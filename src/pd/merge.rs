//! stub
use super::*;
use bytes::{Bytes, BytesMut};
#[derive(Debug, Clone)]
pub struct MergeError;
impl std::fmt::Display for MergeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("merge")
    }
}
impl From<EventTooLong> for MergeError {
    fn from(_: EventTooLong) -> Self {
        MergeError
    }
}
pub struct PromptSide;
impl PromptSide {
    pub fn from_body(_: Merge, _: Batch, _: Bytes) -> Result<Self, MergeError> {
        Err(MergeError)
    }
    pub fn from_stream(_: Merge, _: Batch, _: Bytes) -> Result<Self, MergeError> {
        Err(MergeError)
    }
}
pub struct StreamMerger;
impl StreamMerger {
    pub fn new(_: PromptSide) -> Self {
        Self
    }
    pub fn event(&mut self, _: Bytes, _: &mut BytesMut) -> Result<(), MergeError> {
        Err(MergeError)
    }
}
pub fn body(_: &PromptSide, _: Bytes) -> Result<Bytes, MergeError> {
    Err(MergeError)
}
