//! The life of a request: admitted, tokenized, run as one task per choice, its pieces gathered.

use std::{sync::Arc, time::Instant};

use chassis::traces::Tracer;
use domain::{SamplingParams, SequenceRequest};
use policy::admission::Bounds;
use tokio::sync::{mpsc, oneshot};

use crate::{
    chat::Conversation,
    config::{Config, PatienceConfig},
    door::Door,
    metrics::Metrics,
    model::ServedModel,
    nodes::{Nodes, Standing},
    output::{Output, Piece, Stops},
    refusal::{Kind, Refusal},
    request::{Prompt, Request, Sampling},
    sequence::{Clock, Event, Sequence, no_node},
    trace::RequestTrace,
};

/// Pieces of a request that wait for a slow client; when it is reached, its nodes wait too.
const EVENTS_MAX: usize = 64;
/// Texts up to this many bytes are tokenized on the spot; longer ones would keep an async worker
/// from its other streams.
pub(crate) const TEXT_INLINE_MAX: usize = 2048;

/// Takes requests in. One for the whole gateway.
#[derive(Debug)]
pub(crate) struct Requests {
    /// What is served.
    pub(crate) model: Arc<ServedModel>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) nodes: Arc<Nodes>,
    door: Arc<Door>,
    tracer: Tracer,
    patience: PatienceConfig,
    prompt_tokens_max: Option<u32>,
}

/// A request that is running. Dropping it cancels all that is not done.
#[derive(Debug)]
pub(crate) struct Running {
    /// Tokens of every prompt; choice `i` belongs to prompt `i / n`.
    pub(crate) prompts: Vec<Vec<u32>>,
    /// Choices per prompt.
    pub(crate) n: u32,
    events: mpsc::Receiver<Event>,
    choices: Vec<Count>,
    open: usize,
    metrics: Arc<Metrics>,
    /// Its trace ends with it.
    _trace: Option<RequestTrace>,
}

/// Tokens of one choice.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    generated: usize,
    /// Of its prompt: those that needed no computing.
    cached: usize,
}

impl Requests {
    pub(crate) fn new(
        model: Arc<ServedModel>,
        nodes: Arc<Nodes>,
        metrics: Arc<Metrics>,
        tracer: Tracer,
        config: &Config,
    ) -> Self {
        let bounds = Bounds {
            sequences_max: config.bounds.sequences_max,
            waiting_max: config.bounds.waiting_max,
            first_token_ms: config.bounds.first_token_ms,
        };
        Self {
            model,
            nodes,
            door: Door::new(bounds, Arc::clone(&metrics)),
            metrics,
            tracer,
            patience: config.patience,
            prompt_tokens_max: config.bounds.prompt_tokens_max,
        }
    }

    /// Admits and starts a request. Resolves when attention nodes have taken all its sequences.
    pub(crate) async fn start(&self, request: Request) -> Result<Running, Refusal> {
        let arrived = Instant::now();
        let Request { traceparent, id, .. } = &request;
        let trace = RequestTrace::begin(&self.tracer, traceparent, id, arrived);
        let admitted = self.door.enter(request.sequences(), request.first_token)?;
        if self.nodes.standing() == Standing::Away {
            return Err(no_node());
        }
        let Request { id, prompts, sampling, .. } = request;
        let prompts = self.tokenize(prompts).await?;
        prompts.iter().try_for_each(|tokens| self.check_length(tokens.len()))?;
        self.metrics.tokenize.observe(arrived.elapsed().as_secs_f64());
        if let Some(trace) = &trace {
            trace.tokenized(prompts.iter().map(Vec::len).sum());
        }

        let settle = |tokens: &Vec<u32>| sampling.settle(tokens.len(), self.model.positions_max);
        let params = prompts.iter().map(settle).collect::<Result<Vec<_>, _>>()?;

        let (events_in, events) = mpsc::channel(EVENTS_MAX);
        let requests = choices(&id, &prompts, &params, sampling.n);
        let mut accepted = Vec::with_capacity(requests.len());
        for (choice, (request, admitted)) in (0..).zip(requests.into_iter().zip(admitted)) {
            let (told, answer) = oneshot::channel();
            accepted.push(answer);
            let sequence = Sequence {
                choice,
                output: self.output(&request, &sampling),
                request,
                admitted,
                accepted: Some(told),
                events: events_in.clone(),
                nodes: Arc::clone(&self.nodes),
                metrics: Arc::clone(&self.metrics),
                patience: self.patience,
                clock: Clock::new(arrived),
                trace: trace.as_ref().map(|trace| trace.choice(choice)),
            };
            tokio::spawn(sequence.drive());
        }
        let running = Running {
            prompts,
            n: sampling.n,
            events,
            choices: vec![Count::default(); accepted.len()],
            open: accepted.len(),
            metrics: Arc::clone(&self.metrics),
            _trace: trace,
        };
        // Dropping `running` on an early return cancels all sequences.
        for answer in accepted {
            answer.await.unwrap_or_else(|_| Err(lost_task()))?;
        }
        self.count(&running, &params);
        Ok(running)
    }

    fn check_length(&self, tokens: usize) -> Result<(), Refusal> {
        match self.prompt_tokens_max {
            Some(max) if tokens > max as usize => {
                let message = format!("the prompt has {tokens} tokens, at most {max} are accepted");
                Err(Refusal::new(Kind::TooLong, message))
            }
            _ => Ok(()),
        }
    }

    fn output(&self, request: &SequenceRequest, sampling: &Sampling) -> Output {
        let stops = Stops {
            strings: sampling.stop.clone(),
            tokens: request.sampling.stop_tokens.clone(),
            tokens_min: request.sampling.tokens_min,
        };
        let tokenizer = Arc::clone(&self.model.tokenizer);
        Output::new(tokenizer, &request.tokens, stops, sampling.shown)
    }

    fn count(&self, running: &Running, params: &[SamplingParams]) {
        let sizes = &self.metrics.sizes;
        for prompt in &running.prompts {
            self.metrics.prompt_tokens.inc_by(prompt.len() as u64);
            sizes.prompt.observe(prompt.len() as f64);
        }
        sizes.choices.observe(running.n.into());
        let longest = params.iter().map(|params| params.tokens_max).max();
        sizes.tokens_max.observe(longest.unwrap_or(0).into());
    }

    /// The tokens of every prompt, none of them empty.
    async fn tokenize(&self, prompts: Vec<Prompt>) -> Result<Vec<Vec<u32>>, Refusal> {
        let bytes: usize = prompts
            .iter()
            .map(|prompt| match prompt {
                Prompt::Text { text, .. } => text.len(),
                Prompt::Tokens(_) => 0,
            })
            .sum();
        let model = Arc::clone(&self.model);
        let work = move || prompts.into_iter().map(|prompt| encode(&model, prompt)).collect();
        off_worker(bytes > TEXT_INLINE_MAX, work).await
    }

    /// The prompt of a conversation.
    pub(crate) async fn render(
        &self,
        conversation: Conversation,
        bytes: usize,
    ) -> Result<String, Refusal> {
        let model = Arc::clone(&self.model);
        off_worker(bytes > TEXT_INLINE_MAX, move || match &model.template {
            Ok(template) => template.render(conversation),
            Err(reason) => Err(Refusal::unsupported("messages", reason)),
        })
        .await
    }
}

/// Does `work` on a thread that may block if it is `long`, else here.
pub(crate) async fn off_worker<T: Send + 'static>(
    long: bool,
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    if !long {
        return work();
    }
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(lost_task()))
}

fn lost_task() -> Refusal {
    Refusal::new(Kind::Internal, "the request's task ended without an answer")
}

fn encode(model: &ServedModel, prompt: Prompt) -> Result<Vec<u32>, Refusal> {
    let tokens = match prompt {
        Prompt::Tokens(tokens) => tokens,
        Prompt::Text { text, special } => {
            model.tokenizer.encode(&text, special).map_err(|error| {
                Refusal::new(Kind::Invalid, format!("`prompt`: cannot be tokenized: {error}"))
            })?
        }
    };
    if tokens.is_empty() {
        return Err(Refusal::field("prompt", "at least one token", "none"));
    }
    Ok(tokens)
}

/// One sequence per choice, those of the first prompt first; each draws with a seed of its own.
fn choices(
    id: &str,
    prompts: &[Vec<u32>],
    params: &[SamplingParams],
    n: u32,
) -> Vec<SequenceRequest> {
    let mut requests = Vec::new();
    for (tokens, params) in prompts.iter().zip(params) {
        for nth in 0..n {
            let seed = params.seed.wrapping_add(nth.into());
            requests.push(SequenceRequest {
                id: format!("{id}-{}", requests.len()),
                tokens: tokens.clone(),
                // A prompt is shorter than the longest sequence, which is a u32.
                prompt_len: u32::try_from(tokens.len()).unwrap_or(u32::MAX),
                sampling: SamplingParams { seed, ..params.clone() },
            });
        }
    }
    requests
}

impl Running {
    /// The next piece of any choice; none when all have ended.
    pub(crate) async fn next(&mut self) -> Option<Result<(u32, Piece), Refusal>> {
        if self.open == 0 {
            return None;
        }
        let Some((choice, piece)) = self.events.recv().await else {
            self.open = 0;
            return Some(Err(lost_task()));
        };
        let piece = match piece {
            Ok(piece) => piece,
            Err(refusal) => {
                self.open = 0;
                return Some(Err(refusal));
            }
        };
        if let Some(count) = self.choices.get_mut(choice as usize) {
            if count.generated == 0 {
                count.cached = piece.tokens.first().map_or(0, |first| first.cached_tokens as usize);
            }
            count.generated += piece.tokens.len();
        }
        if piece.ending.is_some() {
            self.open -= 1;
        }
        if self.open == 0 {
            let longest = self.choices.iter().map(|count| count.generated).max().unwrap_or(0);
            self.metrics.longest(longest);
        }
        Some(Ok((choice, piece)))
    }

    /// All choices, whole.
    pub(crate) async fn collect(&mut self) -> Result<Vec<Piece>, Refusal> {
        let mut whole = vec![Piece::default(); self.choices.len()];
        while let Some(next) = self.next().await {
            let (choice, piece) = next?;
            let whole = &mut whole[choice as usize];
            whole.text.push_str(&piece.text);
            whole.tokens.extend(piece.tokens);
            whole.ending = piece.ending;
        }
        Ok(whole)
    }

    /// Tokens of all prompts.
    #[must_use]
    pub(crate) fn prompt_tokens(&self) -> usize {
        self.prompts.iter().map(Vec::len).sum()
    }

    /// Tokens generated so far, of all choices.
    #[must_use]
    pub(crate) fn completion_tokens(&self) -> usize {
        self.choices.iter().map(|count| count.generated).sum()
    }

    /// Of the tokens of all prompts: those that needed no computing for the first choice.
    #[must_use]
    pub(crate) fn cached_tokens(&self) -> usize {
        self.choices.iter().step_by(self.n as usize).map(|count| count.cached).sum()
    }
}
