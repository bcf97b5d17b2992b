//! The scenarios that come with the program: files of the repository, to be run by name, shown, and
//! copied for one's own.

use std::path::Path;

use millrace_service::config;

use super::Scenario;
use crate::exit::RunError;

/// Name and text of every preset.
pub const ALL: [(&str, &str); 10] = [
    ("smoke", include_str!("../../presets/smoke.toml")),
    ("ramp", include_str!("../../presets/ramp.toml")),
    ("steady", include_str!("../../presets/steady.toml")),
    ("spike", include_str!("../../presets/spike.toml")),
    ("soak", include_str!("../../presets/soak.toml")),
    ("storm", include_str!("../../presets/storm.toml")),
    ("breakpoint", include_str!("../../presets/breakpoint.toml")),
    ("million", include_str!("../../presets/million.toml")),
    ("websocket-echo", include_str!("../../presets/websocket-echo.toml")),
    ("mqtt", include_str!("../../presets/mqtt.toml")),
];

/// The text of a preset.
pub fn text(name: &str) -> Option<&'static str> {
    ALL.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

/// A scenario with its text and where it came from.
pub struct Loaded {
    /// What it says.
    pub scenario: Scenario,
    /// `preset` or `file`.
    pub source: &'static str,
}

/// Reads a preset by its name, or a file.
///
/// # Errors
/// There is neither, or what it says makes no sense; with its place.
pub fn load(name: &str) -> Result<Loaded, RunError> {
    let bad = |message: String| RunError::bad_arguments(message);
    if let Some(text) = text(name) {
        let scenario = Scenario::parse(text, &format!("{name}.toml"))
            .map_err(|error| bad(error.to_string()))?;
        return Ok(Loaded { scenario, source: "preset" });
    }
    let path = Path::new(name);
    let looks_like_a_file = name.contains(['.', '/']);
    if !path.exists() && !looks_like_a_file {
        let names: Vec<&str> = ALL.iter().map(|(name, _)| *name).collect();
        return Err(bad(format!(
            "{name} is neither a file nor a preset; the presets are {}",
            names.join(", ")
        )));
    }
    let scenario =
        config::load_checked(path, Scenario::check).map_err(|error| bad(error.to_string()))?;
    Ok(Loaded { scenario, source: "file" })
}
