//! The packets of MQTT 3.1.1 that a publisher and subscriber at quality of service 0 and 1 needs, to
//! bytes and back, in both directions (the tests speak the broker's side). Nothing here knows what a
//! session is.
//!
//! Section numbers are those of the OASIS standard of 29 October 2014.

/// A larger packet is refused before a byte of it is stored.
pub const PACKET_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Fixed header: one byte, and the remaining length in one to four (2.2).
const HEADER_BYTES_MAX: usize = 5;

/// What is wrong with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// 2.2.3: more than four bytes of length, or more than [`PACKET_BYTES_MAX`].
    #[error("MQTT: a packet that is too long")]
    TooLong,
    /// A type that is not spoken here, or that does not exist.
    #[error("MQTT: a packet of type {0}, which was not asked for")]
    Type(u8),
    /// 2.2.2: flags that this type does not have.
    #[error("MQTT: a packet of type {0} with flags {1:#x}")]
    Flags(u8, u8),
    /// A field that does not fit the packet, or a packet with bytes left over.
    #[error("MQTT: a packet of type {0} with fields that do not fit")]
    Fields(u8),
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet<'a> {
    /// 3.1, with a clean session and without a will.
    Connect {
        /// Who connects.
        client_id: &'a str,
        /// In seconds; 0: for ever.
        keep_alive: u16,
        /// As whom.
        username: Option<&'a str>,
        /// The proof.
        password: Option<&'a [u8]>,
    },
    /// 3.2
    ConnAck {
        /// The broker knows this client.
        session_present: bool,
        /// 0: welcome.
        code: u8,
    },
    /// 3.3
    Publish {
        /// 0, 1, or 2.
        qos: u8,
        /// It was sent before.
        duplicate: bool,
        /// It was kept for new subscribers.
        retain: bool,
        /// Where to.
        topic: &'a str,
        /// 0 at quality of service 0.
        id: u16,
        /// What.
        payload: &'a [u8],
    },
    /// 3.4
    PubAck(u16),
    /// 3.8: topic filters with the quality wanted.
    Subscribe {
        /// Which request.
        id: u16,
        /// As on the wire; see [`filters`].
        filters: &'a [u8],
    },
    /// 3.9: for each filter the quality granted, or 0x80.
    SubAck {
        /// Which request.
        id: u16,
        /// In the order of the filters.
        codes: &'a [u8],
    },
    /// 3.12
    PingReq,
    /// 3.13
    PingResp,
    /// 3.14
    Disconnect,
}

const CONNECT: u8 = 1;
const CONNACK: u8 = 2;
const PUBLISH: u8 = 3;
const PUBACK: u8 = 4;
const SUBSCRIBE: u8 = 8;
const SUBACK: u8 = 9;
const PINGREQ: u8 = 12;
const PINGRESP: u8 = 13;
const DISCONNECT: u8 = 14;

const PROTOCOL: &[u8] = b"\0\x04MQTT\x04";
const CLEAN_SESSION: u8 = 0x02;
const HAS_PASSWORD: u8 = 0x40;
const HAS_USERNAME: u8 = 0x80;

/// Appends one filter of a SUBSCRIBE.
pub fn write_filter(out: &mut Vec<u8>, filter: &str, qos: u8) {
    write_bytes(out, filter.as_bytes());
    out.push(qos);
}

/// The filters of a SUBSCRIBE with the quality wanted; nothing after one that does not fit.
pub fn filters(bytes: &[u8]) -> impl Iterator<Item = (&str, u8)> {
    let mut fields = Fields(bytes);
    std::iter::from_fn(move || Some((fields.text()?, fields.u8()?)))
}

/// A field of at most 65,535 bytes; what is longer is cut, which the scenario's check rules out.
fn write_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&bytes[..usize::from(length)]);
}

fn write_header(out: &mut Vec<u8>, first: u8, mut length: usize) {
    out.push(first);
    loop {
        let more = if length > 127 { 0x80 } else { 0 };
        out.push((length & 127) as u8 | more);
        length >>= 7;
        if length == 0 {
            return;
        }
    }
}

impl Packet<'_> {
    /// Appends the packet.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Connect { client_id, keep_alive, username, password } => {
                let mut body = PROTOCOL.to_vec();
                let flag = |is: bool, flag: u8| if is { flag } else { 0 };
                let named = flag(username.is_some(), HAS_USERNAME);
                body.push(CLEAN_SESSION | named | flag(password.is_some(), HAS_PASSWORD));
                body.extend_from_slice(&keep_alive.to_be_bytes());
                write_bytes(&mut body, client_id.as_bytes());
                let texts = [username.map(str::as_bytes), *password];
                texts.into_iter().flatten().for_each(|bytes| write_bytes(&mut body, bytes));
                write_header(out, CONNECT << 4, body.len());
                out.extend_from_slice(&body);
            }
            Self::ConnAck { session_present, code } => {
                out.extend_from_slice(&[CONNACK << 4, 2, u8::from(*session_present), *code]);
            }
            Self::Publish { qos, duplicate, retain, topic, id, payload } => {
                let flags = u8::from(*duplicate) << 3 | qos << 1 | u8::from(*retain);
                let id_bytes = if *qos > 0 { 2 } else { 0 };
                let length = 2 + topic.len() + id_bytes + payload.len();
                write_header(out, PUBLISH << 4 | flags, length);
                write_bytes(out, topic.as_bytes());
                if *qos > 0 {
                    out.extend_from_slice(&id.to_be_bytes());
                }
                out.extend_from_slice(payload);
            }
            Self::PubAck(id) => {
                let [high, low] = id.to_be_bytes();
                out.extend_from_slice(&[PUBACK << 4, 2, high, low]);
            }
            Self::Subscribe { id, filters: rest } => {
                write_header(out, SUBSCRIBE << 4 | 2, 2 + rest.len());
                out.extend_from_slice(&id.to_be_bytes());
                out.extend_from_slice(rest);
            }
            Self::SubAck { id, codes: rest } => {
                write_header(out, SUBACK << 4, 2 + rest.len());
                out.extend_from_slice(&id.to_be_bytes());
                out.extend_from_slice(rest);
            }
            Self::PingReq => out.extend_from_slice(&[PINGREQ << 4, 0]),
            Self::PingResp => out.extend_from_slice(&[PINGRESP << 4, 0]),
            Self::Disconnect => out.extend_from_slice(&[DISCONNECT << 4, 0]),
        }
    }
}

/// The fields of a packet, from the front.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = self.u16()?;
        self.take(usize::from(length))
    }

    /// 1.5.3: UTF-8 without U+0000.
    fn text(&mut self) -> Option<&'a str> {
        str::from_utf8(self.bytes()?).ok().filter(|text| !text.contains('\0'))
    }

    /// 2.3.1: never 0.
    fn id(&mut self) -> Option<u16> {
        self.u16().filter(|id| *id != 0)
    }

    fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }
}

/// Lengths of header and whole packet; `None`: not known yet.
fn lengths(bytes: &[u8]) -> Result<Option<(usize, usize)>, PacketError> {
    let mut remaining = 0;
    for at in 1..HEADER_BYTES_MAX {
        let Some(byte) = bytes.get(at) else { return Ok(None) };
        remaining |= usize::from(byte & 127) << (7 * (at - 1));
        if byte & 0x80 == 0 {
            let header = at + 1;
            let is_allowed = header + remaining <= PACKET_BYTES_MAX;
            return if is_allowed {
                Ok(Some((header, header + remaining)))
            } else {
                Err(PacketError::TooLong)
            };
        }
    }
    Err(PacketError::TooLong)
}

/// Reads a packet from all of its bytes.
fn parse(first: u8, body: &[u8]) -> Result<Packet<'_>, PacketError> {
    let (kind, flags) = (first >> 4, first & 15);
    let expected = if kind == SUBSCRIBE { 2 } else { 0 };
    if kind != PUBLISH && flags != expected {
        return Err(PacketError::Flags(kind, flags));
    }
    let mut fields = Fields(body);
    let packet = match kind {
        CONNECT => connect(&mut fields),
        CONNACK => connack(&mut fields),
        PUBLISH => return publish(flags, fields),
        PUBACK => fields.id().map(Packet::PubAck),
        SUBSCRIBE => subscribe(&mut fields),
        SUBACK => fields.id().map(|id| Packet::SubAck { id, codes: fields.rest() }),
        PINGREQ => Some(Packet::PingReq),
        PINGRESP => Some(Packet::PingResp),
        DISCONNECT => Some(Packet::Disconnect),
        other => return Err(PacketError::Type(other)),
    };
    packet.filter(|_| fields.0.is_empty()).ok_or(PacketError::Fields(kind))
}

fn connect<'a>(fields: &mut Fields<'a>) -> Option<Packet<'a>> {
    fields.take(PROTOCOL.len()).filter(|name| *name == PROTOCOL)?;
    let flags =
        fields.u8().filter(|flags| flags & !(HAS_USERNAME | HAS_PASSWORD) == CLEAN_SESSION)?;
    let keep_alive = fields.u16()?;
    let client_id = fields.text()?;
    let username = if flags & HAS_USERNAME > 0 { Some(fields.text()?) } else { None };
    let password = if flags & HAS_PASSWORD > 0 { Some(fields.bytes()?) } else { None };
    (username.is_some() || password.is_none()).then_some(Packet::Connect {
        client_id,
        keep_alive,
        username,
        password,
    })
}

fn connack<'a>(fields: &mut Fields<'a>) -> Option<Packet<'a>> {
    let session_present = fields.u8().filter(|flags| *flags <= 1)? == 1;
    Some(Packet::ConnAck { session_present, code: fields.u8()? })
}

fn publish(flags: u8, mut fields: Fields<'_>) -> Result<Packet<'_>, PacketError> {
    let qos = flags >> 1 & 3;
    let (duplicate, retain) = (flags & 8 > 0, flags & 1 > 0);
    if qos == 3 || duplicate && qos == 0 {
        return Err(PacketError::Flags(PUBLISH, flags));
    }
    let mut whole = || {
        // 3.3.2.1: no wildcards.
        let is_name = |topic: &&str| !topic.is_empty() && !topic.contains(['+', '#']);
        let topic = fields.text().filter(is_name)?;
        let id = if qos > 0 { fields.id()? } else { 0 };
        Some(Packet::Publish { qos, duplicate, retain, topic, id, payload: fields.rest() })
    };
    whole().ok_or(PacketError::Fields(PUBLISH))
}

fn subscribe<'a>(fields: &mut Fields<'a>) -> Option<Packet<'a>> {
    let id = fields.id()?;
    let rest = fields.rest();
    let mut known = Fields(rest);
    while !known.0.is_empty() {
        known.text().filter(|filter| !filter.is_empty())?;
        known.u8().filter(|qos| *qos <= 2)?;
    }
    (!rest.is_empty()).then_some(Packet::Subscribe { id, filters: rest })
}

/// Cuts one connection's bytes into packets, whatever their pieces. Only what is unfinished is
/// copied.
#[derive(Debug, Default)]
pub struct PacketReader {
    partial: Vec<u8>,
    /// `partial` was handed out as a whole packet; the next call lets it go.
    is_given: bool,
}

impl PacketReader {
    /// Reads at most one packet, and answers how many bytes of the input were used. Call it with
    /// the rest until there is none.
    ///
    /// # Errors
    /// The stream cannot be continued.
    pub fn read<'a>(
        &'a mut self,
        bytes: &'a [u8],
    ) -> Result<(usize, Option<Packet<'a>>), PacketError> {
        if std::mem::take(&mut self.is_given) {
            self.partial = Vec::new();
        }
        if self.partial.is_empty() {
            return match lengths(bytes)? {
                Some((header, whole)) if whole <= bytes.len() => {
                    let packet = parse(bytes[0], &bytes[header..whole])?;
                    Ok((whole, Some(packet)))
                }
                _ => {
                    self.partial = bytes.to_vec();
                    Ok((bytes.len(), None))
                }
            };
        }
        let mut used = 0;
        let (header, whole) = loop {
            if let Some(lengths) = lengths(&self.partial)? {
                break lengths;
            }
            let Some(byte) = bytes.get(used) else { return Ok((used, None)) };
            self.partial.push(*byte);
            used += 1;
        };
        let missing = (whole - self.partial.len()).min(bytes.len() - used);
        self.partial.extend_from_slice(&bytes[used..used + missing]);
        used += missing;
        if self.partial.len() < whole {
            return Ok((used, None));
        }
        self.is_given = true;
        Ok((used, Some(parse(self.partial[0], &self.partial[header..])?)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{PACKET_BYTES_MAX, Packet, PacketError, PacketReader, filters, write_filter};

    /// Everything that a reader makes of these pieces, as text, and where it stopped.
    fn read_all(pieces: &[&[u8]]) -> (Vec<String>, Option<PacketError>) {
        let (mut reader, mut packets) = (PacketReader::default(), Vec::new());
        for piece in pieces {
            let mut from = 0;
            loop {
                match reader.read(&piece[from..]) {
                    Ok((used, Some(packet))) => {
                        packets.push(format!("{packet:?}"));
                        from += used;
                    }
                    Ok((used, None)) => {
                        assert_eq!(from + used, piece.len(), "all input is taken");
                        break;
                    }
                    Err(error) => return (packets, Some(error)),
                }
            }
        }
        (packets, None)
    }

    fn topic() -> impl Strategy<Value = String> {
        "[a-zA-Z0-9/äß]{1,40}"
    }

    proptest! {
        #[test]
        fn packets_survive_the_way_in_any_pieces(
            client_id in "[a-z0-9-]{0,30}", username in proptest::option::of("[a-z]{0,9}"),
            password: Vec<u8>, keep_alive: u16, topic in topic(), payload: Vec<u8>,
            id in 1_u16.., qos in 0_u8..2, duplicate: bool, retain: bool, code: u8,
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let mut wanted = Vec::new();
            write_filter(&mut wanted, &topic, qos);
            write_filter(&mut wanted, "#", 0);
            prop_assert_eq!(filters(&wanted).collect::<Vec<_>>(), [(topic.as_str(), qos), ("#", 0)]);
            let packets = [
                Packet::Connect {
                    client_id: &client_id,
                    keep_alive,
                    username: username.as_deref(),
                    password: username.as_ref().map(|_| &password[..]),
                },
                Packet::ConnAck { session_present: retain, code },
                Packet::Publish {
                    qos,
                    duplicate: duplicate && qos > 0,
                    retain,
                    topic: &topic,
                    id: if qos > 0 { id } else { 0 },
                    payload: &payload,
                },
                Packet::PubAck(id),
                Packet::Subscribe { id, filters: &wanted },
                Packet::SubAck { id, codes: &[0, 1, 0x80] },
                Packet::PingReq,
                Packet::PingResp,
                Packet::Disconnect,
            ];
            let mut bytes = Vec::new();
            packets.iter().for_each(|packet| packet.write(&mut bytes));
            let expected: Vec<String> = packets.iter().map(|packet| format!("{packet:?}")).collect();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]).collect();
            prop_assert_eq!(read_all(&pieces), (expected.clone(), None));
            let single: Vec<&[u8]> = bytes.chunks(1).collect();
            prop_assert_eq!(read_all(&single), (expected, None));
        }

        #[test]
        fn any_bytes_are_packets_or_an_error(bytes: Vec<u8>, first in 1_u8..16, cut: prop::sample::Index) {
            let whole = read_all(&[&bytes]);
            let at = cut.index(bytes.len() + 1);
            prop_assert_eq!(read_all(&[&bytes[..at], &bytes[at..]]), whole);
            // The same as the fields of each type.
            let mut packet = vec![first << 4 | if first == 8 { 2 } else { 0 }, bytes.len().min(127) as u8];
            packet.extend(bytes.iter().take(127));
            let _ = read_all(&[&packet]);
        }
    }

    #[test]
    fn what_the_standard_forbids_is_refused_by_name() {
        let refused = |bytes: &[u8]| read_all(&[bytes]).1;
        assert_eq!(refused(&[0x30, 0xff, 0xff, 0xff, 0xff, 0x01]), Some(PacketError::TooLong));
        assert_eq!(refused(&[0x30, 0xff, 0xff, 0xff, 0x7f]), Some(PacketError::TooLong));
        const { assert!(PACKET_BYTES_MAX < 268_435_455) };
        assert_eq!(refused(&[0x00, 0]), Some(PacketError::Type(0)));
        assert_eq!(refused(&[0x50, 2, 0, 1]), Some(PacketError::Type(5)), "PUBREC");
        assert_eq!(refused(&[0x41, 2, 0, 1]), Some(PacketError::Flags(4, 1)));
        assert_eq!(refused(&[0x36, 0]), Some(PacketError::Flags(3, 6)), "quality of service 3");
        assert_eq!(refused(&[0x40, 2, 0, 0]), Some(PacketError::Fields(4)), "packet id 0");
        assert_eq!(refused(&[0x40, 3, 0, 1, 9]), Some(PacketError::Fields(4)), "a byte too many");
        assert_eq!(refused(&[0x30, 3, 0, 1, b'#']), Some(PacketError::Fields(3)), "a wildcard");
        assert_eq!(refused(&[0x20, 2, 2, 0]), Some(PacketError::Fields(2)));
    }

    #[test]
    fn a_publish_is_on_the_wire_as_the_standard_draws_it() {
        let mut bytes = Vec::new();
        let payload = [b'x'; 200];
        let packet = Packet::Publish {
            qos: 1,
            duplicate: true,
            retain: false,
            topic: "a/b",
            id: 10,
            payload: &payload,
        };
        packet.write(&mut bytes);
        assert_eq!(bytes[..10], [0x3a, 0xcf, 0x01, 0, 3, b'a', b'/', b'b', 0, 10]);
        assert_eq!(bytes.len(), 10 + 200);
        let mut bytes = Vec::new();
        let (username, password) = (Some("u"), Some(&b"p"[..]));
        Packet::Connect { client_id: "c", keep_alive: 60, username, password }.write(&mut bytes);
        let expected = [
            0x10, 19, 0, 4, b'M', b'Q', b'T', b'T', 4, 0xc2, 0, 60, 0, 1, b'c', 0, 1, b'u', 0, 1,
            b'p',
        ];
        assert_eq!(bytes, expected);
    }
}
