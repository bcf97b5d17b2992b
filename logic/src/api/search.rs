//! Searching in a user's messages: what services may ask. The messages are those of `search.proto`.

use async_trait::async_trait;
use millrace_logic_sdk::Refused;
use millrace_protocol::{api::SearchMessagesRequest, chat::SearchReply};

/// As [`Api`](super::Api), for searching.
#[async_trait]
pub trait SearchApi: Send + Sync + 'static {
    /// Finds messages as a user would.
    async fn search_messages(&self, request: SearchMessagesRequest)
    -> Result<SearchReply, Refused>;
}
