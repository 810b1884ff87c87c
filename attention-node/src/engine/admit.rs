//! Which sequences run: submission, admission by KV blocks, giving way, and the end.

use std::time::Instant;

use domain::Layer;

use super::{AttentionEngine, Refusal, Submission, SubmissionId};
use crate::{
    sequence::Sequence,
    span::{Span, Trip},
};

impl AttentionEngine {
    pub(super) fn submit(&mut self, submission: Submission) {
        let Submission { id, request, outputs, answer, trace, grammar } = submission;
        let refusal = if self.joints.shutdown.is_requested() {
            Some(Refusal::Draining)
        } else if self.waiting.len() >= self.bounds.waiting_max {
            Some(Refusal::Full)
        } else {
            None
        };
        if let Some(refusal) = refusal {
            self.joints.metrics.refused.inc();
            // The door may have gone in the meantime, which is all right for a refusal.
            let _ = answer.send(Err(refusal));
            return;
        }
        if answer.send(Ok(())).is_err() {
            return;
        }
        let mut sequence = Sequence::new(id, request, self.half.spec(), outputs);
        (sequence.trace, sequence.grammar) = (trace, grammar);
        let key = self.sequences.insert(sequence);
        self.submissions.insert(id, key);
        self.waiting.push_back(key);
    }

    pub(super) fn cancel(&mut self, id: SubmissionId) {
        if let Some(&key) = self.submissions.get(&id) {
            tracing::debug!(sequence = self.sequences[key].name, "cancelled");
            self.joints.metrics.cancelled.inc();
            self.finish(key);
        }
    }

    /// Starts waiting sequences, in order, as long as there is room for the next one.
    pub(super) fn admit(&mut self) {
        while let Some(&key) = self.waiting.front() {
            let running = self.sequences.len() - self.waiting.len();
            let sequence = &self.sequences[key];
            let rows = sequence.tokens.len().min(self.bounds.chunk_tokens_max);
            let busy = running >= self.bounds.sequences_max
                || running > 0 && self.rows + rows > self.bounds.rows_max;
            // Room for the prompt and the first new token, so that it need not give way at once.
            let positions = (sequence.tokens.len() + 1).min(self.bounds.positions_max);
            if busy || self.is_under_way(key) {
                return;
            }
            let scored = sequence.is_scored();
            let Sequence { blocks, tokens, .. } = &mut self.sequences[key];
            // What is scored is computed, also where its keys and values are there.
            let shared: &[u32] = if scored { &[] } else { tokens };
            let Some(found) = self.blocks.begin(blocks, shared, positions) else { return };
            self.waiting.pop_front();
            self.admissions += 1;
            let sequence = &mut self.sequences[key];
            let before = std::mem::replace(&mut sequence.admitted, self.admissions);
            sequence.cached = found;
            // One that gave way finds what it has left itself.
            if before == 0 && !self.is_canary(key) {
                self.note_found(key);
            }
            self.start_span(key);
        }
    }

    /// Whether a running sequence is about to have computed what this one would compute first. To wait for it takes
    /// no longer, and both share it then: the choices of one prompt, which come all at once, compute it once.
    fn is_under_way(&self, key: usize) -> bool {
        let sequence = &self.sequences[key];
        if sequence.is_scored() {
            return false;
        }
        let tokens = &sequence.tokens;
        let Some(end) = self.blocks.next_to_share(tokens) else { return false };
        self.sequences.iter().any(|(_, other)| {
            let computing = other.span.is_some() && other.cached < end;
            computing && other.tokens.get(..end) == Some(&tokens[..end])
        })
    }

    /// Counts what a sequence has found in the cache.
    fn note_found(&mut self, key: usize) {
        let sequence = &mut self.sequences[key];
        sequence.found = u32::try_from(sequence.cached).unwrap_or(u32::MAX);
        self.joints.metrics.prompt_tokens.inc_by(sequence.tokens.len() as u64);
        self.joints.metrics.cached_tokens.inc_by(sequence.cached as u64);
    }

    /// Puts the next tokens of a sequence on their way: the next chunk of what is not cached yet.
    pub(super) fn start_span(&mut self, key: usize) {
        let sequence = &mut self.sequences[key];
        let first_position = sequence.cached;
        let rows = (sequence.tokens.len() - first_position).min(self.bounds.chunk_tokens_max);
        let span = match sequence.span {
            Some(span) => span,
            None => self.spans.insert(Span {
                sequence: key,
                first_position,
                rows,
                stage: 0,
                under_way: false,
                traced: false,
                residual: Vec::new(),
                trip: Trip::default(),
            }),
        };
        sequence.span = Some(span);
        let state = &mut self.spans[span];
        state.first_position = first_position;
        state.stage = 0;
        let name = if sequence.is_decoding() { "decode" } else { "prefill" };
        let trace = sequence.trace.as_mut();
        state.traced = trace.is_some_and(|trace| trace.begin_pass(name, rows, Instant::now()));
        state.resize(rows, self.half.spec().hidden);
        let tokens = &sequence.tokens[first_position..first_position + rows];
        self.half.embed(tokens, &mut state.residual);
        self.rows += rows;
        let now = self.now_ns();
        self.ready.push(0, span, rows, now);
    }

    /// Makes room for the next token of a running sequence; whether it still runs afterwards.
    ///
    /// When no block is free the youngest sequence gives way: it waits again, at the front, and is
    /// computed anew later, with the same result.
    pub(super) fn make_room(&mut self, key: usize) -> bool {
        loop {
            let sequence = &mut self.sequences[key];
            let positions = sequence.tokens.len();
            if self.blocks.grow(&mut sequence.blocks, positions) {
                return true;
            }
            let running = self.sequences.iter().filter(|(_, sequence)| sequence.span.is_some());
            let youngest =
                running.max_by_key(|(_, sequence)| sequence.admitted).map(|(key, _)| key);
            let Some(youngest) = youngest else { return false };
            self.give_way(youngest);
            if youngest == key {
                return false;
            }
        }
    }

    fn give_way(&mut self, key: usize) {
        self.joints.metrics.preemptions.inc();
        self.stop_span(key);
        let sequence = &mut self.sequences[key];
        self.blocks.release(&mut sequence.blocks);
        sequence.cached = 0;
        self.waiting.push_front(key);
    }

    /// Ends a sequence: everything it holds is free, and what it has in expert queues is cancelled.
    pub(super) fn finish(&mut self, key: usize) {
        if self.is_canary(key) {
            self.canary = None;
        }
        self.stop_span(key);
        self.waiting.retain(|&waiting| waiting != key);
        let mut sequence = self.sequences.remove(key);
        self.blocks.release(&mut sequence.blocks);
        let tokens = sequence.generated();
        if let Some(trace) = sequence.trace.take() {
            trace.end(tokens);
        }
        self.submissions.remove(&sequence.id);
    }

    fn stop_span(&mut self, key: usize) {
        let sequence = &mut self.sequences[key];
        let Some(span) = sequence.span.take() else { return };
        self.experts.cancel(span, &self.spans[span]);
        self.ready.remove(span);
        self.stalled.remove(&span);
        let span = self.spans.remove(span);
        self.rows -= span.rows;
        if span.under_way {
            self.ready.left_batch();
        }
    }

    /// A span's layer is complete: it is ready for the next one, or has come to its end.
    pub(super) fn advance(&mut self, key: usize, now_ns: u64) {
        let head = self.head();
        if self.spans[key].traced {
            self.trace_passed(key);
        }
        let span = &mut self.spans[key];
        span.stage += 1;
        let sequence = &self.sequences[span.sequence];
        let last = span.first_position + span.rows == sequence.tokens.len();
        let scored = sequence.is_scored();
        if span.stage < head || last || scored {
            let rows = if span.stage == head && !scored { 1 } else { span.rows };
            self.ready.push(span.stage, key, rows, now_ns);
        } else {
            self.end_chunk(key);
        }
    }

    /// A chunk that is not a prompt's last has passed the layers: its keys and values are what it
    /// was for.
    pub(super) fn end_chunk(&mut self, key: usize) {
        self.note_cached(key);
        self.start_span(self.spans[key].sequence);
    }

    /// Counts a span's tokens as cached; it is not under way any more.
    pub(super) fn note_cached(&mut self, key: usize) {
        let (now, head) = (Instant::now(), self.head());
        self.pulse.pass(now);
        let span = &mut self.spans[key];
        let drawn = span.stage == head;
        if std::mem::take(&mut span.traced)
            && let Some(trace) = &mut self.sequences[span.sequence].trace
        {
            trace.end_pass(drawn, now);
        }
        span.trip.end();
        span.under_way = false;
        self.ready.left_batch();
        let sequence = &mut self.sequences[span.sequence];
        sequence.cached += span.rows;
        self.blocks.name(&mut sequence.blocks, &sequence.tokens[..sequence.cached]);
        self.rows -= std::mem::take(&mut span.rows);
    }

    /// A layer by its stage.
    pub(super) fn layer(stage: usize) -> Layer {
        #[expect(clippy::cast_possible_truncation, reason = "layers are counted in u16")]
        Layer(stage as u16)
    }
}
