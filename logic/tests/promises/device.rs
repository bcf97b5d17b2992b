//! A client that does what PROTOCOL.md says and nothing else: it applies what is pushed by
//! sequence, sends again what was not answered, and after a login asks for what has changed.

use std::collections::{BTreeMap, HashMap};

use millrace_logic::storage::extras::{STATE_DELETED, STATE_NORMAL, STATE_REVOKED};
use millrace_logic_sdk::testing::Frame;
use millrace_protocol::{
    chat::{
        Conversation, ConversationsReply, DeleteReply, Deliver, GroupActReply, Message,
        PullConversations, PullMessages, PullReply, ReadReply, Receipt, RevokeReply, SendMessage,
        SendReply, UpdateReply,
    },
    command,
};

use crate::history::{History, Row, Seen};

/// What a device waits for.
#[derive(Clone, Debug)]
pub enum Pending {
    Send(String),
    Acknowledge(String, u64),
    Read(String, u64),
    Revoke(String, u64),
    Delete(String, u64),
    Act,
    Mute,
    List,
    Pull(String),
    Changes(String),
    /// Asked by an app that is gone.
    Forgotten,
}

impl Pending {
    fn is_sync(&self) -> bool {
        matches!(self, Self::List | Self::Pull(_) | Self::Changes(_))
    }
}

/// A request on its way out.
pub struct Outgoing {
    pub command: u16,
    pub body: Vec<u8>,
    /// `None`: no reply is wanted.
    pub pending: Option<Pending>,
}

/// A message that this device has sent or will send.
#[derive(Clone, Debug)]
pub struct Own {
    pub message: SendMessage,
    /// Something came back: code, message id, conversation, sequence.
    pub answer: Option<(u32, String, String, u64)>,
}

/// Where a device is connected.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Session {
    pub gateway: usize,
    pub id: u64,
    /// Its login was answered.
    pub is_live: bool,
}

/// What the app keeps of a conversation.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    pub row: Option<Row>,
    version: u64,
    /// Ask for what became of old messages since this version.
    changed_since: Option<u64>,
    pub messages: BTreeMap<u64, Seen>,
}

/// What is on the device's disk.
#[derive(Clone, Debug, Default)]
pub struct App {
    /// For the next PULL_CONVERSATIONS.
    version: u64,
    pub talks: BTreeMap<String, Kept>,
}

pub struct Device {
    pub user: String,
    pub name: String,
    pub session: Option<Session>,
    pub app: App,
    pub own: Vec<Own>,
    pub pending: HashMap<u32, Pending>,
    pub outgoing: Vec<Outgoing>,
    /// Nothing was interrupted since the list was read and every gap closed, so everything that is
    /// new comes by itself.
    pub is_synced: bool,
    wants_sync: bool,
    /// The highest sequence pushed in each conversation since the last interruption.
    pushed: HashMap<String, u64>,
    /// The user's own read cursors, from the list, the replies and the receipts.
    read: HashMap<String, u64>,
    /// The highest cursors told of each user in each conversation.
    told: HashMap<(String, String), (u64, u64)>,
    /// What was pushed, for comparison between two runs.
    pub trace: Vec<String>,
}

impl Device {
    pub fn new(user: String, name: String) -> Self {
        Self {
            user,
            name,
            session: None,
            app: App::default(),
            own: Vec::new(),
            pending: HashMap::new(),
            outgoing: Vec::new(),
            is_synced: false,
            wants_sync: false,
            pushed: HashMap::new(),
            read: HashMap::new(),
            told: HashMap::new(),
            trace: Vec::new(),
        }
    }

    /// How far the user has read, as this device knows.
    pub fn read_of(&self, conversation_id: &str) -> u64 {
        self.read.get(conversation_id).copied().unwrap_or(0)
    }

    fn has_read(&mut self, conversation_id: &str, sequence: u64) {
        let read = self.read.entry(conversation_id.to_owned()).or_default();
        *read = sequence.max(*read);
    }

    /// The session that the device can send on.
    pub fn live(&self) -> Option<Session> {
        self.session.filter(|session| session.is_live)
    }

    fn put(&mut self, command: u16, body: &impl prost::Message, pending: Option<Pending>) {
        self.outgoing.push(Outgoing { command, body: body.encode_to_vec(), pending });
    }

    /// Queues a request if there is somewhere to send it.
    pub fn request(&mut self, command: u16, body: &impl prost::Message, pending: Option<Pending>) {
        if self.live().is_some() {
            self.put(command, body, pending);
        }
    }

    /// The login was answered: what was not answered is sent again, and what is new asked for.
    pub fn entered(&mut self) {
        self.interrupted();
        self.synchronise();
    }

    /// The connection goes on, but what was under way may be lost: the gateway says so to whoever
    /// waits for an answer.
    pub fn interrupted(&mut self) {
        self.pending.clear();
        self.outgoing.clear();
        self.pushed.clear();
        self.is_synced = false;
        if self.live().is_none() {
            return;
        }
        let unanswered = self.own.iter().filter(|own| own.answer.is_none());
        let again: Vec<SendMessage> = unanswered.map(|own| own.message.clone()).collect();
        for message in again {
            self.transmit(&message);
        }
        // It was waited for, and will be done again.
        if std::mem::take(&mut self.wants_sync) {
            self.synchronise();
        }
    }

    /// The connection is gone.
    pub fn gone(&mut self) {
        self.session = None;
        self.told.clear();
        self.wants_sync = false;
        self.interrupted();
    }

    fn transmit(&mut self, message: &SendMessage) {
        let pending = Pending::Send(message.client_message_id.clone());
        self.put(command::SEND_MESSAGE, message, Some(pending));
    }

    /// Sends a message, or keeps it until there is a connection.
    pub fn send(&mut self, message: SendMessage) {
        if self.live().is_some() {
            self.transmit(&message);
        }
        self.own.push(Own { message, answer: None });
    }

    /// Sends a message again.
    pub fn send_again(&mut self, which: usize) {
        if self.live().is_none() || self.own.is_empty() {
            return;
        }
        let message = self.own[which % self.own.len()].message.clone();
        self.transmit(&message);
    }

    /// The app is new.
    pub fn reinstall(&mut self) {
        self.app = App::default();
        self.is_synced = false;
        if self.live().is_some() {
            for pending in self.pending.values_mut().filter(|pending| pending.is_sync()) {
                *pending = Pending::Forgotten;
            }
            self.outgoing
                .retain(|outgoing| !outgoing.pending.as_ref().is_some_and(Pending::is_sync));
            self.wants_sync = false;
            self.synchronise();
        }
    }

    /// Asks for what has changed, and for what was still to be asked.
    pub fn synchronise(&mut self) {
        if self.live().is_none() || std::mem::replace(&mut self.wants_sync, true) {
            return;
        }
        let talks: Vec<String> = self.app.talks.keys().cloned().collect();
        for talk in talks {
            self.repair(&talk);
        }
        self.list();
    }

    fn list(&mut self) {
        let pull =
            PullConversations { since_version: self.app.version, limit: 3, ..Default::default() };
        self.put(command::PULL_CONVERSATIONS, &pull, Some(Pending::List));
    }

    /// Asks for the gaps of a conversation, and for changes of what is there.
    fn repair(&mut self, conversation_id: &str) {
        let Some(kept) = self.app.talks.get(conversation_id) else { return };
        let Some(row) = &kept.row else { return };
        let missing = (row.init + 1..=row.max).find(|n| !kept.messages.contains_key(n));
        let (changed_since, max) = (kept.changed_since, row.max);
        if let Some(from_sequence) = missing {
            let pull = PullMessages {
                conversation_id: conversation_id.to_owned(),
                from_sequence,
                to_sequence: max,
                limit: 7,
                ..PullMessages::default()
            };
            let pending = Pending::Pull(conversation_id.to_owned());
            self.put(command::PULL_MESSAGES, &pull, Some(pending));
        }
        if let Some(changed_since_version) = changed_since {
            let pull = PullMessages {
                conversation_id: conversation_id.to_owned(),
                changed_since_version,
                limit: 3,
                ..PullMessages::default()
            };
            let pending = Pending::Changes(conversation_id.to_owned());
            self.put(command::PULL_MESSAGES, &pull, Some(pending));
        }
    }

    /// Whether everything that a sync asked for has come.
    fn settle_sync(&mut self) {
        let waits = self.pending.values().any(Pending::is_sync)
            || self.outgoing.iter().any(|o| o.pending.as_ref().is_some_and(Pending::is_sync));
        if self.wants_sync && !waits {
            self.wants_sync = false;
            self.is_synced = true;
        }
    }

    /// A frame from the server.
    ///
    /// # Errors
    /// What must not come.
    pub fn receive(&mut self, frame: &Frame, history: &History) -> Result<(), String> {
        if frame.request_id != 0 {
            let Some(pending) = self.pending.remove(&frame.request_id) else {
                return Err(format!("an answer that nobody waits for: {frame:?}"));
            };
            if let Some(code) = frame.error() {
                return Err(format!("{pending:?} was refused with {code}"));
            }
            self.answered(pending, frame, history)?;
            self.settle_sync();
            return Ok(());
        }
        match frame.command {
            command::DELIVER => {
                for message in frame.decode::<Deliver>().messages {
                    self.delivered(&message, history)?;
                }
            }
            command::RECEIPT => self.told(&frame.decode::<Receipt>(), history)?,
            command::UPDATE_CONVERSATION | command::NOTICE => {}
            _ => return Err(format!("nobody asked for {frame:?}")),
        }
        Ok(())
    }

    fn answered(
        &mut self,
        pending: Pending,
        frame: &Frame,
        history: &History,
    ) -> Result<(), String> {
        match pending {
            Pending::Send(id) => self.sent(&id, &frame.decode::<SendReply>(), history),
            Pending::Acknowledge(talk, sequence) => {
                let stands = history
                    .member(&self.user, &talk)
                    .map(|(talk, member)| (member.delivered, sequence.min(talk.top(member))));
                match stands {
                    Some((delivered, expected)) if delivered >= expected => Ok(()),
                    other => {
                        Err(format!("{talk} {sequence} was acknowledged, and it is {other:?}"))
                    }
                }
            }
            Pending::Read(talk, sequence) => {
                let reply: ReadReply = frame.decode();
                let stands = history
                    .member(&self.user, &talk)
                    .map(|(talk, member)| (member.read, sequence.min(talk.top(member))));
                match stands {
                    Some((read, expected)) if read >= expected && reply.code == 0 => {
                        self.has_read(&talk, expected);
                        Ok(())
                    }
                    other => Err(format!("{talk} {sequence} read: {reply:?}, and it is {other:?}")),
                }
            }
            Pending::Revoke(talk, sequence) => {
                let reply: RevokeReply = frame.decode();
                let found =
                    history.talks.get(&talk).and_then(|t| t.said.get(sequence as usize - 1));
                match (reply.code, found) {
                    (0, Some(said)) if !said.revoked => {
                        Err(format!("{talk} {sequence} is told to be revoked, and is not"))
                    }
                    // Whoever does it is told by the reply alone.
                    (0, Some(_)) => {
                        self.bury(&talk, sequence, STATE_REVOKED);
                        Ok(())
                    }
                    _ => Ok(()),
                }
            }
            Pending::Delete(talk, sequence) => {
                let reply: DeleteReply = frame.decode();
                let deleted = history
                    .member(&self.user, &talk)
                    .is_some_and(|(_, member)| member.deleted.contains(&sequence));
                if reply.code == 0 && !deleted {
                    // A membership that has begun anew meanwhile has nothing deleted.
                    let again = history
                        .member(&self.user, &talk)
                        .is_some_and(|(_, member)| member.init >= sequence);
                    if !again {
                        return Err(format!("{talk} {sequence} is told to be deleted, and is not"));
                    }
                }
                if reply.code == 0 {
                    self.bury(&talk, sequence, STATE_DELETED);
                }
                Ok(())
            }
            Pending::Act => {
                let reply: GroupActReply = frame.decode();
                if reply.code == 0 && reply.sequence > 0 {
                    let talk = history.talks.get(&reply.conversation_id);
                    if talk.is_none_or(|talk| (talk.said.len() as u64) < reply.sequence) {
                        return Err(format!("{reply:?} came before it was stored"));
                    }
                }
                Ok(())
            }
            Pending::Mute => {
                let _reply: UpdateReply = frame.decode();
                Ok(())
            }
            Pending::Forgotten => Ok(()),
            Pending::List => self.listed(frame.decode::<ConversationsReply>()),
            Pending::Pull(talk) => self.pulled(&talk, frame.decode::<PullReply>(), history),
            Pending::Changes(talk) => self.changed(&talk, frame.decode::<PullReply>(), history),
        }
    }

    /// Takes the content out of a message that the device has.
    fn bury(&mut self, id: &str, sequence: u64, state: u32) {
        let kept = self.app.talks.get_mut(id);
        if let Some(seen) = kept.and_then(|kept| kept.messages.get_mut(&sequence))
            && seen.3 < state
        {
            (seen.2, seen.3) = (String::new(), state);
        }
    }

    fn sent(&mut self, id: &str, reply: &SendReply, history: &History) -> Result<(), String> {
        let user = self.user.clone();
        let Some(own) = self.own.iter_mut().find(|own| own.message.client_message_id == id) else {
            return Err(format!("{id} was never sent"));
        };
        let answer =
            (reply.code, reply.message_id.clone(), reply.conversation_id.clone(), reply.sequence);
        if reply.code != 0 {
            // Somebody who is no member any more; what was stored stays so.
            if let Some(earlier) = &own.answer
                && earlier.0 == 0
            {
                return Err(format!("{id} was stored as {earlier:?}, and now {reply:?}"));
            }
            own.answer = Some(answer);
            return Ok(());
        }
        let place = history.place(&user, id);
        if place.is_none_or(|place| {
            place.sequence != reply.sequence
                || place.message_id != reply.message_id
                || place.conversation_id != reply.conversation_id
        }) {
            return Err(format!("{reply:?} of {id}, which is at {place:?}"));
        }
        if let Some(earlier) = own.answer.replace(answer.clone())
            && earlier.0 == 0
            && (earlier != answer || !reply.duplicate)
        {
            return Err(format!("{id} was answered {earlier:?}, and now {reply:?}"));
        }
        let message = Message {
            conversation_id: reply.conversation_id.clone(),
            sequence: reply.sequence,
            message_id: reply.message_id.clone(),
            sender_id: user,
            body: own.message.body.clone(),
            ..Message::default()
        };
        // Also of a duplicate: the reply to the first may be what was lost, and who sends a message
        // is not pushed it. What has become of it since comes by itself.
        self.apply(&message, history)
    }

    fn delivered(&mut self, message: &Message, history: &History) -> Result<(), String> {
        let (id, sequence) = (&message.conversation_id, message.sequence);
        self.trace.push(format!("{id} {sequence} {}", message.state));
        if message.state == STATE_NORMAL {
            let before = self.pushed.insert(id.clone(), sequence).unwrap_or(0);
            if before >= sequence {
                return Err(format!("{id} {sequence} is pushed after {before}"));
            }
        }
        self.apply(message, history)
    }

    /// Checks a message against what was said, and keeps it.
    fn apply(&mut self, message: &Message, history: &History) -> Result<(), String> {
        let (id, sequence) = (&message.conversation_id, message.sequence);
        let Some((talk, member)) = history.member(&self.user, id) else {
            return Err(format!("a message of a foreign conversation: {message:?}"));
        };
        if !member.spans.iter().any(|(from, until)| (from + 1..=*until).contains(&sequence)) {
            return Err(format!("{sequence} of {id} is not for a member of {:?}", member.spans));
        }
        let Some(said) = talk.said.get(sequence as usize - 1) else {
            return Err(format!("{sequence} of {id} was sent before it was stored"));
        };
        let is_whole = message.message_id == said.message_id && message.sender_id == said.sender;
        let is_gone = message.state != STATE_NORMAL;
        let is_content = message.body == if is_gone { "" } else { &*said.body };
        if !is_whole || !is_content {
            return Err(format!("{message:?} is not what was said: {said:?}"));
        }
        let is_deleted = message.state == STATE_DELETED;
        if is_gone && !is_deleted && !said.revoked {
            return Err(format!("{message:?}, which nobody has revoked"));
        }
        let kept = self.app.talks.entry(id.clone()).or_default();
        let new: Seen = (
            message.message_id.clone(),
            message.sender_id.clone(),
            message.body.clone(),
            message.state,
        );
        match kept.messages.get_mut(&sequence) {
            // What is gone stays so, and what is gone for everybody counts before the rest.
            Some(old) if old.3 < new.3 => *old = new,
            Some(_) => {}
            None => drop(kept.messages.insert(sequence, new)),
        }
        Ok(())
    }

    fn told(&mut self, receipt: &Receipt, history: &History) -> Result<(), String> {
        let (id, user) = (receipt.conversation_id.clone(), receipt.user_id.clone());
        let now = (receipt.delivered_sequence, receipt.read_sequence);
        let Some((talk, member)) = history.member(&user, &id) else {
            return Err(format!("{receipt:?} of a stranger"));
        };
        if user == self.user {
            self.has_read(&id, now.1);
        }
        let before = self.told.insert((id, user), now).unwrap_or_default();
        // Who has left and come back begins anew.
        let is_new = member.spans.len() > 1;
        if !is_new && (now.0 < before.0 || now.1 < before.1) {
            return Err(format!("{receipt:?} after {before:?}"));
        }
        let is_true = now.0 <= talk.said.len() as u64 && now.1 <= now.0;
        if !is_true || (!is_new && (now.0 > member.delivered || now.1 > member.read)) {
            return Err(format!("{receipt:?}, and the cursors stand at {member:?}"));
        }
        Ok(())
    }

    fn listed(&mut self, reply: ConversationsReply) -> Result<(), String> {
        if reply.code != 0 || (!reply.complete && reply.version <= self.app.version) {
            return Err(format!("{reply:?} since {}", self.app.version));
        }
        for row in &reply.conversations {
            self.row(row);
        }
        self.app.version = reply.version;
        if !reply.complete {
            self.list();
        }
        Ok(())
    }

    fn row(&mut self, row: &Conversation) {
        let id = row.conversation_id.clone();
        let kept = self.app.talks.entry(id.clone()).or_default();
        let new = Row::of(row);
        // What the user saw as a member before is not part of the conversation any more.
        kept.messages.retain(|sequence, _| *sequence > new.init);
        if row.version > kept.version {
            if kept.row.is_some() {
                kept.changed_since.get_or_insert(kept.version);
            } else if !kept.messages.is_empty() {
                // They came before the list did, and their fate is not known.
                kept.changed_since = Some(1);
            }
        }
        kept.row = Some(new);
        kept.version = row.version;
        self.has_read(&id, row.read_sequence);
        self.repair(&id);
    }

    fn pulled(&mut self, id: &str, reply: PullReply, history: &History) -> Result<(), String> {
        if reply.code != 0 {
            return Err(format!("{id} cannot be pulled: {reply:?}"));
        }
        let count = |device: &Self| device.app.talks.get(id).map_or(0, |k| k.messages.len());
        let before = count(self);
        for message in &reply.messages {
            self.apply(message, history)?;
        }
        // What is still missing when nothing new comes was of a membership that has begun anew.
        if count(self) > before {
            self.repair(id);
        }
        Ok(())
    }

    fn changed(&mut self, id: &str, reply: PullReply, history: &History) -> Result<(), String> {
        if reply.code != 0 {
            return Err(format!("the changes of {id} cannot be pulled: {reply:?}"));
        }
        for message in &reply.messages {
            self.apply(message, history)?;
        }
        for sequence in reply.deleted.iter().flat_map(|r| r.from_sequence..=r.to_sequence) {
            self.bury(id, sequence, STATE_DELETED);
        }
        let Some(kept) = self.app.talks.get_mut(id) else { return Ok(()) };
        kept.changed_since = (!reply.complete).then_some(reply.version);
        if !reply.complete {
            self.repair(id);
        }
        Ok(())
    }
}
