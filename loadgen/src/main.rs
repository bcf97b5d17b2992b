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
    agents::agent,
    cli::{Cli, Command, ResultArguments, TargetArguments},
    echo,
    exit::{Exit, RunError},
    live,
    observe::Observer,
    output, run as scenarios, subcommands,
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
    if let Some((text, exit_code)) = without_load(command)? {
        write_out(&text)?;
        return Ok(exit_code);
    }
    let aborted = Arc::new(AtomicBool::new(false));
    abort_on_signals(aborted.clone())?;
    if let Command::Agent(arguments) = command {
        return agent::serve(arguments, &aborted);
    }
    let (result, target) = result_and_target(command);
    let environment = output::environment::of_this_machine();
    let observer = Observer::start(&result.observe);
    let report = match command {
        Command::Run(arguments) => scenarios::run(arguments, &aborted)?,
        Command::Chat(arguments) => subcommands::run(arguments, &aborted)?,
        Command::Idle(arguments) => subcommands::run_idle(arguments, &aborted)?,
        Command::Fanout(arguments) => {
            subcommands::run_as("fanout", &arguments.as_chat(), &aborted)?
        }
        Command::Echo(arguments) => echo::run(arguments, &aborted)?,
        Command::Scenario(_)
        | Command::Doctor(_)
        | Command::Plan(_)
        | Command::Compare(_)
        | Command::Report(_)
        | Command::Agent(_) => unreachable!("they put no load on anything by themselves"),
    };
    let observations = observer.finish();
    write_out(&report.to_text())?;
    if !result.output.is_empty() {
        // Of the agents' machines nothing is known here.
        let is_local =
            report.agents.is_empty() && target.is_some_and(TargetArguments::is_this_machine);
        let (json, document) = output::finish(&report, environment, &observations, is_local);
        output::write(&result.output, &json, &document)?;
    }
    Ok(report.exit_code)
}

/// Where the result goes, and what is under load. Only of commands that put load on something.
fn result_and_target(command: &Command) -> (&ResultArguments, Option<&TargetArguments>) {
    match command {
        Command::Run(arguments) => (&arguments.result, Some(&arguments.target)),
        Command::Chat(arguments) => (&arguments.result, Some(&arguments.target)),
        Command::Idle(arguments) => (&arguments.result, Some(&arguments.target)),
        Command::Fanout(arguments) => (&arguments.result, Some(&arguments.target)),
        Command::Echo(arguments) => (&arguments.result, None),
        Command::Scenario(_)
        | Command::Doctor(_)
        | Command::Plan(_)
        | Command::Compare(_)
        | Command::Report(_)
        | Command::Agent(_) => unreachable!("they put no load on anything by themselves"),
    }
}

/// What the commands that open no connections say, and their exit code; `None` for the others.
fn without_load(command: &Command) -> Result<Option<(String, u8)>, RunError> {
    Ok(Some(match command {
        Command::Scenario(command) => (scenarios::scenario(command)?, Exit::Ok as u8),
        Command::Doctor(arguments) => arguments.run()?,
        Command::Plan(arguments) => (arguments.run()?, Exit::Ok as u8),
        Command::Compare(arguments) => arguments.run()?,
        Command::Report(arguments) => (arguments.run()?, Exit::Ok as u8),
        _ => return Ok(None),
    }))
}

fn write_out(text: &str) -> Result<(), RunError> {
    let written = std::io::stdout().write_all(text.as_bytes());
    written.map_err(|error| RunError::aborted(format!("writing the result: {error}")))
}

/// The first signal ends the run in order, the second at once.
fn abort_on_signals(aborted: Arc<AtomicBool>) -> Result<(), RunError> {
    let handler = move || {
        if aborted.swap(true, Ordering::Relaxed) {
            live::restore();
            std::process::exit(i32::from(Exit::Aborted as u8));
        }
    };
    ctrlc::set_handler(handler).map_err(|error| RunError::preflight(format!("signals: {error}")))
}
