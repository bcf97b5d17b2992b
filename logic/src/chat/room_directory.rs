//! What business services ask of configured rooms, and what that means for sessions: those of an
//! account are in its rooms, from the moment it is added or they log in until it is taken out.

use std::collections::BTreeMap;

use async_trait::async_trait;
use millrace_logic_sdk::{Refused, Session, SessionAddress};
use millrace_protocol::{
    Code,
    api::{
        AddAccount2RoomRequest, AddAccount2RoomResponse, CreateRoomRequest, CreateRoomResponse,
        GetRoomRequest, GetRoomResponse, ListRoomMembersRequest, ListRoomMembersResponse,
        RemoveRoomRequest, RemoveRoomResponse, RmAccountFromRoomRequest, RmAccountFromRoomResponse,
        RoomMember,
    },
};
use uuid::Uuid;

use super::{Chat, Core, receiver::unix_ms, rooms};
use crate::{
    api::rooms::RoomsApi,
    rooms::{NAME_BYTES_MAX, RoomChange, RoomError, RoomSettings},
    storage::limits::USER_ID_BYTES_MAX,
};

/// Members of one answer.
const MEMBERS_MAX: usize = 1_000;
const MEMBERS_DEFAULT: usize = 100;

/// Accounts of one call.
const ACCOUNTS_PER_CALL_MAX: usize = 10_000;

/// Accounts whose sessions are looked up at once, while nothing else is: some tenths of a millisecond.
const ACCOUNTS_PER_LOOK_UP_MAX: usize = 1_024;

/// A session has started: it joins the rooms of its account.
pub(super) fn session_up(core: &Core, session: &Session) {
    for room_id in core.rooms.directory.rooms_of(&session.user_id) {
        join(core, &room_id, session.address);
    }
}

fn join(core: &Core, room_id: &str, session: SessionAddress) {
    // Who left meanwhile needs no room; who is in too many already stays outside this one.
    if let Err(refused) = core.gateways.join_room(room_id, session)
        && refused.code != Code::NotFound
    {
        core.count_refusal(refused.code);
        tracing::warn!(room_id, reason = refused.reason, "an account's session is not in its room");
    }
}

/// What has changed in configured rooms, by a service's call here or at another process, is done to
/// the sessions that have their home here. A call names up to [`ACCOUNTS_PER_CALL_MAX`] accounts of one
/// room, one change for each: they are looked up together.
pub(super) fn changed(core: &Core, changes: &[RoomChange]) {
    let leave = |room_id: &str, address| {
        // Leaving is never refused.
        core.gateways.leave_room(room_id, address).ok();
    };
    for run in runs(changes) {
        match run {
            Run::Put(room_id, settings) if settings.closed => {
                // Who joined when anybody could, and has not been added, leaves.
                for address in core.gateways.room_sessions(room_id) {
                    let session = core.gateways.session(address);
                    let may = |user_id: &str| core.rooms.directory.may_join(room_id, user_id);
                    if session.is_some_and(|session| !may(&session.user_id)) {
                        leave(room_id, address);
                    }
                }
            }
            Run::Put(..) => {}
            Run::Remove(room_id) => {
                for address in core.gateways.room_sessions(room_id) {
                    leave(room_id, address);
                }
            }
            Run::Add(room_id, user_ids) => {
                core.sessions_of(user_ids, |address| join(core, room_id, address));
            }
            Run::Take(room_id, user_ids) => {
                core.sessions_of(user_ids, |address| leave(room_id, address));
            }
        }
    }
}

/// Changes that follow each other and are done in one go.
#[derive(Debug, PartialEq)]
enum Run<'a> {
    Put(&'a str, &'a RoomSettings),
    Remove(&'a str),
    /// These accounts are in the room.
    Add(&'a str, Vec<&'a str>),
    /// They are not any more.
    Take(&'a str, Vec<&'a str>),
}

/// The changes in their order; accounts of one room that are added, or taken out, one after the other
/// are together, up to [`ACCOUNTS_PER_LOOK_UP_MAX`] of them.
fn runs(changes: &[RoomChange]) -> Vec<Run<'_>> {
    let mut runs: Vec<Run<'_>> = Vec::new();
    for change in changes {
        match (change, runs.last_mut()) {
            (RoomChange::Add(room_id, user_id), Some(Run::Add(last, user_ids)))
            | (RoomChange::Take(room_id, user_id), Some(Run::Take(last, user_ids)))
                if room_id == *last && user_ids.len() < ACCOUNTS_PER_LOOK_UP_MAX =>
            {
                user_ids.push(user_id);
            }
            (RoomChange::Add(room_id, user_id), _) => runs.push(Run::Add(room_id, vec![user_id])),
            (RoomChange::Take(room_id, user_id), _) => runs.push(Run::Take(room_id, vec![user_id])),
            (RoomChange::Put(room_id, settings), _) => runs.push(Run::Put(room_id, settings)),
            (RoomChange::Remove(room_id), _) => runs.push(Run::Remove(room_id)),
        }
    }
    runs
}

impl Core {
    fn room_refused(&self, error: RoomError) -> Refused {
        let code = match &error {
            RoomError::NotFound => Code::NotFound,
            RoomError::AlreadyExists => Code::AlreadyExists,
            RoomError::Full(_) => Code::OverCapacity,
            RoomError::Store(error) => {
                tracing::error!(%error, "the rooms were not stored");
                let code = error.code();
                return self.refused_with(code, code.sentence());
            }
        };
        self.refused_with(code, &error.to_string())
    }

    fn refused_with(&self, code: Code, reason: &str) -> Refused {
        self.count_refusal(code);
        Refused::new(code, reason).retry_after(self.retry_after_ms_of(code))
    }

    fn check_accounts(&self, user_ids: &[String]) -> Result<(), Refused> {
        if user_ids.iter().any(|id| !(1..=USER_ID_BYTES_MAX).contains(&id.len())) {
            let reason = "Each of the user_ids needs 1 to 128 bytes.";
            return Err(self.refused_with(Code::BadRequest, reason));
        }
        if user_ids.len() > ACCOUNTS_PER_CALL_MAX {
            let reason = format!("One call may name {ACCOUNTS_PER_CALL_MAX} accounts.");
            return Err(self.refused_with(Code::TooLarge, &reason));
        }
        Ok(())
    }

    /// Calls `with` for each live session of these users.
    fn sessions_of<'a>(
        &self,
        user_ids: impl IntoIterator<Item = &'a str>,
        with: impl Fn(SessionAddress),
    ) {
        let mut receivers = Vec::new();
        self.online.deliveries().everybody(user_ids, None, &mut receivers);
        receivers.into_iter().for_each(|(address, _)| with(address));
    }
}

#[async_trait]
impl RoomsApi for Chat {
    async fn create_room(&self, request: CreateRoomRequest) -> Result<CreateRoomResponse, Refused> {
        let core = &self.core;
        let CreateRoomRequest { room_id, name, members_max, closed, user_ids } = request;
        let room_id = match room_id {
            chosen if !chosen.is_empty() => chosen,
            _ => Uuid::now_v7().simple().to_string(),
        };
        rooms::check_room_id(&room_id).inspect_err(|refused| core.count_refusal(refused.code))?;
        if name.len() > NAME_BYTES_MAX {
            let reason = format!("The name may have {NAME_BYTES_MAX} bytes.");
            return Err(core.refused_with(Code::BadRequest, &reason));
        }
        core.check_accounts(&user_ids)?;
        let settings = RoomSettings { name, members_max, closed, created_at_ms: unix_ms() };
        let made = core.rooms.directory.create(&room_id, settings, &user_ids).await;
        made.map_err(|error| core.room_refused(error))?;
        Ok(CreateRoomResponse { room_id, ..CreateRoomResponse::default() })
    }

    async fn get_room(&self, request: GetRoomRequest) -> Result<GetRoomResponse, Refused> {
        let core = &self.core;
        let room_id = request.room_id;
        let members = core.room_members(&room_id);
        match core.rooms.directory.get(&room_id) {
            Some((settings, accounts)) => Ok(GetRoomResponse {
                room_id,
                name: settings.name,
                members_max: settings.members_max,
                closed: settings.closed,
                created_at_ms: settings.created_at_ms,
                accounts: accounts as u64,
                members,
            }),
            None if members > 0 => {
                Ok(GetRoomResponse { room_id, members, ..GetRoomResponse::default() })
            }
            None => Err(core.room_refused(RoomError::NotFound)),
        }
    }

    async fn remove_room(&self, request: RemoveRoomRequest) -> Result<RemoveRoomResponse, Refused> {
        let core = &self.core;
        let members = core.room_members(&request.room_id);
        let removed = core.rooms.directory.remove(&request.room_id).await;
        removed.map_err(|error| core.room_refused(error))?;
        Ok(RemoveRoomResponse { members, ..RemoveRoomResponse::default() })
    }

    async fn add_account2_room(
        &self,
        request: AddAccount2RoomRequest,
    ) -> Result<AddAccount2RoomResponse, Refused> {
        let core = &self.core;
        let AddAccount2RoomRequest { room_id, user_ids } = request;
        core.check_accounts(&user_ids)?;
        let added = core.rooms.directory.add(&room_id, &user_ids).await;
        let added = added.map_err(|error| core.room_refused(error))?.len() as u64;
        Ok(AddAccount2RoomResponse { added, ..AddAccount2RoomResponse::default() })
    }

    async fn rm_account_from_room(
        &self,
        request: RmAccountFromRoomRequest,
    ) -> Result<RmAccountFromRoomResponse, Refused> {
        let core = &self.core;
        let RmAccountFromRoomRequest { room_id, user_ids } = request;
        core.check_accounts(&user_ids)?;
        let removed = core.rooms.directory.take(&room_id, &user_ids).await;
        let removed = removed.map_err(|error| core.room_refused(error))?.len() as u64;
        Ok(RmAccountFromRoomResponse { removed, ..RmAccountFromRoomResponse::default() })
    }

    async fn list_room_members(
        &self,
        request: ListRoomMembersRequest,
    ) -> Result<ListRoomMembersResponse, Refused> {
        let core = &self.core;
        let ListRoomMembersRequest { room_id, after_user_id: after, limit } = request;
        let limit = match limit as usize {
            0 => MEMBERS_DEFAULT,
            limit => limit.min(MEMBERS_MAX),
        };
        let is_configured = core.rooms.directory.get(&room_id).is_some();
        if !is_configured && core.room_members(&room_id) == 0 {
            return Err(core.room_refused(RoomError::NotFound));
        }
        let mut members: BTreeMap<String, RoomMember> = BTreeMap::new();
        let mut note = |user_id: &str, is_account: bool, sessions: u32| {
            let member = members.entry(user_id.to_owned()).or_default();
            member.account |= is_account;
            member.sessions += sessions;
        };
        for user_id in core.rooms.directory.accounts(&room_id, &after, limit + 1) {
            note(&user_id, true, 0);
        }
        for address in core.gateways.room_sessions(&room_id) {
            if let Some(session) = core.gateways.session(address)
                && *session.user_id > *after
            {
                note(&session.user_id, false, 1);
            }
        }
        let complete = members.len() <= limit;
        let members = members.into_iter().take(limit);
        let members = members.map(|(user_id, member)| RoomMember { user_id, ..member }).collect();
        Ok(ListRoomMembersResponse { members, complete })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(room_id: &str, users: std::ops::Range<usize>, is_add: bool) -> Vec<RoomChange> {
        let change = |user: usize| {
            let (room_id, user_id) = (room_id.to_owned(), format!("user-{user}"));
            match is_add {
                true => RoomChange::Add(room_id, user_id),
                false => RoomChange::Take(room_id, user_id),
            }
        };
        users.map(change).collect()
    }

    #[test]
    fn ten_thousand_accounts_of_one_call_are_looked_up_ten_times() {
        for is_add in [true, false] {
            let changes = of("town", 0..ACCOUNTS_PER_CALL_MAX, is_add);
            let runs = runs(&changes);
            assert_eq!(runs.len(), ACCOUNTS_PER_CALL_MAX.div_ceil(ACCOUNTS_PER_LOOK_UP_MAX));
            let mut all = Vec::new();
            for run in runs {
                match run {
                    Run::Add("town", users) if is_add => all.extend(users),
                    Run::Take("town", users) if !is_add => all.extend(users),
                    other => panic!("{other:?}"),
                }
            }
            let expected = (0..ACCOUNTS_PER_CALL_MAX).map(|user| format!("user-{user}"));
            assert!(all.into_iter().eq(expected), "everybody once, in the order of the changes");
        }
    }

    #[test]
    fn changes_of_other_rooms_and_of_other_kinds_keep_their_place() {
        let settings = RoomSettings::default();
        let mut changes = vec![RoomChange::Put("a".into(), settings.clone())];
        changes.extend(of("a", 0..2, true));
        changes.extend(of("b", 0..1, true));
        changes.extend(of("a", 2..3, true));
        changes.extend(of("a", 0..2, false));
        changes.extend(of("a", 1..2, true));
        changes.push(RoomChange::Remove("a".into()));
        let expected = [
            Run::Put("a", &settings),
            Run::Add("a", vec!["user-0", "user-1"]),
            Run::Add("b", vec!["user-0"]),
            Run::Add("a", vec!["user-2"]),
            Run::Take("a", vec!["user-0", "user-1"]),
            Run::Add("a", vec!["user-1"]),
            Run::Remove("a"),
        ];
        assert_eq!(runs(&changes), expected);
    }
}
