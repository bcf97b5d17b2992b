//! Sessions and presence: what services and administrators may ask. The messages are those of
//! `sessions.proto`.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use async_trait::async_trait;
use millrace_logic_sdk::Refused;
use millrace_protocol::{
    api::{
        KickSessionsRequest, KickSessionsResponse, ListSessionsRequest, ListSessionsResponse,
        LogoutEverywhereRequest, LogoutEverywhereResponse, QueryPresenceRequest,
        QueryPresenceResponse, WatchPresenceRequest, WatchPresenceResponse,
    },
    chat::UserPresence,
};
use tokio::sync::mpsc;

/// As [`Api`](super::Api), for sessions and presence.
#[async_trait]
pub trait SessionsApi: Send + Sync + 'static {
    /// Who is online where, by pages.
    async fn list_sessions(
        &self,
        request: ListSessionsRequest,
    ) -> Result<ListSessionsResponse, Refused>;

    /// Ends some of a user's sessions.
    async fn kick_sessions(
        &self,
        request: KickSessionsRequest,
    ) -> Result<KickSessionsResponse, Refused>;

    /// Ends all of a user's sessions and makes the tokens of before good no more.
    async fn logout_everywhere(
        &self,
        request: LogoutEverywhereRequest,
    ) -> Result<LogoutEverywhereResponse, Refused>;

    /// Tells who of many is online.
    async fn query_presence(
        &self,
        request: QueryPresenceRequest,
    ) -> Result<QueryPresenceResponse, Refused>;

    /// The same, and who comes and goes from now on.
    async fn watch_presence(
        &self,
        request: WatchPresenceRequest,
    ) -> Result<PresenceUpdates, Refused>;
}

/// A stream of presence: first how it is, then what changes. It ends when the process leaves, or
/// when it is read too slowly; dropping it ends the subscription.
pub struct PresenceUpdates {
    updates: mpsc::Receiver<Vec<UserPresence>>,
    end: Option<Box<dyn FnOnce() + Send>>,
}

impl PresenceUpdates {
    pub(crate) fn new(
        updates: mpsc::Receiver<Vec<UserPresence>>,
        end: impl FnOnce() + Send + 'static,
    ) -> Self {
        Self { updates, end: Some(Box::new(end)) }
    }
}

impl futures::Stream for PresenceUpdates {
    type Item = WatchPresenceResponse;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<WatchPresenceResponse>> {
        let next = self.updates.poll_recv(context);
        next.map(|users| users.map(|users| WatchPresenceResponse { users }))
    }
}

impl Drop for PresenceUpdates {
    fn drop(&mut self) {
        if let Some(end) = self.end.take() {
            end();
        }
    }
}
