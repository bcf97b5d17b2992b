//! Offline push: who has missed a message on every device, and has registered one, is told of it by
//! its provider.
//!
//! A missed message waits a moment (`delay`), in which later ones of its conversation take its place
//! and the user may come online or read it elsewhere, or the sender may revoke it. Then what is still unread, and not marked
//! do-not-disturb, becomes one note for each of the user's devices, with the number of unread
//! messages of all conversations that may disturb.
//!
//! # What is lost, and when
//! The queue is in memory. A `kill -9` loses the notes of the last moments, and those that are being
//! tried again; the messages are in the store and are found at the next login, and the next message
//! of the conversation makes a new note. What does not fit the queue is counted and told to nobody.

use std::{
    collections::{HashMap, VecDeque, hash_map},
    sync::Arc,
    time::{Duration, Instant},
};

use millrace_protocol::chat::Message;
use sha2::{Digest as _, Sha256};
use tokio::{
    sync::{Semaphore, mpsc},
    time::sleep,
};

use super::{
    Core, metrics::ProviderLabel, online::Deliveries, processor::until, receiver::unix_ms,
};
use crate::{
    push::{Delivery, Note, PushProvider, Token, TokenStore},
    storage::{ConversationPage, StoreError, extras::STATE_NORMAL},
};

/// Conversation rows that are read at a time for the badge, and how many times.
const ROWS_PER_PAGE: usize = 500;
const PAGES_MAX: usize = 20;

/// Message type 1: its body is text for people.
const TEXT: u32 = 1;

/// How offline push works.
#[derive(Clone, Debug)]
pub struct OfflinePushSettings {
    /// Missed messages waiting; one more is counted and told to nobody.
    pub queued_max: usize,
    /// Users being told at once.
    pub in_flight_max: usize,
    /// How long a missed message waits for later ones, and for its user.
    pub delay: Duration,
    /// Attempts for one device; then the note is given up and counted.
    pub attempts_max: u32,
    /// The first wait between attempts; it doubles up to `retry_max`, which also bounds what a
    /// provider asks for.
    pub retry_min: Duration,
    /// The longest.
    pub retry_max: Duration,
    /// How long a provider may keep a note for a device that it cannot reach.
    pub lifetime: Duration,
    /// What a note says.
    pub text: String,
    /// Whether a text message's own words are shown instead; they pass through the provider.
    pub show_body: bool,
    /// So many characters of them at most.
    pub body_characters_max: usize,
}

impl Default for OfflinePushSettings {
    fn default() -> Self {
        Self {
            queued_max: 65_536,
            in_flight_max: 64,
            delay: Duration::from_secs(1),
            attempts_max: 5,
            retry_min: Duration::from_millis(500),
            retry_max: Duration::from_secs(60),
            lifetime: Duration::from_secs(24 * 3_600),
            text: "New message".to_owned(),
            show_body: false,
            body_characters_max: 200,
        }
    }
}

/// What offline push stands on.
pub struct OfflinePush {
    /// Where devices can be reached.
    pub tokens: Arc<dyn TokenStore>,
    /// Who reaches them; a device of a provider that is not here is told nothing.
    pub providers: Vec<Arc<dyn PushProvider>>,
    /// How.
    pub settings: OfflinePushSettings,
}

/// What the chat keeps of it.
pub(crate) struct Pusher {
    pub tokens: Arc<dyn TokenStore>,
    providers: Vec<Arc<dyn PushProvider>>,
    settings: OfflinePushSettings,
    queue: mpsc::Sender<Missed>,
}

/// A message that a user has missed.
pub(crate) struct Missed {
    user_id: Arc<str>,
    message: Arc<Told>,
}

/// What is needed of a message.
struct Told {
    conversation_id: String,
    sequence: u64,
    sender_id: String,
    text: String,
}

impl Pusher {
    /// The pusher, and the queue for [`run`].
    pub(crate) fn new(push: OfflinePush) -> (Self, mpsc::Receiver<Missed>) {
        let OfflinePush { tokens, providers, settings } = push;
        let (queue, missed) = mpsc::channel(settings.queued_max.max(1));
        (Self { tokens, providers, settings, queue }, missed)
    }

    /// Whether notes of this provider can be sent.
    pub(crate) fn provides(&self, kind: crate::push::ProviderKind) -> bool {
        self.providers.iter().any(|provider| provider.kind() == kind)
    }

    /// How many wait, and how many may.
    pub(crate) fn queued(&self) -> (usize, usize) {
        (self.queue.max_capacity() - self.queue.capacity(), self.queue.max_capacity())
    }

    /// A message was stored: queues those of its recipients who are on no device.
    pub(crate) fn missed(
        &self,
        core: &Core,
        deliveries: &Deliveries<'_>,
        message: &Message,
        recipients: &[Arc<str>],
    ) {
        let mut told = None;
        for user_id in recipients {
            let may_be_told = **user_id != *message.sender_id
                && self.tokens.may_have(user_id)
                && !deliveries.is_online(user_id);
            if !may_be_told {
                continue;
            }
            let message = told.get_or_insert_with(|| Arc::new(self.told(message))).clone();
            if self.queue.try_send(Missed { user_id: user_id.clone(), message }).is_err() {
                core.metrics.offline_overflowed.inc();
            }
        }
    }

    fn told(&self, message: &Message) -> Told {
        let settings = &self.settings;
        let text = match settings.show_body && message.r#type == TEXT {
            true => message.body.chars().take(settings.body_characters_max).collect(),
            false => settings.text.clone(),
        };
        Told {
            conversation_id: message.conversation_id.clone(),
            sequence: message.sequence,
            sender_id: message.sender_id.clone(),
            text,
        }
    }
}

/// The missed messages that wait for their moment: of each conversation of a user the newest.
#[derive(Default)]
struct Waiting {
    newest: HashMap<(Arc<str>, String), Arc<Told>>,
    /// In the order in which their moment comes.
    moments: VecDeque<(Instant, (Arc<str>, String))>,
}

impl Waiting {
    /// Takes a missed message in; says whether it took the place of an earlier one.
    fn add(&mut self, missed: Missed, moment: Instant) -> bool {
        let key = (missed.user_id, missed.message.conversation_id.clone());
        match self.newest.entry(key.clone()) {
            hash_map::Entry::Occupied(mut earlier) => {
                if earlier.get().sequence < missed.message.sequence {
                    earlier.insert(missed.message);
                }
                true
            }
            hash_map::Entry::Vacant(place) => {
                place.insert(missed.message);
                self.moments.push_back((moment, key));
                false
            }
        }
    }

    fn next_moment(&self) -> Option<Instant> {
        self.moments.front().map(|(moment, _)| *moment)
    }

    /// The next whose moment has come.
    fn take(&mut self, now: Instant) -> Option<(Arc<str>, Arc<Told>)> {
        self.moments.front().filter(|(moment, _)| *moment <= now)?;
        let (_, key) = self.moments.pop_front()?;
        let told = self.newest.remove(&key)?;
        Some((key.0, told))
    }
}

/// Tells users, until [`Core::stop`].
pub(crate) async fn run(core: Arc<Core>, pusher: Arc<Pusher>, mut missed: mpsc::Receiver<Missed>) {
    let settings = &pusher.settings;
    let permits = Arc::new(Semaphore::new(settings.in_flight_max.max(1)));
    let mut waiting = Waiting::default();
    loop {
        let has_room = waiting.newest.len() < settings.queued_max;
        let moment = waiting.next_moment();
        tokio::select! {
            next = missed.recv(), if has_room => {
                let Some(next) = next else { return };
                if waiting.add(next, Instant::now() + settings.delay) {
                    core.metrics.offline_collapsed.inc();
                }
            }
            () = until(moment.map(Into::into)) => {
                while let Some((user_id, told)) = waiting.take(Instant::now()) {
                    let permit = tokio::select! {
                        permit = permits.clone().acquire_owned() => permit,
                        () = core.stop.said() => return,
                    };
                    // Nobody closes this semaphore.
                    let Ok(permit) = permit else { return };
                    let (core, pusher) = (core.clone(), pusher.clone());
                    tokio::spawn(async move {
                        tell(&core, &pusher, &user_id, &told).await;
                        drop(permit);
                    });
                }
            }
            () = core.stop.said() => return,
        }
    }
}

/// Whether the user has a session whose home is another process. A registry that cannot be asked does
/// not keep anybody from being told.
async fn is_online_elsewhere(core: &Core, user_id: &str) -> bool {
    if core.peers.is_none() {
        return false;
    }
    match core.registry.sessions_of(&[user_id]).await {
        Ok(found) => found.iter().any(|sessions| !sessions.is_empty()),
        Err(error) => {
            tracing::warn!(%error, "it is not known whether a user is online elsewhere");
            false
        }
    }
}

/// Tells one user of one conversation, on each device, unless there is no need any more.
async fn tell(core: &Core, pusher: &Pusher, user_id: &str, told: &Told) {
    if core.online.deliveries().is_online(user_id) || is_online_elsewhere(core, user_id).await {
        core.metrics.offline_spared.inc();
        return;
    }
    let read = async {
        let unread = unread_of(core, user_id, &told.conversation_id).await?;
        let stands = still_stands(core, user_id, told).await?;
        Ok::<_, StoreError>((unread, stands, pusher.tokens.of(user_id).await?))
    };
    let (unread, stands, tokens) = match read.await {
        Ok(read) => read,
        Err(error) => {
            tracing::error!(%error, "a user was not told of a message: the store was not read");
            core.metrics.offline_failed.inc();
            return;
        }
    };
    let nothing_new = unread.read_sequence >= told.sequence || (!stands && unread.here == 0);
    if unread.do_not_disturb || nothing_new {
        core.metrics.offline_spared.inc();
        return;
    }
    // What was taken back is shown to nobody, but earlier messages may wait behind it.
    let text = if stands { &told.text } else { &pusher.settings.text };
    let lifetime_s = pusher.settings.lifetime.as_secs();
    for token in tokens {
        let provider = pusher.providers.iter().find(|provider| provider.kind() == token.provider);
        let Some(provider) = provider else { continue };
        let note = Note {
            user_id: user_id.to_owned(),
            device_id: token.device_id.clone(),
            token: token.token.clone(),
            app_id: token.app_id.clone(),
            title: told.sender_id.clone(),
            body: text.clone(),
            badge: unread.badge,
            collapse_id: collapse_id(user_id, &told.conversation_id),
            conversation_id: told.conversation_id.clone(),
            sequence: told.sequence,
            sender_id: told.sender_id.clone(),
            expires_at_s: unix_ms().unsigned_abs() / 1_000 + lifetime_s,
        };
        deliver(core, pusher, &**provider, &note, &token).await;
    }
}

/// Sends a note until the provider has taken it, or it is not worth another attempt.
async fn deliver(
    core: &Core,
    pusher: &Pusher,
    provider: &dyn PushProvider,
    note: &Note,
    token: &Token,
) {
    let settings = &pusher.settings;
    let label = ProviderLabel { provider: provider.kind().label() };
    let mut wait = settings.retry_min;
    for attempt in 1..=settings.attempts_max.max(1) {
        let began_ms = unix_ms();
        let reason = match provider.push(note).await {
            Delivery::Taken => {
                core.metrics.offline_pushed.get_or_create(&label).inc();
                return;
            }
            Delivery::Gone(since_ms) => {
                // A token that was registered after the provider gave it up is another life of it.
                let before_ms = since_ms.unwrap_or(began_ms).saturating_add(1);
                let only = Some((&*token.token, before_ms));
                let removed = pusher.tokens.remove(&note.user_id, &note.device_id, only).await;
                match removed {
                    Ok(removed) => core.metrics.offline_tokens_gone.inc_by(u64::from(removed)),
                    Err(error) => {
                        tracing::warn!(%error, "a token that reaches nothing was not removed");
                        0
                    }
                };
                return;
            }
            Delivery::Refused(reason) => {
                tracing::warn!(provider = label.provider, reason, "a note was refused");
                core.metrics.offline_failed.inc();
                return;
            }
            Delivery::Later(reason, after) => {
                let longest = after.unwrap_or(wait).max(wait).min(settings.retry_max);
                if attempt < settings.attempts_max {
                    core.metrics.offline_retried.inc();
                    tokio::select! {
                        () = sleep(longest) => {}
                        () = core.stop.said() => return,
                    }
                    wait = (wait * 2).min(settings.retry_max);
                    continue;
                }
                reason
            }
        };
        tracing::warn!(provider = label.provider, reason, "a note was given up");
        core.metrics.offline_failed.inc();
    }
}

/// What is unread, over all conversations that may disturb, and of the one at hand.
#[derive(Default)]
struct Unread {
    badge: u64,
    here: u64,
    do_not_disturb: bool,
    read_sequence: u64,
}

/// Whether the message may still be shown to the user: it was not revoked, did not expire, and the
/// user has not deleted it elsewhere.
async fn still_stands(core: &Core, user_id: &str, told: &Told) -> Result<bool, StoreError> {
    let found = core.store.messages(user_id, &told.conversation_id, &[told.sequence]).await;
    match found {
        Ok(messages) => Ok(messages.iter().any(|message| message.state == STATE_NORMAL)),
        // The group was left or dissolved meanwhile.
        Err(StoreError::NotFound | StoreError::NotMember) => Ok(false),
        Err(error) => Err(error),
    }
}

async fn unread_of(
    core: &Core,
    user_id: &str,
    conversation_id: &str,
) -> Result<Unread, StoreError> {
    let mut unread = Unread::default();
    let mut since_version = 0;
    for _ in 0..PAGES_MAX {
        let page = core.store.conversations(user_id, since_version, ROWS_PER_PAGE).await?;
        let ConversationPage { conversations, version, complete } = page;
        for row in conversations {
            if row.conversation_id == conversation_id {
                unread.here = row.unread;
                unread.do_not_disturb = row.do_not_disturb || row.quit;
                unread.read_sequence = row.read_sequence;
            }
            if !row.do_not_disturb && !row.quit {
                unread.badge += row.unread;
            }
        }
        if complete {
            break;
        }
        since_version = version;
    }
    Ok(unread)
}

/// The same for all notes of a conversation of a user, and telling nothing of either.
fn collapse_id(user_id: &str, conversation_id: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(user_id.as_bytes());
    hash.update([0]);
    hash.update(conversation_id.as_bytes());
    hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missed(user_id: &str, conversation_id: &str, sequence: u64) -> Missed {
        let told = Told {
            conversation_id: conversation_id.into(),
            sequence,
            sender_id: "bob".into(),
            text: String::new(),
        };
        Missed { user_id: user_id.into(), message: Arc::new(told) }
    }

    #[test]
    fn one_note_of_a_conversation_waits_and_it_is_the_newest() {
        let mut waiting = Waiting::default();
        let now = Instant::now();
        let second = Duration::from_secs(1);
        assert!(!waiting.add(missed("ann", "c", 5), now + second));
        assert!(waiting.add(missed("ann", "c", 7), now + 2 * second));
        assert!(waiting.add(missed("ann", "c", 6), now + 2 * second));
        assert!(!waiting.add(missed("ann", "d", 1), now + 2 * second));
        assert!(!waiting.add(missed("cid", "c", 7), now + 2 * second));
        assert!(waiting.take(now).is_none());
        let (user_id, told) = waiting.take(now + second).expect("its moment has come");
        assert_eq!((&*user_id, told.sequence), ("ann", 7), "the moment is that of the first");
        assert!(waiting.take(now + second).is_none());
        assert_eq!(waiting.next_moment(), Some(now + 2 * second));
        assert!(
            waiting.take(now + 2 * second).is_some() && waiting.take(now + 2 * second).is_some()
        );
        assert!(waiting.newest.is_empty() && waiting.next_moment().is_none());
        assert!(!waiting.add(missed("ann", "c", 8), now), "and from the start again");
    }

    #[test]
    fn a_collapse_id_fits_every_provider_and_is_of_one_user_and_conversation() {
        let one = collapse_id("ann", "s:3:ann:bob");
        assert_eq!(one.len(), 32);
        assert!(one.bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert_eq!(one, collapse_id("ann", "s:3:ann:bob"));
        assert_ne!(one, collapse_id("bob", "s:3:ann:bob"));
        assert_ne!(one, collapse_id("ann", "s:3:ann:cid"));
    }
}
