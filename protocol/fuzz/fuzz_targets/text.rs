//! The JSON envelope: any text; what was parsed is written and parsed to the same again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use millrace_protocol::{command, frame::Flags, text};

fuzz_target!(|data: &str| {
    let Ok(envelope) = text::parse(data) else { return };
    let reply = if envelope.is_reply { command::REPLY_BIT } else { 0 };
    let mut out = Vec::new();
    text::write(&mut out, envelope.command | reply, envelope.request_id, envelope.body.as_bytes());
    let written = String::from_utf8(out).expect("an envelope is UTF-8");
    let again = text::parse(&written).expect("what we write can be read");
    assert_eq!(again, text::Envelope { flags: Flags::JSON, ..envelope });
});
