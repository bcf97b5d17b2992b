//! Live rooms and notices to everybody: `JOIN_ROOM`, `LEAVE_ROOM`, `ROOM_MESSAGE`, and what business
//! services publish. Nothing here is stored, and nobody is caught up on it.
//!
//! Who is in which room the SDK knows, of the sessions that have their home here; a message is
//! published once to each gateway shard that has members (in a fleet: to each shard, as others may
//! have members there), and fanned out there. A [`RoomPolicy`] decides who may join and speak, after the
//! [`RoomDirectory`], which knows the rooms that services have made.
//!
//! # When more is said than members can take
//! Each sender has the rate of all messages, each room a rate of its own
//! (`room_messages_per_second_max`): above, the sender gets ERROR `rate_limited` with the time to
//! wait, and nobody hears the message. A member that reads more slowly than the room speaks meets
//! its gateway's `slow_consumer` policy: it misses messages and is told of the gap, or is closed;
//! the others notice nothing. What services publish is not counted against the room's rate.
//!
//! # Who hears what
//! The session that sent a message gets its RoomReply, after the message was handed to the gateways,
//! and no ROOM_MESSAGE; the sender's other sessions in the room get it like everybody. Messages of
//! one sender reach every member in the order sent.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use millrace_logic_sdk::{Inbound, Refused, Session};
use millrace_protocol::{
    Code,
    api::{
        BroadcastRequest, BroadcastResponse, PublishRoomMessageRequest, PublishRoomMessageResponse,
    },
    chat::{JoinRoom, LeaveRoom, Notice, RoomMessage, RoomReply},
    command,
};
use uuid::Uuid;

use super::{
    Core,
    messages::screen_text,
    rate::{Bucket, Rate},
    receiver::{decode, unix_ms},
    settings::ChatSettings,
};
use crate::{
    notices::NOTICE_ID_BYTES_MAX, rooms::RoomDirectory, storage::limits::USER_ID_BYTES_MAX,
};

/// Longest name of a room, in bytes.
pub const ROOM_ID_BYTES_MAX: usize = 128;

/// How often at most the table of rates is searched for rooms that fell silent.
const SWEEP_INTERVAL_MS: u64 = 100;

/// Who may join a room and speak in it. Asked for every request, so it must answer from memory.
pub trait RoomPolicy: Send + Sync + 'static {
    /// May this session join the room? The default lets every logged-in user in.
    ///
    /// # Errors
    /// The refusal that the client gets.
    fn may_join(&self, _session: &Session, _room_id: &str) -> Result<(), Refused> {
        Ok(())
    }

    /// May this session speak in the room? The default lets its members.
    ///
    /// # Errors
    /// The refusal that the client gets.
    fn may_speak(
        &self,
        _session: &Session,
        _room_id: &str,
        is_member: bool,
    ) -> Result<(), Refused> {
        if is_member {
            return Ok(());
        }
        let reason = "Only a member of the room may speak in it; join first.";
        Err(Refused::new(Code::NotPermitted, reason))
    }
}

/// Every logged-in user may join any room, and its members speak.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenRooms;

impl RoomPolicy for OpenRooms {}

/// What the chat keeps about rooms.
pub(crate) struct Rooms {
    policy: Arc<dyn RoomPolicy>,
    pub directory: Arc<RoomDirectory>,
    pace: Mutex<Pace>,
    started_at: Instant,
}

impl Rooms {
    pub(crate) fn new(
        policy: Arc<dyn RoomPolicy>,
        directory: Arc<RoomDirectory>,
        settings: &ChatSettings,
    ) -> Self {
        let rate = Rate {
            per_second_max: settings.room_messages_per_second_max,
            burst_max: settings.room_messages_burst_max,
        };
        let broadcasts = Rate {
            per_second_max: settings.broadcasts_per_second_max,
            burst_max: settings.broadcasts_burst_max,
        };
        let pace = Pace {
            rate,
            rooms_max: settings.rooms_paced_max,
            rooms: HashMap::new(),
            swept_at_ms: 0,
            broadcasts: (broadcasts, Bucket::full(broadcasts, 0)),
        };
        Self { policy, directory, pace: Mutex::new(pace), started_at: Instant::now() }
    }

    /// Calls `take` with the rates and the time.
    fn paced<T>(&self, take: impl FnOnce(&mut Pace, u64) -> T) -> T {
        let now_ms = self.started_at.elapsed().as_millis() as u64;
        take(&mut self.pace.lock().unwrap_or_else(PoisonError::into_inner), now_ms)
    }
}

/// How fast rooms may speak. Only rooms that spoke lately have an entry.
struct Pace {
    rate: Rate,
    rooms_max: usize,
    rooms: HashMap<String, Bucket>,
    swept_at_ms: u64,
    broadcasts: (Rate, Bucket),
}

impl Pace {
    /// Takes one message of a room, or says how long to wait.
    fn take(&mut self, room_id: &str, now_ms: u64) -> Result<(), Duration> {
        let rate = self.rate;
        if let Some(bucket) = self.rooms.get_mut(room_id) {
            return bucket.take(rate, now_ms);
        }
        if self.rooms.len() >= self.rooms_max {
            let next_ms = self.swept_at_ms + SWEEP_INTERVAL_MS;
            if now_ms < next_ms && self.swept_at_ms > 0 {
                return Err(Duration::from_millis(next_ms - now_ms));
            }
            self.swept_at_ms = now_ms;
            self.rooms.retain(|_, bucket| !bucket.is_full(rate, now_ms));
            if self.rooms.len() >= self.rooms_max {
                return Err(Duration::from_millis(SWEEP_INTERVAL_MS));
            }
        }
        let mut bucket = Bucket::full(rate, now_ms);
        let taken = bucket.take(rate, now_ms);
        self.rooms.insert(room_id.to_owned(), bucket);
        taken
    }
}

/// `JOIN_ROOM`.
pub(super) fn join(core: &Core, inbound: &Inbound) {
    let Some(JoinRoom { room_id }) = decode(core, inbound) else { return };
    let joined = check_room_id(&room_id)
        .and_then(|()| may_join(core, &inbound.session, &room_id))
        .and_then(|()| {
            let elsewhere = core.members_elsewhere(&room_id);
            let members_max = core.rooms.directory.sessions_max(&room_id).unwrap_or(u64::MAX);
            let here_max = members_max.saturating_sub(elsewhere);
            let joined = core.gateways.join_room_of(&room_id, inbound.session.address, here_max)?;
            Ok(joined + elsewhere)
        });
    answer(core, inbound, joined);
}

fn may_join(core: &Core, session: &Session, room_id: &str) -> Result<(), Refused> {
    if !core.rooms.directory.may_join(room_id, &session.user_id) {
        let reason = "Only who was added to this room may join it.";
        return Err(Refused::new(Code::NotPermitted, reason));
    }
    core.rooms.policy.may_join(session, room_id)
}

/// `LEAVE_ROOM`. Leaving a room that one is not in is no error: the wish is fulfilled.
pub(super) fn leave(core: &Core, inbound: &Inbound) {
    let Some(LeaveRoom { room_id }) = decode(core, inbound) else { return };
    let left = check_room_id(&room_id)
        .and_then(|()| core.gateways.leave_room(&room_id, inbound.session.address))
        .map(|left| left + core.members_elsewhere(&room_id));
    answer(core, inbound, left);
}

/// `ROOM_MESSAGE` from a client.
pub(super) fn publish(core: &Core, inbound: &Inbound) {
    let Some(message) = decode::<RoomMessage>(core, inbound) else { return };
    answer(core, inbound, speak(core, &inbound.session, message));
}

fn speak(core: &Core, session: &Session, mut message: RoomMessage) -> Result<u64, Refused> {
    let room_id = message.room_id.clone();
    check_room_id(&room_id)?;
    check_body(core, &message.body)?;
    let is_member = core.gateways.is_in_room(&room_id, session.address);
    core.rooms.policy.may_speak(session, &room_id, is_member)?;
    core.rooms.paced(|pace, now_ms| pace.take(&room_id, now_ms)).map_err(|wait| {
        Refused::new(Code::RateLimited, "This room is spoken in too fast; slow down.")
            .retry_after(milliseconds(wait))
    })?;
    screen_text(core, &mut message.body, &mut Vec::new())?;
    message.sender_id = session.user_id.to_string();
    let except = Some(session.address);
    core.metrics.room_messages.inc();
    let here = core.gateways.publish_room(&room_id, command::ROOM_MESSAGE, &message, except);
    Ok(here + core.members_elsewhere(&room_id))
}

/// A service speaks in a room.
pub(super) fn publish_for(
    core: &Core,
    request: PublishRoomMessageRequest,
) -> Result<PublishRoomMessageResponse, Refused> {
    check_room_id(&request.room_id)?;
    check_body(core, &request.body)?;
    if request.sender_id.len() > USER_ID_BYTES_MAX {
        let reason = "The sender_id is longer than 128 bytes.";
        return Err(Refused::new(Code::BadRequest, reason));
    }
    let PublishRoomMessageRequest { room_id, sender_id, r#type, body } = request;
    let message = RoomMessage { room_id: room_id.clone(), r#type, body, sender_id };
    core.metrics.room_messages.inc();
    let here = core.gateways.publish_room(&room_id, command::ROOM_MESSAGE, &message, None);
    let members = here + core.members_elsewhere(&room_id);
    Ok(PublishRoomMessageResponse { members, ..PublishRoomMessageResponse::default() })
}

/// A service tells everybody.
pub(super) fn broadcast_for(
    core: &Core,
    request: BroadcastRequest,
) -> Result<BroadcastResponse, Refused> {
    check_body(core, &request.body)?;
    if request.notice_id.len() > NOTICE_ID_BYTES_MAX {
        let reason = "The notice_id is longer than 128 bytes.";
        return Err(Refused::new(Code::BadRequest, reason));
    }
    pace_broadcast(core)?;
    let notice_id = match request.notice_id {
        chosen if !chosen.is_empty() => chosen,
        _ => Uuid::now_v7().to_string(),
    };
    let sent_at_ms = unix_ms();
    let notice = Notice {
        notice_id: notice_id.clone(),
        r#type: request.r#type,
        body: request.body,
        sent_at_ms,
    };
    core.metrics.broadcasts.inc();
    let sessions = core.gateways.broadcast(command::NOTICE, &notice) + core.sessions_elsewhere();
    Ok(BroadcastResponse { notice_id, sent_at_ms, sessions, ..BroadcastResponse::default() })
}

/// Takes one off the rate of what goes to everybody.
pub(super) fn pace_broadcast(core: &Core) -> Result<(), Refused> {
    let taken = core.rooms.paced(|pace, now_ms| {
        let (rate, bucket) = &mut pace.broadcasts;
        bucket.take(*rate, now_ms)
    });
    taken.map_err(|wait| {
        Refused::new(Code::RateLimited, "Too many broadcasts; each one reaches everybody.")
            .retry_after(milliseconds(wait))
    })
}

/// The reply to a room's command: how many members it has, or why not. Who has to wait is told how
/// long, which only an ERROR frame can say.
fn answer(core: &Core, inbound: &Inbound, outcome: Result<u64, Refused>) {
    match outcome {
        Ok(members) => inbound.reply_message(&RoomReply { members, ..RoomReply::default() }),
        Err(refused) => {
            core.count_refusal(refused.code);
            if refused.retry_after_ms > 0 {
                inbound.refuse(refused.code, &refused.reason, refused.retry_after_ms);
            } else {
                let code = refused.code.number();
                inbound.reply_message(&RoomReply { code, reason: refused.reason, members: 0 });
            }
        }
    }
}

pub(super) fn check_room_id(room_id: &str) -> Result<(), Refused> {
    if (1..=ROOM_ID_BYTES_MAX).contains(&room_id.len()) {
        return Ok(());
    }
    Err(Refused::new(Code::BadRequest, "A room_id of 1 to 128 bytes is needed."))
}

pub(super) fn check_body(core: &Core, body: &str) -> Result<(), Refused> {
    let max = core.settings.room_body_bytes_max;
    if body.len() <= max {
        return Ok(());
    }
    let reason = format!("The body has {} bytes; what goes to many may have {max}.", body.len());
    Err(Refused::new(Code::TooLarge, reason))
}

fn milliseconds(wait: Duration) -> u32 {
    wait.as_millis().clamp(1, u128::from(u32::MAX)) as u32
}

#[cfg(test)]
mod tests {
    use super::{Bucket, HashMap, Pace, Rate, SWEEP_INTERVAL_MS};

    fn pace(rooms_max: usize) -> Pace {
        let rate = Rate { per_second_max: 10, burst_max: 2 };
        let broadcasts = (rate, Bucket::full(rate, 0));
        Pace { rate, rooms_max, rooms: HashMap::new(), swept_at_ms: 0, broadcasts }
    }

    #[test]
    fn every_room_has_a_rate_of_its_own() {
        let mut pace = pace(10);
        assert!(pace.take("a", 0).is_ok() && pace.take("a", 0).is_ok());
        assert!(pace.take("a", 0).is_err());
        assert!(pace.take("b", 0).is_ok());
        assert!(pace.take("a", 100).is_ok());
    }

    #[test]
    fn rooms_that_fell_silent_make_way_and_the_table_stays_bounded() {
        let mut pace = pace(2);
        assert!(pace.take("a", 0).is_ok() && pace.take("b", 1_000).is_ok());
        assert!(pace.take("c", 1_050).is_ok(), "a is silent for long enough");
        assert!(pace.take("d", 1_060).is_err(), "b and c are not");
        assert!(pace.take("b", 1_070).is_ok(), "who has an entry speaks on");
        let sweep = 1_050 + SWEEP_INTERVAL_MS;
        assert!(pace.take("d", sweep).is_ok(), "c may speak at full rate again");
        assert!(pace.rooms.len() <= 2);
    }
}
