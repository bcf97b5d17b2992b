//! What stands between a byte stream and whole messages, for one connection: framing, the
//! WebSocket handshake and its control frames, and the queue of what is to be sent.
//!
//! Nothing here knows of logins or sessions, so that a plain WebSocket server can be built from
//! [`WebSocketTransport`] alone. Nothing here does I/O: bytes go in, [`Outbound::take`] gives the
//! bytes that are to go out.

mod frames;
mod outbound;
mod websocket;

pub use frames::{FramesError, read_frames};
pub(crate) use outbound::Queue;
pub use outbound::{Outbound, SendQueue};
pub use websocket::{
    Event, Received, TransportError, WebSocketInput, WebSocketSettings, WebSocketTransport,
};
