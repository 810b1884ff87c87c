//! One sequence from its first try to its end: tries nodes, goes on elsewhere when one is lost,
//! and ends at once when the client leaves.

use std::{
    fmt,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use domain::{FinishReason, NodeId, SequenceRequest, TokenOutput};
use futures::StreamExt;
use tokio::{
    sync::{mpsc, oneshot},
    time::{sleep, timeout, timeout_at},
};
use transport::sequences::SequenceError;

use crate::{
    config::PatienceConfig,
    door::Admitted,
    metrics::{Metrics, Outcome},
    nodes::{Nodes, Place, Standing},
    output::{Output, Piece},
    refusal::{Kind, Refusal},
    trace::{Attempt, ChoiceTrace},
};

/// First pause when no node is left to try; each further one is twice as long.
const PAUSE: Duration = Duration::from_millis(250);

/// How long a node may be silent that the coordinator has lost.
const SILENCE: Duration = Duration::from_secs(1);

/// News of one choice.
pub(crate) type Event = (u32, Result<Piece, Refusal>);

/// Everything one choice's task owns.
pub(crate) struct Sequence {
    /// Index of the choice in the answer.
    pub(crate) choice: u32,
    /// Grows by what is generated, so that it can be sent again at any moment.
    pub(crate) request: SequenceRequest,
    pub(crate) output: Output,
    pub(crate) admitted: Admitted,
    /// Told once: a node has taken the sequence, or none will.
    pub(crate) accepted: Option<oneshot::Sender<Result<(), Refusal>>>,
    pub(crate) events: mpsc::Sender<Event>,
    pub(crate) nodes: Arc<Nodes>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) patience: PatienceConfig,
    pub(crate) clock: Clock,
    /// Its request's trace, if that is sampled.
    pub(crate) trace: Option<ChoiceTrace>,
}

impl fmt::Debug for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sequence").field("id", &self.request.id).finish_non_exhaustive()
    }
}

/// A sequence's last piece and the reason within it.
type Last = (Piece, FinishReason);

/// When things happened to a sequence.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    arrived: Instant,
    first: Option<Instant>,
    last: Option<Instant>,
}

impl Clock {
    pub(crate) fn new(arrived: Instant) -> Self {
        Self { arrived, first: None, last: None }
    }
}

/// Why a try did not bring the sequence to its end.
enum Miss {
    /// The node's waiting line is full.
    Full,
    /// The node is gone, broken or silent.
    Lost(String),
    /// No other node would do better.
    Final(Refusal),
    /// The client has left.
    Gone,
}

impl From<SequenceError> for Miss {
    fn from(error: SequenceError) -> Self {
        match error {
            SequenceError::Full(_) => Self::Full,
            SequenceError::Invalid(_) => {
                Self::Final(Refusal::new(Kind::Invalid, error.to_string()))
            }
            // A node that failed may be broken where another is not.
            SequenceError::Unavailable(_) | SequenceError::Failed(_) => {
                Self::Lost(error.to_string())
            }
        }
    }
}

/// Nodes that said no or were lost since the last pause, and how often it was tried.
#[derive(Default)]
struct Tries {
    count: u32,
    pauses: u32,
    avoid: Vec<NodeId>,
    /// What the last lost node was lost by.
    lost: Option<String>,
}

impl Sequence {
    /// Runs to the end, the deadline, or the client's leaving. The client hears of the end last, so
    /// that what it has seen end is counted and has made room.
    pub(crate) async fn drive(mut self) {
        let events = self.events.clone();
        let patience = Duration::from_secs(self.patience.request_s);
        let deadline = tokio::time::Instant::from_std(self.clock.arrived + patience);
        let result = tokio::select! {
            biased;
            () = events.closed() => Err(Miss::Gone),
            result = timeout_at(deadline, self.run()) => result.unwrap_or_else(|_| {
                let message = format!("not done within {} s", patience.as_secs());
                Err(Miss::Final(Refusal::new(Kind::Deadline, message)))
            }),
        };
        let (outcome, last) = match result {
            Ok((piece, reason)) => (Outcome::Finished(reason), Ok(piece)),
            Err(Miss::Final(refusal)) => {
                tracing::debug!(sequence = self.request.id, %refusal, "sequence failed");
                (Outcome::Error, Err(refusal))
            }
            Err(_) => {
                tracing::debug!(sequence = self.request.id, "the client has left");
                return self.ended(Outcome::Abort);
            }
        };
        self.ended(outcome);
        let Self { admitted, accepted, choice, .. } = self;
        drop(admitted);
        // Receivers are gone with the client, who then needs no answer.
        match (accepted, last) {
            (Some(accepted), Err(refusal)) => {
                let _ = accepted.send(Err(refusal));
            }
            (_, last) => {
                let _ = timeout_at(deadline, events.send((choice, last))).await;
            }
        }
    }

    fn ended(&self, outcome: Outcome) {
        let decode = self.clock.first.zip(self.clock.last);
        if let Some(trace) = &self.trace {
            trace.ended(self.clock.arrived, decode, self.generated());
        }
        let decode = decode.map_or(Duration::ZERO, |(first, last)| last - first);
        self.metrics.ended(outcome, self.generated(), self.clock.arrived.elapsed(), decode);
    }

    /// Tokens generated so far.
    fn generated(&self) -> usize {
        self.request.tokens.len() - self.request.prompt_len as usize
    }

    /// The last piece and why it is the last.
    async fn run(&mut self) -> Result<Last, Miss> {
        let mut tries = Tries::default();
        loop {
            let place = self.nodes.place(&self.request.tokens, &tries.avoid);
            let Some(place) = place else {
                self.pause(&mut tries).await?;
                continue;
            };
            if self.generated() > 0 {
                self.metrics.resumed.inc();
            }
            tracing::debug!(sequence = self.request.id, why = %place.assignment, "assigned");
            let (node, name) = (place.node.id, place.node.name.clone());
            match self.attempt(place).await {
                Ok(last) => {
                    self.nodes.note_end(node, &self.request.tokens);
                    return Ok(last);
                }
                Err(Miss::Full) => {}
                Err(Miss::Lost(why)) => {
                    tracing::warn!(sequence = self.request.id, node = name, why, "node lost");
                    tries.lost = Some(why);
                }
                Err(other) => return Err(other),
            }
            tries.avoid.push(node);
            self.count(&mut tries)?;
        }
    }

    /// One more try or pause is over; there is a bound on both together.
    fn count(&self, tries: &mut Tries) -> Result<(), Miss> {
        tries.count += 1;
        if tries.count < self.patience.tries_max {
            return Ok(());
        }
        Err(Miss::Final(match &tries.lost {
            Some(why) => Refusal::new(
                Kind::NodeLost,
                format!("gave up after {} tries; the last node was lost by: {why}", tries.count),
            ),
            None => full(),
        }))
    }

    /// No node is left to try. A new sequence is refused, or held while nodes are away; one that lost
    /// its node waits for another, then tries those again which it avoided.
    async fn pause(&self, tries: &mut Tries) -> Result<(), Miss> {
        if self.generated() == 0 && tries.lost.is_none() {
            return self.hold(tries).await;
        }
        let pause = PAUSE * 2_u32.saturating_pow(tries.pauses.min(8));
        tries.pauses += 1;
        if !self.nodes.another(&tries.avoid, pause).await {
            tries.avoid.clear();
        }
        self.count(tries)
    }

    /// Waits for the first node of a sequence, if nodes are expected back.
    async fn hold(&self, tries: &Tries) -> Result<(), Miss> {
        if !tries.avoid.is_empty() {
            return Err(Miss::Final(full()));
        }
        let came = match self.nodes.standing() {
            Standing::Ready => true,
            Standing::Holding(left) => self.nodes.another(&[], left).await,
            Standing::Away => false,
        };
        if came { Ok(()) } else { Err(Miss::Final(no_node())) }
    }

    /// Runs on one node until the end or until the node fails.
    async fn attempt(&mut self, place: Place) -> Result<Last, Miss> {
        let span = self.trace.as_ref().map(|trace| trace.attempt(&place.node.name));
        let parent = span.as_ref().map(Attempt::traceparent);
        let silent = |waited: Duration| {
            Miss::Lost(format!("no word from the node for {} s", waited.as_secs()))
        };
        // A node that the coordinator has lost may still work, if it lost the coordinator only: then it
        // goes on. One that says nothing either has no time left.
        let nodes = Arc::clone(&self.nodes);
        let (mut gone, mut known) = (pin!(nodes.gone(place.node.id)), true);
        let silence = async {
            nodes.gone(place.node.id).await;
            sleep(SILENCE).await;
        };
        let mut waited = Duration::from_secs(self.patience.first_token_s);
        let mut stream = tokio::select! {
            ran = timeout(waited, place.run(self.request.clone(), parent.as_deref())) => ran.map_err(|_| silent(waited))??,
            () = silence => return Err(silent(SILENCE)),
        };
        if let Some(accepted) = self.accepted.take() {
            // The receiver may be gone with the client, which `drive` notices.
            let _ = accepted.send(Ok(()));
        }
        loop {
            let next = tokio::select! {
                biased;
                next = stream.next() => next,
                () = &mut gone, if known => {
                    known = false;
                    waited = waited.min(SILENCE);
                    continue;
                }
                () = sleep(waited) => return Err(silent(waited)),
            };
            // The stream ends only after an error or the last token, which both end this loop.
            let tokens = next.ok_or_else(|| Miss::Lost("the stream ended too soon".into()))??;
            if tokens.is_empty() {
                continue;
            }
            let piece = self.absorb(tokens);
            if let Some(reason) = piece.ending.as_ref().map(|ending| ending.reason) {
                return Ok((piece, reason));
            }
            let sent = self.events.send((self.choice, Ok(piece))).await;
            sent.map_err(|_| Miss::Gone)?;
            let patience = Duration::from_secs(self.patience.next_token_s);
            waited = if known { patience } else { patience.min(SILENCE) };
        }
    }

    /// Keeps new tokens; their text is the next piece.
    fn absorb(&mut self, tokens: Vec<TokenOutput>) -> Piece {
        let now = Instant::now();
        let gap = self.clock.last.map(|last| now - last);
        self.metrics.tokens(tokens.len(), now - self.clock.arrived, gap);
        if self.clock.first.is_none() {
            self.clock.first = Some(now);
            let cached = tokens.first().map_or(0, |first| first.cached_tokens);
            self.metrics.began(self.request.prompt_len, cached);
        }
        self.clock.last = Some(now);
        self.admitted.started();
        self.request.tokens.extend(tokens.iter().map(|token| token.token));
        self.output.push(tokens)
    }
}

/// No attention node takes work at all.
pub(crate) fn no_node() -> Refusal {
    Refusal::new(Kind::NoNode, "no attention node is ready; try again soon").retry_after(1)
}

fn full() -> Refusal {
    Refusal::new(Kind::QueueFull, "the waiting lines of all attention nodes are full")
        .retry_after(1)
}
