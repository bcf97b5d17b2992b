//! Words that are not let through: what the chat asks, and what becomes of the answers. The list
//! itself, and how it is searched, is an implementation of [`WordFilter`] elsewhere.

use std::sync::{Arc, Weak};

use bytes::Bytes;
use millrace_logic_sdk::Refused;
use millrace_protocol::Code;
use serde::Serialize;
use tokio::sync::mpsc;

use super::{Core, metrics::Metrics, receiver::unix_ms};

/// What was found in a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// The text must not be sent.
    pub is_blocked: bool,
    /// The text as it may be sent, if that is another one.
    pub masked: Option<String>,
    /// The words of the list that were found, each with its rule: `block`, `mask` or `flag`.
    pub found: Vec<(String, &'static str)>,
}

/// How a list of words is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WordStatus {
    /// Rules in force.
    pub rules: u64,
    /// How often it was read again and taken.
    pub reloads: u64,
    /// How often it was read again and not taken.
    pub reloads_failed: u64,
}

/// A list of words. Asked on the way of every message, so it answers from memory.
pub trait WordFilter: Send + Sync + 'static {
    /// Whether there is any word in it.
    fn is_on(&self) -> bool;

    /// Looks at a text.
    fn check(&self, text: &str) -> Verdict;

    /// For the metrics.
    fn status(&self) -> WordStatus {
        WordStatus::default()
    }
}

/// Lets everything through.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoWords;

impl WordFilter for NoWords {
    fn is_on(&self) -> bool {
        false
    }

    fn check(&self, _text: &str) -> Verdict {
        Verdict::default()
    }
}

/// The topic of the bus that findings are put on.
pub const FINDINGS_TOPIC: &str = "flagged_messages";

/// Findings waiting for the bus. Full: the next is counted and dropped, since a message is not kept
/// waiting for it.
const FINDINGS_QUEUED_MAX: usize = 1_024;

/// A message in which words of the list were found, and which was let through.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Finding {
    pub user_id: String,
    pub target: String,
    pub message_id: String,
    #[serde(serialize_with = "as_objects")]
    pub words: Vec<(String, &'static str)>,
    pub at_ms: i64,
}

fn as_objects<S: serde::Serializer>(
    words: &[(String, &'static str)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Found<'a> {
        word: &'a str,
        rule: &'a str,
    }
    serializer.collect_seq(words.iter().map(|(word, rule)| Found { word, rule }))
}

/// The list, with where its findings go.
pub(crate) struct Words {
    filter: Arc<dyn WordFilter>,
    findings: mpsc::Sender<Finding>,
    metrics: WordMetrics,
}

/// What is counted here.
#[derive(Clone)]
struct WordMetrics {
    blocked: prometheus_client::metrics::counter::Counter,
    masked: prometheus_client::metrics::counter::Counter,
    flagged: prometheus_client::metrics::counter::Counter,
    dropped: prometheus_client::metrics::counter::Counter,
}

impl Words {
    /// And the other end of the queue of findings, for [`run`].
    pub(crate) fn new(
        filter: Arc<dyn WordFilter>,
        metrics: &Metrics,
    ) -> (Self, mpsc::Receiver<Finding>) {
        let (findings, to_publish) = mpsc::channel(FINDINGS_QUEUED_MAX);
        let metrics = WordMetrics {
            blocked: metrics.texts_blocked.clone(),
            masked: metrics.texts_masked.clone(),
            flagged: metrics.texts_flagged.clone(),
            dropped: metrics.findings_dropped.clone(),
        };
        (Self { filter, findings, metrics }, to_publish)
    }

    pub(crate) fn is_on(&self) -> bool {
        self.filter.is_on()
    }

    pub(crate) fn check(&self, text: &str) -> Verdict {
        if !self.filter.is_on() || text.is_empty() {
            return Verdict::default();
        }
        let verdict = self.filter.check(text);
        if verdict.is_blocked {
            self.metrics.blocked.inc();
        } else {
            self.metrics.masked.inc_by(u64::from(verdict.masked.is_some()));
            let flagged = verdict.found.iter().any(|(_, rule)| *rule == "flag");
            self.metrics.flagged.inc_by(u64::from(flagged));
        }
        verdict
    }

    /// Looks at a text that is no message: masks what is to be masked and reports what was found,
    /// under the id of whatever the text belongs to (`""`: it has none).
    ///
    /// # Errors
    /// `word_blocked`.
    pub(crate) fn screen(
        &self,
        user_id: &str,
        target: &str,
        message_id: &str,
        text: &mut String,
    ) -> Result<(), Refused> {
        let Verdict { is_blocked, masked, found } = self.check(text);
        if is_blocked {
            return Err(Refused::from(Code::WordBlocked));
        }
        if let Some(masked) = masked {
            *text = masked;
        }
        if !found.is_empty() {
            self.report(Finding {
                user_id: user_id.to_owned(),
                target: target.to_owned(),
                message_id: message_id.to_owned(),
                words: found,
                at_ms: unix_ms(),
            });
        }
        Ok(())
    }

    pub(crate) fn status(&self) -> WordStatus {
        self.filter.status()
    }

    /// Hands a finding to the bus, for a business service that moderates.
    pub(crate) fn report(&self, finding: Finding) {
        if self.findings.try_send(finding).is_err() {
            self.metrics.dropped.inc();
        }
    }
}

/// Puts findings on the bus until the chat is gone.
pub(crate) async fn run(core: Weak<Core>, mut findings: mpsc::Receiver<Finding>) {
    while let Some(finding) = findings.recv().await {
        let Some(core) = core.upgrade() else { return };
        let Ok(payload) = serde_json::to_vec(&finding) else { continue };
        let published = core.bus.publish(FINDINGS_TOPIC, &finding.user_id, Bytes::from(payload));
        if let Err(error) = published.await {
            core.metrics.findings_dropped.inc();
            tracing::warn!(%error, "a finding of the word list was dropped");
        }
    }
}
