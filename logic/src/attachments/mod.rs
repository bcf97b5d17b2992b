//! Files that messages refer to: uploaded in parts, kept in a directory or a bucket, downloaded by who
//! may see them.
//!
//! - [`blobs`]: the trait [`BlobStore`], where complete files are; `directory` and `s3` implement it
//! - `uploads`: parts on the local disk, until a file is complete
//! - `media`: whether a file is what it says it is
//! - `links`: URLs that are good without a token, for a while
//! - `service`: the calls; [`Attachments`]
//! - `gate`: what a message with an attachment has to pass
//! - `sweep`: removes what nobody refers to
//!
//! # A file's way
//! It is created with its size, which its owner's quota pays for at once. Its parts are written to a
//! file of the upload directory; after each part what has arrived is made durable and then recorded,
//! so an upload goes on where it was after any crash. The last part ends it: the content is hashed
//! and looked at, handed to the blob store, and only then is the file complete. Whatever fails on
//! the way leaves either an upload that can go on or nothing.
//!
//! # Who may read a file
//! Its owner; everybody with a token if it is public; everybody who is or was in a conversation that
//! refers to it; a service; and who has a link. A conversation refers to a file from the moment that a
//! message with it was let through to be stored.

pub mod blobs;
mod directory;
mod gate;
mod links;
mod media;
#[cfg(feature = "s3")]
mod s3;
mod service;
mod settings;
mod sweep;
mod uploads;

pub use blobs::{BlobError, BlobStore};
pub use directory::DirectoryBlobs;
#[cfg(feature = "s3")]
pub use s3::{S3Blobs, S3Settings};
pub use service::{Attachments, Content};
pub use settings::AttachmentSettings;
pub use sweep::run as sweep;

/// What the ids of our files begin with; others are left to whoever made them.
pub const ID_PREFIX: &str = "at_";
