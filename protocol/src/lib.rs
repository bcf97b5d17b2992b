//! The wire protocol of Millrace: what travels between a client and the gateway, and between the
//! gateway and the logic tier.
//!
//! Nothing here does I/O, reads a clock or needs an async runtime: bytes in, values out. The
//! normative text is `docs/protocol.md`; the files in `vectors/` pin it byte by byte.
//!
//! - [`frame`]: the 12-byte header and the frame stream of a TCP connection
//! - [`websocket`]: RFC 6455, upgrade and framing, for both roles
//! - [`text`]: the JSON envelope of the WebSocket text form
//! - [`code`]: the one table of codes: number, label, sentence, WebSocket close code
//! - [`command`]: the one table of commands
//! - [`limits`]: the bounds of the wire
//! - [`session`], [`chat`], [`link`], [`api`], [`peer`]: the protobuf messages

pub mod code;
pub mod command;
pub mod frame;
pub mod limits;
pub mod text;
pub mod websocket;

pub use code::Code;

/// The generated modules, nested as their packages are.
#[allow(missing_docs, clippy::all, clippy::pedantic, unused_qualifications)]
mod generated {
    pub mod session {
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/millrace.session.v1.rs"));
            include!(concat!(env!("OUT_DIR"), "/millrace.session.v1.serde.rs"));
        }
    }
    pub mod chat {
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/millrace.chat.v1.rs"));
            include!(concat!(env!("OUT_DIR"), "/millrace.chat.v1.serde.rs"));
        }
    }
    pub mod link {
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/millrace.link.v1.rs"));
        }
    }
    pub mod peer {
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/millrace.peer.v1.rs"));
        }
    }
    pub mod api {
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/millrace.api.v1.rs"));
            include!(concat!(env!("OUT_DIR"), "/millrace.api.v1.serde.rs"));
        }
    }
}

/// Every `.proto` file as a `google.protobuf.FileDescriptorSet`, comments included.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The administrative API of the reference logic (`api.proto`).
pub use generated::api::v1 as api;
/// Bodies of the reference chat logic's commands (`chat.proto`).
pub use generated::chat::v1 as chat;
/// The link between gateway and logic (`link.proto`).
pub use generated::link::v1 as link;
/// What the logic processes of a fleet tell each other (`peer.proto`).
pub use generated::peer::v1 as peer;
/// Bodies of the session commands, 0x0001 to 0x0007 (`session.proto`).
pub use generated::session::v1 as session;
