//! Masking (RFC 6455 section 5.3): every payload byte of a client is XORed with a four-byte key.

/// Masks or unmasks `bytes` in place. `offset` is the position of `bytes[0]` within the frame's
/// payload, so that a payload can be treated piece by piece.
pub fn unmask(bytes: &mut [u8], key: [u8; 4], offset: usize) {
    let turned: [u8; 4] = std::array::from_fn(|index| key[(offset + index) % 4]);
    let [a, b, c, d] = turned;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    // Eight at a time; the compiler widens this loop to the vector registers there are.
    let (chunks, rest) = bytes.as_chunks_mut::<8>();
    for chunk in chunks {
        *chunk = (u64::from_ne_bytes(*chunk) ^ wide).to_ne_bytes();
    }
    for (index, byte) in rest.iter_mut().enumerate() {
        *byte ^= turned[index % 4];
    }
}

#[cfg(test)]
mod tests {
    use super::unmask;

    #[test]
    fn the_example_of_the_rfc_is_unmasked() {
        // RFC 6455 section 5.7, "a single-frame masked text message".
        let mut payload = [0x7f, 0x9f, 0x4d, 0x51, 0x58];
        unmask(&mut payload, [0x37, 0xfa, 0x21, 0x3d], 0);
        assert_eq!(&payload, b"Hello");
    }

    #[test]
    fn pieces_at_any_offset_are_the_same_as_the_whole() {
        let key = [1, 20, 77, 250];
        let plain: Vec<u8> = (0..100).collect();
        let bytewise: Vec<u8> =
            plain.iter().enumerate().map(|(index, byte)| byte ^ key[index % 4]).collect();
        for cut in 0..=plain.len() {
            let mut masked = plain.clone();
            let (head, tail) = masked.split_at_mut(cut);
            unmask(head, key, 0);
            unmask(tail, key, cut);
            assert_eq!(masked, bytewise, "cut at {cut}");
        }
    }
}
