//! Reports between heartbeats: a task asks for one, the engine answers at the end of its turn.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use proto::control::{Report, Welcome};
use tokio::{
    sync::{mpsc, watch},
    time,
};
use transport::Doorbell;

/// Reports that may wait for the session; more are dropped.
const REPORTS_MAX: usize = 2;

/// The engine's side: nothing on the way through the layers but a look at a flag.
#[derive(Clone, Debug)]
pub struct Reports {
    wanted: Arc<AtomicBool>,
    reports: mpsc::Sender<Report>,
    /// Whether the last report said that there was nothing to say.
    idle: bool,
}

/// An engine's side, and where its reports come out.
pub(crate) fn channel() -> (Reports, mpsc::Receiver<Report>) {
    let (reports, taken) = mpsc::channel(REPORTS_MAX);
    (Reports { wanted: Arc::default(), reports, idle: true }, taken)
}

// === impl Reports ===

impl Reports {
    /// Whether a report is wanted; asks once per wish.
    #[must_use]
    pub fn are_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed) && self.wanted.swap(false, Ordering::Relaxed)
    }

    /// Hands a report over, or drops it: when the session cannot keep up, and when there is again
    /// nothing to say.
    pub fn send(&mut self, report: Report) {
        let idle = report.is_idle();
        if idle && self.idle {
            return;
        }
        let sent = self.reports.try_send(report).is_ok();
        self.idle = idle && sent;
    }

    /// Wishes for a report as often as the coordinator wants one, for as long as there is a session.
    pub(crate) async fn ask(self, mut welcome: watch::Receiver<Option<Welcome>>, bell: Doorbell) {
        loop {
            let pace = welcome.borrow_and_update().map_or(0, |welcome| welcome.report_ms);
            if pace == 0 {
                match welcome.changed().await {
                    Ok(()) => continue,
                    Err(_) => return,
                }
            }
            time::sleep(Duration::from_millis(pace.into())).await;
            self.wanted.store(true, Ordering::Relaxed);
            bell.ring();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_said_twice_and_nothing_waits_for_a_session_that_is_away() {
        let (mut reports, mut taken) = channel();
        assert!(!reports.are_wanted());
        reports.wanted.store(true, Ordering::Relaxed);
        assert!(reports.are_wanted() && !reports.are_wanted());
        let busy = Report { queued: vec![3], ..Report::default() };
        let idle = Report { queued: vec![0], ..Report::default() };
        for report in [&idle, &busy, &idle, &idle, &busy, &busy, &busy] {
            reports.send(report.clone());
        }
        assert_eq!([taken.try_recv(), taken.try_recv()], [Ok(busy), Ok(idle)]);
        assert!(taken.try_recv().is_err());
    }
}
