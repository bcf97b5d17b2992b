//! `doctor`: whether this machine can open the wanted connections, and the exact command for each
//! thing that stands in the way.
//!
//! [`facts`] reads what the kernel says, [`checks`] judges it without looking at anything else.
//! Nothing is changed: the commands are printed, and somebody else runs them.

mod arguments;
pub mod checks;
pub mod facts;

use std::fmt::Write as _;

use serde::Serialize;

pub use self::arguments::DoctorArguments;
use crate::exit::Exit;

/// Version of the JSON.
pub const SCHEMA_VERSION: u32 = 1;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It will do.
    Ok,
    /// It could not be read.
    Unknown,
    /// The run works, but slower or less exactly.
    Warn,
    /// The run will not reach its connections.
    Fail,
}

/// One thing looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// Its name, the same in every version.
    pub name: &'static str,
    /// How it ended.
    pub status: Status,
    /// What was found and what is needed, in words.
    pub finding: String,
    /// Commands that mend it, each to be pasted as root; empty if it is fine.
    pub fix: Vec<String>,
    /// What a command cannot do.
    pub advice: Option<String>,
}

/// See the module.
#[derive(Clone, Debug, Serialize)]
pub struct Diagnosis {
    /// Version of this structure.
    pub schema_version: u32,
    /// Whether nothing failed.
    pub passed: bool,
    /// Of the process: 0 or 121.
    pub exit_code: u8,
    /// What was wanted, in words.
    pub wanted: String,
    /// In the order in which one would look.
    pub checks: Vec<Check>,
}

impl Diagnosis {
    /// Judges the facts.
    pub fn new(wanted: &checks::Wanted, facts: &facts::Facts) -> Self {
        let checks = checks::all(wanted, facts);
        let passed = checks.iter().all(|check| check.status != Status::Fail);
        let exit = if passed { Exit::Ok } else { Exit::Preflight };
        Self {
            schema_version: SCHEMA_VERSION,
            passed,
            exit_code: exit as u8,
            wanted: wanted.to_string(),
            checks,
        }
    }

    /// All commands, each once.
    pub fn commands(&self) -> Vec<&str> {
        let mut commands: Vec<&str> = Vec::new();
        for command in self.checks.iter().flat_map(|check| &check.fix) {
            if !commands.contains(&command.as_str()) {
                commands.push(command);
            }
        }
        commands
    }

    /// A script of nothing but the commands.
    pub fn to_script(&self) -> String {
        let mut out = format!("# {}\n", self.wanted);
        for command in self.commands() {
            out.push_str(command);
            out.push('\n');
        }
        out
    }

    /// For a person.
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        self.write(&mut out).expect("writing to a string does not fail");
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "{}\n", self.wanted)?;
        for check in &self.checks {
            let mark = match check.status {
                Status::Ok => "ok",
                Status::Unknown => "?",
                Status::Warn => "WARN",
                Status::Fail => "FAIL",
            };
            writeln!(out, "{mark:<5} {:<17} {}", check.name, check.finding)?;
            if let Some(advice) = &check.advice {
                writeln!(out, "{:23} {advice}", "")?;
            }
            for command in &check.fix {
                writeln!(out, "{:23} fix: {command}", "")?;
            }
        }
        let count = |status| self.checks.iter().filter(|check| check.status == status).count();
        let (failed, warned) = (count(Status::Fail), count(Status::Warn));
        match (failed, warned) {
            (0, 0) => writeln!(out, "\nThis machine is ready."),
            (0, _) => writeln!(
                out,
                "\nThis machine can do it; {warned} of {} checks could be better.",
                self.checks.len()
            ),
            _ => writeln!(
                out,
                "\nNot yet: {failed} of {} checks failed, {warned} could be better (exit {}).",
                self.checks.len(),
                self.exit_code
            ),
        }?;
        let commands = self.commands();
        if !commands.is_empty() {
            writeln!(
                out,
                "\nAll of it at once, as root; sysctl lines without \"sysctl -w\" belong into /etc/sysctl.d/90-millrace.conf to outlive a reboot:\n"
            )?;
            commands.iter().try_for_each(|command| writeln!(out, "    {command}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
