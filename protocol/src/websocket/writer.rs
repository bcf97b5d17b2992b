//! Writes WebSocket frames. Nothing is fragmented unless the caller asks for it.

use crate::limits::CONTROL_PAYLOAD_BYTES_MAX;

use super::{Opcode, unmask};

const FIN: u8 = 0x80;
const MASKED: u8 = 0x80;

/// Appends one frame. A server passes no mask; a client passes a fresh random key per frame.
///
/// # Panics
/// If a control frame is above 125 bytes or not final; that is our mistake, never a peer's.
pub fn write_frame(
    out: &mut Vec<u8>,
    opcode: Opcode,
    fin: bool,
    mask: Option<[u8; 4]>,
    payload: &[u8],
) {
    assert!(
        !opcode.is_control() || (fin && payload.len() <= CONTROL_PAYLOAD_BYTES_MAX),
        "a control frame is final and carries at most 125 bytes"
    );
    out.reserve(super::HEADER_BYTES_MAX + payload.len());
    let first = opcode as u8 | if fin { FIN } else { 0 };
    write_start(out, first, if mask.is_some() { MASKED } else { 0 }, payload.len());
    match mask {
        None => out.extend_from_slice(payload),
        Some(key) => {
            out.extend_from_slice(&key);
            let start = out.len();
            out.extend_from_slice(payload);
            unmask(&mut out[start..], key, 0);
        }
    }
}

/// Appends just the header of an unmasked, final frame, so that a payload shared by many
/// connections can be copied after it.
pub fn write_header(out: &mut Vec<u8>, opcode: Opcode, payload_length: usize) {
    write_start(out, opcode as u8 | FIN, 0, payload_length);
}

/// Appends a close frame. The reason is cut at 123 bytes, between two characters.
pub fn write_close(out: &mut Vec<u8>, mask: Option<[u8; 4]>, code: u16, reason: &str) {
    let mut room = reason.len().min(CONTROL_PAYLOAD_BYTES_MAX - 2);
    while !reason.is_char_boundary(room) {
        room -= 1;
    }
    let reason = &reason.as_bytes()[..room];
    let mut payload = [0; CONTROL_PAYLOAD_BYTES_MAX];
    payload[..2].copy_from_slice(&code.to_be_bytes());
    payload[2..2 + reason.len()].copy_from_slice(reason);
    write_frame(out, Opcode::Close, true, mask, &payload[..2 + reason.len()]);
}

/// The first two bytes and the length in its shortest form.
fn write_start(out: &mut Vec<u8>, first: u8, masked: u8, payload_length: usize) {
    match payload_length {
        0..=125 => out.extend_from_slice(&[first, masked | payload_length as u8]),
        126..=0xFFFF => {
            out.extend_from_slice(&[first, masked | 126]);
            out.extend_from_slice(&(payload_length as u16).to_be_bytes());
        }
        _ => {
            out.extend_from_slice(&[first, masked | 127]);
            out.extend_from_slice(&(payload_length as u64).to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Opcode, write_close, write_frame, write_header};

    #[test]
    fn the_examples_of_the_rfc_are_written() {
        // RFC 6455 section 5.7.
        let mut out = Vec::new();
        write_frame(&mut out, Opcode::Text, true, None, b"Hello");
        assert_eq!(out, [0x81, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f]);
        out.clear();
        write_frame(&mut out, Opcode::Text, true, Some([0x37, 0xfa, 0x21, 0x3d]), b"Hello");
        assert_eq!(out, [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58]);
        out.clear();
        write_frame(&mut out, Opcode::Text, false, None, b"Hel");
        assert_eq!(out, [0x01, 0x03, 0x48, 0x65, 0x6c]);
        out.clear();
        write_header(&mut out, Opcode::Binary, 256);
        assert_eq!(out, [0x82, 0x7E, 0x01, 0x00]);
        out.clear();
        write_header(&mut out, Opcode::Binary, 65536);
        assert_eq!(out, [0x82, 0x7F, 0, 0, 0, 0, 0, 1, 0, 0]);
    }

    #[test]
    fn a_long_close_reason_is_cut_between_characters() {
        let mut out = Vec::new();
        write_close(&mut out, None, 3505, &"é".repeat(100));
        assert_eq!(out[..4], [0x88, 124, (3505_u16 >> 8) as u8, 3505_u16 as u8]);
        assert_eq!(&out[4..], "é".repeat(61).as_bytes());
    }
}
