//! The door for gateways: turns `Sequences.Run` calls into commands, and drawn tokens into answers.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Instant,
};

use chassis::traces::{TRACEPARENT, Tracer};
use domain::SequenceRequest;
use futures::Stream;
use grammar::{Grammar, GrammarError, Grammars};
use proto::{
    Invalid,
    internal::{self as wire, sequences_server::Sequences},
};
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    task::spawn_blocking,
};
use tonic::{Request, Response, Status};
use transport::mailbox::{Rejected, Sender};

use crate::{
    engine::{Command, Refusal, Submission, SubmissionId},
    sequence::Told,
    trace::Trace,
};

/// Tokens that one answer message carries at most.
const TOKENS_PER_MESSAGE: usize = 64;
/// Constraints that are compiled at once: each takes a core for a while that the device's thread may want.
const COMPILES_MAX: usize = 1;

/// The service.
#[derive(Debug)]
pub(crate) struct Door {
    commands: Sender<Command>,
    next: AtomicU64,
    vocab: u32,
    positions_max: usize,
    grammars: Arc<Grammars>,
    compiles: Semaphore,
    tracer: Tracer,
}

/// The tokens of one sequence; dropping it cancels the sequence.
#[derive(Debug)]
pub(crate) struct Tokens {
    id: SubmissionId,
    outputs: mpsc::Receiver<Told>,
    received: Vec<Told>,
    /// Why no more come, once the tokens before are sent.
    broken: Option<GrammarError>,
    finished: bool,
    commands: Sender<Command>,
}

// === impl Door ===

impl Door {
    /// A door to the engine behind `commands`, for prompts of tokens below `vocab` and sequences of
    /// at most `positions_max` tokens.
    pub(crate) fn new(
        commands: Sender<Command>,
        vocab: u32,
        positions_max: usize,
        grammars: Grammars,
        tracer: Tracer,
    ) -> Self {
        Self {
            commands,
            next: AtomicU64::new(0),
            vocab,
            positions_max,
            grammars: Arc::new(grammars),
            compiles: Semaphore::new(COMPILES_MAX),
            tracer,
        }
    }

    fn check(&self, request: &SequenceRequest) -> Result<(), Invalid> {
        if let Some(token) = request.tokens.iter().find(|&&token| token >= self.vocab) {
            let problem = format!("hold token {token}, the vocabulary has {}", self.vocab);
            return Err(Invalid::new("tokens", problem));
        }
        let (count, max) = (request.tokens.len(), self.positions_max);
        if count >= max {
            let problem = format!("are {count}, this node has room for sequences below {max}");
            return Err(Invalid::new("tokens", problem));
        }
        Ok(())
    }

    /// What the sequence's text is held to, if it is to anything.
    async fn grammar(&self, request: &SequenceRequest) -> Result<Option<Box<Grammar>>, Status> {
        let Some(constraint) = request.sampling.constraint.clone() else { return Ok(None) };
        let generated = request.tokens[request.prompt_len as usize..].to_vec();
        let grammars = Arc::clone(&self.grammars);
        let _turn = self.compiles.acquire().await;
        let compiled = spawn_blocking(move || grammars.compile(&constraint, &generated)).await;
        let compiled =
            compiled.map_err(|_| Status::invalid_argument("the constraint cannot be compiled"))?;
        Ok(Some(Box::new(compiled.map_err(|error| Status::invalid_argument(error.to_string()))?)))
    }

    /// Tokens the sequence may get at most: what its channel needs room for.
    fn outputs_max(&self, request: &SequenceRequest) -> usize {
        let room = self.positions_max - request.tokens.len();
        room.min(request.sampling.tokens_max as usize).max(1)
    }
}

#[tonic::async_trait]
impl Sequences for Door {
    type RunStream = Tokens;

    async fn run(
        &self,
        request: Request<wire::SequenceRequest>,
    ) -> Result<Response<Tokens>, Status> {
        let parent = request.metadata().get(TRACEPARENT).and_then(|value| value.to_str().ok());
        let trace = self.tracer.follow(parent);
        let trace = trace.map(|parent| Box::new(Trace::new(&self.tracer, parent, Instant::now())));
        let request = SequenceRequest::try_from(request.into_inner())?;
        self.check(&request)?;
        let grammar = self.grammar(&request).await?;
        let (sender, outputs) = mpsc::channel(self.outputs_max(&request));
        let (answer, answered) = oneshot::channel();
        let id = SubmissionId(self.next.fetch_add(1, Ordering::Relaxed));
        let submission = Submission { id, request, outputs: sender, answer, trace, grammar };
        let submission = Box::new(submission);
        self.commands.try_send(Command::Submit(submission)).map_err(|rejected| match rejected {
            Rejected::Full(_) => Status::resource_exhausted("the node's mailbox is full"),
            Rejected::Closed(_) => Status::unavailable("the node has stopped"),
        })?;
        // From here on a caller that goes away cancels the sequence.
        let commands = self.commands.clone();
        let received = Vec::new();
        let tokens = Tokens { id, outputs, received, broken: None, finished: false, commands };
        match answered.await {
            Ok(Ok(())) => Ok(Response::new(tokens)),
            Ok(Err(Refusal::Full)) => {
                Err(Status::resource_exhausted("as many sequences wait on this node as may"))
            }
            Ok(Err(Refusal::Draining)) => Err(Status::unavailable("the node is being stopped")),
            Err(_) => Err(Status::unavailable("the node has stopped")),
        }
    }
}

// === impl Tokens ===

impl Stream for Tokens {
    type Item = Result<wire::SequenceOutput, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.finished {
            return Poll::Ready(None);
        }
        if let Some(broken) = self.broken.take() {
            self.finished = true;
            return Poll::Ready(Some(Err(Status::invalid_argument(broken.to_string()))));
        }
        let Self { outputs, received, .. } = &mut *self;
        let count = std::task::ready!(outputs.poll_recv_many(cx, received, TOKENS_PER_MESSAGE));
        if count == 0 {
            self.finished = true;
            let lost = Status::unavailable("the node stopped before the sequence ended");
            return Poll::Ready(Some(Err(lost)));
        }
        let Self { received, broken, finished, .. } = &mut *self;
        let mut tokens = Vec::with_capacity(received.len());
        for told in received.drain(..) {
            match told {
                Ok(token) => {
                    *finished |= token.finish.is_some();
                    tokens.push(token.into());
                }
                Err(error) => *broken = Some(error),
            }
        }
        Poll::Ready(Some(Ok(wire::SequenceOutput { tokens })))
    }
}

impl Drop for Tokens {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        // A full mailbox is no loss: the engine ends a sequence that nobody listens to at its next
        // token.
        let _ = self.commands.try_send(Command::Cancel(self.id));
    }
}
