//! What makes no sense in a scenario although every key is known, said with the key's place.

use millrace_service::{Duration, Invalid};

use super::{Protocol, Scenario, Stage, StageKind, TokenAlgorithm};

/// Rates above this are a slip of the keyboard.
const PER_SECOND_MAX: f64 = 10_000_000.0;
const STAGES_MAX: usize = 1000;
const CONNECTIONS_MAX: u32 = 5_000_000;
const CUSTOM_MAX: usize = 16;

fn bad(key: &str, message: impl Into<String>) -> Result<(), Invalid> {
    Err(Invalid::new(key, message))
}

fn within(key: &str, value: f64, from: f64, to: f64) -> Result<(), Invalid> {
    if (from..=to).contains(&value) {
        return Ok(());
    }
    bad(key, format!("{value} must be from {from} to {to}"))
}

fn rate(key: &str, value: f64) -> Result<(), Invalid> {
    within(key, value, 0.0, PER_SECOND_MAX)
}

impl Scenario {
    /// Finds what makes no sense.
    ///
    /// # Errors
    /// The first such key, and why.
    pub fn check(&self) -> Result<(), Invalid> {
        within("connections", f64::from(self.connections), 1.0, f64::from(CONNECTIONS_MAX))?;
        if self.user_prefix.is_empty() || self.user_prefix.len() > 100 {
            return bad("user_prefix", "must have 1 to 100 bytes");
        }
        within("generator.threads", f64::from(self.generator.threads), 1.0, 256.0)?;
        if self.connections < self.generator.threads {
            return bad("connections", "must be at least generator.threads");
        }
        within("generator.cpu_max", self.generator.cpu_max, 0.01, 1.0)?;
        within("generator.waited_max", self.generator.waited_max, 0.01, 1.0)?;
        if self.generator.window < Duration::from_millis(100) {
            return bad("generator.window", "must be at least \"100ms\"");
        }
        if self.generator.windows_max == 0 {
            return bad("generator.windows_max", "must be at least 1");
        }
        if self.connect.per_second <= 0.0 {
            return bad("connect.per_second", "must be above 0");
        }
        rate("connect.per_second", self.connect.per_second)?;
        if self.login.algorithm != TokenAlgorithm::HS256 && self.login.key_file.is_none() {
            return bad("login.algorithm", "needs login.key_file, a private key in PEM");
        }
        self.check_protocol()?;
        self.check_populations()?;
        self.check_behaviours()?;
        self.check_custom()?;
        if self.stage.len() > STAGES_MAX {
            return bad("stage", format!("at most {STAGES_MAX} stages"));
        }
        self.stage.iter().enumerate().try_for_each(|(index, stage)| check_stage(index, stage))?;
        let searches = self.stage.iter().filter(|stage| stage.kind == StageKind::Breakpoint);
        if searches.count() > 1 {
            return bad("stage", "only one breakpoint search in a run");
        }
        let is_search = |stage: &Stage| stage.kind == StageKind::Breakpoint;
        if let Some(search) = self.stage.iter().find(|stage| is_search(stage))
            && search.thresholds.is_empty()
        {
            return bad("stage", "a breakpoint search needs thresholds: what must hold in a step");
        }
        if self.stage.iter().position(is_search).is_some_and(|at| at + 1 < self.stage.len()) {
            return bad("stage", "a breakpoint search must be the last stage");
        }
        if let Some((from, to)) = self.verdict.closed_between
            && from > to
        {
            return bad("verdict.closed_between", "ends before it begins");
        }
        Ok(())
    }

    fn check_populations(&self) -> Result<(), Invalid> {
        for (index, part) in self.population.iter().enumerate() {
            let name = &part.name;
            if name.is_empty() {
                return bad("population", format!("number {} has no name", index + 1));
            }
            if self.population[..index].iter().any(|other| other.name == *name) {
                return bad("population", format!("{name} is there twice"));
            }
            match (part.share, part.count) {
                (Some(_), Some(_)) => {
                    return bad("population", format!("{name}: give share or count, not both"));
                }
                (None, None) if self.population.len() > 1 => {
                    return bad("population", format!("{name}: give share (0 to 1) or count"));
                }
                (Some(share), _) if !(0.0..=1.0).contains(&share) => {
                    return bad("population", format!("{name}: share {share} must be 0 to 1"));
                }
                _ => {}
            }
            if !(0.0..=1.0).contains(&part.websocket_share) {
                return bad("population", format!("{name}: websocket_share must be 0 to 1"));
            }
            if part.devices.values().any(|weight| !weight.is_finite() || *weight <= 0.0) {
                return bad("population", format!("{name}: weights of devices must be above 0"));
            }
        }
        self.counts().map(|_| ())
    }

    /// How many users each kind has.
    ///
    /// # Errors
    /// They do not add up to `connections`.
    pub(crate) fn counts(&self) -> Result<Vec<u32>, Invalid> {
        if self.population.is_empty() {
            return Ok(vec![self.connections]);
        }
        let all = f64::from(self.connections);
        let mut counts: Vec<u32> = self
            .population
            .iter()
            .map(|part| match (part.share, part.count) {
                (_, Some(count)) => count,
                (Some(share), None) => (all * share).round() as u32,
                (None, None) => self.connections,
            })
            .collect();
        let sum: u64 = counts.iter().map(|count| u64::from(*count)).sum();
        // The last kind with a share takes what rounding left; more than that is a mistake.
        let slack = i64::from(self.connections) - sum as i64;
        let by_share = self.population.iter().rposition(|part| part.count.is_none());
        let rounding = slack.unsigned_abs() <= self.population.len() as u64;
        match by_share {
            _ if slack == 0 => {}
            Some(at) if rounding && i64::from(counts[at]) + slack >= 0 => {
                counts[at] = (i64::from(counts[at]) + slack) as u32;
            }
            _ => {
                return Err(Invalid::new(
                    "population",
                    format!("the kinds have {sum} users, connections are {}", self.connections),
                ));
            }
        }
        Ok(counts)
    }

    /// Checks the name of a kind of users; `None` is everybody.
    fn known(&self, key: &str, name: Option<&String>) -> Result<(), Invalid> {
        let Some(name) = name else { return Ok(()) };
        if self.population.iter().any(|part| part.name == *name) {
            return Ok(());
        }
        let names: Vec<&str> = self.population.iter().map(|part| part.name.as_str()).collect();
        let known = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        bad(key, format!("there is no [[population]] {name}; there are: {known}"))
    }

    fn check_behaviours(&self) -> Result<(), Invalid> {
        if let Some(chat) = &self.single_chat {
            rate("single_chat.per_second", chat.per_second)?;
            self.known("single_chat.population", chat.population.as_ref())?;
            if self.connections < 2 && self.protocol != Protocol::WebsocketEcho {
                return bad("connections", "must be at least 2 for a chat");
            }
        }
        if let Some(chat) = &self.group_chat {
            rate("group_chat.per_second", chat.per_second)?;
            self.known("group_chat.population", chat.population.as_ref())?;
            if chat.per_second > 0.0
                && (chat.group_size < 2 || chat.group_size < self.generator.threads)
            {
                return bad("group_chat.group_size", "must be at least 2, and generator.threads");
            }
        }
        if let Some(room) = &self.room_broadcast {
            rate("room_broadcast.per_second", room.per_second)?;
            self.known("room_broadcast.population", room.population.as_ref())?;
            if room.members == Some(1) {
                return bad("room_broadcast.members", "must be at least 2");
            }
        }
        if let Some(churn) = &self.presence_churn {
            within("presence_churn.share_per_minute", churn.share_per_minute, 0.0, 60.0)?;
            self.known("presence_churn.population", churn.population.as_ref())?;
            if churn.away_min > churn.away_max {
                return bad("presence_churn.away_min", "is longer than away_max");
            }
        }
        if let Some(beat) = &self.heartbeat {
            rate("heartbeat.per_second", beat.per_second)?;
            self.known("heartbeat.population", beat.population.as_ref())?;
        }
        if let Some(slow) = &self.slow_reader {
            self.known("slow_reader.population", Some(&slow.population))?;
            if slow.pause == Duration::default() || slow.pause >= Duration::from_secs(10) {
                return bad("slow_reader.pause", "must be above 0 and below \"10s\"");
            }
        }
        if let Some(storm) = &self.reconnect_storm {
            within("reconnect_storm.share", storm.share, 0.0, 1.0)?;
            if storm.within == Duration::default() {
                return bad("reconnect_storm.within", "must be above 0");
            }
        }
        if let Some(storm) = &self.login_storm {
            rate("login_storm.per_second", storm.per_second)?;
            self.known("login_storm.population", Some(&storm.population))?;
            let elsewhere = [
                ("single_chat", self.single_chat.as_ref().and_then(|b| b.population.as_ref())),
                ("group_chat", self.group_chat.as_ref().and_then(|b| b.population.as_ref())),
                (
                    "room_broadcast",
                    self.room_broadcast.as_ref().and_then(|b| b.population.as_ref()),
                ),
                ("heartbeat", self.heartbeat.as_ref().and_then(|b| b.population.as_ref())),
            ];
            if let Some((key, _)) =
                elsewhere.iter().find(|(_, name)| *name == Some(&storm.population))
            {
                return bad(key, "its population belongs to login_storm and is not always there");
            }
            if self.population.len() < 2 {
                return bad("login_storm.population", "somebody else must stay: add a population");
            }
        }
        Ok(())
    }

    fn check_custom(&self) -> Result<(), Invalid> {
        if self.custom.len() > CUSTOM_MAX {
            return bad("custom", format!("at most {CUSTOM_MAX} kinds of frames"));
        }
        for custom in &self.custom {
            let command = custom.command;
            if !(0x0100..0x8000).contains(&command) {
                let message = format!("command {command:#06x} must be from 0x0100 to 0x7fff");
                return bad("custom", message);
            }
            rate("custom", custom.per_second)?;
            self.known("custom", custom.population.as_ref())?;
            if custom.body.is_some() && custom.body_hex.is_some() {
                return bad("custom", "give body or body_hex, not both");
            }
            if custom.body_hex.as_ref().is_some_and(|digits| super::plan::hex(digits).is_none()) {
                return bad("custom", "body_hex must be pairs of hexadecimal digits");
            }
        }
        Ok(())
    }
}

fn check_stage(index: usize, stage: &Stage) -> Result<(), Invalid> {
    let number = index + 1;
    let say = |message: &str| bad("stage", format!("number {number}: {message}"));
    if stage.duration == Duration::default() {
        return say("duration must be above 0");
    }
    if stage.duration > Duration::from_secs(30 * 24 * 3600) {
        return say("duration must be at most 30 days");
    }
    let factors = [stage.load, stage.from, stage.to];
    if factors.iter().any(|factor| !(0.0..=1e6).contains(factor)) {
        return say("load, from and to are factors from 0 to 1000000");
    }
    if let Some(fault) = stage.thresholds.iter().find(|threshold| threshold.is_of_the_whole_run()) {
        return say(&format!(
            "{} is known of the whole run only: write it into thresholds at the top",
            fault.text
        ));
    }
    if stage.kind == StageKind::Breakpoint {
        if stage.steps < 2 || stage.steps > 500 {
            return say("steps must be 2 to 500");
        }
        if stage.from >= stage.to || stage.from <= 0.0 {
            return say("from must be above 0 and below to");
        }
    }
    Ok(())
}
