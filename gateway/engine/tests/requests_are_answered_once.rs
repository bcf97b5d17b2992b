//! Each request is answered exactly once, or its connection ended. (That nothing is answered
//! twice, the simulated client asserts on the spot.)

mod simulator;

use simulator::{Weather, run, seeds};

fn check(weather: Weather) {
    // Counted over all seeds: what the fixed ones see is enough, whatever the new one brings.
    let (mut answered, mut stayed_in_all, mut idle_timeouts) = (0, 0, 0);
    for seed in seeds() {
        let world = run(seed, weather);
        idle_timeouts += world.idle_timeouts;
        for client in &world.ended_clients {
            answered += client.answered;
            let stayed = client.has_settled && !client.ending && !client.spoiled;
            if stayed && client.logged_in {
                stayed_in_all += 1;
                assert!(
                    client.waiting.is_empty(),
                    "a session stayed to the end without its answers: {client:?}"
                );
            }
        }
    }
    assert!(stayed_in_all >= 10, "hardly anybody stayed: {stayed_in_all}");
    assert!(weather.cut > 0 || idle_timeouts > 0, "nobody was silent for long");
    assert!(answered > 2_000, "the world was asleep: {answered} answers");
}

#[test]
fn in_calm_weather() {
    check(Weather { cut: 0, link_loss: 0, stall: 0, garbage: 0, ..Weather::default() });
}

#[test]
fn while_the_link_is_lost_again_and_again() {
    check(Weather { link_loss: 10, ..Weather::default() });
}

#[test]
fn while_logic_has_credit_for_two_frames() {
    check(Weather { window_frames: 2, link_loss: 3, ..Weather::default() });
}
