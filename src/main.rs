//! `millrace`: the whole product on one machine, for a first look and for development.
//!
//! `millrace dev`, the default, starts the gateway, the reference logic with its embedded store and
//! a small chat page in one process, over the same link and the same configuration types as
//! the separate binaries `millrace-gateway` and `millrace-logic`, which are what a fleet runs.

mod dev;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A connection gateway with a pluggable logic tier, all of it on this machine.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    dev: dev::Options,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs gateway, logic, embedded store and a chat page until Ctrl-C or SIGTERM (the default).
    Dev(dev::Options),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let options = match arguments.command {
        Some(Command::Dev(options)) => options,
        None => arguments.dev,
    };
    match dev::run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("millrace: {error}");
            ExitCode::FAILURE
        }
    }
}
