//! The frame stream: any bytes, any pieces; the pieces never matter, and what was read is written
//! back to the same bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use millrace_protocol::frame::{self, FrameReader, HeaderError};

type Outcome = (Vec<u8>, Option<HeaderError>, usize);

fn read(stream: &[u8], mut piece_length: impl FnMut() -> usize) -> Outcome {
    let mut reader = FrameReader::new();
    let mut written_back = Vec::new();
    let mut rest = stream;
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(piece_length().clamp(1, rest.len()));
        rest = after;
        let result = reader.read(piece, 512, |header, body| {
            assert_eq!(header.body_length as usize, body.len());
            let (command, id) = (header.command, header.request_id);
            frame::write(&mut written_back, command, header.flags, id, body);
            true
        });
        if let Err(error) = result {
            return (written_back, Some(error), 0);
        }
        assert!(reader.buffered_bytes() < 512 + frame::HEADER_BYTES);
    }
    (written_back, None, reader.buffered_bytes())
}

fuzz_target!(|data: &[u8]| {
    let Some((&seed, stream)) = data.split_first() else { return };
    let whole = read(stream, || usize::MAX);
    let mut state = u64::from(seed) + 1;
    let in_pieces = read(stream, || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 59) as usize
    });
    assert_eq!(whole, in_pieces);
    assert!(stream.starts_with(&whole.0));
    if whole.1.is_none() {
        assert_eq!(whole.0.len() + whole.2, stream.len());
    }
});
