//! Logic hears of each session's end exactly once, by event or by its absence from the list.
//! (That none ends twice or unknown, the simulated logic asserts on the spot.)

mod simulator;

use simulator::{Post, Weather, run, seeds};

fn check(weather: Weather) {
    // Counted over all seeds: what the fixed ones see is enough, whatever the new one brings.
    let mut sessions = 0;
    for seed in seeds() {
        let world = run(seed, weather);
        sessions += world.truth.accepted.len();
        let is_over = |id: &u64| {
            let heard =
                |post: &Post| post.logic.ended.contains_key(id) || post.logic.lost.contains(id);
            world.truth.ended.contains(id) || world.posts.iter().any(heard)
        };
        for session_id in &world.truth.accepted {
            // A logic that restarted has forgotten whom it accepted: then nobody can tell it.
            assert!(
                weather.logic_restarts || is_over(session_id),
                "session {session_id} never ended"
            );
        }
    }
    assert!(sessions > 80, "only {sessions} sessions");
}

#[test]
fn while_connections_are_cut() {
    check(Weather { cut: 10, link_loss: 0, ..Weather::default() });
}

#[test]
fn while_connections_are_cut_and_the_link_is_lost() {
    check(Weather { cut: 10, link_loss: 10, ..Weather::default() });
}

#[test]
fn while_logic_restarts() {
    check(Weather { cut: 10, link_loss: 5, logic_restarts: true, ..Weather::default() });
}
