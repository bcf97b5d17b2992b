//! What a finished run leaves behind: JSON with a schema, and, drawn from that JSON alone, an HTML
//! report, `.hgrm` files and JUnit. The figures themselves are [`crate::report`]'s.

pub mod arguments;
pub mod curve;
pub mod document;
pub mod environment;
pub mod hgrm;
pub mod html;
pub mod junit;
#[cfg(test)]
pub mod samples;
pub mod svg;

use std::{
    fs,
    path::{Path, PathBuf},
};

pub use self::arguments::{OutputArguments, ReportArguments};
use serde::Serialize;

use self::document::{Document, Environment, Predicted};
use crate::{exit::RunError, observe::Observations, predict};

/// Text within HTML or XML. Control characters, which XML forbids, become a visible sign.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(character),
            control if control.is_control() || matches!(control, '\u{fffe}' | '\u{ffff}') => {
                out.push('\u{fffd}');
            }
            other => out.push(other),
        }
    }
    out
}

/// What a run's JSON has: the result as it was judged, the machine, and what the ledger says.
#[derive(Serialize)]
struct Whole<'a, R> {
    #[serde(flatten)]
    report: &'a R,
    environment: &'a Environment,
    predicted: &'a [Predicted],
}

/// The JSON of a finished run, and the same as renderers read it. `is_local`: the servers are on this
/// machine, too.
pub fn finish<R: Serialize>(
    report: &R,
    environment: Environment,
    observations: &Observations,
    is_local: bool,
) -> (String, Document) {
    let json = |predicted: &[Predicted]| {
        let whole = Whole { report, environment: &environment, predicted };
        let mut text = serde_json::to_string_pretty(&whole).expect("a report has only string keys");
        text.push('\n');
        text
    };
    let mut document = Document::parse(&json(&[])).expect("what this program writes it can read");
    document.predicted = predict::predict(&document, observations, is_local);
    (json(&document.predicted), document)
}

/// Writes what was asked for; answers the files.
///
/// # Errors
/// A file cannot be written.
pub fn write(
    arguments: &OutputArguments,
    json: &str,
    document: &Document,
) -> Result<Vec<PathBuf>, RunError> {
    let mut written = Vec::new();
    let within = |name: &str| arguments.out.as_ref().map(|folder| folder.join(name));
    if let Some(folder) = &arguments.out {
        make_folder(folder)?;
    }
    let mut put = |path: &Path, text: &str| -> Result<(), RunError> {
        fs::write(path, text)
            .map_err(|error| RunError::aborted(format!("writing {}: {error}", path.display())))?;
        written.push(path.to_owned());
        Ok(())
    };
    for path in [&arguments.json, &within("report.json")].into_iter().flatten() {
        put(path, json)?;
    }
    for path in [&arguments.html, &within("report.html")].into_iter().flatten() {
        put(path, &html::html(document))?;
    }
    for path in [&arguments.junit, &within("junit.xml")].into_iter().flatten() {
        put(path, &junit::junit(document))?;
    }
    for folder in [&arguments.hgrm, &within("hgrm")].into_iter().flatten() {
        make_folder(folder)?;
        for (name, latency) in &document.latency_us {
            // Names come from a file; none of ours leads out of the folder.
            let is_plain =
                name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
            if let Some(text) = hgrm::hgrm(latency).filter(|_| is_plain) {
                put(&folder.join(format!("{name}.hgrm")), &text)?;
            }
        }
    }
    Ok(written)
}

fn make_folder(folder: &Path) -> Result<(), RunError> {
    fs::create_dir_all(folder)
        .map_err(|error| RunError::aborted(format!("making {}: {error}", folder.display())))
}

#[cfg(test)]
mod tests {
    use super::{OutputArguments, escape, samples, write};

    #[test]
    fn escaped_text_has_no_markup_and_no_control_characters() {
        assert_eq!(escape("a<b>&\"'\u{1}\u{7f}é"), "a&lt;b&gt;&amp;&quot;&#39;\u{fffd}\u{fffd}é");
    }

    #[test]
    fn one_folder_gets_every_form_and_no_name_leads_out_of_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let out = folder.path().join("run");
        let arguments = OutputArguments { out: Some(out.clone()), ..OutputArguments::default() };
        let mut document = samples::full();
        let delivery = document.latency_us["delivery"].clone();
        document.latency_us.insert("../../evil".to_owned(), delivery);
        let written = write(&arguments, "{}", &document).expect("written");
        for name in ["report.json", "report.html", "junit.xml", "hgrm/delivery.hgrm"] {
            assert!(written.contains(&out.join(name)) && out.join(name).is_file(), "{written:?}");
        }
        assert!(
            written
                .iter()
                .all(|path| path.starts_with(&out) && !path.to_string_lossy().contains(".."))
        );
    }
}
