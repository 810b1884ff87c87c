//! The threads of a [`crate::Cpu`]: tasks from one shared counter, a short spin, then sleep.
//!
//! Nothing is split in advance and nobody waits for a helper that has not begun: if another process
//! holds a core, the threads that do run take all the tasks, and the caller returns. Who has lost its
//! core in the middle of a task gets that of whoever waits for it ([`cores`]).

mod cores;

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use self::cores::{Cores, PATIENCE};
use crate::cpu::CpuError;

/// Polls before a helper sleeps: about 30 us, longer than the serial steps between two operators.
const IDLE_POLLS: u32 = 800;
/// Polls before the caller sleeps while a helper finishes its last task, about 60 us. When the helper
/// lost its core, it gets the caller's.
const FINISH_POLLS: u32 = 1500;
/// A sleeper looks again after this long even if nobody wakes it.
const SLEEP_MAX: Duration = Duration::from_millis(100);

/// State word: generation of the job, open or closed, helpers inside.
const INSIDE: u64 = (1 << 16) - 1;
const OPEN: u64 = 1 << 16;
const GENERATION: u64 = 1 << 17;

type Task<'a> = &'a (dyn Fn(usize, usize) + Sync);

/// What the helpers run now; written by the caller while the job is closed and nobody is inside.
struct Job {
    task: Option<Task<'static>>,
    tasks: usize,
    caller: Option<Thread>,
}

struct Shared {
    state: AtomicU64,
    next: AtomicUsize,
    stop: AtomicBool,
    asleep: Vec<AtomicBool>,
    cores: Cores,
    job: UnsafeCell<Job>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `job` is written only by the one caller that holds the pool's lock while the state word is
// closed with nobody inside, and read only by threads counted inside an open job.
unsafe impl Sync for Shared {}
// SAFETY: all fields but the job's borrowed task are Send; the task is Sync and used only while the
// caller that lent it waits in `for_each`.
unsafe impl Send for Shared {}

pub(crate) struct Pool {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
    callers: Mutex<()>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).finish()
    }
}

impl Pool {
    pub(crate) fn start(threads: usize, pin: bool) -> Result<Self, CpuError> {
        let helpers = threads.checked_sub(1).ok_or(CpuError::NoThreads)?;
        let cores = Cores::new(threads, pin);
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            next: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            asleep: (0..helpers).map(|_| AtomicBool::new(false)).collect(),
            cores,
            job: UnsafeCell::new(Job { task: None, tasks: 0, caller: None }),
            panic: Mutex::new(None),
        });
        let mut pool = Self { shared, helpers: Vec::new(), callers: Mutex::new(()) };
        for index in 0..helpers {
            let shared = Arc::clone(&pool.shared);
            let helper = thread::Builder::new()
                .name(format!("kernel-{}", index + 1))
                .spawn(move || shared.help(index))
                .map_err(|source| CpuError::Spawn { index: index + 1, source })?;
            pool.helpers.push(helper);
        }
        Ok(pool)
    }

    /// A task of `worker` has waited since then for another worker's and is about to sleep.
    pub(crate) fn wait(&self, worker: usize, since: Instant) {
        self.shared.cores.wait(worker, since);
    }

    pub(crate) fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    pub(crate) fn for_each(&self, tasks: usize, task: Task<'_>) {
        // Also without helpers: worker 0 is one thread at a time.
        let turn = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        if self.helpers.is_empty() || tasks <= 1 {
            (0..tasks).for_each(|index| task(index, 0));
            return;
        }
        let shared = &*self.shared;
        // SAFETY: the job is closed and nobody is inside (the last call waited for that), and only
        // this thread holds the lock. The task's lifetime is stretched, but `finish` below does not
        // return before every thread that saw it is out.
        unsafe {
            let task = std::mem::transmute::<Task<'_>, Task<'static>>(task);
            *shared.job.get() = Job { task: Some(task), tasks, caller: Some(thread::current()) };
        }
        shared.next.store(0, Ordering::Relaxed);
        shared.state.fetch_add(GENERATION | OPEN, Ordering::SeqCst);
        self.wake(tasks - 1);
        shared.run(task, tasks, 0);
        shared.cores.end(0);
        shared.finish();
        shared.cores.go_back(0);
        let panic = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panic {
            drop(turn);
            resume_unwind(panic);
        }
    }

    /// Wakes up to `wanted` helpers among those asleep.
    fn wake(&self, wanted: usize) {
        for (helper, asleep) in self.helpers.iter().zip(&self.shared.asleep).take(wanted) {
            if asleep.load(Ordering::SeqCst) {
                helper.thread().unpark();
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for helper in self.helpers.drain(..) {
            helper.thread().unpark();
            // A helper never panics: tasks run inside catch_unwind.
            let _ = helper.join();
        }
    }
}

impl Shared {
    /// A helper's life: wait for an open job not seen yet, enter, take tasks, leave.
    fn help(&self, index: usize) {
        self.cores.join(index + 1);
        let mut seen = 0;
        while let Some(state) = self.wait_for_job(index, seen) {
            let entered =
                self.state.compare_exchange(state, state + 1, Ordering::SeqCst, Ordering::SeqCst);
            if entered.is_err() {
                continue;
            }
            seen = state / GENERATION;
            // SAFETY: counted inside an open job: the caller does not touch it until we leave.
            let job = unsafe { &*self.job.get() };
            let caller = job.caller.clone();
            if let Some(task) = job.task {
                self.run(task, job.tasks, index + 1);
            }
            let left = self.state.fetch_sub(1, Ordering::SeqCst);
            if left & (OPEN | INSIDE) == 1
                && let Some(caller) = caller
            {
                caller.unpark();
            }
            self.cores.end(index + 1);
            self.cores.go_back(index + 1);
        }
    }

    /// The state word of a job newer than `seen`; `None` when the pool stops.
    fn wait_for_job(&self, index: usize, seen: u64) -> Option<u64> {
        let (mut polls, mut since) = (0, None);
        loop {
            if let Some(state) = self.new_job(seen) {
                return Some(state);
            }
            if self.stop.load(Ordering::SeqCst) {
                return None;
            }
            if polls < IDLE_POLLS {
                polls += 1;
                std::hint::spin_loop();
                continue;
            }
            // No task is left, but the caller is not done with its own.
            let open = self.is_open(seen);
            if open {
                self.cores.wait(index + 1, *since.get_or_insert_with(Instant::now));
            }
            self.asleep[index].store(true, Ordering::SeqCst);
            // A job opened since the last look did not see this helper asleep: look again.
            if self.new_job(seen).is_none() && !self.stop.load(Ordering::SeqCst) {
                thread::park_timeout(if open { PATIENCE } else { SLEEP_MAX });
            }
            self.asleep[index].store(false, Ordering::SeqCst);
        }
    }

    /// Whether the job `seen` is still open: its caller has a task.
    fn is_open(&self, seen: u64) -> bool {
        let state = self.state.load(Ordering::SeqCst);
        state & OPEN != 0 && state / GENERATION == seen
    }

    fn new_job(&self, seen: u64) -> Option<u64> {
        let state = self.state.load(Ordering::SeqCst);
        (state & OPEN != 0 && state / GENERATION != seen).then_some(state)
    }

    /// Takes tasks until none is left; a panic is kept for the caller and ends the taking.
    fn run(&self, task: Task<'_>, tasks: usize, worker: usize) {
        self.cores.begin(worker);
        let result = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let index = self.next.fetch_add(1, Ordering::Relaxed);
                if index >= tasks {
                    break;
                }
                task(index, worker);
            }
        }));
        if let Err(panic) = result {
            self.next.store(tasks, Ordering::Relaxed);
            *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
        }
    }

    /// Closes the job and waits until the helpers that entered it are out.
    fn finish(&self) {
        let mut state = self.state.fetch_sub(OPEN, Ordering::SeqCst);
        let (mut polls, mut since) = (0, None);
        while state & INSIDE != 0 {
            if polls < FINISH_POLLS {
                polls += 1;
                std::hint::spin_loop();
            } else {
                self.cores.wait(0, *since.get_or_insert_with(Instant::now));
                if self.state.load(Ordering::SeqCst) & INSIDE != 0 {
                    thread::park_timeout(PATIENCE);
                }
            }
            state = self.state.load(Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_over_many_jobs() {
        let pool = Pool::start(4, false).unwrap();
        for job in 0..2000 {
            let tasks = job % 17;
            let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
            pool.for_each(tasks, &|task, worker| {
                assert!(worker < 4);
                counts[task].fetch_add(1, Ordering::Relaxed);
            });
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn sleeping_helpers_come_back() {
        let pool = Pool::start(2, true).unwrap();
        for _ in 0..5 {
            thread::sleep(Duration::from_millis(5));
            let both = AtomicUsize::new(0);
            // Each task waits for the other: this ends only if the helper takes part.
            pool.for_each(2, &|_, _| {
                both.fetch_add(1, Ordering::SeqCst);
                while both.load(Ordering::SeqCst) < 2 {
                    thread::yield_now();
                }
            });
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::start(3, false).unwrap();
        for bad in 0..20 {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                pool.for_each(20, &|task, _| assert_ne!(task, bad, "boom"));
            }));
            assert!(caught.is_err());
            let sum = AtomicUsize::new(0);
            pool.for_each(10, &|task, _| {
                sum.fetch_add(task, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 45);
        }
    }

    #[test]
    fn callers_take_turns() {
        let pool = Pool::start(2, false).unwrap();
        let busy = [AtomicBool::new(false), AtomicBool::new(false)];
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        pool.for_each(3, &|_, worker| {
                            assert!(!busy[worker].swap(true, Ordering::SeqCst));
                            busy[worker].store(false, Ordering::SeqCst);
                        });
                    }
                });
            }
        });
    }

    #[test]
    fn no_threads_is_an_error() {
        assert!(matches!(Pool::start(0, false), Err(CpuError::NoThreads)));
    }
}
