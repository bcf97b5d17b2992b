//! `millrace-gateway`: reads its arguments and its configuration, starts a gateway, and lets
//! SIGTERM end it in good order. Everything else is in the library.

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use millrace_gateway::{Config, Fleet, Gateway, capacity::Capacity, config::DEFAULT_TOML};
use millrace_service::{logging, signal::Termination};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Holds the clients' connections and passes their frames to the logic tier.
#[derive(Parser)]
#[command(name = "millrace-gateway", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run until SIGTERM, which sends the clients away first; a second one ends it at once.
    Run {
        /// The TOML file; `config default` prints one.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Judge a configuration and say how many connections it would hold on this machine, what
    /// binds first and how to have more; which logic endpoints it leads to, names looked up, and what
    /// a fleet of several gateways needs. Exit code 0 if it is valid, 1 if not, 2 for wrong
    /// arguments.
    Check {
        /// The TOML file.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Show configuration.
    #[command(subcommand)]
    Config(Show),
}

#[derive(Subcommand)]
enum Show {
    /// Print every key with its default and its meaning, as TOML.
    Default,
}

fn main() -> ExitCode {
    // Wrong arguments end in clap, with exit code 2.
    match Arguments::parse().command {
        Command::Run { config } => match Config::load(&config) {
            Ok(config) => run(config),
            Err(error) => fail(&error),
        },
        Command::Check { config } => match Config::load(&config) {
            Ok(read) => {
                eprintln!("{}: valid", config.display());
                show(&read)
            }
            Err(error) => fail(&error),
        },
        Command::Config(Show::Default) => {
            use std::io::Write;
            match std::io::stdout().write_all(DEFAULT_TOML.as_bytes()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => fail(&error),
            }
        }
    }
}

/// What the configuration would hold on this machine, and where it leads.
fn show(config: &Config) -> ExitCode {
    use std::io::Write;
    let (driver, fallback) = config.gateway.driver.decide();
    let report = match Capacity::plan(config, driver) {
        Ok(capacity) => capacity.report(),
        Err(reason) => return fail(&reason),
    };
    let because = fallback.map_or_else(String::new, |reason| {
        format!(", because io_uring is not to be had: {reason}")
    });
    let fleet = match look_up(config) {
        Ok(fleet) => fleet.report(),
        Err(reason) => return fail(&reason),
    };
    let text =
        format!("on this machine: {report}\nconnections are carried by {driver}{because}\n{fleet}");
    match writeln!(std::io::stdout(), "{text}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn look_up(config: &Config) -> Result<Fleet, Box<dyn std::error::Error>> {
    let mut fleet = Fleet::of(config)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(fleet.look_up());
    runtime.shutdown_background();
    Ok(fleet)
}

fn fail(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("{error}");
    ExitCode::FAILURE
}

fn run(config: Config) -> ExitCode {
    if let Err(error) = logging::init(config.log.format, &config.log.level) {
        return fail(&error);
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    let code = runtime.block_on(serve(config));
    // A thread that still waits for shards after a second signal must not hold the exit up.
    runtime.shutdown_background();
    code
}

async fn serve(config: Config) -> ExitCode {
    let mut termination = match Termination::listen() {
        Ok(termination) => termination,
        Err(error) => return fail(&error),
    };
    let fleet = Fleet::of(&config);
    let gateway = match Gateway::start(config) {
        Ok(gateway) => gateway,
        Err(error) => {
            tracing::error!(%error, "cannot start");
            return ExitCode::FAILURE;
        }
    };
    let addresses = gateway.addresses();
    let shown = |address: Option<std::net::SocketAddr>| {
        address.map_or_else(|| "none".to_owned(), |address| address.to_string())
    };
    tracing::info!(
        websocket = %shown(addresses.websocket),
        tcp = %shown(addresses.tcp),
        admin = %shown(addresses.admin),
        driver = %gateway.driver(),
        "listening"
    );
    tracing::info!(capacity = %gateway.capacity(), "this process holds");
    for warning in gateway.capacity().warnings() {
        tracing::warn!(%warning, "the machine gives less than this gateway could use");
    }
    if let Ok(fleet) = fleet {
        tracing::info!(gateway_id = fleet.gateway_id(), endpoints = %fleet.endpoints(), "logic");
        for note in fleet.notes() {
            if note.is_wrong {
                tracing::warn!(warning = %note.text, "what a fleet needs");
            } else {
                tracing::info!(note = %note.text, "what a fleet needs");
            }
        }
    }
    tokio::select! {
        name = termination.received() => {
            tracing::info!(signal = name, "leaving: no new connections, clients are sent away");
            gateway.drain();
        }
        () = gateway.shard_ended() => {
            tracing::error!("a shard ended by itself");
            gateway.stop();
        }
    }
    let joined = tokio::task::spawn_blocking(move || gateway.join());
    match termination.or_exit_at_once(joined).await {
        Ok(Ok(())) => {
            tracing::info!("left");
            ExitCode::SUCCESS
        }
        Ok(Err(error)) => {
            tracing::error!(%error, "ended with an error");
            ExitCode::FAILURE
        }
        Err(error) => {
            tracing::error!(%error, "the last step panicked");
            ExitCode::FAILURE
        }
    }
}
