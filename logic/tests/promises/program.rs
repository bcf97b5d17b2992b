//! What happens in one run: a list of steps made from a seed, and its reduction to the few that
//! matter when a promise was broken.
//!
//! A step names devices, groups and messages by number; the run takes the number modulo what there
//! is, so that any part of a program is a program.

use fastrand::Rng;

/// Users of a world, each with [`DEVICES_PER_USER`] devices.
pub const USERS: usize = 4;
/// Devices of a user.
pub const DEVICES_PER_USER: usize = 2;
/// Groups that somebody makes in the first steps.
pub const GROUPS: usize = 2;
/// Gateways, of one shard each.
pub const GATEWAYS: usize = 2;

/// What happens.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// A device connects through a gateway, logs in and looks for what it has missed.
    Login {
        device: usize,
        gateway: usize,
    },
    /// It goes.
    Logout {
        device: usize,
    },
    /// Its app is installed again: everything it kept is gone, but for what it still has to send.
    Reinstall {
        device: usize,
    },
    /// To another user, to oneself, or to a group.
    Send {
        device: usize,
        to: usize,
        counts: bool,
    },
    /// A message that was sent already, under the same id.
    SendAgain {
        device: usize,
        which: usize,
    },
    /// Everything up to the newest without a gap, less `back`, has arrived; with or without an id.
    Acknowledge {
        device: usize,
        talk: usize,
        back: u64,
        wants_reply: bool,
    },
    /// The same, read.
    Read {
        device: usize,
        talk: usize,
        back: u64,
    },
    Revoke {
        device: usize,
        talk: usize,
        back: u64,
    },
    Delete {
        device: usize,
        talk: usize,
        back: u64,
    },
    Join {
        device: usize,
        group: usize,
    },
    Leave {
        device: usize,
        group: usize,
    },
    Invite {
        device: usize,
        group: usize,
        user: usize,
    },
    Remove {
        device: usize,
        group: usize,
        user: usize,
    },
    Mute {
        device: usize,
        talk: usize,
        on: bool,
    },
    /// Asks for the list of conversations and for what is missing.
    Sync {
        device: usize,
    },
    /// The stream of a gateway breaks and is opened again.
    BreakLink {
        gateway: usize,
    },
    /// A gateway's process dies with its connections.
    KillGateway {
        gateway: usize,
    },
    /// Logic dies at once. `reopen`: the store is opened anew too.
    Kill {
        reopen: bool,
    },
    /// Logic dies when it comes to this point for the `after`th time from now.
    KillAt {
        point: Point,
        after: u32,
        reopen: bool,
    },
    /// Logic dies when one gateway has read so many of its events and the others none.
    KillInFanOut {
        gateway: usize,
        events: usize,
    },
    /// Everything comes to rest, and what must hold then is looked at.
    Rest,
}

/// Where logic can be made to die, beside anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// The processor has handed a commit to the store; nothing of it is there yet.
    Accepted,
    /// The commit is durable, and the processor does not know.
    Stored,
    /// The processor knows; the stage that delivers does not.
    Answered,
    /// A catch-up is about to read what a session has missed.
    CatchUp,
    /// It has read it, and pushed nothing.
    CaughtUp,
    /// A page or a list was read for a client.
    PageRead,
}

const POINTS: [Point; 6] = [
    Point::Accepted,
    Point::Stored,
    Point::Answered,
    Point::CatchUp,
    Point::CaughtUp,
    Point::PageRead,
];

/// An operation, and how far things go before the next.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    pub op: Op,
    /// Turns that the tasks of logic get.
    pub turns: usize,
    /// Which gateways then read, bit by bit.
    pub readers: u8,
}

/// Bounds that differ between worlds, so that queues are full and batches small now and then.
#[derive(Clone, Debug, PartialEq)]
pub struct Bounds {
    pub queued_max: usize,
    pub commit_writes_max: usize,
    pub commits_in_flight_max: usize,
    pub deliver_messages_max: usize,
    pub catch_up_messages_max: usize,
    pub batch_events_max: usize,
    /// Receipts wait until so many have gathered; 0: none waits.
    pub receipts_gathered: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    pub seed: u64,
    pub bounds: Bounds,
    pub steps: Vec<Step>,
}

impl Program {
    pub fn from_seed(seed: u64) -> Self {
        let mut random = Rng::with_seed(seed);
        let bounds = Bounds {
            queued_max: *random.choice([1, 4, 64].iter()).expect("some"),
            commit_writes_max: *random.choice([1, 3, 1_000].iter()).expect("some"),
            commits_in_flight_max: *random.choice([1, 2, 16].iter()).expect("some"),
            deliver_messages_max: *random.choice([1, 3, 64].iter()).expect("some"),
            catch_up_messages_max: *random.choice([2, 5, 20].iter()).expect("some"),
            batch_events_max: *random.choice([1, 4_096].iter()).expect("some"),
            receipts_gathered: *random.choice([0, 3].iter()).expect("some"),
        };
        let count = random.usize(25..80);
        let mut steps: Vec<Step> = Vec::with_capacity(count + 4);
        // Most are there from the beginning.
        for device in 0..USERS * DEVICES_PER_USER - 2 {
            let op = Op::Login { device, gateway: device % GATEWAYS };
            steps.push(Step { op, turns: 40, readers: 3 });
        }
        while steps.len() < count {
            let op = op(&mut random);
            let turns = match random.u8(..4) {
                0 => 0,
                1 => random.usize(..8),
                _ => random.usize(..60),
            };
            steps.push(Step { op, turns, readers: random.u8(..4) });
        }
        Self { seed, bounds, steps }
    }

    /// The shortest part that is found for which `fails` still says why.
    pub fn shortened(&self, mut fails: impl FnMut(&Self) -> Option<String>) -> Self {
        let mut shortest = self.clone();
        let mut size = shortest.steps.len().div_ceil(2);
        let mut attempts = 600;
        while size > 0 && attempts > 0 {
            let mut from = 0;
            let mut is_shorter = false;
            while from < shortest.steps.len() && attempts > 0 {
                attempts -= 1;
                let mut part = shortest.clone();
                let until = (from + size).min(part.steps.len());
                part.steps.drain(from..until);
                if fails(&part).is_some() {
                    shortest = part;
                    is_shorter = true;
                } else {
                    from += size;
                }
            }
            if size == 1 && !is_shorter {
                break;
            }
            size = if size == 1 { 1 } else { size.div_ceil(2) };
        }
        shortest
    }
}

fn op(random: &mut Rng) -> Op {
    let device = random.usize(..USERS * DEVICES_PER_USER);
    // Mostly the first of the list, so that more happens in one.
    let talk = if random.bool() { 0 } else { random.usize(..8) };
    let group = random.usize(..GROUPS);
    let (gateway, user) = (random.usize(..GATEWAYS), random.usize(..USERS));
    let back = if random.bool() { 0 } else { random.u64(..6) };
    match random.u8(..100) {
        0..=9 => Op::Login { device, gateway },
        10..=13 => Op::Logout { device },
        14 => Op::Reinstall { device },
        15..=42 => {
            Op::Send { device, to: random.usize(..USERS + 2 * GROUPS), counts: random.u8(..5) > 0 }
        }
        43..=46 => Op::SendAgain { device, which: random.usize(..8) },
        47..=53 => Op::Acknowledge { device, talk, back, wants_reply: random.bool() },
        54..=60 => Op::Read { device, talk, back },
        61..=65 => Op::Revoke { device, talk, back },
        66..=69 => Op::Delete { device, talk, back },
        70..=72 => Op::Join { device, group },
        73..=74 => Op::Leave { device, group },
        75..=76 => Op::Invite { device, group, user },
        77..=79 => Op::Remove { device, group, user },
        80 => Op::Mute { device, talk, on: random.bool() },
        81..=84 => Op::Sync { device },
        85..=87 => Op::BreakLink { gateway },
        88 => Op::KillGateway { gateway },
        89..=90 => Op::Kill { reopen: random.u8(..8) == 0 },
        91..=95 => {
            let point = *random.choice(POINTS.iter()).expect("some");
            Op::KillAt { point, after: random.u32(..4), reopen: random.u8(..8) == 0 }
        }
        96..=97 => Op::KillInFanOut { gateway, events: random.usize(..6) },
        _ => Op::Rest,
    }
}
