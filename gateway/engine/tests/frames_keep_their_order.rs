//! What logic sends to a session arrives in order and without a hole, as far as the connection
//! lived; to one that stayed, all of it. (The other direction the simulated logic asserts.)

mod simulator;

use simulator::{Weather, run, seeds};

fn check(weather: Weather) {
    // Counted over all seeds: what the fixed ones see is enough, whatever the new one brings.
    let (mut heard, mut stayed) = (0, 0);
    for seed in seeds() {
        let world = run(seed, weather);
        for client in &world.ended_clients {
            let nothing = Vec::new();
            let sent = world.truth.pushed.get(&client.session_id).unwrap_or(&nothing);
            heard += client.pushed.len();
            assert!(
                sent.starts_with(&client.pushed),
                "session {}: sent {sent:?}, heard {:?}",
                client.session_id,
                client.pushed
            );
            if client.has_settled && client.logged_in && !client.ending && !client.spoiled {
                stayed += 1;
                assert_eq!(sent, &client.pushed, "a session that stayed missed something");
            }
        }
    }
    assert!(stayed >= 10, "hardly anybody stayed: {stayed}");
    assert!(heard > 4_000, "the world was asleep: {heard} messages");
}

#[test]
fn while_readers_stall() {
    check(Weather { stall: 10, link_loss: 0, ..Weather::default() });
}

#[test]
fn while_everything_happens() {
    check(Weather { stall: 5, cut: 5, link_loss: 3, garbage: 3, ..Weather::default() });
}
