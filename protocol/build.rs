//! Compiles the `.proto` files without `protoc`: protox parses them, prost writes the messages,
//! pbjson the JSON mapping, and, with the feature `grpc`, tonic the services.

use std::path::PathBuf;

use prost::Message;

const FILES: [&str; 4] = [
    "millrace/session/v1/session.proto",
    "millrace/chat/v1/chat.proto",
    "millrace/link/v1/link.proto",
    "millrace/api/v1/api.proto",
];

/// The link never travels as JSON; its messages need no serde.
const JSON_PACKAGES: [&str; 3] = [".millrace.session", ".millrace.chat", ".millrace.api"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("proto");
    for file in FILES {
        println!("cargo:rerun-if-changed={}", root.join(file).display());
    }
    println!("cargo:rerun-if-changed=build.rs");

    let descriptors = protox::compile(FILES, [&root])?;
    let encoded = descriptors.encode_to_vec();

    if std::env::var_os("CARGO_FEATURE_GRPC").is_some() {
        // The RPC of the link is named Connect, as is the convenience that tonic would add.
        tonic_prost_build::configure()
            .build_transport(false)
            .bytes(".")
            .compile_fds(descriptors)?;
    } else {
        prost_build::Config::new().bytes(["."]).compile_fds(descriptors)?;
    }

    pbjson_build::Builder::new()
        .register_descriptors(&encoded)?
        .preserve_proto_field_names()
        .emit_fields()
        .ignore_unknown_fields()
        .build(&JSON_PACKAGES)?;
    Ok(())
}
