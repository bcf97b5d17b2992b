//! The terminal itself: taken when the view begins, given back however it ends.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers},
};

use super::{
    sample::Sample,
    screen::{History, draw},
};
use crate::exit::Exit;

/// Whether a view holds the terminal: a signal that ends the process at once gives it back first.
static IS_TAKEN: AtomicBool = AtomicBool::new(false);
/// Keys looked at in one go; nobody types faster.
const KEYS_MAX: usize = 64;

/// Gives the terminal back if a view holds it. May be called from any thread.
pub fn restore() {
    if IS_TAKEN.swap(false, Ordering::AcqRel) {
        // Nothing can be done about a terminal that is gone.
        let _ = ratatui::try_restore();
    }
}

pub(super) struct Terminal {
    terminal: DefaultTerminal,
    history: History,
    aborted: Arc<AtomicBool>,
}

impl Terminal {
    pub(super) fn new(aborted: Arc<AtomicBool>) -> io::Result<Self> {
        let terminal = ratatui::try_init()?;
        IS_TAKEN.store(true, Ordering::Release);
        let mut this = Self { terminal, history: History::default(), aborted };
        this.draw();
        Ok(this)
    }

    pub(super) fn look(&mut self, sample: Option<Sample>) {
        let resized = self.read_keys();
        let is_new = sample.is_some();
        if let Some(sample) = sample {
            self.history.push(sample);
        }
        if is_new || resized {
            self.draw();
        }
    }

    fn draw(&mut self) {
        let history = &self.history;
        // A terminal that went away does not end the run.
        let _ = self.terminal.draw(|frame| draw(frame, history));
    }

    /// In raw mode Ctrl-C is a key and no signal. Answers whether the size changed.
    fn read_keys(&mut self) -> bool {
        let mut resized = false;
        for _ in 0..KEYS_MAX {
            if !event::poll(Duration::ZERO).unwrap_or(false) {
                break;
            }
            match event::read() {
                Ok(Event::Resize(..)) => resized = true,
                Ok(Event::Key(key)) if key.kind == KeyEventKind::Press => {
                    let is_interrupt = key.code == KeyCode::Char('c')
                        && key.modifiers.contains(KeyModifiers::CONTROL);
                    if (is_interrupt || key.code == KeyCode::Char('q'))
                        && self.aborted.swap(true, Ordering::Relaxed)
                    {
                        // The second time at once, like the second signal.
                        restore();
                        std::process::exit(i32::from(Exit::Aborted as u8));
                    }
                }
                Ok(_) => {}
                Err(_) => break,
            }
        }
        resized
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        restore();
    }
}
