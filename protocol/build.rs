//! Compiles the `.proto` files without `protoc`: protox parses them, prost writes the messages,
//! pbjson the JSON mapping, and, with the feature `grpc`, tonic the services.

use std::{
    io,
    path::{Path, PathBuf},
};

use prost::Message;

/// What few messages carry takes a pointer's room in all the others.
const BOXED: [&str; 5] = [
    ".millrace.chat.v1.Message.quote",
    ".millrace.chat.v1.Message.mentions",
    ".millrace.chat.v1.Message.location",
    ".millrace.chat.v1.Message.forwarded",
    ".millrace.chat.v1.Message.merged",
];

/// What processes tell each other never travels as JSON; it needs no serde.
const JSON_PACKAGES: [&str; 3] = [".millrace.session", ".millrace.chat", ".millrace.api"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("proto");
    // Every file of the tree belongs to one of the five packages.
    let mut files = Vec::new();
    find(&root, &mut files)?;
    files.sort();
    println!("cargo:rerun-if-changed={}", root.display());
    println!("cargo:rerun-if-changed=build.rs");

    let descriptors = protox::compile(&files, [&root])?;
    let encoded = descriptors.encode_to_vec();
    // With the comments: what a description of the API is made of.
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), &encoded)?;

    if std::env::var_os("CARGO_FEATURE_GRPC").is_some() {
        // The RPC of the link is named Connect, as is the convenience that tonic would add.
        let mut builder = tonic_prost_build::configure().build_transport(false).bytes(".");
        for field in BOXED {
            builder = builder.boxed(field);
        }
        builder.compile_fds(descriptors)?;
    } else {
        let mut config = prost_build::Config::new();
        config.bytes(["."]);
        for field in BOXED {
            config.boxed(field);
        }
        config.compile_fds(descriptors)?;
    }

    pbjson_build::Builder::new()
        .register_descriptors(&encoded)?
        .preserve_proto_field_names()
        .emit_fields()
        .ignore_unknown_fields()
        .build(&JSON_PACKAGES)?;
    Ok(())
}

fn find(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            find(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            files.push(path);
        }
    }
    Ok(())
}
