//! One turn on the device: a decoder layer for a batch of spans, or the LM head for their last rows.

use std::time::Instant;

use model::{AttentionHalf, LayerKind, ModelError};
use node::Pace;
use proto::frame::Tally;

use super::{Asked, AttentionEngine, Turn};
use crate::{sequence::Next, span::Span};

impl AttentionEngine {
    /// Picks a stage and runs it. After an error its sequences are lost: the node must not stay, so that gateways send
    /// them to another.
    pub(super) fn run(&mut self) -> Result<Turn, ModelError> {
        let mut picked = std::mem::take(&mut self.buffers.picked);
        let turn = self.ready.pick(self.now_ns(), &mut picked);
        match turn {
            Turn::Run(stage) if stage == self.head() => self.run_head(&picked)?,
            Turn::Run(stage) => self.run_layer(stage, &picked)?,
            Turn::Empty(_) => self.send_empty_step(),
            Turn::Hold { .. } | Turn::Rest => {}
        }
        self.buffers.picked = picked;
        Ok(turn)
    }

    /// Lockstep mode: takes part in a step without having anything for it.
    fn send_empty_step(&mut self) {
        for layer in self.half.spec().shape().moe_layers {
            self.flush(layer, self.ready.step());
        }
    }

    fn run_layer(&mut self, stage: usize, picked: &[usize]) -> Result<(), ModelError> {
        let (layer, began) = (Self::layer(stage), Instant::now());
        let mut residual = std::mem::take(&mut self.buffers.residual);
        self.gather(picked, &mut residual);
        self.attend(layer, picked, &mut residual)?;
        let kind = self.half.layer_kind(layer);
        if kind == LayerKind::Moe {
            self.route(layer, picked, &residual)?;
            Pace::hold(began + self.pace.layer(self.buffers.rows.len()));
            self.ready.leave(stage, self.buffers.rows.len());
            self.send(layer, picked);
        }
        self.trace_attended(picked, began);
        // The experts are at work meanwhile.
        self.half.local_mlp(layer, &mut residual, &mut self.buffers.scratch)?;
        self.scatter(picked, &residual);
        self.buffers.residual = residual;
        let rows = self.buffers.rows.len();
        let took = began.elapsed();
        self.ready.ran(took);
        self.joints.metrics.ran_layer(picked.len(), rows, took);
        self.work.add(rows, 0, took, 0);
        if kind == LayerKind::Dense {
            let now = self.now_ns();
            picked.iter().for_each(|&key| self.advance(key, now));
        }
        Ok(())
    }

    /// Brings the spans' rows side by side, with what their experts gave.
    fn gather(&mut self, picked: &[usize], residual: &mut Vec<f32>) {
        let Self { half, spans, buffers, .. } = self;
        let hidden = half.spec().hidden;
        buffers.rows.clear();
        for &key in picked {
            let span = &mut spans[key];
            span.under_way = true;
            buffers.rows.extend((0..span.rows).map(|row| (key, row)));
        }
        residual.resize(buffers.rows.len() * hidden, 0.0);
        half.for_each_row(residual, |row, residual| {
            let (key, row) = buffers.rows[row];
            let span = &spans[key];
            residual.copy_from_slice(&span.residual[row * hidden..][..hidden]);
            if span.trip.has_outputs() {
                half.absorb(span.trip.outputs(row), residual);
            }
        });
        picked.iter().for_each(|&key| spans[key].trip.end());
    }

    fn scatter(&mut self, picked: &[usize], mut residual: &[f32]) {
        let hidden = self.half.spec().hidden;
        for &key in picked {
            let span = &mut self.spans[key];
            let (mine, others) = residual.split_at(span.residual.len());
            self.half.for_each_row(&mut span.residual, |row, residual| {
                residual.copy_from_slice(&mine[row * hidden..][..hidden]);
            });
            residual = others;
        }
    }

    fn attend(
        &mut self,
        layer: domain::Layer,
        picked: &[usize],
        residual: &mut [f32],
    ) -> Result<(), ModelError> {
        let mut begin = 0;
        let spans: Vec<model::Span<'_>> = picked
            .iter()
            .map(|&key| {
                let span = &self.spans[key];
                let rows = begin..begin + span.rows;
                begin = rows.end;
                let blocks = &self.sequences[span.sequence].blocks;
                model::Span { rows, first_position: span.first_position, blocks }
            })
            .collect();
        self.half.attend(layer, &spans, &mut self.kv, residual, &mut self.buffers.scratch)
    }

    /// Runs the gate: every row has its experts.
    fn route(
        &mut self,
        layer: domain::Layer,
        picked: &[usize],
        residual: &[f32],
    ) -> Result<(), ModelError> {
        let mut routed = std::mem::take(&mut self.buffers.routed);
        self.half.route(layer, residual, &mut routed, &mut self.buffers.scratch)?;
        let (top_k, row_bytes) = (routed.top_k(), routed.row_bytes());
        let (mut begin, now) = (0, Instant::now());
        for &key in picked {
            let span = &mut self.spans[key];
            let rows = begin..begin + span.rows;
            begin = rows.end;
            self.trips = self.trips.wrapping_add(1);
            let wire = &routed.wire()[rows.start * row_bytes..rows.end * row_bytes];
            let choices = rows.flat_map(|row| routed.choices(row));
            span.trip.begin(now, self.trips, layer, top_k, wire, choices);
        }
        self.buffers.routed = routed;
        Ok(())
    }

    /// Sends every row to its experts, or asks first what other nodes' rows chose.
    fn send(&mut self, layer: domain::Layer, picked: &[usize]) {
        if self.experts.routes_by_batch() {
            let own = self.tally(layer, picked);
            self.experts.ask_tally(&own);
            self.asked = Some(Asked { own, spans: picked.to_vec() });
        } else {
            self.add(picked.iter().copied());
            self.flush(layer, self.ready.step());
        }
    }

    /// Tokens per expert that these spans chose.
    fn tally(&self, layer: domain::Layer, picked: &[usize]) -> Tally {
        let mut tokens = vec![0; self.half.spec().moe.experts];
        for expert in picked.iter().flat_map(|&key| self.spans[key].trip.experts()) {
            tokens[expert.index()] += 1;
        }
        Tally { step: self.ready.step(), layer, tokens }
    }

    /// What all nodes' rows chose: now the batch that waited for it can be sent.
    pub(super) fn on_tally(&mut self, all: &Tally) {
        let turn = (all.step, all.layer);
        // All expert nodes answer, and the first one counts.
        let answered = |asked: &mut Asked| (asked.own.step, asked.own.layer) == turn;
        let Some(Asked { own, spans }) = self.asked.take_if(answered) else { return };
        self.experts.route_batch(&own, all);
        // Some may have been cancelled meanwhile.
        let spans: Vec<_> = spans.into_iter().filter(|&key| self.spans.contains(key)).collect();
        self.add(spans.into_iter());
        self.flush(own.layer, own.step);
    }

    /// Draws the next token of every picked span whose prompt is through, after what is told of prompts.
    fn run_head(&mut self, picked: &[usize]) -> Result<(), ModelError> {
        let mut draws = Vec::with_capacity(picked.len());
        for &key in picked {
            let (span, began) = (&self.spans[key], Instant::now());
            let sequence = &self.sequences[span.sequence];
            let last = span.first_position + span.rows == sequence.tokens.len();
            if sequence.is_scored() {
                self.score(key)?;
                self.joints.metrics.ran_head(began.elapsed());
            }
            if last {
                draws.push(key);
            } else {
                self.end_chunk(key);
            }
        }
        for picked in draws.chunks(self.bounds.head_rows_max) {
            let began = Instant::now();
            self.draw(picked)?;
            self.joints.metrics.ran_head(began.elapsed());
            for (at, &key) in picked.iter().enumerate() {
                // One that had to give way to an earlier one draws this token again later.
                if self.spans.contains(key) {
                    self.publish(key, at);
                }
            }
        }
        Ok(())
    }

    /// Log-probabilities of the tokens after a span's rows, as far as they are in the prompt.
    fn score(&mut self, key: usize) -> Result<(), ModelError> {
        let Self { half, spans, sequences, buffers, bounds, .. } = self;
        let span = &mut spans[key];
        span.under_way = true;
        let sequence = &mut sequences[span.sequence];
        let spec = sequence.scoring();
        let rows = span.rows.min(sequence.tokens.len() - 1 - span.first_position);
        for begin in (0..rows).step_by(bounds.head_rows_max) {
            let end = rows.min(begin + bounds.head_rows_max);
            buffers.residual.clear();
            (begin..end).for_each(|row| last_layer(half, span, row, &mut buffers.residual));
            let logits = half.logits(&buffers.residual, &mut buffers.scratch)?;
            let positions = span.first_position + begin..span.first_position + end;
            let given: Vec<_> =
                positions.clone().map(|position| sequence.given(&spec, position)).collect();
            let (sampling, sampled) = (&mut buffers.sampling, &mut buffers.sampled);
            model::sample(half.cpu(), logits, &given, sampling, sampled);
            sequence.score(positions.start, sampled.drain(..));
        }
        Ok(())
    }

    /// Logits of the spans' last rows, and a token for each.
    fn draw(&mut self, picked: &[usize]) -> Result<(), ModelError> {
        let Self { half, spans, sequences, buffers, .. } = self;
        buffers.residual.clear();
        for &key in picked {
            let span = &mut spans[key];
            span.under_way = true;
            last_layer(half, span, span.rows - 1, &mut buffers.residual);
        }
        let logits = half.logits(&buffers.residual, &mut buffers.scratch)?;
        let draws: Vec<_> =
            picked.iter().map(|&key| sequences[spans[key].sequence].draw()).collect();
        let (sampling, sampled) = (&mut buffers.sampling, &mut buffers.sampled);
        model::sample(half.cpu(), logits, &draws, sampling, sampled);
        Ok(())
    }

    /// Hands a drawn token over and starts the sequence's next step, or ends the sequence.
    fn publish(&mut self, key: usize, at: usize) {
        self.note_cached(key);
        let sequence_key = self.spans[key].sequence;
        let sampled = self.buffers.sampled[at].clone();
        let sequence = &mut self.sequences[sequence_key];
        let (first, time) = sequence.drew(Instant::now());
        let next = sequence.append(sampled, self.bounds.positions_max);
        if !self.is_canary(sequence_key) {
            self.drawn.add(first, time);
            self.joints.metrics.tokens.inc();
        }
        match next {
            Next::Token => {
                if self.make_room(sequence_key) {
                    self.start_span(sequence_key);
                }
            }
            Next::Finished => self.finish(sequence_key),
            Next::Abandoned => {
                self.joints.metrics.cancelled.inc();
                self.finish(sequence_key);
            }
        }
    }
}

/// Adds a row as it leaves the last layer to `residual`, with what its experts gave.
fn last_layer(half: &AttentionHalf, span: &Span, row: usize, residual: &mut Vec<f32>) {
    let (hidden, begin) = (half.spec().hidden, residual.len());
    residual.extend_from_slice(&span.residual[row * hidden..][..hidden]);
    half.absorb(span.trip.outputs(row), &mut residual[begin..]);
}
