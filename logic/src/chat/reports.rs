//! Reports: what clients send to business services travels on to the bus, in the order it came.
//!
//! The gateway has acknowledged a report to its client as soon as the link took it. Here it waits in
//! a bounded queue until the bus has made it durable, together with those that wait behind it; only
//! then the gateway gets its credit back. A bus without space makes everything wait: the queue fills,
//! the link's credit runs out, the clients' TCP windows close, and nothing is lost. What was under
//! way when this process is killed, and was not on the bus yet, is lost; nothing after that is.
//!
//! A bus that gave no answer may have taken a report all the same. So each has an id, under which it is
//! published again until there is an answer, and the bus keeps it once.
//!
//! What the bus will never take (a bad name, one topic too many) is refused and counted.

use std::{sync::Arc, time::Duration};

use millrace_logic_sdk::Inbound;
use millrace_protocol::{Code, chat::Report};
use tokio::{sync::mpsc, time::sleep};
use uuid::Uuid;

use super::{Core, sync::empty_body};
use crate::bus::{BusError, NewRecord};

/// Reports that are put on the bus together.
const TOGETHER_MAX: usize = 256;

/// The first pause after the bus took nothing, and the longest.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// A report on its way to the bus.
pub(crate) struct Business {
    pub report: Report,
    pub inbound: Inbound,
    /// Under which it goes to the bus, however often that takes.
    pub id: Uuid,
}

/// Runs until every sender is gone and every report is dealt with.
pub(crate) async fn run(core: Arc<Core>, mut reports: mpsc::Receiver<Business>) {
    let mut waiting = Vec::with_capacity(TOGETHER_MAX);
    while reports.recv_many(&mut waiting, TOGETHER_MAX).await > 0 {
        let mut pause = PAUSE_MIN;
        let mut attempts_left = core.settings.report_attempts_max.max(1);
        loop {
            waiting = publish(&core, waiting).await;
            if waiting.is_empty() {
                break;
            }
            // Who leaves cannot wait for a disk for ever.
            if core.is_stopping() {
                attempts_left -= 1;
            }
            if attempts_left == 0 {
                give_up(&core, &mut waiting);
                break;
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

/// Puts reports on the bus; returns those that it could not take at the moment.
async fn publish(core: &Core, waiting: Vec<Business>) -> Vec<Business> {
    let record = |business: &Business| NewRecord {
        topic: business.report.destination.clone(),
        key: business.inbound.session.user_id.to_string(),
        payload: business.report.payload.clone(),
        id: business.id.simple().to_string(),
    };
    let outcomes = core.bus.publish_all(waiting.iter().map(record).collect()).await;
    let mut left = Vec::new();
    for (business, outcome) in waiting.into_iter().zip(outcomes) {
        let inbound = &business.inbound;
        match outcome {
            Ok(_) => {
                core.metrics.reports_published.inc();
                inbound.reply(empty_body(inbound));
            }
            Err(error @ (BusError::BadName(_) | BusError::TooMany(_) | BusError::TooLarge(_))) => {
                core.metrics.reports_dropped.inc();
                let code = match error {
                    BusError::BadName(_) => Code::BadRequest,
                    BusError::TooLarge(_) => Code::TooLarge,
                    _ => Code::OverCapacity,
                };
                core.refuse(inbound, code, &format!("{error}."));
            }
            Err(error) => {
                if left.is_empty() {
                    core.metrics.reports_delayed.inc();
                    tracing::warn!(%error, "the bus takes no reports; they wait");
                }
                left.push(business);
            }
        }
    }
    left
}

fn give_up(core: &Core, waiting: &mut Vec<Business>) {
    tracing::error!(
        reports = waiting.len(),
        "reports were dropped: the bus took none until the end"
    );
    for business in waiting.drain(..) {
        core.metrics.reports_dropped.inc();
        let reason = "The bus does not take this report; send it again.";
        core.refuse(&business.inbound, Code::OverCapacity, reason);
    }
}
