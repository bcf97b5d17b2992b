//! What a configuration says about the fleet that this gateway is part of: its logic endpoints, which are
//! the homes of its sessions, and what would go wrong among several gateways and logics.
//!
//! It judges and words; it starts nothing. Asking name servers is apart, because only `check` waits
//! for them.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use millrace_service::Invalid;
use tokio::time::{Instant, timeout_at};

use crate::{
    admin::redact,
    config::Config,
    link::{Endpoints, ask, one_family},
};

/// How long all lookups may take together: a start waits for `check`, and does not depend on them.
const LOOK_UP_MAX: Duration = Duration::from_secs(5);

/// Names of hosts that many machines have.
const COMMON_HOSTS: [&str; 5] =
    ["localhost", "localhost.localdomain", "debian", "(none)", "gateway"];

/// A gateway among its logic processes.
#[derive(Clone, Debug)]
pub struct Fleet {
    /// The name that logic knows this gateway by.
    gateway_id: String,
    endpoints: Endpoints,
    /// What each entry came to: one line each, in order.
    lines: Vec<String>,
    notes: Vec<Note>,
    endpoints_max: usize,
}

/// Something that is to be looked at, with its remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// What is wrong or may be, and what to do, in one sentence or two.
    pub text: String,
    /// Whether it is wrong for certain, and not only if more gateways are like this one.
    pub is_wrong: bool,
}

impl Fleet {
    /// What the configuration says by itself.
    ///
    /// # Errors
    /// The entry of `logic.endpoints` that cannot be used.
    pub fn of(config: &Config) -> Result<Self, Invalid> {
        let endpoints = config.logic_endpoints()?;
        let mut fleet = Self {
            gateway_id: config.gateway_id(),
            lines: Vec::new(),
            notes: Vec::new(),
            endpoints_max: config.logic.endpoints_max,
            endpoints,
        };
        fleet.describe(config);
        fleet.judge(config);
        Ok(fleet)
    }

    fn describe(&mut self, config: &Config) {
        let fixed = self.endpoints.fixed.iter().map(|fixed| redact(&fixed.uri));
        let interval = config.logic.resolve_interval;
        let names = self
            .endpoints
            .names
            .iter()
            .map(|name| format!("{name}: each of its addresses, looked up every {interval}"));
        self.lines = fixed.chain(names).collect();
    }

    /// Whether there may be more than one logic, and so more than one gateway.
    fn is_fleet(&self) -> bool {
        self.endpoints.fixed.len() > 1 || !self.endpoints.names.is_empty()
    }

    fn note(&mut self, is_wrong: bool, text: String) {
        self.notes.push(Note { text, is_wrong });
    }

    fn judge(&mut self, config: &Config) {
        for repeated in self.endpoints.repeated.clone() {
            let text = format!(
                "logic.endpoints names {} twice; the second is left out, because a logic takes one \
                 stream from each shard. Fix: remove it",
                redact(&repeated)
            );
            self.note(true, text);
        }
        if !self.is_fleet() {
            return;
        }
        if config.gateway.id.is_empty() {
            let is_wrong = COMMON_HOSTS.contains(&&*self.gateway_id);
            let text = format!(
                "gateway.id is empty, so logic knows this gateway as {:?}, the name of its host; of two \
                 gateways with one name logic takes the older for dead, and ends its sessions. Fix: an id \
                 for each gateway, unless each has a host name of its own, as pods have",
                self.gateway_id
            );
            self.note(is_wrong, text);
        }
        let listens = [
            (&config.listen.websocket, &config.gateway.public_websocket, "public_websocket"),
            (&config.listen.tcp, &config.gateway.public_tcp, "public_tcp"),
        ];
        for (listen, public, key) in listens {
            let everywhere =
                listen.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_unspecified());
            if everywhere && public.is_empty() {
                let text = format!(
                    "gateway.{key} is empty and {listen} is no address to connect to, so \
                     GET /v1/gateways/assign gives this gateway to nobody. Fix: say where clients \
                     reach it, unless a load balancer sends them here"
                );
                self.note(false, text);
            }
        }
    }

    /// Asks for the names, for [`LOOK_UP_MAX`] at most, and judges what they come to. What is still being
    /// asked then goes on, on threads of the runtime: shut it down without waiting.
    pub async fn look_up(&mut self) {
        let deadline = Instant::now() + LOOK_UP_MAX;
        let mut known: BTreeSet<SocketAddr> =
            self.endpoints.fixed.iter().filter_map(|fixed| fixed.address()).collect();
        let fixed = self.endpoints.fixed.len();
        for at in 0..self.endpoints.names.len() {
            let name = self.endpoints.names[at].clone();
            match in_time(deadline, ask(&name)).await.map(one_family) {
                Ok(addresses) => {
                    let shown: Vec<_> = addresses.iter().map(ToString::to_string).collect();
                    let count = addresses.len();
                    let noun = if count == 1 { "address" } else { "addresses" };
                    let line = format!(", now {count} {noun}: {}", shown.join(", "));
                    self.lines[fixed + at] += &line;
                    known.extend(addresses);
                }
                Err(reason) => {
                    self.lines[fixed + at] += ", now none";
                    let text = format!(
                        "{name} cannot be looked up here ({reason}); the gateway starts all the same, \
                         and asks again until it can. Fix: the name in logic.endpoints, or the name \
                         server in /etc/resolv.conf"
                    );
                    self.note(true, text);
                }
            }
        }
        if !self.endpoints.names.is_empty() && known.len() > self.endpoints_max {
            let text = format!(
                "there are {} endpoints, and logic.endpoints_max is {}: the others get no link. Fix: \
                 raise it, at most 64",
                known.len(),
                self.endpoints_max
            );
            self.note(true, text);
        }
        self.look_up_hosts(deadline).await;
    }

    /// Hosts of URIs: one of their addresses is used, whichever answers.
    async fn look_up_hosts(&mut self, deadline: Instant) {
        for fixed in self.endpoints.fixed.clone() {
            if fixed.address().is_some() {
                continue;
            }
            let (host, port) = fixed.host_and_port();
            let uri = redact(&fixed.uri);
            let asked = async {
                let addresses = tokio::net::lookup_host((host, port)).await;
                addresses.map(Iterator::collect).map_err(|error| error.to_string())
            };
            match in_time(deadline, asked).await.map(one_family) {
                Ok(addresses) if addresses.len() > 1 => {
                    let text = format!(
                        "{host} has {} addresses, and {uri} is a link to one of them at a time. Fix, if \
                         each is a logic process: \"dns:{host}:{port}\"",
                        addresses.len()
                    );
                    self.note(true, text);
                }
                Ok(_) => {}
                Err(reason) => {
                    let text = format!(
                        "{host} of {uri} cannot be looked up here ({reason}); the gateway starts all the \
                         same, and tries again until it can. Fix: the name in logic.endpoints, or the \
                         name server in /etc/resolv.conf"
                    );
                    self.note(true, text);
                }
            }
        }
    }

    /// The endpoints, in order, as one line.
    pub fn endpoints(&self) -> String {
        self.lines.join("; ")
    }

    /// The name that logic knows this gateway by.
    pub fn gateway_id(&self) -> &str {
        &self.gateway_id
    }

    /// What is to be looked at.
    pub fn notes(&self) -> &[Note] {
        &self.notes
    }

    /// Everything, line by line.
    pub fn report(&self) -> String {
        let homes = match self.is_fleet() {
            true => "sessions are spread over all of them",
            false => "the home of every session",
        };
        let mut lines = vec![format!(
            "gateway {:?}; its logic endpoints, each linked with every shard ({homes}):",
            self.gateway_id
        )];
        lines.extend(self.lines.iter().map(|line| format!("  {line}")));
        lines.extend(self.notes.iter().map(|note| {
            let mark = if note.is_wrong { "MEND" } else { "look" };
            format!("  {mark} {}", note.text)
        }));
        lines.join("\n")
    }
}

/// What is answered until then.
async fn in_time(
    deadline: Instant,
    asked: impl Future<Output = Result<BTreeSet<SocketAddr>, String>>,
) -> Result<BTreeSet<SocketAddr>, String> {
    let answer = timeout_at(deadline, asked).await;
    answer.unwrap_or_else(|_| Err(format!("no answer within {LOOK_UP_MAX:?}")))
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::{Fleet, in_time};
    use crate::config::Config;

    fn fleet(endpoints: &[&str], change: impl FnOnce(&mut Config)) -> Fleet {
        let mut config = Config::default();
        config.logic.endpoints = endpoints.iter().map(|text| (*text).to_owned()).collect();
        change(&mut config);
        config.check().expect("valid");
        Fleet::of(&config).expect("valid")
    }

    fn notes(fleet: &Fleet) -> Vec<(&str, bool)> {
        let first = |text| str::split_whitespace(text).next().unwrap_or_default();
        fleet.notes().iter().map(|note| (first(&note.text), note.is_wrong)).collect()
    }

    #[test]
    fn one_gateway_and_one_logic_need_nothing() {
        assert_eq!(fleet(&["http://127.0.0.1:9700"], |_| {}).notes(), []);
    }

    #[test]
    fn a_fleet_is_told_what_several_gateways_need() {
        for endpoints in
            [&["http://10.0.0.1:9700", "http://10.0.0.2:9700"][..], &["dns:logic:9700"]]
        {
            let bare = fleet(endpoints, |_| {});
            let found = notes(&bare);
            assert_eq!(found.len(), 3, "{}", bare.report());
            assert_eq!(found[0].0, "gateway.id");
            assert_eq!(
                (found[1], found[2]),
                (("gateway.public_websocket", false), ("gateway.public_tcp", false))
            );
            let said = fleet(endpoints, |config| {
                config.gateway.id = "gw1".to_owned();
                config.gateway.public_websocket = "wss://gw1.example/ws".to_owned();
                config.listen.tcp = "127.0.0.1:8081".to_owned();
            });
            assert_eq!(said.notes(), [], "{}", said.report());
            assert_eq!(said.gateway_id(), "gw1");
        }
    }

    #[test]
    fn an_endpoint_that_is_listed_twice_is_said() {
        let twice = ["http://u:secret@logic:9700", "http://u:secret@logic:9700"];
        let twice = fleet(&twice, |_| {});
        assert_eq!(notes(&twice), [("logic.endpoints", true)]);
        let report = twice.report();
        assert!(
            report.contains("http://***@logic:9700 twice") && !report.contains("secret"),
            "{report}"
        );
    }

    #[test]
    fn names_are_looked_up_when_asked_for_and_said_when_they_are_not_known() {
        let listed =
            ["http://10.0.0.1:9700", "dns:localhost:9700", "dns:-..-:9700", "http://-..-:9700"];
        let mut fleet = fleet(&listed, |config| config.gateway.id = "gw1".to_owned());
        assert!(
            fleet
                .endpoints()
                .contains("; dns:localhost:9700: each of its addresses, looked up every 5s;")
        );
        let before = fleet.notes().len();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(fleet.look_up());
        let report = fleet.report();
        assert!(
            report.contains(
                "dns:localhost:9700: each of its addresses, looked up every 5s, now 1 address: "
            ),
            "{report}"
        );
        let new: Vec<_> = fleet.notes()[before..].iter().map(|note| &*note.text).collect();
        assert_eq!(new.len(), 2, "{report}");
        assert!(new[0].starts_with("dns:-..-:9700 cannot be looked up here ("), "{report}");
        assert!(
            new[1].starts_with("-..- of http://-..-:9700 cannot be looked up here ("),
            "{report}"
        );
    }

    #[test]
    fn a_name_server_that_never_answers_is_not_waited_for() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let answer = in_time(Instant::now(), std::future::pending()).await;
            assert_eq!(answer, Err("no answer within 5s".to_owned()));
        });
    }

    #[test]
    fn more_addresses_than_links_are_said() {
        let mut fleet = fleet(&["dns:localhost:9700"], |config| config.logic.endpoints_max = 1);
        fleet.endpoints_max = 0;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(fleet.look_up());
        let report = fleet.report();
        assert!(
            report.contains("MEND there are 1 endpoints, and logic.endpoints_max is 0"),
            "{report}"
        );
    }
}
