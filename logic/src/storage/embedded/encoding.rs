//! Bytes of keys and rows: variable-length integers, length-prefixed texts, and a reader that
//! fails with a type instead of a panic.

/// Why stored bytes could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The row was written by a newer program.
    #[error("row version {0} is unknown")]
    Version(u8),
    /// The row ends too early.
    #[error("the row is too short")]
    Short,
    /// The row goes on after its end.
    #[error("the row is too long")]
    Long,
    /// A number has more than 64 bits, or does not fit its field.
    #[error("a number is out of range")]
    Number,
    /// A text is not UTF-8.
    #[error("a text is not UTF-8")]
    Text,
    /// The extras of a message cannot be read.
    #[error("the extras of a message cannot be read")]
    Extras,
    /// Ranges are not in order.
    #[error("ranges are not in order")]
    Ranges,
}

/// Appends a number, seven bits a byte, the lowest first.
pub fn put_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// Appends a text after its length.
pub fn put_text(bytes: &mut Vec<u8>, text: &str) {
    put_number(bytes, text.len() as u64);
    bytes.extend_from_slice(text.as_bytes());
}

/// Appends bytes after their length.
pub fn put_bytes(bytes: &mut Vec<u8>, more: &[u8]) {
    put_number(bytes, more.len() as u64);
    bytes.extend_from_slice(more);
}

/// Reads what the functions above wrote.
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Starts behind the row version, which must be `version`.
    pub fn of_version(bytes: &'a [u8], version: u8) -> Result<Self, DecodeError> {
        match bytes.split_first() {
            Some((first, rest)) if *first == version => Ok(Self(rest)),
            Some((first, _)) => Err(DecodeError::Version(*first)),
            None => Err(DecodeError::Short),
        }
    }

    /// The next `count` bytes.
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(DecodeError::Short)?;
        self.0 = rest;
        Ok(taken)
    }

    /// One byte.
    pub fn byte(&mut self) -> Result<u8, DecodeError> {
        Ok(self.bytes(1)?[0])
    }

    /// A number of [`put_number`].
    pub fn number(&mut self) -> Result<u64, DecodeError> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if (bits << shift) >> shift != bits {
                return Err(DecodeError::Number);
            }
            number |= bits << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(DecodeError::Number)
    }

    /// A number that fits 32 bits.
    pub fn number_u32(&mut self) -> Result<u32, DecodeError> {
        u32::try_from(self.number()?).map_err(|_| DecodeError::Number)
    }

    /// A text of [`put_text`].
    pub fn text(&mut self) -> Result<&'a str, DecodeError> {
        let length = usize::try_from(self.number()?).map_err(|_| DecodeError::Number)?;
        std::str::from_utf8(self.bytes(length)?).map_err(|_| DecodeError::Text)
    }

    /// Everything that is left.
    pub fn rest(self) -> &'a [u8] {
        self.0
    }

    /// The next bytes of [`put_bytes`].
    pub fn counted_bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        let length = usize::try_from(self.number()?).map_err(|_| DecodeError::Number)?;
        self.bytes(length)
    }

    /// Nothing may be left.
    pub fn finish(self) -> Result<(), DecodeError> {
        if self.0.is_empty() { Ok(()) } else { Err(DecodeError::Long) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_every_length_round_trip() {
        for number in (0..64).flat_map(|bit| [(1 << bit) - 1, 1 << bit, u64::MAX >> bit]) {
            let mut bytes = vec![7];
            put_number(&mut bytes, number);
            let mut reader = Reader::of_version(&bytes, 7).unwrap();
            assert_eq!(reader.number(), Ok(number));
            assert_eq!(reader.finish(), Ok(()));
        }
    }

    #[test]
    fn damaged_bytes_are_errors() {
        let mut reader = Reader::of_version(&[1, 0x80], 1).unwrap();
        assert_eq!(reader.number(), Err(DecodeError::Short));
        let mut reader = Reader::of_version(&[1; 12], 1).unwrap();
        assert_eq!(reader.text(), Ok("\u{1}"));
        assert_eq!(reader.finish(), Err(DecodeError::Long));
        let mut reader =
            Reader::of_version(&[1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2], 1)
                .unwrap();
        assert_eq!(reader.number(), Err(DecodeError::Number));
        let mut reader = Reader::of_version(&[1, 1, 0xff], 1).unwrap();
        assert_eq!(reader.text(), Err(DecodeError::Text));
        assert_eq!(Reader::of_version(&[2], 1).err(), Some(DecodeError::Version(2)));
        assert_eq!(Reader::of_version(&[], 1).err(), Some(DecodeError::Short));
    }
}
