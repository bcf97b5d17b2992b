//! Socket addresses as the kernel's bytes (`sockaddr_in`, `sockaddr_in6`), without unsafe code.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// Bytes of a `sockaddr_in`.
const V4_BYTES: u32 = 16;
/// Bytes of a `sockaddr_in6`.
const V6_BYTES: u32 = 28;

/// An address in the kernel's form. Boxed where the kernel reads or writes it later.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawAddress {
    bytes: [u8; V6_BYTES as usize],
    length: u32,
}

impl RawAddress {
    /// Room for an address of the family of `like`, to be filled in by the kernel.
    pub(crate) fn room_for(like: &SocketAddr) -> Self {
        Self { bytes: [0; 28], length: if like.is_ipv4() { V4_BYTES } else { V6_BYTES } }
    }

    pub(crate) fn encode(address: &SocketAddr) -> Self {
        let mut raw = Self::room_for(address);
        raw.bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
        match address {
            SocketAddr::V4(v4) => {
                raw.bytes[..2].copy_from_slice(&family(libc::AF_INET).to_ne_bytes());
                raw.bytes[4..8].copy_from_slice(&v4.ip().octets());
            }
            SocketAddr::V6(v6) => {
                raw.bytes[..2].copy_from_slice(&family(libc::AF_INET6).to_ne_bytes());
                raw.bytes[4..8].copy_from_slice(&v6.flowinfo().to_ne_bytes());
                raw.bytes[8..24].copy_from_slice(&v6.ip().octets());
                raw.bytes[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
            }
        }
        raw
    }

    /// Reads what the kernel has filled in; an IPv4-mapped address becomes IPv4. `None` when
    /// the family is neither of the two.
    pub(crate) fn decode(&self) -> Option<SocketAddr> {
        let bytes = &self.bytes;
        let port = u16::from_be_bytes([bytes[2], bytes[3]]);
        let found = u16::from_ne_bytes([bytes[0], bytes[1]]);
        if found == family(libc::AF_INET) {
            let ip = Ipv4Addr::new(bytes[4], bytes[5], bytes[6], bytes[7]);
            return Some(SocketAddr::new(IpAddr::V4(ip), port));
        }
        if found != family(libc::AF_INET6) {
            return None;
        }
        let mut octets = [0; 16];
        octets.copy_from_slice(&bytes[8..24]);
        let ip = Ipv6Addr::from(octets);
        if let Some(v4) = ip.to_ipv4_mapped() {
            return Some(SocketAddr::new(IpAddr::V4(v4), port));
        }
        let word = |at: usize| {
            u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        Some(SocketAddr::V6(SocketAddrV6::new(ip, port, word(4), word(24))))
    }

    pub(crate) fn as_ptr(&self) -> *const libc::sockaddr {
        self.bytes.as_ptr().cast()
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut libc::sockaddr {
        self.bytes.as_mut_ptr().cast()
    }

    pub(crate) fn length(&self) -> u32 {
        self.length
    }
}

fn family(value: i32) -> u16 {
    u16::try_from(value).expect("address families are small numbers")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn encoding_and_decoding_are_inverse() {
        for text in ["127.0.0.1:80", "255.1.2.3:65535", "[::1]:1", "[2001:db8::7]:443"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(RawAddress::encode(&address).decode(), Some(address));
        }
        let scoped = SocketAddr::V6(SocketAddrV6::new("fe80::1".parse().unwrap(), 9, 5, 3));
        assert_eq!(RawAddress::encode(&scoped).decode(), Some(scoped));
    }

    #[test]
    fn a_mapped_address_becomes_ipv4() {
        let mapped: SocketAddr = "[::ffff:10.1.2.3]:77".parse().unwrap();
        let plain: SocketAddr = "10.1.2.3:77".parse().unwrap();
        assert_eq!(RawAddress::encode(&mapped).decode(), Some(plain));
    }

    #[test]
    fn an_unfilled_address_is_none() {
        let like: SocketAddr = "[::1]:1".parse().unwrap();
        assert_eq!(RawAddress::room_for(&like).decode(), None);
    }
}
