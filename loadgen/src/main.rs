//! The command line of the load generator: arguments in, a summary and an exit code out.

use std::{
    io::Write as _,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use clap::Parser;
use millrace_loadgen::{
    chat,
    cli::{Cli, Command},
    echo,
    exit::{Exit, RunError},
    idle,
    report::Report,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let exit = if error.use_stderr() { Exit::BadArguments } else { Exit::Ok };
            // The help on a closed pipe is no error worth another one.
            let _ = error.print();
            return ExitCode::from(exit as u8);
        }
    };
    match run(&cli.command) {
        Ok(exit_code) => ExitCode::from(exit_code),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "millrace-loadgen: {error}");
            ExitCode::from(error.exit as u8)
        }
    }
}

fn run(command: &Command) -> Result<u8, RunError> {
    let aborted = Arc::new(AtomicBool::new(false));
    abort_on_signals(aborted.clone())?;
    let (report, result) = match command {
        Command::Chat(arguments) => (chat::run(arguments, &aborted)?, &arguments.result),
        Command::Idle(arguments) => (idle::run(arguments, &aborted)?, &arguments.result),
        Command::Fanout(arguments) => {
            (chat::run_as("fanout", &arguments.as_chat(), &aborted)?, &arguments.result)
        }
        Command::Echo(arguments) => (echo::run(arguments, &aborted)?, &arguments.result),
    };
    let failed = |what: std::io::Error| RunError::aborted(format!("writing the result: {what}"));
    std::io::stdout().write_all(report.to_text().as_bytes()).map_err(failed)?;
    if let Some(path) = &result.json {
        std::fs::write(path, json(&report)).map_err(failed)?;
    }
    Ok(report.exit_code)
}

fn json(report: &Report) -> String {
    let mut text = serde_json::to_string_pretty(report).expect("a report has only string keys");
    text.push('\n');
    text
}

/// The first signal ends the run in order, the second at once.
fn abort_on_signals(aborted: Arc<AtomicBool>) -> Result<(), RunError> {
    let handler = move || {
        if aborted.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(Exit::Aborted as u8));
        }
    };
    ctrlc::set_handler(handler).map_err(|error| RunError::preflight(format!("signals: {error}")))
}
