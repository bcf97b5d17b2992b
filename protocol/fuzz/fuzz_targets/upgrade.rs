//! The HTTP upgrade, both sides: any bytes; a whole head never reads differently when more follows,
//! and a refusal is always a whole HTTP response.
#![no_main]

use libfuzzer_sys::fuzz_target;
use millrace_protocol::limits;
use millrace_protocol::websocket::{
    UpgradeProgress, read_upgrade, read_upgrade_response, write_upgrade_refusal,
    write_upgrade_response,
};

fuzz_target!(|data: &[u8]| {
    match read_upgrade(data) {
        Ok(UpgradeProgress::Incomplete) => {
            assert!(data.len() < limits::UPGRADE_REQUEST_BYTES_MAX);
        }
        Ok(UpgradeProgress::Complete { consumed, upgrade }) => {
            assert!(consumed <= data.len().min(limits::UPGRADE_REQUEST_BYTES_MAX));
            assert_eq!(
                read_upgrade(&data[..consumed]),
                Ok(UpgradeProgress::Complete { consumed, upgrade: upgrade.clone() })
            );
            let mut out = Vec::new();
            write_upgrade_response(&mut out, &upgrade, upgrade.subprotocols.first().map(|s| &**s));
            // A subprotocol is a token: nothing from the request can add a header line.
            assert!(out.ends_with(b"\r\n\r\n"));
            let lines = out.windows(2).filter(|pair| pair == b"\r\n").count();
            assert_eq!(lines, if upgrade.subprotocols.is_empty() { 5 } else { 6 });
        }
        Err(error) => {
            let mut out = Vec::new();
            write_upgrade_refusal(&mut out, &error);
            let response = String::from_utf8(out).expect("a response is UTF-8");
            let (head, body) = response.split_once("\r\n\r\n").expect("a head and a body");
            assert!(head.starts_with(&format!("HTTP/1.1 {} ", error.status())));
            assert!(head.ends_with(&format!("Content-Length: {}", body.len())));
        }
    }
    if let Ok(Some((consumed, _))) = read_upgrade_response(data, b"the sample nonce") {
        assert!(consumed <= data.len());
    }
});
