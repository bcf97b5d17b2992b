//! Who a connection is: where from, and from LOGIN on who claims and who was verified.
//!
//! It is read when a timer fires, when the sessions are listed to logic and when the connection
//! ends, so it is kept as one packed string in an [`Arena`](crate::arena::Arena) and not in the
//! connection itself. What a timer needs comes first.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytes::Bytes;

/// The peer's address has 16 bytes, not 4.
const IPV6: u8 = 1;
/// There are claims.
const CLAIMS: u8 = 1 << 1;
/// The client wants JSON bodies.
const JSON: u8 = 1 << 2;
/// The expiry is a number of whole seconds.
const EXPIRY_SECONDS: u8 = 1 << 3;

/// A connection's identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) peer: IpAddr,
    /// From LOGIN on.
    pub(crate) claims: Option<Claims>,
}

/// What LOGIN and logic's answer said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Claims {
    /// The verified user; empty before the login.
    pub(crate) user_id: String,
    pub(crate) device_id: String,
    pub(crate) platform: String,
    pub(crate) is_json: bool,
    pub(crate) logged_in_at_ms: i64,
    /// When the session's token expires; 0: never.
    pub(crate) expires_at_ms: i64,
    pub(crate) idle_timeout_ms: u32,
    /// What logic attached.
    pub(crate) state: Bytes,
}

/// What a timer needs of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Times {
    pub(crate) idle_timeout_ms: u32,
    /// 0: never.
    pub(crate) expires_at_ms: i64,
}

impl Identity {
    /// Appends the packed form.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let mut facts = 0;
        let mut expiry = 0;
        if let Some(claims) = &self.claims {
            facts |= CLAIMS;
            facts |= if claims.is_json { JSON } else { 0 };
            expiry = claims.expires_at_ms as u64;
            if claims.expires_at_ms % 1000 == 0 {
                facts |= EXPIRY_SECONDS;
                expiry = (claims.expires_at_ms / 1000) as u64;
            }
        }
        let start = out.len();
        out.push(facts);
        match self.peer.to_canonical() {
            IpAddr::V4(address) => out.extend_from_slice(&address.octets()),
            IpAddr::V6(address) => {
                out[start] |= IPV6;
                out.extend_from_slice(&address.octets());
            }
        }
        let Some(claims) = &self.claims else { return };
        write_number(out, u64::from(claims.idle_timeout_ms));
        write_number(out, expiry);
        write_number(out, claims.logged_in_at_ms as u64);
        for text in [&claims.user_id, &claims.device_id, &claims.platform] {
            write_string(out, text.as_bytes());
        }
        write_string(out, &claims.state);
    }

    /// Reads the packed form; what follows it is ignored.
    pub(crate) fn read(packed: &[u8]) -> Self {
        let (peer, mut rest) = read_peer(packed);
        let Some(times) = read_times(packed[0], &mut rest) else {
            return Self { peer, claims: None };
        };
        let logged_in_at_ms = read_number(&mut rest) as i64;
        let mut text = || String::from_utf8_lossy(read_string(&mut rest)).into_owned();
        let (user_id, device_id, platform) = (text(), text(), text());
        let claims = Claims {
            user_id,
            device_id,
            platform,
            is_json: packed[0] & JSON != 0,
            logged_in_at_ms,
            expires_at_ms: times.expires_at_ms,
            idle_timeout_ms: times.idle_timeout_ms,
            state: Bytes::copy_from_slice(read_string(&mut rest)),
        };
        Self { peer, claims: Some(claims) }
    }

    /// Only where the peer is.
    pub(crate) fn peer(packed: &[u8]) -> IpAddr {
        read_peer(packed).0
    }

    /// Only what a timer needs; `None` before LOGIN.
    pub(crate) fn times(packed: &[u8]) -> Option<Times> {
        read_times(packed[0], &mut read_peer(packed).1)
    }
}

fn read_peer(packed: &[u8]) -> (IpAddr, &[u8]) {
    let rest = &packed[1..];
    if packed[0] & IPV6 == 0 {
        let (address, rest) = rest.split_first_chunk::<4>().expect("written by us");
        (Ipv4Addr::from(*address).into(), rest)
    } else {
        let (address, rest) = rest.split_first_chunk::<16>().expect("written by us");
        (Ipv6Addr::from(*address).into(), rest)
    }
}

fn read_times(facts: u8, rest: &mut &[u8]) -> Option<Times> {
    if facts & CLAIMS == 0 {
        return None;
    }
    let idle_timeout_ms = read_number(rest) as u32;
    let expiry = read_number(rest) as i64;
    let unit_ms = if facts & EXPIRY_SECONDS == 0 { 1 } else { 1000 };
    Some(Times { idle_timeout_ms, expires_at_ms: expiry * unit_ms })
}

/// Seven bits a byte, the lowest first.
fn write_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn read_number(rest: &mut &[u8]) -> u64 {
    let (mut number, mut shift) = (0, 0);
    while let Some((byte, after)) = rest.split_first()
        && shift < u64::BITS
    {
        *rest = after;
        number |= u64::from(byte & 0x7F) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
    }
    number
}

fn write_string(out: &mut Vec<u8>, bytes: &[u8]) {
    write_number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn read_string<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
    let length = read_number(rest) as usize;
    let (string, after) = rest.split_at(length.min(rest.len()));
    *rest = after;
    string
}

#[cfg(test)]
mod tests {
    use super::{Claims, Identity, Times};
    use bytes::Bytes;

    fn packed(identity: &Identity) -> Vec<u8> {
        let mut out = Vec::new();
        identity.write(&mut out);
        out
    }

    #[test]
    fn an_identity_survives_packing_and_padding() {
        for peer in ["192.0.2.1", "2001:db8::7"] {
            let peer = peer.parse().expect("an address");
            let stranger = Identity { peer, claims: None };
            assert_eq!(Identity::read(&packed(&stranger)), stranger);
            assert_eq!(Identity::times(&packed(&stranger)), None);
            for expires_at_ms in [0, 1, 1_700_000_000_000, 1_700_000_000_001, -1, i64::MIN] {
                let claims = Claims {
                    user_id: "user".to_owned(),
                    device_id: "d".repeat(200),
                    platform: String::new(),
                    is_json: expires_at_ms == 0,
                    logged_in_at_ms: 1_700_000_000_123,
                    expires_at_ms,
                    idle_timeout_ms: u32::MAX,
                    state: Bytes::from_static(b"\0state\xFF"),
                };
                let member = Identity { peer, claims: Some(claims) };
                let mut bytes = packed(&member);
                bytes.extend_from_slice(&[0; 3]);
                assert_eq!(Identity::read(&bytes), member);
                assert_eq!(Identity::peer(&bytes), peer);
                let times = Times { idle_timeout_ms: u32::MAX, expires_at_ms };
                assert_eq!(Identity::times(&bytes), Some(times));
            }
        }
    }

    #[test]
    fn an_ordinary_session_takes_what_it_says_and_twenty_two_bytes() {
        let claims = Claims {
            user_id: "alice".to_owned(),
            device_id: "phone".to_owned(),
            platform: "web".to_owned(),
            logged_in_at_ms: 1_700_000_000_123,
            expires_at_ms: 1_700_000_000_000,
            idle_timeout_ms: 15_000,
            ..Claims::default()
        };
        let peer = "192.0.2.1".parse().expect("an address");
        let bytes = packed(&Identity { peer, claims: Some(claims) });
        assert_eq!(bytes.len(), "alicephoneweb".len() + 22);
    }
}
