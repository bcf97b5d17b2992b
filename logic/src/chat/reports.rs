//! Reports: what clients send to business services travels on to the bus, in the order it came.
//!
//! The gateway has acknowledged a report to its client as soon as the link took it, so a bus that
//! refuses is tried again for a while; what it never takes is counted and logged, not hidden.

use std::{sync::Arc, time::Duration};

use millrace_logic_sdk::Inbound;
use millrace_protocol::{Code, chat::Report};
use tokio::{sync::mpsc, time::sleep};

use super::{Core, sync::empty_body};
use crate::bus::BusError;

/// A report on its way to the bus.
pub(crate) struct Business {
    pub report: Report,
    pub inbound: Inbound,
}

/// Runs until every sender is gone and every report is dealt with.
pub(crate) async fn run(core: Arc<Core>, mut reports: mpsc::Receiver<Business>) {
    while let Some(Business { report, inbound }) = reports.recv().await {
        let key = &*inbound.session.user_id;
        let mut delay = Duration::from_millis(50);
        for attempt in 1..=core.settings.report_attempts_max.max(1) {
            match core.bus.publish(&report.destination, key, report.payload.clone()).await {
                Ok(_) => {
                    core.metrics.reports_published.inc();
                    inbound.reply(empty_body(&inbound));
                    break;
                }
                Err(error @ BusError::BadName(_)) => {
                    core.metrics.reports_dropped.inc();
                    core.refuse(&inbound, Code::BadRequest, &error.to_string());
                    break;
                }
                Err(error) if attempt >= core.settings.report_attempts_max => {
                    core.metrics.reports_dropped.inc();
                    tracing::error!(%error, topic = report.destination, "a report was dropped");
                    let reason = "The bus does not take this report; send it again.";
                    core.refuse(&inbound, Code::OverCapacity, reason);
                }
                Err(_) => {
                    sleep(delay).await;
                    delay *= 2;
                }
            }
        }
    }
}
