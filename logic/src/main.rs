//! The logic process: `millrace-logic run --config FILE`.
//!
//! Only what belongs to a process and not to the library is here: arguments, secrets from the
//! environment, logging, signals, the runtime, the allocator.

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use millrace_logic::{Config, DEFAULT_TOML, Logic};
use millrace_service::{logging, signal::Termination};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The reference chat logic of Millrace: gateways connect to it, business services call it.
#[derive(Parser)]
#[command(name = "millrace-logic", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs until SIGTERM or SIGINT; a second one leaves at once.
    Run {
        /// The TOML file; `config default` prints one.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Judges a file and starts nothing: 0 valid, 1 invalid, 2 wrong usage.
    #[command(short_flag = 't')]
    Check {
        /// The TOML file.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// What can be configured.
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Prints every key with its default and its meaning.
    Default,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Run { config } => run(config),
        Command::Check { config } => check(config),
        Command::Config { command: ConfigCommand::Default } => {
            print(DEFAULT_TOML);
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            eprintln!("millrace-logic: {sentence}");
            ExitCode::FAILURE
        }
    }
}

/// Data goes to standard output; everything else to standard error.
#[allow(clippy::print_stdout)]
fn print(text: &str) {
    print!("{text}");
}

fn load(file: &PathBuf) -> Result<Config, String> {
    let config = Config::load(file).map_err(|error| error.to_string())?;
    config.secrets().map_err(|error| format!("{}: {error}", file.display()))?;
    Ok(config)
}

fn check(file: PathBuf) -> Result<(), String> {
    load(&file)?;
    print(&format!("{} is valid\n", file.display()));
    Ok(())
}

fn run(file: PathBuf) -> Result<(), String> {
    let config = load(&file)?;
    logging::init(config.log.format, &config.log.level)?;
    let threads = config.worker_threads();
    let mut builder = match threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = builder
        .worker_threads(threads)
        .thread_name("logic")
        .enable_all()
        .build()
        .map_err(|error| format!("the runtime cannot be started: {error}"))?;
    runtime.block_on(async {
        let mut termination = Termination::listen()
            .map_err(|error| format!("signals cannot be listened for: {error}"))?;
        let logic = Logic::start(config).await.map_err(|error| error.to_string())?;
        let addresses = logic.addresses();
        let shown = |address: Option<std::net::SocketAddr>| {
            address.map_or_else(|| "none".to_owned(), |address| address.to_string())
        };
        tracing::info!(
            link = %addresses.link,
            http = shown(addresses.http),
            grpc = shown(addresses.grpc),
            admin = shown(addresses.admin),
            threads = threads as u64,
            "listening"
        );
        let signal = termination.received().await;
        tracing::info!(signal, "leaving: what was taken is stored and answered first");
        let left = termination.or_exit_at_once(logic.shutdown()).await;
        left.map_err(|error| error.to_string())?;
        tracing::info!("left");
        Ok(())
    })
}
