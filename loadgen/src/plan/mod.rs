//! `plan`: which machines a load takes, computed from the measured ledger.
//!
//! Each tier is the smallest number of equal machines in which nobody holds more connections than
//! were ever observed in one process, needs more memory than the machine has, or more of its cores
//! than may be used. It measures nothing and changes nothing.

mod arguments;
mod text;

use serde::Serialize;

pub use self::arguments::PlanArguments;
use crate::{
    exit::RunError,
    ledger::{Basis, Figure, Ledger, MessageCost},
};

/// Version of the JSON.
pub const SCHEMA_VERSION: u32 = 1;
/// Above so many machines of a tier the request is a slip of the pen.
const MACHINES_MAX: u64 = 100_000;
/// What a process takes before its first connection, roughly; beside a plan's gigabytes it is dust.
const PROCESS_BYTES: f64 = 64e6;

/// What is to be carried.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Demand {
    /// Sessions, one connection each.
    pub connections: u64,
    /// Single-chat messages a second.
    pub messages_per_second: f64,
    /// Group messages a second.
    pub group_messages_per_second: f64,
    /// Members of each group.
    pub group_size: u64,
    /// Members of a live room.
    pub room_members: u64,
    /// Messages to it a second.
    pub room_messages_per_second: f64,
    /// Between two heartbeats of a connection.
    pub heartbeat_seconds: f64,
    /// In which everybody connects.
    pub ramp_seconds: f64,
    /// Share of the connections that go and come back in a minute.
    pub churn_per_minute: f64,
}

impl Demand {
    /// Chat messages a second, single and group.
    pub fn messages(&self) -> f64 {
        self.messages_per_second + self.group_messages_per_second
    }

    /// Deliveries of group messages beyond the first of each message.
    fn more_deliveries(&self) -> f64 {
        self.group_messages_per_second * (self.group_size as f64 - 2.0).max(0.0)
    }

    /// Room messages that arrive with members, a second.
    pub fn room_deliveries(&self) -> f64 {
        self.room_messages_per_second * (self.room_members as f64 - 1.0).max(0.0)
    }

    /// Heartbeats a second of everybody.
    pub fn heartbeats(&self) -> f64 {
        self.connections as f64 / self.heartbeat_seconds
    }

    /// Logins a second while everybody arrives.
    pub fn ramp_logins(&self) -> f64 {
        self.connections as f64 / self.ramp_seconds
    }

    /// Logins a second of those who come back.
    pub fn churn_logins(&self) -> f64 {
        self.connections as f64 * self.churn_per_minute / 60.0
    }
}

/// A machine of a tier.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Machine {
    /// Cores.
    pub cores: f64,
    /// Memory in bytes.
    pub memory_bytes: u64,
}

/// The machines there are.
#[derive(Clone, Debug, Serialize)]
pub struct Supply {
    /// Those of the generator.
    pub agent: Machine,
    /// Those of the gateway.
    pub gateway: Machine,
    /// Those of logic.
    pub logic: Machine,
    /// Share of cores and memory that a plan may use, 0 to 1.
    pub utilization: f64,
    /// Ephemeral ports of a source address, as `net.ipv4.ip_local_port_range` has them.
    pub ports: u32,
    /// Addresses and ports that an agent connects to; `None`: one for each gateway.
    pub destinations: Option<u64>,
}

/// Which costs of the ledger apply.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Agents,
    Gateways,
    Logics,
}

/// A tier's machines.
#[derive(Clone, Debug, Serialize)]
pub struct Tier {
    /// agents, gateways or logics.
    pub name: &'static str,
    /// How many.
    pub count: u64,
    /// Why not fewer, in words; empty for one.
    pub bound_by: Vec<String>,
    /// What each of them carries and needs.
    pub each: Vec<Line>,
}

/// One value for each machine of a tier.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// Its name.
    pub name: &'static str,
    /// In `unit`.
    pub value: f64,
    /// connections, B, cores, 1/s, addresses, ports.
    pub unit: &'static str,
    /// How it is computed, in words with the figures used.
    pub how: String,
    /// Whether every figure in it was measured; `None`: it is only arithmetic on what was asked.
    pub basis: Option<Basis>,
}

/// A figure of the ledger that the plan rests on.
#[derive(Clone, Debug, Serialize)]
pub struct Used {
    /// Its name in the ledger.
    pub name: String,
    /// The figure.
    #[serde(flatten)]
    pub figure: Figure,
}

/// See the module.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// Version of this structure.
    pub schema_version: u32,
    /// Version of the program whose ledger it is.
    pub tool_version: &'static str,
    /// What was asked for.
    pub demand: Demand,
    /// From what.
    pub supply: Supply,
    /// Agents, gateways, logics.
    pub tiers: Vec<Tier>,
    /// What the ledger does not know and the plan supposes.
    pub assumptions: Vec<String>,
    /// The figures it rests on.
    pub figures: Vec<Used>,
    /// The machine on which they were measured.
    pub measured_on: String,
}

/// What one machine of a tier has to carry if there are `count` of them.
struct Share {
    connections: f64,
    message: MessageCost,
    messages: f64,
    cores_load: f64,
    cores_ramp: f64,
    memory: f64,
}

impl Share {
    fn new(kind: Kind, demand: &Demand, ledger: &Ledger, count: u64) -> Self {
        let parts = count as f64;
        let connections = (demand.connections as f64 / parts).ceil();
        let messages = demand.messages() / parts;
        let message = ledger.message_cost(messages);
        let us = |figure: &Figure| figure.value;
        let (message_us, login_us, heartbeat_us, room_us) = match kind {
            Kind::Agents => (
                message.generator_us,
                us(&ledger.generator_us_per_login),
                us(&ledger.generator_us_per_heartbeat),
                us(&ledger.generator_us_per_room_delivery),
            ),
            Kind::Gateways => (
                message.gateway_us,
                us(&ledger.gateway_us_per_login),
                us(&ledger.gateway_us_per_heartbeat),
                us(&ledger.gateway_us_per_room_delivery),
            ),
            Kind::Logics => (message.logic_us, us(&ledger.logic_us_per_login), 0.0, 0.0),
        };
        let heartbeats = demand.heartbeats() * heartbeat_us;
        // A delivery is half of what a message is to a gateway or an agent: request and reply are
        // the other half.
        let deliveries = match kind {
            Kind::Logics => 0.0,
            Kind::Agents | Kind::Gateways => demand.more_deliveries() * message_us / 2.0,
        };
        let load = demand.messages() * message_us
            + deliveries
            + demand.room_deliveries() * room_us
            + heartbeats
            + demand.churn_logins() * login_us;
        let ramp = demand.ramp_logins() * login_us + heartbeats;
        Self {
            connections,
            messages,
            message,
            cores_load: load / parts / 1e6,
            cores_ramp: ramp / parts / 1e6,
            memory: PROCESS_BYTES + connections * bytes_per_connection(kind, ledger),
        }
    }

    fn cores(&self) -> f64 {
        self.cores_load.max(self.cores_ramp)
    }
}

/// Memory of a connection under load at one tier, the kernel's socket included.
fn bytes_per_connection(kind: Kind, ledger: &Ledger) -> f64 {
    let kernel = ledger.kernel_bytes_per_connection_end.value;
    match kind {
        Kind::Agents => ledger.generator_bytes_per_connection_peak.value + kernel,
        Kind::Gateways => ledger.gateway_bytes_per_connection_peak.value + kernel,
        Kind::Logics => ledger.logic_bytes_per_session_peak.value,
    }
}

/// Why a number of machines is too small, in words.
fn objections(kind: Kind, share: &Share, supply: &Supply, ledger: &Ledger) -> Vec<String> {
    let machine = supply.machine(kind);
    let mut objections = Vec::new();
    let most = match kind {
        Kind::Agents => Some(ledger.connections_per_agent_max.value),
        Kind::Gateways => Some(ledger.connections_per_gateway_max.value),
        Kind::Logics => None,
    };
    if most.is_some_and(|most| share.connections > most) {
        objections.push("more connections in one process were never measured".to_owned());
    }
    if kind == Kind::Logics && share.messages > ledger.messages_per_logic_max.value {
        objections.push("more messages a second through one store were never measured".to_owned());
    }
    if share.memory > machine.memory_bytes as f64 * supply.utilization {
        objections.push("memory".to_owned());
    }
    if share.cores() > machine.cores * supply.utilization {
        let when = if share.cores_ramp > share.cores_load { "the ramp" } else { "the load" };
        objections.push(format!("cores during {when}"));
    }
    objections
}

impl Supply {
    fn machine(&self, kind: Kind) -> Machine {
        match kind {
            Kind::Agents => self.agent,
            Kind::Gateways => self.gateway,
            Kind::Logics => self.logic,
        }
    }
}

/// Computes the machines.
///
/// # Errors
/// The machines are too small to carry anything, or the load is beyond all reason.
pub fn plan(demand: &Demand, supply: &Supply, ledger: &Ledger) -> Result<Plan, RunError> {
    let gateways = tier(Kind::Gateways, demand, supply, ledger)?;
    let logics = tier(Kind::Logics, demand, supply, ledger)?;
    let mut agents = tier(Kind::Agents, demand, supply, ledger)?;
    let destinations = supply.destinations.unwrap_or(gateways.count).max(1);
    addresses(&mut agents, supply, ledger, destinations);
    let assumptions = assumptions(demand, &gateways, &logics);
    Ok(Plan {
        schema_version: SCHEMA_VERSION,
        tool_version: env!("CARGO_PKG_VERSION"),
        demand: demand.clone(),
        supply: supply.clone(),
        tiers: vec![agents, gateways, logics],
        assumptions,
        figures: figures(ledger),
        measured_on: ledger.machine.clone(),
    })
}

fn tier(kind: Kind, demand: &Demand, supply: &Supply, ledger: &Ledger) -> Result<Tier, RunError> {
    let name = match kind {
        Kind::Agents => "agents",
        Kind::Gateways => "gateways",
        Kind::Logics => "logics",
    };
    let mut bound_by = Vec::new();
    for count in 1..=MACHINES_MAX {
        let share = Share::new(kind, demand, ledger, count);
        let objections = objections(kind, &share, supply, ledger);
        if objections.is_empty() {
            let each = lines(kind, demand, &share, ledger, count);
            return Ok(Tier { name, count, bound_by, each });
        }
        bound_by = objections;
    }
    Err(RunError::bad_arguments(format!(
        "not even {MACHINES_MAX} {name} carry that ({}): give larger machines, or ask for less",
        bound_by.join("; ")
    )))
}

fn lines(kind: Kind, demand: &Demand, share: &Share, ledger: &Ledger, count: u64) -> Vec<Line> {
    use crate::figures::{bytes, count as number, plain, significant};
    let parts = count as f64;
    let mut lines = vec![Line {
        name: "connections",
        value: share.connections,
        unit: "connections",
        how: format!("{} / {count}", number(demand.connections)),
        basis: None,
    }];
    let own = match kind {
        Kind::Agents => &ledger.generator_bytes_per_connection_peak,
        Kind::Gateways => &ledger.gateway_bytes_per_connection_peak,
        Kind::Logics => &ledger.logic_bytes_per_session_peak,
    };
    let kernel = &ledger.kernel_bytes_per_connection_end;
    let per_connection = match kind {
        Kind::Logics => format!("{} B {}", number(own.value as u64), own.basis.label()),
        Kind::Agents | Kind::Gateways => format!(
            "({} B {} + {} B of the kernel, {})",
            number(own.value as u64),
            own.basis.label(),
            number(kernel.value as u64),
            kernel.basis.label()
        ),
    };
    lines.push(Line {
        name: "memory",
        value: share.memory,
        unit: "B",
        how: format!(
            "{} × {per_connection} + {} for the process",
            number(share.connections as u64),
            bytes(PROCESS_BYTES)
        ),
        basis: Some(if kind == Kind::Logics { own.basis } else { kernel.basis }),
    });
    if demand.messages() > 0.0 {
        let us = match kind {
            Kind::Agents => share.message.generator_us,
            Kind::Gateways => share.message.gateway_us,
            Kind::Logics => share.message.logic_us,
        };
        lines.push(Line {
            name: "messages",
            value: share.messages,
            unit: "1/s",
            how: format!(
                "{} µs each at that rate, {}",
                significant(us),
                share.message.basis.label()
            ),
            basis: None,
        });
    }
    if kind != Kind::Logics {
        lines.push(Line {
            name: "heartbeats",
            value: demand.heartbeats() / parts,
            unit: "1/s",
            how: format!("one a connection in {} s", plain(demand.heartbeat_seconds)),
            basis: None,
        });
        if demand.room_deliveries() > 0.0 {
            lines.push(Line {
                name: "room deliveries",
                value: demand.room_deliveries() / parts,
                unit: "1/s",
                how: "each message to every other member".to_owned(),
                basis: None,
            });
        }
    }
    lines.push(Line {
        name: "logins in the ramp",
        value: demand.ramp_logins() / parts,
        unit: "1/s",
        how: format!("everybody within {} s", plain(demand.ramp_seconds)),
        basis: None,
    });
    lines.push(Line {
        name: "cores in the ramp",
        value: share.cores_ramp,
        unit: "cores",
        how: "logins and heartbeats at their price".to_owned(),
        basis: Some(Basis::Derived),
    });
    lines.push(Line {
        name: "cores in the load",
        value: share.cores_load,
        unit: "cores",
        how: "messages, deliveries, heartbeats and returns at their price".to_owned(),
        basis: Some(if demand.heartbeats() > 0.0 { Basis::Derived } else { share.message.basis }),
    });
    lines
}

/// What an agent needs of addresses and ports.
fn addresses(agents: &mut Tier, supply: &Supply, ledger: &Ledger, destinations: u64) {
    use crate::figures::count;
    let connections = agents.each[0].value;
    let share = &ledger.port_share;
    let usable = (f64::from(supply.ports) * share.value).floor().max(1.0);
    let addresses = (connections / (usable * destinations as f64)).ceil().max(1.0);
    agents.each.push(Line {
        name: "source addresses",
        value: addresses,
        unit: "addresses",
        how: format!(
            "{} connections / ({} usable of {} ports × {destinations} destinations)",
            count(connections as u64),
            count(usable as u64),
            count(u64::from(supply.ports))
        ),
        basis: Some(share.basis),
    });
    agents.each.push(Line {
        name: "ports of each address",
        value: (connections / (addresses * destinations as f64)).ceil(),
        unit: "ports",
        how: "to each destination".to_owned(),
        basis: None,
    });
}

fn assumptions(demand: &Demand, gateways: &Tier, logics: &Tier) -> Vec<String> {
    let mut assumptions = vec![
        "every core of a machine carries as much as a core of the measuring machine, and twice \
         the cores carry twice the load: the ledger was measured on two"
            .to_owned(),
        "connections and messages are spread evenly over the machines".to_owned(),
    ];
    if logics.count > 1 {
        assumptions.push(
            "several logics share a PostgreSQL and a Redis (docs/storage.md): what these take, and \
             what a message through them costs, is not in the ledger; the figures are those of the \
             embedded store"
                .to_owned(),
        );
    }
    if gateways.count > 1 {
        assumptions.push(
            "a load balancer or the clients' list of addresses spreads the connections; it is not \
             planned here"
                .to_owned(),
        );
    }
    if demand.group_messages_per_second > 0.0 {
        assumptions.push(
            "a further delivery of a group message costs a gateway half a message".to_owned(),
        );
    }
    assumptions
}

fn figures(ledger: &Ledger) -> Vec<Used> {
    let named = [
        ("gateway_bytes_per_connection_peak", &ledger.gateway_bytes_per_connection_peak),
        ("logic_bytes_per_session_peak", &ledger.logic_bytes_per_session_peak),
        ("generator_bytes_per_connection_peak", &ledger.generator_bytes_per_connection_peak),
        ("kernel_bytes_per_connection_end", &ledger.kernel_bytes_per_connection_end),
        ("gateway_us_per_login", &ledger.gateway_us_per_login),
        ("logic_us_per_login", &ledger.logic_us_per_login),
        ("generator_us_per_login", &ledger.generator_us_per_login),
        ("gateway_us_per_heartbeat", &ledger.gateway_us_per_heartbeat),
        ("generator_us_per_heartbeat", &ledger.generator_us_per_heartbeat),
        ("gateway_us_per_room_delivery", &ledger.gateway_us_per_room_delivery),
        ("generator_us_per_room_delivery", &ledger.generator_us_per_room_delivery),
        ("connections_per_gateway_max", &ledger.connections_per_gateway_max),
        ("connections_per_agent_max", &ledger.connections_per_agent_max),
        ("messages_per_logic_max", &ledger.messages_per_logic_max),
        ("port_share", &ledger.port_share),
    ];
    let mut used: Vec<Used> = named
        .into_iter()
        .map(|(name, figure)| Used { name: name.to_owned(), figure: figure.clone() })
        .collect();
    for cost in &ledger.message_cost {
        for (tier, value) in [
            ("gateway", cost.gateway_us),
            ("logic", cost.logic_us),
            ("generator", cost.generator_us),
        ] {
            used.push(Used {
                name: format!("{tier}_us_per_message at {}/s", cost.per_second),
                figure: Figure {
                    value,
                    unit: "us".to_owned(),
                    basis: cost.basis,
                    source: cost.source.clone(),
                },
            });
        }
    }
    used
}

#[cfg(test)]
mod tests;
