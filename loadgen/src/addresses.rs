//! Lists of addresses as people write them: `10.0.0.2,10.0.0.3`, `10.0.0.2-10.0.0.21`.

use std::net::{IpAddr, Ipv4Addr};

/// A list of addresses that came from one argument.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Addresses(pub Vec<IpAddr>);

/// More than this is a slip of the pen.
const ADDRESSES_MAX: usize = 4096;

/// Reads `10.0.0.2,10.0.0.3` and `10.0.0.2-10.0.0.21`.
///
/// # Errors
/// A sentence, if it is none of these.
pub fn parse_addresses(text: &str) -> Result<Addresses, String> {
    let address = |text: &str| {
        text.trim().parse::<IpAddr>().map_err(|_| {
            format!("{text}: write addresses, as in 10.0.0.2,10.0.0.3 or 10.0.0.2-10.0.0.21")
        })
    };
    let mut addresses = Vec::new();
    for part in text.split(',') {
        match part.split_once('-') {
            None => addresses.push(address(part)?),
            Some((first, last)) => match (address(first)?, address(last)?) {
                (IpAddr::V4(first), IpAddr::V4(last)) if first <= last => {
                    let range = u32::from(first)..=u32::from(last);
                    if (range.end() - range.start()) as usize >= ADDRESSES_MAX {
                        return Err(format!("{part}: more than {ADDRESSES_MAX} addresses"));
                    }
                    addresses.extend(range.map(|bits| IpAddr::V4(Ipv4Addr::from(bits))));
                }
                _ => {
                    return Err(format!("{part}: a range is of IPv4 addresses, the smaller first"));
                }
            },
        }
        if addresses.len() > ADDRESSES_MAX {
            return Err(format!("more than {ADDRESSES_MAX} addresses"));
        }
    }
    Ok(Addresses(addresses))
}

#[cfg(test)]
mod tests {
    use super::parse_addresses;

    #[test]
    fn lists_and_ranges_of_addresses_are_read() {
        let read = |text: &str| parse_addresses(text).map(|addresses| addresses.0.len());
        assert_eq!(read("10.0.0.2"), Ok(1));
        assert_eq!(read("10.0.0.2-10.0.0.21"), Ok(20));
        assert_eq!(read("10.0.0.2-10.0.0.3,10.0.1.1,::1"), Ok(4));
        for text in ["", "10.0.0", "10.0.0.9-10.0.0.2", "::1-::2", "10.0.0.0-10.255.0.0"] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
