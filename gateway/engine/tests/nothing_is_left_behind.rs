//! After everybody has gone the engine holds nothing, whatever happened before.

mod harness;
mod simulator;

use harness::assert_gauges_are_zero;
use simulator::{Weather, run, seeds};

#[test]
fn after_storms() {
    // Counted over all seeds: what the fixed ones see is enough, whatever the new one brings.
    let mut opened = [0, 0];
    for (index, seed) in seeds().into_iter().enumerate() {
        let world = run(
            seed,
            Weather {
                clients: 60,
                steps: 4_000,
                cut: 10,
                link_loss: 5,
                stall: 10,
                garbage: 10,
                window_frames: 5,
                logics: 1 + index % 3,
                logic_stall: 2,
                logic_leaves: 2,
                logic_restarts: index % 2 == 0,
            },
        );
        assert!(world.engine.is_at_rest(), "{:?}", world.engine.counters());
        let counters = world.engine.counters();
        assert_gauges_are_zero(counters);
        for (opened, traffic) in opened.iter_mut().zip([&counters.tcp, &counters.websocket]) {
            assert_eq!(traffic.opened, traffic.closed.iter().sum::<u64>());
            *opened += traffic.opened;
        }
        assert_eq!(counters.logins, counters.sessions_ended.iter().sum::<u64>());
    }
    assert!(opened.iter().all(|opened| *opened > 400), "the world was asleep: {opened:?}");
}
