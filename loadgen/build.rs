//! Compiles what coordinator and agents say to each other, and names the build by a fingerprint of its
//! sources: they refuse each other if it differs, since the same load must be made by the same program.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// What decides what a generator does, beside other people's crates.
const SOURCES: [&str; 5] = ["src", "proto", "presets", "../protocol/src", "../protocol/proto"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?);
    let descriptors = protox::compile(["agents.proto"], [root.join("proto")])?;
    // The call of the service is made over a channel of our own.
    tonic_prost_build::configure().build_transport(false).compile_fds(descriptors)?;

    let mut files = Vec::new();
    for folder in SOURCES {
        println!("cargo:rerun-if-changed={folder}");
        find(&root.join(folder), &mut files)?;
    }
    files.sort();
    let mut fingerprint = Fnv::new();
    for file in files {
        let name = file.strip_prefix(&root).unwrap_or(&file);
        fingerprint.add(name.as_os_str().as_encoded_bytes());
        fingerprint.add(&fs::read(&file)?);
    }
    let version = std::env::var("CARGO_PKG_VERSION")?;
    println!("cargo:rustc-env=MILLRACE_LOADGEN_BUILD={version}+{:016x}", fingerprint.0);
    Ok(())
}

fn find(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { find(&path, files)? } else { files.push(path) }
    }
    Ok(())
}

/// FNV-1a: it tells builds apart, and keeps nobody out.
struct Fnv(u64);

impl Fnv {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, bytes: &[u8]) {
        // The length as well, so that a byte cannot move from one file to the next.
        for byte in bytes.iter().copied().chain((bytes.len() as u64).to_le_bytes()) {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}
