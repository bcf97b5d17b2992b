//! One suite of properties for every driver: the laws of [`millrace_gateway::driver::Driver`], held
//! against io_uring, monoio over epoll and over io_uring, glommio (with its cargo feature) and the
//! simulation, calm and with faults.
//!
//! The clients never wait, so that one thread plays both sides and the simulation's virtual clock
//! takes part. Random choices follow from a seed that is printed; MILLRACE_SEED repeats one, MILLRACE_SEED=random takes a new one.

#![allow(missing_docs, clippy::unwrap_used)]

mod harness;
mod lives;
mod streams;
mod worlds;

/// Instantiates every property for one world.
macro_rules! conforms {
    ($name:ident, $world:ty) => {
        mod $name {
            conforms!(@ $world,
                streams::what_goes_in_comes_out_byte_by_byte,
                streams::two_buffers_serve_twenty_busy_senders,
                streams::pausing_and_resuming_loses_nothing,
                streams::a_paused_socket_stops_its_peer_and_nobody_else,
                streams::each_send_is_reported_exactly_once_and_arrives_in_order,
                streams::the_end_of_the_sending_side_follows_the_bytes_in_flight,
                streams::sending_goes_on_after_the_peers_end,
                streams::a_send_to_a_silent_reader_harms_nobody_and_ends_with_the_close,
                lives::a_storm_of_closes_meets_no_wrong_socket,
                lives::a_reset_is_reported_and_the_close_comes_once,
                lives::the_context_stays_with_the_socket_until_it_is_replaced,
                lives::a_wake_before_the_wait_ends_it,
                lives::no_wake_from_other_threads_is_lost,
                lives::after_stop_accepting_clients_are_refused_and_the_others_live_on,
                lives::the_peers_address_is_right_for_both_families,
                lives::a_full_table_lets_clients_wait_and_resets_nobody,
                lives::a_dropped_driver_ends_its_connections,
            );
        }
    };
    (@ $world:ty, $($module:ident :: $property:ident),* $(,)?) => {
        $(
            #[test]
            fn $property() {
                crate::$module::$property::<$world>();
            }
        )*
    };
}

conforms!(io_uring, crate::worlds::Real<millrace_gateway::driver::uring::Driver>);
conforms!(monoio_epoll, crate::worlds::Real<millrace_gateway::driver::monoio::EpollDriver>);
conforms!(monoio_io_uring, crate::worlds::Real<millrace_gateway::driver::monoio::RingDriver>);
#[cfg(feature = "glommio")]
conforms!(glommio, crate::worlds::Real<millrace_gateway::driver::glommio::Driver>);
conforms!(simulated, crate::worlds::Simulated<false>);
conforms!(simulated_with_faults, crate::worlds::Simulated<true>);
