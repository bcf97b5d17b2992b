//! What an idle, logged-in connection takes, by the engine's own ledger. (That the ledger agrees
//! with the process's resident memory is measured: docs/measurements/memory.md.)

mod harness;

use harness::Harness;
use millrace_engine::Settings;

#[test]
fn an_idle_session_takes_its_identity_and_52_bytes() {
    const SESSIONS: u64 = 5 * 1024;
    let mut harness = Harness::linked(Settings::default());
    let sockets: Vec<u64> = (0..SESSIONS).map(|_| harness.websocket(None)).collect();
    for (number, socket) in sockets.iter().enumerate() {
        harness.login(*socket, &format!("user-{number:06}"));
    }
    let memory = harness.engine.memory();
    let each = |bytes: u64| bytes / SESSIONS;
    assert_eq!((each(memory.connections), each(memory.timers)), (40, 12), "{memory:?}");
    // flags 1, address 4, idle timeout 2, no expiry 1, login time 6; user-000000, device, test and
    // state with a byte of length each; rounded up to four, and a little for the chunks.
    assert!((44..=46).contains(&each(memory.identities)), "{memory:?}");
    assert_eq!((memory.receive, memory.send, memory.rooms / SESSIONS), (0, 0, 0), "{memory:?}");
    assert!(each(memory.total()) < 100, "{memory:?}");
    harness.finish();
}

#[test]
fn memory_comes_back_when_a_crowd_has_left() {
    let mut harness = Harness::linked(Settings::default());
    let sockets: Vec<u64> = (0..5 * 1024).map(|_| harness.tcp()).collect();
    for socket in &sockets {
        harness.login(*socket, "user");
    }
    let full = harness.engine.memory().total();
    for socket in sockets {
        harness.end(socket);
    }
    let left = harness.engine.memory();
    assert!(left.total() < full / 2, "{left:?}");
    harness.finish();
}
