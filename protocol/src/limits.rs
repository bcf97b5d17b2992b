//! The bounds of the wire, with their defaults and how they relate.

/// Default largest frame body a gateway accepts (`body_bytes_max`).
pub const BODY_BYTES_MAX_DEFAULT: u32 = 64 * 1024;

/// Hard ceiling of `body_bytes_max`; larger things travel by reference.
pub const BODY_BYTES_MAX_CEILING: u32 = 16 * 1024 * 1024;

/// Largest HTTP upgrade request (request line and headers).
pub const UPGRADE_REQUEST_BYTES_MAX: usize = 8 * 1024;

/// Most headers of an upgrade request.
pub const UPGRADE_HEADERS_MAX: usize = 64;

/// Largest payload of a WebSocket control frame (RFC 6455 section 5.5).
pub const CONTROL_PAYLOAD_BYTES_MAX: usize = 125;

const _: () = assert!(BODY_BYTES_MAX_DEFAULT <= BODY_BYTES_MAX_CEILING);
