//! The arguments of `agent`, and those with which `run` uses agents.

use std::{path::PathBuf, time::Duration};

use clap::Args;

use super::AGENTS_MAX;
use crate::{
    addresses::{Addresses, parse_addresses},
    cli::parse_duration,
    exit::RunError,
};

/// Largest token file.
const TOKEN_BYTES_MAX: u64 = 4096;
/// Shortest token that is taken.
const TOKEN_BYTES_MIN: usize = 16;

const EXAMPLES: &str = "\
Examples:
  On each of two machines, with the same secret in a file:
    millrace-loadgen agent --listen 10.0.0.11:7000 --token-file agents.token
    millrace-loadgen agent --listen 10.0.0.12:7000 --token-file agents.token

  On a third one, which opens no connection to the servers itself:
    millrace-loadgen run steady --tcp gateway.example:9000 --http http://logic.example:8082 \\
        --websocket ws://gateway.example:8080/ws --jwt-secret … --api-token … \\
        --agents 10.0.0.11:7000,10.0.0.12:7000 --agents-token-file agents.token --out report

Nothing between coordinator and agents is encrypted: a run's secrets (--jwt-secret, --api-token, the
key of login.key_file) and the token travel as they are. Use a private network. An agent without
--token-file does what anybody says who reaches its port: it opens connections to wherever it is told.

Exit codes: 0 ended by a signal, or the one run of --once came to its end; 104 bad arguments;
105 the one run was broken off; 121 the address cannot be listened on";

/// Waits for runs of a coordinator (`run --agents`), and makes its share of each load, one run after
/// another.
///
/// Coordinator and agents must be the same build. An agent whose machine cannot hold its share says so
/// before anything begins. It stops its load when the coordinator is gone, and waits again.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct AgentArguments {
    /// Address to listen on, of a private network.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7000")]
    pub listen: String,
    /// File with a secret of at least 16 bytes that a coordinator must know
    /// (`run --agents-token-file`). Without one anybody may use this agent who reaches its port, and
    /// only a private network will do.
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// End after one run.
    #[arg(long)]
    pub once: bool,
    /// Addresses of this machine to connect from, by turns: A,B,C or FIRST-LAST.
    #[arg(long, value_name = "LIST", value_parser = parse_addresses)]
    pub source_addresses: Option<Addresses>,
    /// For tests on one machine: a wall clock that is wrong by so many milliseconds.
    #[arg(
        long,
        value_name = "MS",
        hide = true,
        default_value_t = 0,
        allow_negative_numbers = true
    )]
    pub clock_ahead_ms: i64,
}

/// The part of `run` about other machines.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Many machines")]
pub struct AgentsArguments {
    /// Machines on which `millrace-loadgen agent` waits: the load is split over them, and none is made
    /// here. At most 64.
    #[arg(long, value_name = "HOST:PORT,…", value_delimiter = ',')]
    pub agents: Vec<String>,
    /// File with the agents' secret.
    #[arg(long, value_name = "FILE", requires = "agents")]
    pub agents_token_file: Option<PathBuf>,
    /// An agent from which nothing is heard for so long is lost, and the run with it; an agent that
    /// hears nothing for so long stops. 2s to 10m.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    pub agent_silence_max: Duration,
}

impl AgentsArguments {
    /// Finds what makes no sense.
    ///
    /// # Errors
    /// It, in a sentence.
    pub fn check(&self) -> Result<(), RunError> {
        let bad = |message: String| Err(RunError::bad_arguments(message));
        if self.agents.len() > AGENTS_MAX {
            return bad(format!("--agents: at most {AGENTS_MAX}"));
        }
        for (index, address) in self.agents.iter().enumerate() {
            let port = address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
            if port.is_none() || address.contains(['/', '@', ' ']) {
                return bad(format!("--agents {address}: write HOST:PORT, separated by commas"));
            }
            if self.agents[..index].contains(address) {
                return bad(format!("--agents: {address} is there twice"));
            }
        }
        let silence = self.agent_silence_max;
        if silence < Duration::from_secs(2) || silence > Duration::from_secs(600) {
            return bad("--agent-silence-max must be from 2s to 10m".to_owned());
        }
        Ok(())
    }
}

/// Reads a secret, without the white space around it.
///
/// # Errors
/// The file cannot be read, or holds no secret worth the name.
pub fn read_token(option: &str, path: &PathBuf) -> Result<String, RunError> {
    let bad =
        |what: String| RunError::bad_arguments(format!("{option} {}: {what}", path.display()));
    let size = std::fs::metadata(path).map_err(|error| bad(error.to_string()))?.len();
    if size > TOKEN_BYTES_MAX {
        return Err(bad(format!("{size} bytes are too many for a token")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
    let token = text.trim();
    let is_plain = token.bytes().all(|byte| byte.is_ascii_graphic());
    if token.len() < TOKEN_BYTES_MIN || !is_plain {
        return Err(bad(format!(
            "a token has at least {TOKEN_BYTES_MIN} characters of ASCII and no space, as \
             openssl rand -hex 32 makes it"
        )));
    }
    Ok(token.to_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{AgentsArguments, read_token};

    fn check(agents: &[&str], silence_s: u64) -> Result<(), String> {
        let agents = agents.iter().map(|address| (*address).to_owned()).collect();
        let agent_silence_max = Duration::from_secs(silence_s);
        let arguments = AgentsArguments { agents, agents_token_file: None, agent_silence_max };
        arguments.check().map_err(|error| error.to_string())
    }

    #[test]
    fn addresses_of_agents_are_checked_before_anybody_is_called() {
        assert_eq!(check(&["a:7000", "[::1]:7000", "10.0.0.1:1"], 10), Ok(()));
        for (agents, silence_s, words) in [
            (&["a"][..], 10, "HOST:PORT"),
            (&["http://a:7000"], 10, "HOST:PORT"),
            (&["a:99999"], 10, "HOST:PORT"),
            (&["a:1", "b:1", "a:1"], 10, "twice"),
            (&["a:1"], 1, "2s to 10m"),
        ] {
            let said = check(agents, silence_s).expect_err("nonsense");
            assert!(said.contains(words), "{said}");
        }
        let many: Vec<String> = (0..65).map(|number| format!("a{number}:1")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(check(&many, 10).expect_err("too many").contains("64"));
    }

    #[test]
    fn a_token_is_long_enough_to_be_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("token");
        std::fs::write(&path, "  0123456789abcdef\n").expect("written");
        assert_eq!(read_token("--token-file", &path).expect("good"), "0123456789abcdef");
        for bad in ["", "short", "0123456789 abcdef", &"x".repeat(5000)] {
            std::fs::write(&path, bad).expect("written");
            let said = read_token("--token-file", &path).expect_err(bad).to_string();
            assert!(said.starts_with("--token-file"), "{said}");
        }
    }
}
