//! Work over the rows of a batch, on all threads when there is enough of it.

use std::sync::{Mutex, PoisonError};

use kernels::Cpu;

/// Elements below which waking other threads costs more than they save.
const ALONE: usize = 32 * 1024;
/// Tasks per thread: enough to even out, few enough to cost nothing.
const TASKS_PER_THREAD: usize = 4;

/// Calls `f(row, elements)` for every row of `[rows, width]`: for elementwise work.
pub(crate) fn for_each_row<T: Send>(
    cpu: &Cpu,
    data: &mut [T],
    width: usize,
    f: impl Fn(usize, &mut [T]) + Sync,
) {
    if data.len() <= ALONE {
        for (row, elements) in data.chunks_exact_mut(width).enumerate() {
            f(row, elements);
        }
    } else {
        for_each_part(cpu, data, width, |row, _, elements| f(row, elements));
    }
}

/// Calls `f(part, worker, elements)` for every `width` elements, on all threads: for heavy work.
pub(crate) fn for_each_part<T: Send>(
    cpu: &Cpu,
    data: &mut [T],
    width: usize,
    f: impl Fn(usize, usize, &mut [T]) + Sync,
) {
    let parts = data.len() / width;
    let parts_per_task = parts.div_ceil(TASKS_PER_THREAD * cpu.threads()).max(1);
    // The locks are never waited for: they only show the compiler that tasks share nothing.
    let tasks: Vec<_> = data.chunks_mut(parts_per_task * width).map(Mutex::new).collect();
    cpu.for_each(tasks.len(), |task, worker| {
        let mut elements = tasks[task].lock().unwrap_or_else(PoisonError::into_inner);
        let parts = elements.chunks_exact_mut(width);
        for (part, elements) in (task * parts_per_task..).zip(parts) {
            f(part, worker, elements);
        }
    });
}

#[cfg(test)]
mod tests {
    use kernels::CpuOptions;

    use super::*;

    #[test]
    fn every_row_is_visited_once() {
        let cpu = Cpu::new(&CpuOptions { threads: 3, ..CpuOptions::default() }).unwrap();
        for (rows, width) in [(0, 8), (1, 8), (7, 5), (ALONE, 2), (101, 1000)] {
            let mut data = vec![0_usize; rows * width];
            for_each_row(&cpu, &mut data, width, |row, elements| {
                elements.iter_mut().for_each(|element| *element += row + 1);
            });
            let expected = (0..rows).flat_map(|row| std::iter::repeat_n(row + 1, width));
            assert!(data.into_iter().eq(expected), "{rows} rows of {width}");
        }
    }
}
