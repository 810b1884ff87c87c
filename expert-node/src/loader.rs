//! Reads experts beside the engine, on a thread of its own and under a byte budget, so that a move slows no token.

use std::{
    io, thread,
    time::{Duration, Instant},
};

use domain::{Expert, Layer};
use model::{ExpertLoader, LoadedExpert, ModelError};
use tokio::sync::mpsc;
use transport::{
    Doorbell,
    mailbox::{self, Mailbox, Sender},
};

/// The engine's side. Dropping it ends the thread after the expert it is at.
#[derive(Debug)]
pub(crate) struct Loader {
    wishes: mpsc::Sender<Wish>,
    outcomes: Mailbox<Outcome>,
    under_way: bool,
}

/// What became of a wish.
pub(crate) type Outcome = Result<LoadedExpert, ModelError>;

#[derive(Clone, Copy, Debug)]
struct Wish {
    layer: Layer,
    expert: Expert,
    /// Tokens stand still until it is here: the budget does not count.
    urgent: bool,
}

/// The thread's side.
struct Reader {
    experts: ExpertLoader,
    bytes_per_second: u64,
    expert_bytes: u64,
    wishes: mpsc::Receiver<Wish>,
    outcomes: Sender<Outcome>,
}

// === impl Loader ===

impl Loader {
    /// Starts the thread. It reads at most `bytes_per_second` of experts of `expert_bytes`, and rings
    /// `bell` for each.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(crate) fn start(
        experts: ExpertLoader,
        bytes_per_second: u64,
        expert_bytes: u64,
        bell: Doorbell,
    ) -> io::Result<Self> {
        let (wishes, wished) = mpsc::channel(1);
        let (sender, outcomes) = mailbox::bounded(1, bell);
        let reader =
            Reader { experts, bytes_per_second, expert_bytes, wishes: wished, outcomes: sender };
        thread::Builder::new().name("expert-loader".to_owned()).spawn(|| reader.run())?;
        Ok(Self { wishes, outcomes, under_way: false })
    }

    /// Whether it can be given a wish: it reads one expert at a time.
    pub(crate) fn is_free(&self) -> bool {
        !self.under_way
    }

    /// Asks for an expert.
    pub(crate) fn ask(&mut self, layer: Layer, expert: Expert, urgent: bool) {
        self.under_way = self.wishes.try_send(Wish { layer, expert, urgent }).is_ok();
    }

    /// What became of the last wish, when that is known.
    pub(crate) fn outcome(&mut self) -> Option<Outcome> {
        let outcome = self.outcomes.try_recv()?;
        self.under_way = false;
        Some(outcome)
    }
}

// === impl Reader ===

impl Reader {
    fn run(mut self) {
        let pause =
            Duration::from_secs_f64(self.expert_bytes as f64 / self.bytes_per_second as f64);
        let mut next = Instant::now();
        while let Some(Wish { layer, expert, urgent }) = self.wishes.blocking_recv() {
            if !urgent {
                thread::sleep(next.saturating_duration_since(Instant::now()));
                next = Instant::now() + pause;
            }
            if self.outcomes.blocking_send(self.experts.load(layer, expert)).is_err() {
                return;
            }
        }
    }
}
