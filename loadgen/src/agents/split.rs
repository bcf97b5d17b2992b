//! Splits a scenario into shares, one for each agent: a scenario each, with its part of the users and
//! of every rate.
//!
//! Conversations, groups and the room stay within an agent, because a message's way is measured from
//! one clock to the same clock, and verified from one memory. So users are split kind by kind, in pairs,
//! and each agent's users have a name of their own; groups are split as wholes; the room is the first
//! agent's. What cannot be split so is refused in a sentence. Thresholds and the verdict stay with the
//! coordinator. Nothing is sent here.

use millrace_service::Invalid;

use crate::{
    exit::RunError,
    population::Population,
    scenario::{PopulationSection, Protocol, Scenario, StageKind, plan::regulars},
};

/// Users of a kind that an agent must have: somebody to write to somebody.
const USERS_MIN: u32 = 2;

fn refuse(message: String) -> RunError {
    RunError::bad_arguments(message)
}

fn invalid(error: Invalid) -> RunError {
    RunError::bad_arguments(error.to_string())
}

/// Part `index` of `count` when `parts` share it: the parts differ by one at most and add up.
fn part(count: u32, index: u32, parts: u32) -> u32 {
    let until = |index: u32| u64::from(count) * u64::from(index) / u64::from(parts);
    (until(index + 1) - until(index)) as u32
}

/// The same in pairs; who has no partner is in the last part.
fn part_in_pairs(count: u32, index: u32, parts: u32) -> u32 {
    let odd = if index + 1 == parts { count % 2 } else { 0 };
    2 * part(count / 2, index, parts) + odd
}

/// How many users a behaviour finds: those of a kind, or everybody who is there from the start.
fn members(population: &Population, name: Option<&String>) -> u32 {
    let named = name.and_then(|name| population.parts.iter().find(|part| part.name == *name));
    let users = named.map_or_else(|| regulars(population), |part| part.users.clone());
    users.len() as u32
}

/// The shares of so many agents.
///
/// # Errors
/// The scenario makes no sense, or has something that cannot be split.
pub fn split(scenario: &Scenario, agents: u32) -> Result<Vec<Scenario>, RunError> {
    if scenario.protocol != Protocol::Millrace {
        return Err(refuse(
            "servers of others are loaded from one machine: agents split Millrace's own protocol \
             alone. Start a generator on each machine, each with a --user-prefix of its own"
                .to_owned(),
        ));
    }
    // The number of the run is in names only.
    let whole = scenario.plan(0).map_err(invalid)?.population;
    let groups = groups(scenario, &whole, agents)?;
    let shares = (0..agents).map(|index| share(scenario, &whole, (index, agents), &groups));
    shares.collect()
}

/// The users of an agent, before what they do.
fn crowd(scenario: &Scenario, index: u32, agents: u32) -> Result<Scenario, RunError> {
    let mut share = scenario.clone();
    let sections = match scenario.population.is_empty() {
        true => {
            vec![PopulationSection { name: "users".to_owned(), ..PopulationSection::default() }]
        }
        false => scenario.population.clone(),
    };
    let counts = scenario.counts().map_err(invalid)?;
    share.population = sections;
    for (section, count) in share.population.iter_mut().zip(counts) {
        let users = part_in_pairs(count, index, agents);
        if count > 0 && users < USERS_MIN {
            return Err(refuse(format!(
                "{count} users of the kind {} are too few for {agents} agents, which take at least \
                 {USERS_MIN} each: use fewer agents or more --connections",
                section.name
            )));
        }
        (section.share, section.count) = (None, Some(users));
    }
    share.connections = share.population.iter().filter_map(|section| section.count).sum();
    share.user_prefix = format!("{}-a{}", scenario.user_prefix, index + 1);
    Ok(share)
}

/// How many groups each agent has: as evenly as its users allow.
fn groups(scenario: &Scenario, whole: &Population, agents: u32) -> Result<Vec<u32>, RunError> {
    let Some(chat) = scenario.group_chat.as_ref().filter(|_| whole.groups > 0) else {
        return Ok(vec![0; agents as usize]);
    };
    let mut fitting = Vec::new();
    for index in 0..agents {
        let mut share = crowd(scenario, index, agents)?;
        (share.group_chat, share.room_broadcast) = (None, None);
        let population = share.plan(0).map_err(invalid)?.population;
        fitting.push(members(&population, chat.population.as_ref()) / chat.group_size);
    }
    if fitting.iter().map(|fit| u64::from(*fit)).sum::<u64>() < u64::from(whole.groups) {
        return Err(refuse(format!(
            "{} groups of {} members do not fit into {agents} agents, since a group stays within one: \
             use fewer agents, smaller or fewer groups, or more --connections",
            whole.groups, chat.group_size
        )));
    }
    let mut groups: Vec<u32> = (0..agents)
        .zip(&fitting)
        .map(|(index, fit)| part(whole.groups, index, agents).min(*fit))
        .collect();
    let mut left = whole.groups - groups.iter().sum::<u32>();
    for (groups, fit) in groups.iter_mut().zip(fitting) {
        let more = left.min(fit - *groups);
        (*groups, left) = (*groups + more, left - more);
    }
    Ok(groups)
}

/// One agent's share.
fn share(
    scenario: &Scenario,
    whole: &Population,
    (index, agents): (u32, u32),
    groups: &[u32],
) -> Result<Scenario, RunError> {
    let mut share = crowd(scenario, index, agents)?;
    let population = {
        let mut crowd = share.clone();
        (crowd.group_chat, crowd.room_broadcast) = (None, None);
        crowd.plan(0).map_err(invalid)?.population
    };
    let part_of = |name: Option<&String>| {
        f64::from(members(&population, name)) / f64::from(members(whole, name).max(1))
    };
    if let Some(chat) = &mut share.single_chat {
        chat.per_second *= part_of(chat.population.as_ref());
        chat.closed_loop = part(chat.closed_loop, index, agents);
    }
    let mine = groups[index as usize];
    share.group_chat = share.group_chat.filter(|_| mine > 0).map(|mut chat| {
        chat.per_second *= f64::from(mine) / f64::from(whole.groups);
        chat.groups = Some(mine);
        chat
    });
    if let Some(room) = share.room_broadcast.take().filter(|_| index == 0) {
        let users = members(&population, room.population.as_ref());
        if whole.room_size > users {
            return Err(refuse(format!(
                "the room has {} members, and an agent has {users} of those users: a room stays within \
                 one agent. Give room_broadcast.members, or use fewer agents",
                whole.room_size
            )));
        }
        share.room_broadcast =
            Some(crate::scenario::RoomBroadcast { members: Some(whole.room_size), ..room });
    }
    if let Some(beat) = &mut share.heartbeat {
        beat.per_second *= part_of(beat.population.as_ref());
        beat.closed_loop = part(beat.closed_loop, index, agents);
    }
    if let Some(storm) = &mut share.login_storm {
        storm.per_second *= part_of(Some(&storm.population));
    }
    for custom in &mut share.custom {
        custom.per_second *= part_of(custom.population.as_ref());
    }
    share.connect.per_second *= f64::from(share.connections) / f64::from(scenario.connections);
    // Other choices than the other agents make.
    share.seed = scenario.seed.wrapping_add(u64::from(index).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    // TOML has no number above this.
    share.seed &= i64::MAX as u64;
    share.thresholds.clear();
    // The steps of a search must have some, though nobody looks at them there.
    let judged = share.stage.iter_mut().filter(|stage| stage.kind != StageKind::Breakpoint);
    judged.for_each(|stage| stage.thresholds.clear());
    share.verdict.closed_between = None;
    share.target = crate::scenario::TargetSection::default();
    share.check().map_err(invalid)?;
    share.plan(0).map_err(invalid)?;
    Ok(share)
}

#[cfg(test)]
mod tests {
    use super::split;
    use crate::scenario::{Scenario, plan::Act};

    fn scenario(text: &str) -> Scenario {
        Scenario::parse(text, "t.toml").expect(text)
    }

    fn refusal(text: &str, agents: u32) -> String {
        split(&scenario(text), agents).expect_err(text).to_string()
    }

    /// A scenario of everything that can be split, of random size.
    fn random(random: &mut fastrand::Rng) -> (String, u32) {
        let agents = random.u32(1..9);
        let connections = agents * random.u32(100..1000);
        let visitors = agents * random.u32(2..40);
        let group_size = random.u32(2..10);
        let text = format!(
            "connections = {connections}\n\
             [connect]\nper_second = {}\n\
             [[population]]\nname = \"phones\"\nshare = 0.4\ntransport = \"tcp\"\n\
             [[population]]\nname = \"visitors\"\ncount = {visitors}\n\
             [[population]]\nname = \"browsers\"\nshare = {}\n\
             [single_chat]\nper_second = {}\nclosed_loop = {}\npopulation = \"phones\"\n\
             [group_chat]\nper_second = {}\ngroup_size = {group_size}\n\
             [room_broadcast]\nper_second = 3\nmembers = {}\n\
             [presence_churn]\nshare_per_minute = 0.1\n\
             [heartbeat]\nper_second = {}\npopulation = \"browsers\"\n\
             [login_storm]\nper_second = {}\npopulation = \"visitors\"\n\
             [[custom]]\ncommand = 0x300\nper_second = {}\nbody = \"x\"\n\
             [reconnect_storm]\nshare = 0.5\n\
             [generator]\nthreads = 2\n",
            random.u32(1..5000),
            0.6 - f64::from(visitors) / f64::from(connections),
            random.u32(0..5000),
            random.u32(0..10),
            random.u32(0..agents * 3),
            random.u32(2..20),
            random.u32(0..100),
            random.u32(0..100),
            random.u32(0..100),
        );
        (text, agents)
    }

    #[test]
    fn the_shares_together_are_the_whole() {
        let seed = fastrand::u64(..);
        let mut numbers = fastrand::Rng::with_seed(seed);
        for _ in 0..200 {
            let (text, agents) = random(&mut numbers);
            let whole = scenario(&text);
            let say = format!("seed {seed}, {agents} agents:\n{text}");
            let shares = split(&whole, agents).unwrap_or_else(|error| panic!("{say}{error}"));
            assert_eq!(shares.len(), agents as usize, "{say}");
            let plan = whole.plan(7).expect("a plan");
            let plans: Vec<_> = shares.iter().map(|one| one.plan(7).expect("a plan")).collect();
            let connections: u32 = shares.iter().map(|share| share.connections).sum();
            assert_eq!(connections, whole.connections, "{say}");
            // Nobody has a name of somebody else's.
            let mut prefixes: Vec<_> = shares.iter().map(|share| &share.user_prefix).collect();
            prefixes.dedup();
            assert_eq!(prefixes.len(), agents as usize, "{say}");
            // Each kind of users, and what each act asks of how many of them.
            for kind in &plan.population.parts {
                let sizes = plans.iter().map(|plan| {
                    let mine = plan.population.parts.iter().find(|part| part.name == kind.name);
                    mine.expect("every agent has every kind").users.len()
                });
                assert_eq!(sizes.sum::<usize>(), kind.users.len(), "{} {say}", kind.name);
            }
            for stream in &plan.streams {
                let mine = plans.iter().flat_map(|plan| &plan.streams);
                let mine: Vec<_> = mine.filter(|one| one.act == stream.act).collect();
                let rate: f64 = mine.iter().map(|one| one.per_second).sum();
                // A storm breaks whole sessions.
                let off = if stream.act == Act::Storm { f64::from(agents) } else { 1e-6 };
                assert!((rate - stream.per_second).abs() <= off, "{:?} {rate} {say}", stream.act);
                if stream.act != Act::Room {
                    let users: usize = mine.iter().map(|one| one.users.len()).sum();
                    assert_eq!(users, stream.users.len(), "{:?} {say}", stream.act);
                }
            }
            let sum = |of: &dyn Fn(&crate::scenario::plan::Plan) -> u32| plans.iter().map(of).sum();
            let groups: u32 = sum(&|plan| plan.population.groups);
            assert_eq!(groups, plan.population.groups, "{say}");
            let seats: u32 = sum(&|plan| plan.population.room_size);
            assert_eq!(seats, plan.population.room_size, "{say}");
            let closed: u32 = sum(&|plan| plan.chat_closed_below);
            assert_eq!(closed, plan.chat_closed_below, "{say}");
            let ramp: f64 = shares.iter().map(|share| share.connect.per_second).sum();
            assert!((ramp - whole.connect.per_second).abs() < 1e-6, "{say}");
            // What an agent is sent is what it reads.
            for share in &shares {
                let text = share.to_toml();
                let again = Scenario::parse(&text, "share.toml").expect(&text);
                assert_eq!(again.to_toml(), text);
            }
        }
    }

    #[test]
    fn what_cannot_be_split_is_refused_in_a_sentence() {
        let chat = "connections = 100\n[group_chat]\nper_second = 2\n";
        for (text, agents, words) in [
            ("connections = 7\n[generator]\nthreads = 1\n", 4, "too few for 4 agents"),
            ("protocol = \"mqtt\"\nconnections = 8\n", 2, "from one machine"),
            ("connections = 100\n[room_broadcast]\nper_second = 1\n", 2, "room_broadcast.members"),
            (&format!("{chat}group_size = 40\ngroups = 2"), 3, "do not fit into 3 agents"),
        ] {
            let said = refusal(text, agents);
            assert!(said.contains(words), "{said}");
        }
        let fits = format!("{chat}group_size = 40\ngroups = 2");
        let shares = split(&scenario(&fits), 2).expect("one each");
        assert!(
            shares
                .iter()
                .all(|share| share.group_chat.as_ref().is_some_and(|chat| chat.groups == Some(1)))
        );
    }

    #[test]
    fn every_preset_for_our_own_gateway_can_be_split() {
        for (name, text) in crate::scenario::presets::ALL {
            let result = split(&scenario(text), 2);
            let splits = !["mqtt", "websocket-echo"].contains(&name);
            assert_eq!(result.is_ok(), splits, "{name}: {:?}", result.err());
        }
    }
}
