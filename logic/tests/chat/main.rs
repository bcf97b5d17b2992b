//! The chat logic as gateways see it: over a real link on loopback, on the real embedded store.
//!
//! Each file protects one promise; `world` plays the gateways and their clients.

mod api;
mod catch_up;
mod cursors;
mod description;
mod edits;
mod fleet;
mod forward;
mod group;
mod group_acts;
mod large_group;
mod logout;
mod order;
mod presence;
mod refusals;
mod reports;
mod rooms;
mod search;
mod security;
mod sessions;
mod single;
mod slow_registry;
mod special;
mod store_faults;
mod words;
mod world;
