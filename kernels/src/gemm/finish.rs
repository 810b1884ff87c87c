//! The outcome of a block, handed over while the next one is multiplied.

use std::ops::Range;

use super::order::Panels;
use super::{LANES, STEPS_AT_ONCE, SUMS};

/// Sums of one panel, token by token.
pub(crate) type Plane<'a> = &'a [[f32; LANES]];

/// What is left to hand over of a block's sums, group of panels by group, row by row.
///
/// Tiles rest badly: half a microsecond without them and they take as long to come back. So the
/// sums of one block are handed over in small parts while the next one is multiplied.
#[derive(Default)]
pub(super) struct Finish {
    panels: Panels,
    /// Panels that are handed over together: one or two.
    group: usize,
    /// First token, and tokens.
    token: usize,
    count: usize,
    /// Tokens with padding: rows from panel to panel.
    stride: usize,
    /// Rows handed over of all rows of all groups.
    next: usize,
    end: usize,
}

impl Finish {
    pub(super) fn new(panels: Panels, group: usize, tokens: Range<usize>, stride: usize) -> Self {
        let (token, count) = (tokens.start, tokens.len());
        Self { panels, group, token, count, stride, next: 0, end: panels.count / group * count }
    }

    /// Rows to hand over at each turn of a block of `steps` steps.
    pub(super) fn part_of(&self, steps: usize) -> usize {
        self.end.div_ceil((steps / STEPS_AT_ONCE).max(1))
    }

    /// Hands over up to `rows` more.
    pub(super) fn rows(
        &mut self,
        rows: usize,
        sums: &[[f32; LANES]; SUMS],
        done: &mut impl FnMut(usize, usize, &[Plane<'_>]),
    ) {
        let end = self.end.min(self.next.saturating_add(rows));
        while self.next < end {
            let (group, row) = (self.next / self.count, self.next % self.count);
            let rows = (self.count - row).min(end - self.next);
            let first = group * self.group;
            let plane = |panel: usize| {
                let at = (first + panel) * self.stride + row;
                &sums[at..at + rows]
            };
            let (panel, token) = (self.panels.numbers[first], self.token + row);
            if self.group == 2 {
                done(panel, token, &[plane(0), plane(1)]);
            } else {
                done(panel, token, &[plane(0)]);
            }
            self.next += rows;
        }
    }
}
