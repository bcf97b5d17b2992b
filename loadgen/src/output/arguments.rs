//! Where the result goes, and the command that draws it again from its JSON.

use std::path::PathBuf;

use clap::Args;

use super::{document::Document, write};
use crate::exit::RunError;

/// Files of the result.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Result")]
pub struct OutputArguments {
    /// Write everything into this folder: report.json, report.html, junit.xml, hgrm/*.hgrm.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Write the summary as JSON to this file (docs/loadgen-report.schema.json describes it).
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the report as one HTML file that needs nothing else: percentile curves, time lines,
    /// predicted and measured, the generator's health.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Write the verdict as JUnit XML, for CI.
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// Write each latency's percentile distribution into this folder, as wrk2 and HdrHistogram
    /// write it.
    #[arg(long, value_name = "DIR")]
    pub hgrm: Option<PathBuf>,
}

impl OutputArguments {
    /// Whether anything is to be written at all.
    pub fn is_empty(&self) -> bool {
        let files = [&self.out, &self.json, &self.html, &self.junit, &self.hgrm];
        files.into_iter().all(Option::is_none)
    }
}

const EXAMPLES: &str = "\
Examples:
  Everything beside the JSON, in a folder:
    millrace-loadgen report run.json --out run

  Only the page:
    millrace-loadgen report run.json --html run.html";

/// Draws a finished run again from its JSON: HTML, JUnit, .hgrm.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct ReportArguments {
    /// A report that --json or --out wrote.
    #[arg(value_name = "REPORT.json")]
    pub report: PathBuf,
    /// What to draw.
    #[command(flatten)]
    pub output: OutputArguments,
}

impl ReportArguments {
    /// Draws; answers the names of the files, a line each.
    ///
    /// # Errors
    /// The report cannot be read, or a file not be written.
    pub fn run(&self) -> Result<String, RunError> {
        if self.output.is_empty() {
            return Err(RunError::bad_arguments(
                "say what to draw: --html FILE, --junit FILE, --hgrm DIR, or --out DIR for all",
            ));
        }
        let document = Document::read(&self.report)?;
        let json = std::fs::read_to_string(&self.report)
            .map_err(|error| RunError::aborted(format!("{}: {error}", self.report.display())))?;
        let written = write(&self.output, &json, &document)?;
        Ok(written.iter().map(|path| format!("{}\n", path.display())).collect())
    }
}
