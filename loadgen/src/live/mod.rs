//! What can be seen while a run goes on: a view that fills the terminal, or a line a second, or
//! nothing. It only looks: the run does not wait for it, and ends without it.

mod plain;
pub mod sample;
pub mod screen;
mod terminal;

use std::{
    io::IsTerminal as _,
    sync::{Arc, atomic::AtomicBool},
};

pub use self::terminal::restore;
use self::{sample::Tracker, terminal::Terminal};
use crate::control::{Control, Snapshot};

/// How a run is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum View {
    /// Not at all.
    #[default]
    Quiet,
    /// A line a second on standard error.
    Plain,
    /// A view that fills the terminal.
    Terminal,
}

impl View {
    /// The view for this standard output: nobody sees a drawing in a file or a pipe.
    pub fn choose(is_quiet: bool, is_plain: bool) -> Self {
        let is_dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
        let all_terminals = std::io::stdout().is_terminal()
            && std::io::stdin().is_terminal()
            && std::io::stderr().is_terminal();
        if is_quiet {
            Self::Quiet
        } else if is_plain || is_dumb || !all_terminals {
            Self::Plain
        } else {
            Self::Terminal
        }
    }
}

enum Form {
    Plain,
    Terminal(Box<Terminal>),
}

/// Looks at a run again and again.
pub struct Watcher {
    tracker: Tracker,
    form: Form,
}

impl Watcher {
    /// For a run that starts now; `None` if nothing is to be shown. A terminal that cannot be
    /// drawn on gets lines.
    pub fn new(view: View, now_ns: u64, aborted: &Arc<AtomicBool>) -> Option<Self> {
        let form = match view {
            View::Quiet => return None,
            View::Plain => Form::Plain,
            View::Terminal => match Terminal::new(aborted.clone()) {
                Ok(terminal) => Form::Terminal(Box::new(terminal)),
                Err(_) => Form::Plain,
            },
        };
        Some(Self { tracker: Tracker::new(now_ns), form })
    }

    /// Shows how things stand, if it is time; call it some twenty times a second.
    pub fn look(&mut self, now_ns: u64, control: &Control, snapshot: &Snapshot) {
        let sample = self.tracker.look(now_ns, control, snapshot);
        match &mut self.form {
            Form::Plain => sample.iter().for_each(plain::line),
            Form::Terminal(terminal) => terminal.look(sample),
        }
    }
}
