//! Where the engine tells traced sequences what happens to them. Of others it looks at a flag of their span.

use std::time::Instant;

use domain::NodeId;
use proto::frame::Output;

use super::AttentionEngine;
use crate::{span::TicketParts, trace::Trace};

impl AttentionEngine {
    fn trace_of(&mut self, span: usize) -> Option<&mut Trace> {
        let span = self.spans.get(span).filter(|span| span.traced)?;
        self.sequences[span.sequence].trace.as_deref_mut()
    }

    /// A layer was run for these spans, and their rows are with experts.
    pub(super) fn trace_attended(&mut self, picked: &[usize], began: Instant) {
        if !picked.iter().any(|&key| self.spans[key].traced) {
            return;
        }
        let sent = Instant::now();
        for &key in picked {
            if let Some(trace) = self.trace_of(key) {
                trace.attended(began, sent);
            }
        }
    }

    /// An expert node says how long traced rows took there.
    pub(super) fn trace_answers(&mut self, node: NodeId, output: &Output) {
        for &timing in &output.timings {
            let Some(done) = output.results.get(timing.result as usize) else { continue };
            let parts = TicketParts::of(done.ticket);
            let sent = self.spans.get(parts.span).and_then(|span| span.trip.sent(parts));
            if let (Some(sent), Some(trace)) = (sent, self.trace_of(parts.span)) {
                trace.answered(node, sent, timing);
            }
        }
    }

    /// A traced span is through a layer.
    pub(super) fn trace_passed(&mut self, key: usize) {
        let layer = Self::layer(self.spans[key].stage);
        let Self { spans, sequences, joints, .. } = self;
        if let Some(trace) = &mut sequences[spans[key].sequence].trace {
            trace.passed(layer, &joints.views.borrow(), Instant::now());
        }
    }
}
