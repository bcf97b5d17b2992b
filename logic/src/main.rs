//! The logic process: `millrace-logic run --config FILE`.
//!
//! Only what belongs to a process and not to the library is here: arguments, secrets from the
//! environment, logging, signals, the runtime, the allocator.

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
#[cfg(feature = "postgres")]
use millrace_logic::config::StoreKind;
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
    /// Brings a PostgreSQL database to the schema of this program. Done again it changes nothing.
    /// The database is that of the configuration, or of the environment variable
    /// MILLRACE_STORE__POSTGRES__URL, which comes first.
    #[cfg(feature = "postgres")]
    Migrate {
        /// The TOML file of the process; without one only the environment says where the database is.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Partitions of each large table when it is made; 0 for plain tables, on databases that
        /// spread tables by themselves.
        #[arg(long, value_name = "NUMBER", default_value_t = 16)]
        partitions: u32,
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
        #[cfg(feature = "postgres")]
        Command::Migrate { config, partitions } => migrate(config, partitions),
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

#[cfg(feature = "postgres")]
fn migrate(file: Option<PathBuf>, partitions: u32) -> Result<(), String> {
    let mut config = match &file {
        Some(file) => Config::load(file).map_err(|error| error.to_string())?,
        None => Config::default(),
    };
    if file.is_some() && config.store.kind != StoreKind::Postgres {
        return Err("store.kind is not \"postgres\": there is nothing to migrate".to_owned());
    }
    config.store.kind = StoreKind::Postgres;
    let url = config.store_url().map_err(|error| match file {
        Some(_) => error.to_string(),
        None => "which database? Name it with --config FILE, or in the environment variable \
                 MILLRACE_STORE__POSTGRES__URL"
            .to_owned(),
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("the runtime cannot be started: {error}"))?;
    let migrated = runtime
        .block_on(millrace_logic::storage::postgres::migrate(&url, partitions))
        .map_err(|error| error.to_string())?;
    print(&match migrated.from == migrated.to {
        true => format!("the schema is at step {} already\n", migrated.to),
        false => format!("the schema went from step {} to {}\n", migrated.from, migrated.to),
    });
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
