//! Where devices can be reached while they are offline: what clients register of their own device,
//! and services of anybody's.

use std::sync::Arc;

use async_trait::async_trait;
use millrace_logic_sdk::{Inbound, Refused};
use millrace_protocol::{
    Code,
    api::{
        AddPushTokenRequest, AddPushTokenResponse, ListPushTokensRequest, ListPushTokensResponse,
        PushToken, RemovePushTokenRequest, RemovePushTokenResponse,
    },
    chat::{RegisterPush, RegisterPushReply, UnregisterPush, UnregisterPushReply},
    command,
};
use tokio::sync::mpsc;

use super::{
    Chat, Core,
    receiver::{decode, unix_ms},
};
use crate::{
    api::push_tokens::PushTokensApi,
    push::{
        APP_ID_BYTES_MAX, DEVICE_ID_BYTES_MAX, ProviderKind, TOKEN_BYTES_MAX, Token, TokenStore,
    },
    storage::{StoreError, limits::USER_ID_BYTES_MAX},
};

/// Serves `REGISTER_PUSH` and `UNREGISTER_PUSH`, in order, until every sender is gone.
pub(crate) async fn run(core: Arc<Core>, mut requests: mpsc::Receiver<Inbound>) {
    while let Some(inbound) = requests.recv().await {
        if inbound.command == command::REGISTER_PUSH {
            let Some(register) = decode::<RegisterPush>(&core, &inbound) else { continue };
            let outcome = core.register(&inbound, register).await;
            let (code, reason) = told(&core, outcome);
            inbound.reply_message(&RegisterPushReply { code, reason });
        } else {
            let Some(UnregisterPush {}) = decode(&core, &inbound) else { continue };
            let session = &inbound.session;
            let outcome = core.forget_token(&session.user_id, &session.device_id).await;
            let (code, reason) = told(&core, outcome.map(drop));
            inbound.reply_message(&UnregisterPushReply { code, reason });
        }
    }
}

fn told(core: &Core, outcome: Result<(), Refused>) -> (u32, String) {
    match outcome {
        Ok(()) => (0, String::new()),
        Err(refused) => {
            core.count_refusal(refused.code);
            (refused.code.number(), refused.reason)
        }
    }
}

/// Whether a token may be one, as far as that can be told without its provider.
fn check(token: &Token) -> Result<(), Refused> {
    let bad = |reason: &str| Err(Refused::new(Code::BadRequest, reason));
    if !(1..=DEVICE_ID_BYTES_MAX).contains(&token.device_id.len()) {
        return bad("A device_id of 1 to 255 bytes is needed.");
    }
    if !(1..=TOKEN_BYTES_MAX).contains(&token.token.len()) {
        return bad("A token of 1 to 4096 bytes is needed.");
    }
    let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
    if !plain(&token.token) || !plain(&token.app_id) || token.app_id.len() > APP_ID_BYTES_MAX {
        return bad(
            "Tokens and app ids are made of visible ASCII characters, app ids of 256 at most.",
        );
    }
    let is_hexadecimal = token.token.bytes().all(|byte| byte.is_ascii_hexdigit());
    if token.provider == ProviderKind::Apns && !is_hexadecimal {
        return bad("A token of APNs is hexadecimal.");
    }
    Ok(())
}

impl Core {
    fn tokens(&self) -> Result<&dyn TokenStore, Refused> {
        let pusher = self.pusher.as_ref();
        let none = || Refused::new(Code::NotFound, "This server has no offline push.");
        Ok(&*pusher.ok_or_else(none)?.tokens)
    }

    fn tokens_failed(&self, error: &StoreError) -> Refused {
        tracing::error!(%error, "the push tokens were not read or written");
        let code = error.code();
        Refused::from(code).retry_after(self.retry_after_ms_of(code))
    }

    async fn register(&self, inbound: &Inbound, register: RegisterPush) -> Result<(), Refused> {
        let RegisterPush { provider, token, app_id } = register;
        let session = &inbound.session;
        let device_id = session.device_id.to_string();
        self.keep_token(&session.user_id, &provider, device_id, token, app_id).await
    }

    async fn keep_token(
        &self,
        user_id: &str,
        provider: &str,
        device_id: String,
        token: String,
        app_id: String,
    ) -> Result<(), Refused> {
        let tokens = self.tokens()?;
        let Some(kind) = ProviderKind::from_label(provider) else {
            let reason = "The provider is one of apns, fcm and webhook.";
            return Err(Refused::new(Code::BadRequest, reason));
        };
        if !self.pusher.as_ref().is_some_and(|pusher| pusher.provides(kind)) {
            let reason = format!("This server does not push through {provider}.");
            return Err(Refused::new(Code::NotFound, reason));
        }
        let token = Token { device_id, provider: kind, token, app_id, registered_at_ms: unix_ms() };
        check(&token)?;
        tokens.put(user_id, token).await.map_err(|error| self.tokens_failed(&error))
    }

    async fn forget_token(&self, user_id: &str, device_id: &str) -> Result<bool, Refused> {
        let removed = self.tokens()?.remove(user_id, device_id, None).await;
        removed.map_err(|error| self.tokens_failed(&error))
    }

    fn check_token_user(&self, user_id: &str) -> Result<(), Refused> {
        if (1..=USER_ID_BYTES_MAX).contains(&user_id.len()) {
            return Ok(());
        }
        Err(Refused::new(Code::BadRequest, "A user_id of 1 to 128 bytes is needed."))
    }
}

#[async_trait]
impl PushTokensApi for Chat {
    async fn add_push_token(
        &self,
        request: AddPushTokenRequest,
    ) -> Result<AddPushTokenResponse, Refused> {
        let AddPushTokenRequest { user_id, device_id, provider, token, app_id } = request;
        self.core.check_token_user(&user_id)?;
        let kept = self.core.keep_token(&user_id, &provider, device_id, token, app_id).await;
        kept.inspect_err(|refused| self.core.count_refusal(refused.code))?;
        Ok(AddPushTokenResponse::default())
    }

    async fn list_push_tokens(
        &self,
        request: ListPushTokensRequest,
    ) -> Result<ListPushTokensResponse, Refused> {
        self.core.check_token_user(&request.user_id)?;
        let found = self.core.tokens()?.of(&request.user_id).await;
        let found = found.map_err(|error| self.core.tokens_failed(&error))?;
        let shown = |token: Token| PushToken {
            device_id: token.device_id,
            provider: token.provider.label().to_owned(),
            token: token.token,
            app_id: token.app_id,
            registered_at_ms: token.registered_at_ms,
        };
        Ok(ListPushTokensResponse { tokens: found.into_iter().map(shown).collect() })
    }

    async fn remove_push_token(
        &self,
        request: RemovePushTokenRequest,
    ) -> Result<RemovePushTokenResponse, Refused> {
        self.core.check_token_user(&request.user_id)?;
        let removed = self.core.forget_token(&request.user_id, &request.device_id).await?;
        Ok(RemovePushTokenResponse { removed, ..RemovePushTokenResponse::default() })
    }
}
