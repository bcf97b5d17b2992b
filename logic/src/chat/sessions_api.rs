//! What services ask about sessions and presence.

use async_trait::async_trait;
use millrace_logic_sdk::Refused;
use millrace_protocol::{
    Code,
    api::{
        KickSessionsRequest, KickSessionsResponse, ListSessionsRequest, ListSessionsResponse,
        LogoutEverywhereRequest, LogoutEverywhereResponse, QueryPresenceRequest,
        QueryPresenceResponse, SessionInfo, WatchPresenceRequest,
    },
};

use super::{Chat, logout, presence_requests};
use crate::{
    api::sessions::{PresenceUpdates, SessionsApi},
    registry::{RegistryError, SessionRecord},
    storage::limits::USER_ID_BYTES_MAX,
};

/// Users of one page, when the caller names no limit and at most.
const USERS_DEFAULT: usize = 100;
const USERS_MAX: usize = 1_000;

#[async_trait]
impl SessionsApi for Chat {
    async fn list_sessions(
        &self,
        request: ListSessionsRequest,
    ) -> Result<ListSessionsResponse, Refused> {
        let limit = match request.limit as usize {
            0 => USERS_DEFAULT,
            limit => limit.min(USERS_MAX),
        };
        let registry = &self.core.registry;
        let away = |error: RegistryError| {
            tracing::error!(%error, "the registry was not read");
            self.with_delay(Code::LogicUnavailable)
        };
        let sessions = registry.list(&request.after_user_id, limit).await.map_err(away)?;
        let online = registry.count().await.map_err(away)?;
        Ok(ListSessionsResponse {
            next_after_user_id: sessions.last().map_or_else(String::new, |s| s.user_id.to_string()),
            sessions: sessions.iter().map(shown).collect(),
            users_online: online.users as u64,
            sessions_online: online.sessions as u64,
        })
    }

    async fn kick_sessions(
        &self,
        request: KickSessionsRequest,
    ) -> Result<KickSessionsResponse, Refused> {
        let sessions = self.sessions(&request.user_id).await?;
        let fits = |wanted: &str, found: &str| wanted.is_empty() || wanted == found;
        let meant = sessions.iter().filter(|session| {
            fits(&request.device_id, &session.device_id)
                && fits(&request.platform, &session.platform)
                && fits(&request.gateway_id, &session.gateway_id)
                && [0, session.address.session_id].contains(&request.session_id)
        });
        let reason = match &*request.reason {
            "" => Code::Kicked.sentence(),
            reason => reason,
        };
        let mut kicked = 0;
        for session in meant {
            self.core.close_session(session, Code::Kicked, reason);
            kicked += 1;
        }
        Ok(KickSessionsResponse { sessions: kicked, ..KickSessionsResponse::default() })
    }

    async fn logout_everywhere(
        &self,
        request: LogoutEverywhereRequest,
    ) -> Result<LogoutEverywhereResponse, Refused> {
        if !(1..=USER_ID_BYTES_MAX).contains(&request.user_id.len()) {
            let reason = "A user_id of 1 to 128 bytes is needed.";
            return Err(self.refused(Code::BadRequest, reason));
        }
        let keep = match &*request.keep_device_id {
            "" => logout::Keep::None,
            device_id => logout::Keep::Device(device_id),
        };
        let (sessions, issued_before_ms) =
            logout::everywhere(&self.core, &request.user_id, keep, None, &request.reason)
                .await
                .inspect_err(|refused| self.core.count_refusal(refused.code))?;
        Ok(LogoutEverywhereResponse {
            sessions,
            issued_before_ms,
            ..LogoutEverywhereResponse::default()
        })
    }

    async fn query_presence(
        &self,
        request: QueryPresenceRequest,
    ) -> Result<QueryPresenceResponse, Refused> {
        presence_requests::query_for(&self.core, request)
            .await
            .inspect_err(|refused| self.core.count_refusal(refused.code))
    }

    async fn watch_presence(
        &self,
        request: WatchPresenceRequest,
    ) -> Result<PresenceUpdates, Refused> {
        if self.core.is_stopping() {
            return Err(self.with_delay(Code::LogicUnavailable));
        }
        presence_requests::watch_for(&self.core, request)
            .await
            .inspect_err(|refused| self.core.count_refusal(refused.code))
    }
}

fn shown(record: &SessionRecord) -> SessionInfo {
    SessionInfo {
        user_id: record.user_id.to_string(),
        gateway_id: record.gateway_id.to_string(),
        session_id: record.address.session_id,
        device_id: record.device_id.to_string(),
        platform: record.platform.to_string(),
        logged_in_at_ms: record.logged_in_at_ms,
    }
}
