//! What Pingora's session trait asks for and no session here has: a retry buffer of Pingora's own, and messages of a protocol
//! of one's own. The trait has no defaults.
//!
//! Source: pingora-core 0.9.1 `protocols/http/custom/server.rs`.

/// The methods that say so, for an `impl` of the trait. Those that are `async` cannot be here: `async_trait` does not see them.
macro_rules! unused_methods {
    () => {
        fn enable_retry_buffering(&mut self) {}

        fn retry_buffer_truncated(&self) -> bool {
            false
        }

        fn take_custom_message_reader(
            &mut self,
        ) -> Option<
            Box<
                dyn futures_util::Stream<Item = pingora::Result<bytes::Bytes>>
                    + Unpin
                    + Send
                    + Sync
                    + 'static,
            >,
        > {
            None
        }

        fn restore_custom_message_reader(
            &mut self,
            _reader: Box<
                dyn futures_util::Stream<Item = pingora::Result<bytes::Bytes>>
                    + Unpin
                    + Send
                    + Sync
                    + 'static,
            >,
        ) -> pingora::Result<()> {
            Ok(())
        }

        fn take_custom_message_writer(
            &mut self,
        ) -> Option<Box<dyn pingora::protocols::http::custom::CustomMessageWrite>> {
            None
        }

        fn restore_custom_message_writer(
            &mut self,
            _writer: Box<dyn pingora::protocols::http::custom::CustomMessageWrite>,
        ) -> pingora::Result<()> {
            Ok(())
        }
    };
}

pub(crate) use unused_methods;
