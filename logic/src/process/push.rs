//! Offline push as the configuration asks for it.

use std::sync::Arc;

use millrace_service::Invalid;

use super::StartError;
use crate::{
    chat::OfflinePush,
    config::{Config, Secrets},
    push::{
        Apns, ApnsSettings, Client, ClientSettings, Fcm, FcmSettings, PushProvider, TokenTable,
        Webhook, WebhookSettings,
    },
    storage::side::{Follow, Sides},
};

/// The providers that are configured, and the tokens; `None` without a provider: then nothing is
/// kept and nothing costs anything.
pub(super) async fn offline_push(
    config: &Config,
    secrets: &Secrets,
    sides: &dyn Sides,
    matters: &mut Vec<(&'static str, Arc<dyn Follow>)>,
) -> Result<Option<OfflinePush>, StartError> {
    let push = &config.push;
    let client = || {
        let settings = ClientSettings {
            timeout: push.timeout.as_std(),
            ca_file: push.ca_file.clone(),
            ..ClientSettings::default()
        };
        Client::new(&settings).map_err(|error| Invalid::new("push.ca_file", error.to_string()))
    };
    let mut providers: Vec<Arc<dyn PushProvider>> = Vec::new();
    if !push.apns.key_file.as_os_str().is_empty() {
        let settings = ApnsSettings {
            endpoint: push.apns.endpoint.clone(),
            team_id: push.apns.team_id.clone(),
            key_id: push.apns.key_id.clone(),
            topic: push.apns.topic.clone(),
        };
        let apns = Apns::new(client()?, settings, &push.apns.key_file)
            .map_err(|error| Invalid::new("push.apns.key_file", error.to_string()))?;
        providers.push(Arc::new(apns));
    }
    if !push.fcm.account_file.as_os_str().is_empty() {
        let settings = FcmSettings { endpoint: push.fcm.endpoint.clone() };
        let fcm = Fcm::new(client()?, settings, &push.fcm.account_file)
            .map_err(|error| Invalid::new("push.fcm.account_file", error.to_string()))?;
        providers.push(Arc::new(fcm));
    }
    if !push.webhook.url.is_empty() {
        let (url, secret) = (push.webhook.url.clone(), secrets.push_webhook_secret.clone());
        providers.push(Arc::new(Webhook::new(client()?, WebhookSettings { url, secret })));
    }
    if providers.is_empty() {
        return Ok(None);
    }
    let tokens = Arc::new(TokenTable::open(sides).await?);
    matters.push(("push tokens", tokens.clone()));
    Ok(Some(OfflinePush { tokens, providers, settings: push.settings() }))
}
