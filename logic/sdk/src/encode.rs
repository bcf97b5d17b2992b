//! Bodies to and from messages, in the two encodings a client can have. Sizes are checked here;
//! what a message means is not.

use bytes::Bytes;
use millrace_protocol::frame::Flags;
use millrace_protocol::link::Encoding;
use millrace_protocol::{Code, limits};
use prost::Message;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::backend::Refused;

/// Why a message cannot become a body.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EncodeError {
    #[error("the message has no JSON form: {0}")]
    Json(#[from] serde_json::Error),
    #[error("a body of {0} bytes is above the ceiling of {max}", max = limits::BODY_BYTES_MAX_CEILING)]
    TooLarge(usize),
}

/// A message's body. Everything but JSON is protobuf.
pub(crate) fn message<M: Message + Serialize>(
    message: &M,
    encoding: Encoding,
) -> Result<Bytes, EncodeError> {
    let body: Bytes = match encoding {
        Encoding::Json => serde_json::to_vec(message)?.into(),
        Encoding::Protobuf | Encoding::Unspecified => message.encode_to_vec().into(),
    };
    if body.len() > limits::BODY_BYTES_MAX_CEILING as usize {
        return Err(EncodeError::TooLarge(body.len()));
    }
    Ok(body)
}

/// The message in a body.
pub(crate) fn decode<M: Message + Default + DeserializeOwned>(
    body: &Bytes,
    flags: Flags,
) -> Result<M, Refused> {
    if flags.contains(Flags::JSON) {
        serde_json::from_slice(body).map_err(|error| {
            Refused::new(Code::BadRequest, format!("the body is not the JSON expected: {error}"))
        })
    } else {
        M::decode(body.clone()).map_err(|error| {
            Refused::new(Code::BadRequest, format!("the body is not the message expected: {error}"))
        })
    }
}

/// The flags of a body in this encoding.
pub(crate) const fn flags(encoding: Encoding) -> Flags {
    match encoding {
        Encoding::Json => Flags::JSON,
        Encoding::Protobuf | Encoding::Unspecified => Flags::NONE,
    }
}
