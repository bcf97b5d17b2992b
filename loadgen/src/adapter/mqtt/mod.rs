//! MQTT 3.1.1 over TCP at quality of service 0 and 1, with clean sessions.
//!
//! Every user has a topic of its own, to which others publish; the members of the room subscribe to
//! one more. Topics name the run, so that runs on one broker do not meet. Not spoken: quality of service
//! 2, retained messages, wills, sessions that outlive a connection.

pub mod packet;

use packet::{Packet, PacketReader, write_filter};

use super::{Adapter, Answer, Event, Outgoing, streams::ROOM};
use crate::{
    client::{Context, Endpoint, Settings},
    population::{Population, Target, Transport},
    record::Metric,
};

/// The one SUBSCRIBE of a connection; messages have other ids.
const SUBSCRIBE_ID: u16 = u16::MAX;
const NS_PER_S: u64 = 1_000_000_000;

/// See the module.
#[derive(Debug)]
pub struct Mqtt {
    reader: PacketReader,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// CONNECT is out.
    Connecting,
    /// SUBSCRIBE is out.
    Subscribing,
    /// Nothing is to be subscribed to; nobody was told yet that the session is up.
    Accepted,
    /// Messages.
    Open,
}

/// What CONNACK says, in words (3.2.2.3), and whether it will say so again.
fn refusal(code: u8) -> (String, bool) {
    let (words, is_final) = match code {
        1 => ("the protocol version is not accepted", true),
        2 => ("the client id is not accepted", true),
        3 => ("the server is unavailable", false),
        4 => ("bad user name or password", true),
        5 => ("not authorized", true),
        _ => ("a code that does not exist", true),
    };
    (format!("CONNACK {code}: {words}"), is_final)
}

/// The topic that somebody of this run listens to. It names the run and the users' prefix, so that
/// neither runs nor generators on one broker meet.
fn topic(prefix: &str, population: &Population, target: Target) -> String {
    let Population { run, user_prefix, .. } = population;
    match target {
        ROOM => format!("{prefix}/{run:08x}/{user_prefix}/room"),
        user => format!("{prefix}/{run:08x}/{user_prefix}/user/{}", user.index()),
    }
}

/// Whom a topic is for; `None`: it is none of this run.
fn target(topic: &str, prefix: &str, population: &Population) -> Option<Target> {
    let rest = topic.strip_prefix(prefix)?.strip_prefix('/')?;
    let (run, rest) = rest.split_at_checked(8)?;
    if u32::from_str_radix(run, 16) != Ok(population.run) {
        return None;
    }
    let rest = rest.strip_prefix('/')?.strip_prefix(population.user_prefix.as_str())?;
    match rest.strip_prefix('/')? {
        "room" => Some(ROOM),
        rest => {
            let index = rest.strip_prefix("user/")?.parse().ok()?;
            (index < population.users).then(|| Target::user(index))
        }
    }
}

impl Mqtt {
    /// Writes what this user wants to hear. Answers whether there is anything.
    fn subscribe(user: u32, cx: &Context, out: &mut Vec<u8>) -> bool {
        let mqtt = &cx.settings.mqtt;
        let (prefix, population) = (&mqtt.topic_prefix, &cx.population);
        let mut filters = Vec::new();
        if cx.settings.has_inboxes {
            write_filter(&mut filters, &topic(prefix, population, Target::user(user)), mqtt.qos);
        }
        if population.is_room_member(user) && !population.is_publisher(user) {
            write_filter(&mut filters, &topic(prefix, population, ROOM), mqtt.qos);
        }
        if !filters.is_empty() {
            Packet::Subscribe { id: SUBSCRIBE_ID, filters: &filters }.write(out);
        }
        !filters.is_empty()
    }
}

impl Adapter for Mqtt {
    fn endpoint(settings: &Settings) -> Option<&Endpoint> {
        settings.endpoint(Transport::Tcp)
    }

    fn open(user: u32, cx: &mut Context, out: &mut Vec<u8>) -> Self {
        let client_id = cx.population.user_id(user);
        let mqtt = &cx.settings.mqtt;
        let fill = |text: &String| {
            let text = text.replace("{user}", &client_id);
            if text.contains("{token}") {
                text.replace("{token}", &cx.token(&client_id))
            } else {
                text
            }
        };
        let username = mqtt.username.as_ref().map(fill);
        let password = mqtt.password.as_ref().map(fill);
        let connect = Packet::Connect {
            client_id: &client_id,
            keep_alive: (mqtt.keep_alive.as_millis() / 1000) as u16,
            username: username.as_deref(),
            password: password.as_deref().map(str::as_bytes),
        };
        connect.write(out);
        Self { reader: PacketReader::default(), stage: Stage::Connecting }
    }

    fn read<'a>(
        &'a mut self,
        user: u32,
        cx: &mut Context,
        bytes: &'a mut [u8],
        out: &mut Vec<u8>,
    ) -> Result<(usize, Option<Event<'a>>), String> {
        if self.stage == Stage::Accepted {
            self.stage = Stage::Open;
            return Ok((0, Some(Event::Ready)));
        }
        let (used, packet) = self.reader.read(bytes).map_err(|error| error.to_string())?;
        let Some(packet) = packet else { return Ok((used, None)) };
        let event = match (self.stage, packet) {
            (Stage::Connecting, Packet::ConnAck { code: 0, .. }) => {
                let subscribes = Self::subscribe(user, cx, out);
                self.stage = if subscribes { Stage::Subscribing } else { Stage::Accepted };
                Event::Passed(Metric::Login)
            }
            (Stage::Connecting, Packet::ConnAck { code, .. }) => {
                let (reason, is_final) = refusal(code);
                Event::Refused { reason, is_final }
            }
            (Stage::Subscribing, Packet::SubAck { id: SUBSCRIBE_ID, codes }) => {
                let qos = cx.settings.mqtt.qos;
                if codes.iter().any(|granted| *granted != qos) {
                    let reason =
                        format!("SUBACK {codes:?}: quality of service {qos} was asked for");
                    Event::Refused { reason, is_final: true }
                } else {
                    self.stage = Stage::Open;
                    Event::Ready
                }
            }
            // A subscription may take effect before it is acknowledged.
            (Stage::Subscribing | Stage::Open, Packet::Publish { qos, topic, id, payload, .. }) => {
                match qos {
                    0 => {}
                    1 => Packet::PubAck(id).write(out),
                    _ => {
                        return Err(
                            "MQTT: quality of service 2, which was not asked for".to_owned()
                        );
                    }
                }
                match target(topic, &cx.settings.mqtt.topic_prefix, &cx.population) {
                    Some(target) => Event::Message { target: Some(target), payload },
                    None => Event::Other,
                }
            }
            (Stage::Open, Packet::PubAck(id)) => Event::Acknowledged(id),
            (Stage::Open, Packet::PingResp) => Event::Pong,
            (stage, packet) => {
                let name = format!("{packet:?}");
                return Err(format!("MQTT: {name:.60} while {stage:?}").to_lowercase());
            }
        };
        Ok((used, Some(event)))
    }

    fn write_message(cx: &mut Context, out: &mut Vec<u8>, message: &Outgoing<'_>) {
        let mqtt = &cx.settings.mqtt;
        let topic = topic(&mqtt.topic_prefix, &cx.population, message.target);
        let packet = Packet::Publish {
            qos: mqtt.qos,
            duplicate: message.is_again && mqtt.qos > 0,
            retain: false,
            topic: &topic,
            id: message.label,
            payload: message.payload,
        };
        packet.write(out);
    }

    fn write_ping(_: &mut Context, out: &mut Vec<u8>) {
        Packet::PingReq.write(out);
    }

    fn farewell(_: &mut Context) -> Vec<u8> {
        let mut out = Vec::new();
        Packet::Disconnect.write(&mut out);
        out
    }

    fn answer(settings: &Settings) -> Answer {
        if settings.mqtt.qos > 0 { Answer::Acknowledgement } else { Answer::None }
    }

    fn is_at_least_once(settings: &Settings) -> bool {
        settings.mqtt.qos > 0
    }

    fn ping_interval_ns(settings: &Settings) -> u64 {
        // The broker wants to hear something within the whole of it.
        settings.mqtt.keep_alive.as_millis() / 1000 * NS_PER_S / 10 * 9
    }
}

#[cfg(test)]
mod tests {
    use super::{target, topic};
    use crate::{
        adapter::streams::ROOM,
        population::{Population, Target},
    };

    #[test]
    fn a_topic_names_the_run_and_whom_it_is_for() {
        let population = Population::uniform(10, 0.0, "load", 0xABC);
        for to in [ROOM, Target::user(0), Target::user(9)] {
            let topic = topic("a/b", &population, to);
            assert!(topic.starts_with("a/b/00000abc/load/"), "{topic}");
            assert_eq!(target(&topic, "a/b", &population), Some(to));
            assert_eq!(target(&topic, "a", &population), None);
        }
        for other in [
            "",
            "a/b",
            "a/b/00000abc/load/user/10",
            "a/b/00000abd/load/room",
            "a/b/00000abc/other/room",
            "a/b/00000abc/load/user/x",
        ] {
            assert_eq!(target(other, "a/b", &population), None, "{other}");
        }
    }
}
