//! A device begins and finishes what it runs.

use super::{Engine, attend::device_number};
use crate::{
    agenda::Event,
    device::{Job, Next},
    judge::Violation,
    meter::{Kind, Ran},
};

impl Engine<'_> {
    /// Lets a device run what it picks, if it stands still and anything can run.
    pub(super) fn start(&mut self, device: usize) {
        if self.devices[device].running.is_some() {
            return;
        }
        if let Some(node) = self.devices[device].part.attention {
            self.begin_steps(usize::from(node));
        }
        let now_ns = self.agenda.now_ns();
        let number = device_number(device);
        let next = self.devices[device].decide(now_ns);
        self.devices[device].holds = matches!(next, Next::Hold { .. });
        let (job, queue) = match next {
            Next::Run { job, waiting } => (job, waiting),
            Next::Hold { until_ns } => return self.agenda.note(until_ns, Event::Waited(number)),
            Next::Rest => return,
        };
        self.devices[device].running = Some(job);
        let (kind, layer, batch, ns) = match job {
            Job::Attend { layer, stream } => {
                let (rows, ns) = self.start_attention(device, usize::from(layer), stream);
                (Kind::Attention, usize::from(layer), rows, ns)
            }
            Job::Head { stream } => {
                let head = self.cluster.layers();
                let (rows, ns) = self.start_attention(device, head, stream);
                (Kind::Attention, head, rows, ns)
            }
            Job::Experts { layer, stream, turn, group } => {
                let (layer, group) = (usize::from(layer), usize::from(group));
                let (tokens, ns) = if self.gathers.is_empty() {
                    self.start_group(device, layer, group)
                } else {
                    self.start_turn(device, usize::from(stream), turn)
                };
                (Kind::Expert, layer, tokens, ns)
            }
        };
        let end_ns = now_ns + ns;
        let queue = queue.max(batch);
        self.meter.ran(Ran { device, kind, layer, batch, queue, begin_ns: now_ns, end_ns });
        self.devices[device].ran(ns);
        self.agenda.note(end_ns, Event::Finished(number));
    }

    pub(super) fn finish(&mut self, device: usize) -> Result<(), Violation> {
        self.scratch.awake.push(device);
        match self.devices[device].running.take() {
            Some(Job::Attend { layer, stream }) => self.dispatch(device, layer, stream),
            Some(Job::Head { stream }) => self.draw(device, usize::from(stream))?,
            Some(Job::Experts { .. }) => self.reply(device)?,
            None => {}
        }
        Ok(())
    }
}

/// A time on a device that takes `factor` times as long.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "times are far below 2^52 ns and factors above 0"
)]
pub(super) fn scaled(ns: u64, factor: f64) -> u64 {
    (ns as f64 * factor).round() as u64
}
