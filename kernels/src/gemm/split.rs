//! How a product is cut into tasks: small enough to balance, large enough to stream.

use std::ops::Range;

/// Weight bytes one task reads at most: about 16 us of one core's memory bandwidth.
const TASK_BYTES: usize = 256 << 10;
/// Tokens whose activations stay in a core's L2 while weights pass.
const TOKEN_BLOCK: usize = 256;
/// Multiply-adds of one task: about 30 us of one core's tile unit.
const TASK_MULTIPLY_ADDS: usize = 24 << 20;
/// Less than both of these is not worth handing to another thread.
const LEAST_BYTES: usize = 64 << 10;
const LEAST_MULTIPLY_ADDS: usize = 2 << 20;
/// Panels of one task: a multiple of it keeps all streams of a block busy.
const PANELS: usize = 4;

/// A grid of tasks, token block by token block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Split {
    panels: usize,
    panels_per_task: usize,
    rows: usize,
}

impl Split {
    /// Cuts `panels` (of all sources together `panel_bytes` each) times `rows` into at least
    /// `tasks_min` tasks if there are enough panels.
    pub(crate) fn new(panels: usize, panel_bytes: usize, rows: usize, tasks_min: usize) -> Self {
        let tokens = rows.clamp(1, TOKEN_BLOCK);
        let by_bytes = TASK_BYTES / panel_bytes.max(1);
        let multiply_adds = (panel_bytes / 2 * tokens).max(1);
        let by_work = TASK_MULTIPLY_ADDS / multiply_adds;
        let fair = panels.div_ceil(tasks_min.max(1));
        let least = (LEAST_BYTES / panel_bytes.max(1)).min(LEAST_MULTIPLY_ADDS / multiply_adds);
        let wanted = by_bytes.min(by_work).min(fair).max(least);
        let panels_per_task = (wanted / PANELS * PANELS).max(PANELS);
        Self { panels, panels_per_task, rows }
    }

    /// All panels in each task, for one thread that does them all.
    pub(crate) fn of_tokens(panels: usize, rows: usize) -> Self {
        Self { panels, panels_per_task: panels, rows }
    }

    /// Calls `f(panels, tokens)` for every task.
    pub(crate) fn for_each(&self, mut f: impl FnMut(Range<usize>, Range<usize>)) {
        for task in 0..self.tasks() {
            let (panels, tokens) = self.task(task);
            f(panels, tokens);
        }
    }

    pub(crate) fn tasks(&self) -> usize {
        self.panel_tasks() * self.rows.div_ceil(TOKEN_BLOCK)
    }

    /// Panels and tokens of a task.
    pub(crate) fn task(&self, task: usize) -> (Range<usize>, Range<usize>) {
        let panel = task % self.panel_tasks() * self.panels_per_task;
        let token = task / self.panel_tasks() * TOKEN_BLOCK;
        let panels = panel..self.panels.min(panel + self.panels_per_task);
        (panels, token..self.rows.min(token + TOKEN_BLOCK))
    }

    fn panel_tasks(&self) -> usize {
        self.panels.div_ceil(self.panels_per_task)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_cover_every_panel_and_token_once() {
        for (panels, panel_bytes) in [(1, 64), (3, 4096), (48, 65_536), (128, 49_152), (97, 1024)] {
            for rows in [1, 16, 255, 256, 257, 700] {
                for tasks_min in [1, 8, 64] {
                    let mut seen = vec![0; panels * rows];
                    Split::new(panels, panel_bytes, rows, tasks_min).for_each(|panels, tokens| {
                        assert!(!panels.is_empty() && tokens.len() <= TOKEN_BLOCK);
                        for panel in panels {
                            tokens.clone().for_each(|token| seen[panel * rows + token] += 1);
                        }
                    });
                    assert!(seen.iter().all(|&count| count == 1), "{panels} panels, {rows} rows");
                }
            }
        }
    }
}
