//! What a message to somebody else's server holds: who sent it, its number in its stream, the
//! intended moment and that of its first write. So whoever gets it back knows the latency, and
//! whether it is whole.
//!
//! A payload begins and ends with `~` and has digits, spaces and dots between: it survives JSON and
//! lines of text, and is found inside whatever a server's own protocol puts around it.

/// Marks beginning and end.
const MARK: u8 = b'~';

/// What a message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload {
    /// The index of the sender.
    pub sender: u32,
    /// Its number in its stream, from 1.
    pub number: u32,
    /// When the schedule wanted it sent, in nanoseconds of the run.
    pub intended_ns: u64,
    /// When it was first written, in the same.
    pub written_ns: u64,
}

impl Payload {
    /// Appends the payload, filled up to at least `bytes_min`.
    pub fn write(self, bytes_min: usize, out: &mut Vec<u8>) {
        let start = out.len();
        out.push(MARK);
        let fields =
            [u64::from(self.sender), u64::from(self.number), self.intended_ns, self.written_ns];
        for field in fields {
            write_digits(field, out);
            out.push(b' ');
        }
        let length = (out.len() - start + 1).max(bytes_min);
        out.resize(start + length - 1, b'.');
        out.push(MARK);
    }

    /// Reads a payload that was written with the same `bytes_min`. `None`: it is none, or not whole.
    pub fn parse(bytes: &[u8], bytes_min: usize) -> Option<Self> {
        let inner = bytes.strip_prefix(&[MARK])?.strip_suffix(&[MARK])?;
        let mut at = 0;
        let mut next = || {
            let digits = inner[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
            let value = inner[at..at + digits].iter().try_fold(0_u64, |value, digit| {
                value.checked_mul(10)?.checked_add(u64::from(digit - b'0'))
            })?;
            at += digits;
            let is_field = digits > 0 && inner.get(at) == Some(&b' ');
            at += 1;
            is_field.then_some(value)
        };
        let (sender, number) = (next()?, next()?);
        let (intended_ns, written_ns) = (next()?, next()?);
        let filling = &inner[at..];
        let is_whole = filling.iter().all(|byte| *byte == b'.')
            && (filling.is_empty() || bytes.len() == bytes_min)
            && bytes.len() >= bytes_min;
        is_whole.then_some(Self {
            sender: u32::try_from(sender).ok()?,
            number: u32::try_from(number).ok()?,
            intended_ns,
            written_ns,
        })
    }

    /// The next payload inside other bytes, by its marks, and where the search goes on. It may be
    /// none all the same: [`Payload::parse`] says.
    pub fn find(bytes: &[u8]) -> Option<(&[u8], usize)> {
        let start = bytes.iter().position(|byte| *byte == MARK)?;
        let length = bytes[start + 1..].iter().position(|byte| *byte == MARK)? + 2;
        Some((&bytes[start..start + length], start + length))
    }
}

fn write_digits(mut value: u64, out: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Payload;

    proptest! {
        #[test]
        fn a_payload_survives_the_way_and_no_byte_of_it_can_change_unseen(
            sender: u32, number: u32, intended_ns: u64, written_ns: u64,
            bytes_min in 0_usize..300, at: prop::sample::Index, to: u8,
        ) {
            let payload = Payload { sender, number, intended_ns, written_ns };
            let mut bytes = Vec::new();
            payload.write(bytes_min, &mut bytes);
            prop_assert!(bytes.len() >= bytes_min);
            prop_assert_eq!(Payload::parse(&bytes, bytes_min), Some(payload));
            prop_assert_eq!(Payload::find(&bytes), Some((&bytes[..], bytes.len())));
            let at = at.index(bytes.len());
            prop_assume!(bytes[at] != to);
            bytes[at] = to;
            prop_assert_ne!(Payload::parse(&bytes, bytes_min), Some(payload));
        }

        #[test]
        fn any_bytes_are_a_payload_or_none(bytes: Vec<u8>, bytes_min in 0_usize..50) {
            let mut rest = &bytes[..];
            while let Some((found, after)) = Payload::find(rest) {
                let _ = Payload::parse(found, bytes_min);
                rest = &rest[after..];
            }
            if let Some(payload) = Payload::parse(&bytes, bytes_min) {
                let mut again = Vec::new();
                payload.write(bytes_min, &mut again);
                prop_assert!(again.len() <= bytes.len(), "leading zeros only");
            }
        }
    }

    #[test]
    fn a_payload_is_found_inside_what_a_server_puts_around_it() {
        let payload = Payload { sender: 7, number: 1, intended_ns: 20, written_ns: 30 };
        let mut bytes = b"{\"data\":\"".to_vec();
        payload.write(40, &mut bytes);
        bytes.extend_from_slice(b"\"}\n{\"data\":\"");
        payload.write(40, &mut bytes);
        let (first, after) = Payload::find(&bytes).expect("there are two");
        let (second, _) = Payload::find(&bytes[after..]).expect("there are two");
        assert_eq!(Payload::parse(first, 40), Some(payload));
        assert_eq!(first, second);
        assert_eq!(Payload::find(b"no payload ~ here"), None);
        assert_eq!(Payload::parse(&first[..39], 40), None, "cut");
    }
}
