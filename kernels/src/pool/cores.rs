//! Where the workers of a pool run: on cores of their own, and never long without one when others wait for them.
//!
//! A busy neighbour process does two kinds of harm. Where every process has an equal share, the
//! scheduler likes to put a helper on its caller's core and to leave the other core to the
//! neighbour: so workers keep apart. And a worker that loses its core in the middle of a task keeps
//! everyone waiting for milliseconds: so whoever waits lends it his. Both cost where cores are only
//! borrowed for moments, so both end a while after the last sign of a neighbour.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// No core known.
const UNKNOWN: usize = usize::MAX;
/// Polls between two looks at a thread's clock, about 10 us, and how far it goes if the thread has a core.
const CLOCK_POLLS: u32 = 250;
const CLOCK_STEP: Duration = Duration::from_micros(2);
/// Longest wait for another worker that is not looked into while there is no sign of a neighbour.
pub(super) const PATIENCE: Duration = Duration::from_micros(400);
/// Jobs in a row that a helper begins on its caller's core: a sign of a neighbour on the other.
const COLLISIONS: u32 = 4;
/// How long a sign of a neighbour counts.
const MEMORY: Duration = Duration::from_millis(250);

/// The workers of a pool; worker 0 is the caller.
#[derive(Debug)]
pub(super) struct Cores {
    /// The cores this process may use.
    allowed: Vec<usize>,
    /// Whether helpers stay on the cores they were given; then nothing else is done here.
    pinned: bool,
    workers: Vec<Worker>,
    /// Until when a neighbour is taken to be there, in microseconds since `began`.
    crowded_until: AtomicU64,
    began: Instant,
}

#[derive(Debug)]
struct Worker {
    thread: AtomicI32,
    /// Where it was last seen.
    core: AtomicUsize,
    /// Whether it has a task.
    busy: AtomicBool,
    /// Whether it was moved to another worker's core.
    moved: AtomicBool,
    /// Whether it may not use all cores.
    tied: AtomicBool,
    /// Jobs in a row that it has begun on its caller's core.
    collisions: AtomicU32,
}

impl Cores {
    pub(super) fn new(workers: usize, pinned: bool) -> Self {
        let worker = || Worker {
            thread: AtomicI32::new(THIS_THREAD),
            core: AtomicUsize::new(UNKNOWN),
            busy: AtomicBool::new(false),
            moved: AtomicBool::new(false),
            tied: AtomicBool::new(false),
            collisions: AtomicU32::new(0),
        };
        let workers = std::iter::repeat_with(worker).take(workers).collect();
        let (crowded_until, began) = (AtomicU64::new(0), Instant::now());
        Self { allowed: allowed(), pinned, workers, crowded_until, began }
    }

    /// The calling thread is this helper from now on. If it is pinned: to the core of the same number among those
    /// that the process may use (modulo their number).
    pub(super) fn join(&self, worker: usize) {
        if self.pinned
            && let Some(core) = self.allowed.get(worker % self.allowed.len().max(1))
        {
            stay_on(THIS_THREAD, &[*core]);
        }
    }

    /// The calling thread, as this worker, begins to take tasks.
    pub(super) fn begin(&self, worker: usize) {
        if self.pinned {
            return;
        }
        let me = &self.workers[worker];
        me.thread.store(this_thread(), Ordering::Relaxed);
        if let Some(core) = current() {
            let before = me.core.swap(core, Ordering::Relaxed);
            if worker > 0 {
                self.keep_apart(worker, core);
            } else if core != before && self.is_crowded() {
                let there = |&helper: &usize| self.workers[helper].is_on(core);
                for helper in (1..self.workers.len()).filter(there) {
                    self.move_away(helper);
                }
            }
        }
        me.busy.store(true, Ordering::Release);
    }

    /// The calling thread has no more tasks.
    pub(super) fn end(&self, worker: usize) {
        self.workers[worker].busy.store(false, Ordering::Release);
    }

    /// The calling thread leaves a core it was lent. Nobody may wait for it: its own may be taken.
    pub(super) fn go_back(&self, worker: usize) {
        let moved = &self.workers[worker].moved;
        if moved.load(Ordering::Relaxed)
            && moved.swap(false, Ordering::Relaxed)
            && (worker == 0 || !self.move_away(worker))
        {
            self.untie(worker);
        }
    }

    /// The calling thread has waited since then for another worker's task and is about to sleep: it lends its core
    /// to workers that have lost theirs.
    pub(super) fn wait(&self, worker: usize, since: Instant) {
        if !self.pinned && (self.is_crowded() || since.elapsed() >= PATIENCE) {
            self.lend(worker);
        }
    }

    /// The calling thread, a helper, leaves the core of an earlier worker.
    fn keep_apart(&self, worker: usize, core: usize) {
        let me = &self.workers[worker];
        if self.workers[..worker].iter().any(|other| other.is_on(core)) {
            let collisions = me.collisions.load(Ordering::Relaxed) + 1;
            me.collisions.store(collisions, Ordering::Relaxed);
            if collisions >= COLLISIONS {
                self.crowd();
            }
            if self.is_crowded() {
                self.move_away(worker);
            }
        } else {
            me.collisions.store(0, Ordering::Relaxed);
            if me.tied.load(Ordering::Relaxed) && !self.is_crowded() {
                self.untie(worker);
            }
        }
    }

    fn is_crowded(&self) -> bool {
        let until = self.crowded_until.load(Ordering::Relaxed);
        until > 0 && u128::from(until) > self.began.elapsed().as_micros()
    }

    /// There is a sign of a neighbour.
    fn crowd(&self) {
        let until = (self.began.elapsed() + MEMORY).as_micros();
        self.crowded_until.store(u64::try_from(until).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The calling thread may use all cores again.
    fn untie(&self, worker: usize) {
        self.workers[worker].tied.store(false, Ordering::Relaxed);
        stay_on(THIS_THREAD, &self.allowed);
    }

    /// Lets workers that have a task but no core run here.
    fn lend(&self, worker: usize) {
        let Some(core) = current() else { return };
        let others = self.workers.iter().enumerate().filter(|&(other, _)| other != worker);
        for (_, other) in others {
            if other.is_stalled() {
                if !self.is_crowded() {
                    self.crowd();
                }
                other.tied.store(true, Ordering::Relaxed);
                other.moved.store(true, Ordering::Relaxed);
                other.core.store(core, Ordering::Relaxed);
                stay_on(other.thread.load(Ordering::Relaxed), &[core]);
            }
        }
    }

    /// Moves a helper to cores that no worker is on; whether there are any.
    fn move_away(&self, worker: usize) -> bool {
        let is_free = |&core: &usize| !self.workers.iter().any(|other| other.is_on(core));
        let free: Vec<usize> = self.allowed.iter().copied().filter(is_free).collect();
        let Some(&first) = free.first() else { return false };
        let Worker { thread, core, tied, .. } = &self.workers[worker];
        core.store(first, Ordering::Relaxed);
        tied.store(true, Ordering::Relaxed);
        stay_on(thread.load(Ordering::Relaxed), &free);
        true
    }
}

impl Worker {
    fn is_on(&self, core: usize) -> bool {
        self.core.load(Ordering::Relaxed) == core
    }

    /// Whether it has a task and no core to do it on.
    fn is_stalled(&self) -> bool {
        let clock = || time_on_cores(self.thread.load(Ordering::Relaxed));
        if !self.busy.load(Ordering::Acquire) {
            return false;
        }
        let before = clock();
        for _ in 0..CLOCK_POLLS {
            std::hint::spin_loop();
            if !self.busy.load(Ordering::Acquire) {
                return false;
            }
        }
        matches!((before, clock()), (Some(before), Some(now)) if now - before < CLOCK_STEP)
    }
}

/// What stands for the calling thread.
const THIS_THREAD: i32 = 0;

#[cfg(target_os = "linux")]
fn allowed() -> Vec<usize> {
    allowed_to(THIS_THREAD)
}

/// The cores that a thread of this process may use.
#[cfg(target_os = "linux")]
fn allowed_to(thread: i32) -> Vec<usize> {
    // SAFETY: cpu_set_t is plain bits, for which zero is valid; the call writes only the set whose
    // size it is given.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        let bytes = size_of::<libc::cpu_set_t>();
        if libc::sched_getaffinity(thread, bytes, &raw mut set) != 0 {
            return Vec::new();
        }
        (0..bytes * 8).filter(|&core| libc::CPU_ISSET(core, &set)).collect()
    }
}

/// The core that the calling thread is on.
#[cfg(target_os = "linux")]
fn current() -> Option<usize> {
    // SAFETY: takes nothing and touches no memory of ours.
    usize::try_from(unsafe { libc::sched_getcpu() }).ok()
}

#[cfg(target_os = "linux")]
fn this_thread() -> i32 {
    thread_local! {
        // SAFETY: takes nothing and touches no memory of ours.
        static ID: i32 = unsafe { libc::gettid() };
    }
    ID.with(|id| *id)
}

/// Lets a thread of this process run on these cores only. A refusal leaves it where it was.
#[cfg(target_os = "linux")]
fn stay_on(thread: i32, cores: &[usize]) {
    // SAFETY: as in `allowed_to`; cores come from there and so fit the set.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        cores.iter().for_each(|&core| libc::CPU_SET(core, &mut set));
        libc::sched_setaffinity(thread, size_of::<libc::cpu_set_t>(), &raw const set);
    }
}

/// How long a thread of this process has had a core in its life; `None` when it has ended.
#[cfg(target_os = "linux")]
fn time_on_cores(thread: i32) -> Option<Duration> {
    // What the C library's pthread_getcpuclockid makes of a thread's id.
    let clock = (!thread << 3) | 6;
    // SAFETY: timespec is plain numbers, for which zero is valid; the call fills it, or refuses.
    unsafe {
        let mut time: libc::timespec = std::mem::zeroed();
        if libc::clock_gettime(clock, &raw mut time) != 0 {
            return None;
        }
        let nanos = u64::try_from(time.tv_nsec).ok()?;
        Some(Duration::from_secs(u64::try_from(time.tv_sec).ok()?) + Duration::from_nanos(nanos))
    }
}

#[cfg(not(target_os = "linux"))]
fn allowed() -> Vec<usize> {
    Vec::new()
}

#[cfg(not(target_os = "linux"))]
fn current() -> Option<usize> {
    None
}

#[cfg(not(target_os = "linux"))]
fn this_thread() -> i32 {
    THIS_THREAD
}

#[cfg(not(target_os = "linux"))]
fn stay_on(_thread: i32, _cores: &[usize]) {}

#[cfg(not(target_os = "linux"))]
fn time_on_cores(_thread: i32) -> Option<Duration> {
    None
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::sync::Barrier;
    use std::thread;

    use super::*;

    /// A helper has a task and does not get on, and this thread waits for it in the caller's place: the caller's core,
    /// and the cores that the helper may use, before, after `then` and after its task. None on a single core.
    fn beside_a_helper(then: impl FnOnce(&Cores)) -> Option<(usize, [Vec<usize>; 3])> {
        let cores = Cores::new(2, false);
        let [here, _, ..] = cores.allowed[..] else { return None };
        stay_on(THIS_THREAD, &[here]);
        cores.crowd();
        cores.begin(0);
        let (barrier, helper_cores) = (Barrier::new(2), &cores);
        let helper = || {
            stay_on(THIS_THREAD, &[here]);
            helper_cores.begin(1);
            barrier.wait();
            barrier.wait();
            helper_cores.end(1);
            helper_cores.go_back(1);
            allowed()
        };
        let may_use = || allowed_to(cores.workers[1].thread.load(Ordering::Relaxed));
        thread::scope(|scope| {
            let helper = scope.spawn(helper);
            barrier.wait();
            let before = may_use();
            then(&cores);
            let after = may_use();
            barrier.wait();
            Some((here, [before, after, helper.join().unwrap_or_default()]))
        })
    }

    fn others(all: &[usize], here: usize) -> Vec<usize> {
        all.iter().copied().filter(|&core| core != here).collect()
    }

    #[test]
    fn a_helper_leaves_its_callers_core() {
        let all = allowed();
        let Some((here, [before, ..])) = beside_a_helper(|_| ()) else { return };
        assert_eq!(before, others(&all, here));
    }

    #[test]
    fn whoever_waits_lends_its_core_to_a_stalled_worker() {
        let all = allowed();
        let Some((here, [_, lent, back])) = beside_a_helper(|cores| cores.wait(0, Instant::now()))
        else {
            return;
        };
        assert_eq!(lent, [here]);
        assert_eq!(back, others(&all, here));
    }

    #[test]
    fn pinned_workers_stay_where_they_are() {
        let cores = Cores::new(2, true);
        cores.join(1);
        cores.begin(1);
        cores.wait(0, Instant::now());
        assert_eq!(allowed(), [cores.allowed[1 % cores.allowed.len()]]);
    }
}
