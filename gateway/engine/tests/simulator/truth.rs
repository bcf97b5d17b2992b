//! What is true of all logics together, noted in the moments in which the engine hands a batch over or
//! is given one: which session is at home where, who has ended, who is in which room, and what must
//! reach whom. It judges the engine by that, whatever is lost or late on the way.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use fastrand::Rng;
use millrace_engine::LinkId;
use millrace_protocol::{
    Code,
    command::{ERROR, REPORT},
    link::{
        ConnectRequest, ConnectResponse, RoomMembership, gateway_event::Kind as Event,
        logic_event::Kind,
    },
};

use super::logic::number_of;

/// Gone sessions that are remembered.
const GONE_MAX: usize = 40;

/// The sessions listed on a stream, and the members named for each room.
type Listed = (BTreeSet<u64>, BTreeSet<(String, u64)>);

/// The books.
#[derive(Debug, Default)]
pub struct Truth {
    /// By session: the link that has heard of it and not of its end.
    homes: BTreeMap<u64, LinkId>,
    /// By session: requests handed over and not answered.
    in_flight: BTreeMap<u64, Vec<u32>>,
    /// By session: the number of the last frame handed over.
    last_numbers: BTreeMap<u64, u64>,
    /// By link: what was listed on the present stream, before SessionsComplete.
    listed: BTreeMap<LinkId, Listed>,
    /// Memberships of a session that moved, which its new home is still to hear of.
    moved_rooms: BTreeMap<u64, BTreeSet<String>>,
    rooms: BTreeMap<String, BTreeSet<u64>>,
    /// Who was logged in by the engine.
    live: BTreeSet<u64>,
    /// Sessions whose connections are no more, the latest last: a late message of a logic's to one of
    /// them is nobody's.
    gone: VecDeque<u64>,
    /// By session: the numbers in what was given to the engine for it, in order.
    pub pushed: BTreeMap<u64, Vec<u64>>,
    /// Sessions whose end, which is not a move, was handed over.
    pub ended: BTreeSet<u64>,
    /// Sessions that some logic accepted.
    pub accepted: BTreeSet<u64>,
    /// Whom a logic closed.
    pub closed: BTreeSet<u64>,
    /// Memberships listed at the beginning of a stream or with a session that moved.
    pub memberships_listed: u64,
    /// Sessions handed to another home while both links were up.
    pub moves: u64,
    /// Sessions listed after SessionsComplete that did not come by a move.
    pub taken_in: u64,
    /// Frames handed over.
    pub frames: u64,
    /// Times a logic said `logic_unavailable` to a login.
    pub said_unavailable: u64,
    /// Sessions on their way from one home to another.
    moving: BTreeSet<u64>,
    next_push: u64,
}

impl Truth {
    /// A number for what a logic pushes; all logics together use each once.
    pub fn next_push(&mut self) -> u64 {
        self.next_push += 1;
        self.next_push
    }

    /// A connection is no more. Logic may still speak to its session, out of turn or by mistake.
    pub fn is_gone(&mut self, session_id: u64) {
        self.gone.push_back(session_id);
        if self.gone.len() > GONE_MAX {
            self.gone.pop_front();
        }
        self.live.remove(&session_id);
        for members in self.rooms.values_mut() {
            members.remove(&session_id);
        }
        assert!(
            !self.homes.contains_key(&session_id) || !self.moving.contains(&session_id),
            "two homes"
        );
    }

    /// A session that is no more, if there was one.
    pub fn any_gone(&self, random: &mut Rng) -> Option<u64> {
        let place = random.usize(..self.gone.len().max(1));
        self.gone.get(place).copied()
    }

    /// Sessions that some link has heard of, and not of their end.
    pub fn with_a_home(&self) -> Vec<u64> {
        self.homes.keys().copied().collect()
    }

    /// A stream has ended: nobody is at home there.
    pub fn link_down(&mut self, link: LinkId) {
        let gone: Vec<u64> =
            self.homes.iter().filter(|(_, home)| **home == link).map(|(id, _)| *id).collect();
        for id in gone {
            self.homes.remove(&id);
            self.in_flight.remove(&id);
            self.moved_rooms.remove(&id);
        }
        self.listed.remove(&link);
        // Whoever was on the way there is without a home now.
        self.moving.clear();
    }

    fn rooms_of(&self, session_id: u64) -> BTreeSet<String> {
        let of = self.rooms.iter().filter(|(_, members)| members.contains(&session_id));
        of.map(|(room, _)| room.clone()).collect()
    }

    /// The engine has handed a batch over; `is_active` says whether a session lives on there.
    pub fn handed(
        &mut self,
        link: LinkId,
        batch: &ConnectRequest,
        is_active: impl Fn(u64) -> bool,
    ) {
        for event in &batch.events {
            match event.kind.as_ref().expect("an event is something") {
                Event::Hello(_) => {
                    self.listed.insert(link, Default::default());
                }
                Event::Session(session) => {
                    let id = session.session_id;
                    assert!(!self.ended.contains(&id), "session {id} has ended");
                    assert_eq!(self.homes.insert(id, link), None, "session {id} has a home");
                    let was_moved = self.moving.remove(&id);
                    if session.moved {
                        assert!(!self.listed.contains_key(&link), "moved during the list");
                        self.moves += u64::from(was_moved);
                        self.taken_in += u64::from(!was_moved);
                        self.moved_rooms.insert(id, self.rooms_of(id));
                    } else {
                        let (listed, _) = self.listed.get_mut(&link).expect("within the list");
                        assert!(listed.insert(id), "listed once");
                    }
                }
                Event::RoomMembers(room) => {
                    for id in &room.session_ids {
                        self.memberships_listed += 1;
                        assert_eq!(self.homes.get(id), Some(&link), "members are at home here");
                        if let Some((listed, named)) = self.listed.get_mut(&link) {
                            assert!(listed.contains(id), "members are sessions that were listed");
                            named.insert((room.room_id.clone(), *id));
                        } else {
                            let rooms = self.moved_rooms.get_mut(id).expect("it has moved");
                            let was_expected = rooms.remove(&room.room_id);
                            assert!(was_expected || !is_active(*id), "{id}: {}", room.room_id);
                        }
                    }
                }
                Event::SessionsComplete(complete) => {
                    let (listed, named) = self.listed.remove(&link).expect("completed once");
                    assert_eq!(complete.sessions, listed.len() as u64);
                    for (room, members) in &self.rooms {
                        for id in members.iter().filter(|id| self.homes.get(id) == Some(&link)) {
                            let is_named = named.contains(&(room.clone(), *id));
                            assert!(is_named || !is_active(*id), "{id} of {room}: unlisted");
                        }
                    }
                }
                Event::SessionEnded(ended) => {
                    let id = ended.session_id;
                    assert_eq!(self.homes.remove(&id), Some(link), "an end is told at home");
                    let asked = self.in_flight.remove(&id).unwrap_or_default();
                    let untold = self.moved_rooms.remove(&id).unwrap_or_default();
                    if ended.moved {
                        assert!(asked.is_empty(), "moved with requests in flight");
                        assert!(untold.is_empty(), "moved on before its rooms were told");
                        self.moving.insert(id);
                    } else {
                        assert!(self.ended.insert(id), "session {id} ends twice");
                    }
                }
                Event::Frame(frame) => {
                    let id = frame.session_id;
                    self.frames += 1;
                    assert_eq!(self.homes.get(&id), Some(&link), "a frame goes home");
                    let untold = self.moved_rooms.remove(&id).unwrap_or_default();
                    assert_eq!(untold, BTreeSet::new(), "a frame before its rooms");
                    let number = number_of(&frame.body);
                    let last = self.last_numbers.insert(id, number).unwrap_or(0);
                    assert!(number > last, "frames leave once and in order");
                    if frame.request_id != 0 {
                        assert_ne!(frame.command, u32::from(REPORT));
                        self.in_flight.entry(id).or_default().push(frame.request_id);
                    }
                }
                Event::Refresh(refresh) => {
                    assert_eq!(self.homes.get(&refresh.session_id), Some(&link));
                }
                Event::Login(login) => {
                    // One whose answer was lost with a link may be tried again, anywhere.
                    assert!(!self.homes.contains_key(&login.session_id), "it is at home already");
                    assert!(!self.listed.contains_key(&link), "a login within the list");
                }
                Event::Drained(_) => {}
            }
        }
    }

    /// The engine gets this batch now: what it must pass on, if the sessions still live.
    pub fn delivered(&mut self, link: LinkId, batch: &ConnectResponse) {
        for event in &batch.events {
            match event.kind.as_ref().expect("an event is something") {
                Kind::LoginResult(result) if result.code == Code::Ok.number() => {
                    // Its connection may have gone: then its end follows.
                    self.homes.insert(result.session_id, link);
                    self.ended.remove(&result.session_id);
                    if !self.gone.contains(&result.session_id) {
                        self.live.insert(result.session_id);
                    }
                }
                Kind::LoginResult(result) if result.code == Code::LogicUnavailable.number() => {
                    self.said_unavailable += 1;
                }
                Kind::SendFrame(frame) if frame.request_id != 0 => {
                    let asked = self.in_flight.entry(frame.session_ids[0]).or_default();
                    if let Some(at) = asked.iter().position(|id| *id == frame.request_id) {
                        asked.swap_remove(at);
                    }
                    assert_ne!(frame.command, u32::from(ERROR));
                }
                Kind::SendFrame(frame) => {
                    let number = number_of(&frame.body);
                    for session_id in &frame.session_ids {
                        self.pushed.entry(*session_id).or_default().push(number);
                    }
                }
                Kind::RoomFrame(frame) => {
                    let number = number_of(&frame.body_json);
                    for member in self.rooms.get(&frame.room_id).into_iter().flatten() {
                        if *member != frame.except_session_id {
                            self.pushed.entry(*member).or_default().push(number);
                        }
                    }
                }
                Kind::BroadcastFrame(frame) => {
                    let number = number_of(&frame.body_json);
                    for session_id in &self.live {
                        self.pushed.entry(*session_id).or_default().push(number);
                    }
                }
                Kind::RoomMembership(change) => self.membership(link, change),
                _ => {}
            }
        }
    }

    fn membership(&mut self, link: LinkId, change: &RoomMembership) {
        let homes = &self.homes;
        let at_home = |id: &&u64| homes.get(id) == Some(&link);
        let members = self.rooms.entry(change.room_id.clone()).or_default();
        for id in change.join_session_ids.iter().filter(at_home) {
            members.insert(*id);
        }
        for id in change.leave_session_ids.iter().filter(at_home) {
            members.remove(id);
        }
    }
}
