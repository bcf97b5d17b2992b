//! Which gateway a client should use: by what gateways announce of themselves on the link, and by
//! how many sessions they have.
//!
//! A gateway is given only while it is linked, does not drain, has an address and is not full. Of
//! those the emptiest in proportion to what it can hold is given. Clients need a moment to arrive, so
//! what was given lately counts as if it were there already.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use millrace_logic_sdk::{GatewayStatus, Refused};
use millrace_protocol::{
    Code,
    api::{
        AssignGatewayRequest, AssignGatewayResponse, Gateway, ListGatewaysRequest,
        ListGatewaysResponse,
    },
};

use super::{Chat, Core};
use crate::api::gateways::GatewaysApi;

/// How long a given gateway counts as one session more.
const ARRIVAL: Duration = Duration::from_secs(5);

/// What a gateway that does not say is taken to hold, in connections.
const CONNECTIONS_ASSUMED: u64 = 100_000;

/// What was given lately. At most one entry for each gateway that is linked.
#[derive(Default)]
pub(crate) struct Assigned {
    lately: Mutex<HashMap<String, Lately>>,
}

/// Counts of the present and the previous interval of [`ARRIVAL`].
struct Lately {
    began: Instant,
    present: u64,
    previous: u64,
}

impl Lately {
    fn advance(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.began);
        if passed >= ARRIVAL {
            self.previous = if passed < 2 * ARRIVAL { self.present } else { 0 };
            self.present = 0;
            self.began = now;
        }
    }
}

impl Assigned {
    /// The emptiest of the gateways that clients may be sent to.
    fn choose(&self, gateways: &[Gateway], now: Instant) -> Option<Gateway> {
        let mut lately = self.lately.lock().unwrap_or_else(PoisonError::into_inner);
        lately.retain(|id, _| gateways.iter().any(|gateway| gateway.gateway_id == *id));
        lately.values_mut().for_each(|given| given.advance(now));
        let expected = |gateway: &Gateway| {
            let given = lately.get(&gateway.gateway_id);
            gateway.sessions + given.map_or(0, |given| given.present + given.previous)
        };
        let holds = |gateway: &Gateway| match gateway.connections_max {
            0 => CONNECTIONS_ASSUMED,
            max => max,
        };
        // Compared without division: a / b < c / d as a × d < c × b.
        let emptier = |a: &&Gateway, b: &&Gateway| {
            let product = |one: &Gateway, other: &Gateway| {
                u128::from(expected(one)) * u128::from(holds(other))
            };
            product(a, b).cmp(&product(b, a)).then_with(|| a.gateway_id.cmp(&b.gateway_id))
        };
        let chosen = gateways.iter().filter(|gateway| gateway.assignable).min_by(emptier)?.clone();
        let new = Lately { began: now, present: 0, previous: 0 };
        lately.entry(chosen.gateway_id.clone()).or_insert(new).present += 1;
        Some(chosen)
    }
}

/// The shards of each gateway taken together, by name.
fn together(shards: Vec<GatewayStatus>) -> Vec<Gateway> {
    let mut gateways: HashMap<String, (Gateway, u64)> = HashMap::new();
    for shard in shards {
        let id = shard.gateway_id.to_string();
        let (gateway, epoch) = gateways.entry(id.clone()).or_insert_with(|| {
            (Gateway { gateway_id: id, ..Gateway::default() }, shard.gateway_epoch)
        });
        gateway.sessions += shard.sessions as u64;
        // What an earlier life announced does not hold.
        if !shard.connected || shard.gateway_epoch < *epoch {
            continue;
        }
        *epoch = shard.gateway_epoch;
        let state = shard.state;
        gateway.connections_max += state.connections_max;
        gateway.draining |= state.draining;
        gateway.websocket_address = state.websocket_address;
        gateway.tcp_address = state.tcp_address;
        gateway.assignable = true;
    }
    let mut gateways: Vec<Gateway> = gateways.into_values().map(|(gateway, _)| gateway).collect();
    for gateway in &mut gateways {
        let full = gateway.connections_max > 0 && gateway.sessions >= gateway.connections_max;
        let reachable = !gateway.websocket_address.is_empty() || !gateway.tcp_address.is_empty();
        gateway.assignable &= reachable && !full && !gateway.draining;
    }
    gateways.sort_by(|a, b| a.gateway_id.cmp(&b.gateway_id));
    gateways
}

impl Core {
    fn gateways_now(&self) -> Vec<Gateway> {
        together(self.gateways.gateways())
    }
}

#[async_trait]
impl GatewaysApi for Chat {
    async fn list_gateways(&self, _: ListGatewaysRequest) -> Result<ListGatewaysResponse, Refused> {
        Ok(ListGatewaysResponse { gateways: self.core.gateways_now() })
    }

    async fn assign_gateway(
        &self,
        _: AssignGatewayRequest,
    ) -> Result<AssignGatewayResponse, Refused> {
        let core = &self.core;
        let chosen = core.assigned.choose(&core.gateways_now(), Instant::now());
        let Some(Gateway { gateway_id, websocket_address, tcp_address, .. }) = chosen else {
            let code = Code::OverCapacity;
            core.count_refusal(code);
            let reason = "No gateway takes clients at the moment.";
            return Err(Refused::new(code, reason).retry_after(core.retry_after_ms_of(code)));
        };
        Ok(AssignGatewayResponse { gateway_id, websocket_address, tcp_address })
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Instant};

    use millrace_logic_sdk::{GatewayKey, GatewayStatus};
    use millrace_protocol::{api::Gateway, link::GatewayState};

    use super::{ARRIVAL, Assigned, together};

    fn gateway(id: &str, sessions: u64, connections_max: u64) -> Gateway {
        let (gateway_id, tcp_address) = (id.to_owned(), "x:1".to_owned());
        let assignable = true;
        Gateway {
            gateway_id,
            tcp_address,
            sessions,
            connections_max,
            assignable,
            ..Gateway::default()
        }
    }

    #[test]
    fn the_emptiest_in_proportion_is_given_and_what_was_given_counts() {
        let assigned = Assigned::default();
        let gateways =
            [gateway("large", 500, 1_000), gateway("small", 40, 100), gateway("full", 0, 10)];
        let mut gateways = gateways.to_vec();
        gateways[2].assignable = false;
        let now = Instant::now();
        let choose = |now| assigned.choose(&gateways, now).expect("one").gateway_id;
        // 40 of 100 against 500 of 1,000: ten more make them even.
        assert!((0..10).all(|_| choose(now) == "small"));
        let next: Vec<String> = (0..22).map(|_| choose(now)).collect();
        assert_eq!(next.iter().filter(|id| *id == "small").count(), 2, "{next:?}");
        assert_eq!(choose(now + ARRIVAL * 3), "small", "those have arrived, or never will");
        assert_eq!(assigned.choose(&gateways[2..], now), None);
    }

    #[test]
    fn who_drains_is_full_or_cannot_be_reached_is_not_given() {
        let shard = |id: &str, number: u16, sessions: usize, state: GatewayState| GatewayStatus {
            key: GatewayKey(u32::from(number)),
            gateway_id: Arc::from(id),
            gateway_epoch: 1,
            shard: number,
            connected: true,
            sessions,
            outbox_frames: 0,
            outbox_bytes: 0,
            state,
        };
        let state = GatewayState {
            websocket_address: "ws://x/ws".into(),
            connections_max: 10,
            ..GatewayState::default()
        };
        let shards = vec![
            shard("good", 1, 3, state.clone()),
            shard("good", 2, 10, state.clone()),
            shard("draining", 3, 0, GatewayState { draining: true, ..state.clone() }),
            shard("full", 4, 10, state.clone()),
            shard("hidden", 5, 0, GatewayState { connections_max: 10, ..Default::default() }),
            GatewayStatus { connected: false, ..shard("gone", 6, 0, state) },
        ];
        let gateways = together(shards);
        let assignable: Vec<&str> =
            gateways.iter().filter(|g| g.assignable).map(|g| &*g.gateway_id).collect();
        assert_eq!(assignable, ["good"]);
        let good = gateways.iter().find(|g| g.gateway_id == "good").expect("known");
        assert_eq!((good.sessions, good.connections_max), (13, 20));
    }
}
