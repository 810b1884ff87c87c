//! Drives engines on the one thread that owns a device: round robin while there is work, asleep when there is none.

use std::{
    any::Any,
    fmt, io,
    panic::{self, AssertUnwindSafe},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

#[cfg(test)]
mod tests;

/// How long an idle thread looks at its doorbell before it sleeps. Longer spinning takes the core
/// from whoever is to bring the answer: on two cores the round trip over loopback doubled at 50 µs.
const SPIN: Duration = Duration::from_micros(10);

/// A loop body: one bounded piece of work at a time.
pub trait Engine {
    /// Takes in what has arrived and does at most one unit of work (one launch on the device).
    ///
    /// Must not block: what is not there yet is an [`Step::Idle`].
    fn step(&mut self) -> Step;
}

/// What one [`Engine::step`] came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Something was done; there may be more.
    Worked,
    /// Nothing to do until the doorbell rings, or until `wake_at` where the engine has a timer.
    Idle { wake_at: Option<Instant> },
    /// The engine has drained and is dropped, on the device's thread.
    Finished,
    /// The device does not compute any more, and why, in a sentence. The thread ends with all its engines: what they
    /// held is dispatched again by whoever waits for it.
    Failed(String),
}

/// The doorbell of a device thread: whoever leaves something for one of its engines rings it.
///
/// A ring is remembered until a [`Wait::wait`] consumes it, so none is lost between an engine's last look and the
/// thread's sleep.
pub trait Wait: Send {
    /// Whether a ring is remembered. Cheap: it is polled while the thread spins.
    fn ready(&self) -> bool;

    /// Returns at once when a ring is remembered, else at the next ring or at `until`; consumes the ring.
    fn wait(&self, until: Option<Instant>);
}

/// Counts a device thread's turns, for whoever wants to see that it still turns: one more when it begins to step its
/// engines, one more when it is through.
#[derive(Clone, Debug, Default)]
pub struct Turns(Arc<AtomicU64>);

/// The turns at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TurnCount(u64);

impl Turns {
    /// The turns so far.
    #[must_use]
    pub fn count(&self) -> TurnCount {
        TurnCount(self.0.load(Ordering::Relaxed))
    }

    fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl TurnCount {
    /// Whether the thread was stepping its engines, not asleep.
    #[must_use]
    pub fn is_working(self) -> bool {
        !self.0.is_multiple_of(2)
    }
}

/// The thread that owns a device.
#[derive(Debug)]
pub struct DeviceThread {
    name: String,
    turns: Turns,
    finished: oneshot::Receiver<Result<(), String>>,
}

/// An engine failed or panicked; its thread and all its engines are gone.
#[derive(Debug, PartialEq, Eq)]
pub struct EngineDied {
    thread: String,
    message: String,
}

impl fmt::Display for EngineDied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "device thread {} died: {}", self.thread, self.message)
    }
}

impl std::error::Error for EngineDied {}

impl DeviceThread {
    /// Starts the thread; it ends when every engine has said [`Step::Finished`].
    pub fn spawn(
        name: impl Into<String>,
        doorbell: impl Wait + 'static,
        engines: Vec<Box<dyn Engine + Send>>,
    ) -> io::Result<Self> {
        let name = name.into();
        let (report, finished) = oneshot::channel();
        let turns = Turns::default();
        let counted = turns.clone();
        thread::Builder::new().name(name.clone()).spawn(move || {
            let driven =
                panic::catch_unwind(AssertUnwindSafe(|| drive(&doorbell, engines, &counted)));
            let outcome = driven.unwrap_or_else(|payload| Err(text_of(&*payload)));
            // Nobody listens when the process is on its way out already.
            let _ = report.send(outcome);
        })?;
        Ok(Self { name, turns, finished })
    }

    /// The thread's turns.
    #[must_use]
    pub fn turns(&self) -> Turns {
        self.turns.clone()
    }

    /// Waits until every engine has finished, or one has failed or panicked.
    pub async fn finished(self) -> Result<(), EngineDied> {
        let outcome = self.finished.await.unwrap_or_else(|_| Err("no report".to_owned()));
        outcome.map_err(|message| EngineDied { thread: self.name, message })
    }
}

/// One step of each engine in turn, so that none starves; sleeps only when a whole round found nothing to do.
///
/// # Errors
/// The sentence of the first engine that failed.
fn drive(
    doorbell: &impl Wait,
    mut engines: Vec<Box<dyn Engine + Send>>,
    turns: &Turns,
) -> Result<(), String> {
    let mut worked_at = Instant::now();
    loop {
        turns.add();
        let round = step_all(&mut engines);
        turns.add();
        if let Some(sentence) = round.failed {
            return Err(sentence);
        }
        if engines.is_empty() {
            return Ok(());
        }
        if round.worked {
            worked_at = Instant::now();
            continue;
        }
        spin(doorbell, worked_at + SPIN, round.wake_at);
        doorbell.wait(round.wake_at);
    }
}

struct Round {
    worked: bool,
    wake_at: Option<Instant>,
    failed: Option<String>,
}

fn step_all(engines: &mut Vec<Box<dyn Engine + Send>>) -> Round {
    let mut round = Round { worked: false, wake_at: None, failed: None };
    engines.retain_mut(|engine| match engine.step() {
        Step::Worked => {
            round.worked = true;
            true
        }
        Step::Idle { wake_at } => {
            round.wake_at = [round.wake_at, wake_at].into_iter().flatten().min();
            true
        }
        Step::Finished => false,
        Step::Failed(sentence) => {
            round.failed.get_or_insert(sentence);
            false
        }
    });
    round
}

/// Looks at the doorbell until it rings, `spin_until` or `wake_at` has come.
fn spin(doorbell: &impl Wait, spin_until: Instant, wake_at: Option<Instant>) {
    let end = wake_at.map_or(spin_until, |wake_at| wake_at.min(spin_until));
    while !doorbell.ready() && Instant::now() < end {
        std::hint::spin_loop();
    }
}

fn text_of(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no message").to_owned()
}
