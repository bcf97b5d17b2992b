//! Several logics that are lost, stall, leave and come back, at random: each session is at home with
//! one at a time or none, its frames leave once and in order over all its homes, it ends once, and its
//! rooms follow it. (All of that the simulator's `truth` asserts on the spot, whatever the test.)

mod simulator;

use millrace_protocol::Code;
use simulator::{Weather, World, run, seeds};

/// A leave that logic had said before a session moved away was obeyed when it was about to come back.
const A_LEAVE_OF_AN_EARLIER_STAY: u64 = 1_747_725_736_604_547_276;

/// A logic was told that it is empty while a login whose client had gone was still to be decided there.
const DRAINED_BEFORE_A_LOGIN_WAS_DECIDED: u64 = 13_649_728_631_212_627_907;

/// Runs this seed, which found a fault, and the seeds of the run; says how many sessions moved, were taken in, and how often a logic was emptied.
#[expect(clippy::print_stdout, reason = "how much was seen is read with --nocapture")]
fn check(weather: Weather, kept: Option<u64>, each: impl Fn(&World)) -> (u64, u64, u64) {
    let mut seen = (0, 0, 0);
    for seed in kept.into_iter().chain(seeds()) {
        let world = run(seed, weather);
        for client in &world.ended_clients {
            let nothing = Vec::new();
            let sent = world.truth.pushed.get(&client.session_id).unwrap_or(&nothing);
            assert!(sent.starts_with(&client.pushed), "{client:?}: {sent:?}");
            if client.has_settled && client.logged_in && !client.ending && !client.spoiled {
                assert_eq!(sent, &client.pushed, "a session that stayed missed something");
                assert!(client.waiting.is_empty(), "a session stayed without its answers");
            }
        }
        seen.0 += world.truth.moves;
        seen.1 += world.truth.taken_in;
        seen.2 += world.posts.iter().map(|post| post.logic.drained_empty).sum::<u64>();
        each(&world);
    }
    println!("moved, taken in, emptied: {seen:?}");
    seen
}

#[test]
fn while_logics_leave_and_come_back_nobody_is_refused_anything() {
    let weather =
        Weather { logics: 3, link_loss: 0, logic_leaves: 3, cut: 2, ..Weather::default() };
    let seen = check(weather, Some(A_LEAVE_OF_AN_EARLIER_STAY), |world| {
        let refused = world.engine.counters().refused[Code::LogicUnavailable as usize];
        let said = world.truth.said_unavailable;
        assert!(refused <= said, "{refused} refused, of which logic {said}");
    });
    assert!(seen.0 > 200 && seen.2 > 20, "the world was asleep: {seen:?}");
}

#[test]
fn while_links_are_lost() {
    let weather = Weather { logics: 3, link_loss: 5, cut: 4, ..Weather::default() };
    let seen = check(weather, None, |_| ());
    assert!(seen.0 > 200 && seen.1 > 200, "the world was asleep: {seen:?}");
}

#[test]
fn while_everything_happens_to_two_logics() {
    let weather = Weather {
        logics: 2,
        link_loss: 4,
        logic_stall: 3,
        logic_leaves: 3,
        logic_restarts: true,
        cut: 5,
        stall: 5,
        garbage: 2,
        window_frames: 5,
        ..Weather::default()
    };
    let seen = check(weather, Some(DRAINED_BEFORE_A_LOGIN_WAS_DECIDED), |_| ());
    assert!(seen.0 > 50 && seen.1 > 50, "the world was asleep: {seen:?}");
}
