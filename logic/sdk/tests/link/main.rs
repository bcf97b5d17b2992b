//! The server against a gateway over real loopback sockets: one property a test, grouped by what
//! they protect.

mod credit;
mod ends;
mod frames;
mod logins;
mod moves;
mod once;
mod recorder;
mod replay;
mod rooms;
mod shutdown;
mod violations;
