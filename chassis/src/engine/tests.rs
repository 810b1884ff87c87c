//! The order in which engines are driven, and what wakes their thread.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Condvar, Mutex,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};

use super::{DeviceThread, Engine, Step, Wait};

const IDLE: Step = Step::Idle { wake_at: None };

/// A doorbell as `transport` has one, and a record of every sleep.
#[derive(Clone, Default)]
struct Bell {
    rung: Arc<(Mutex<bool>, Condvar)>,
    sleeps: Arc<Mutex<Vec<Option<Instant>>>>,
}

impl Bell {
    fn ring(&self) {
        *self.rung.0.lock().unwrap() = true;
        self.rung.1.notify_all();
    }
}

impl Wait for Bell {
    fn ready(&self) -> bool {
        *self.rung.0.lock().unwrap()
    }

    fn wait(&self, until: Option<Instant>) {
        self.sleeps.lock().unwrap().push(until);
        let mut rung = self.rung.0.lock().unwrap();
        while !*rung && until.is_none_or(|until| Instant::now() < until) {
            // Far beyond any sleep of these tests.
            let at_most = until.map_or(Duration::from_secs(60), |until| until - Instant::now());
            rung = self.rung.1.wait_timeout(rung, at_most).unwrap().0;
        }
        *rung = false;
    }
}

/// Plays its script and notes its name at every step; rings when told to.
struct Scripted {
    name: char,
    script: VecDeque<Step>,
    log: Arc<Mutex<String>>,
}

impl Engine for Scripted {
    fn step(&mut self) -> Step {
        self.log.lock().unwrap().push(self.name);
        self.script.pop_front().unwrap_or(Step::Finished)
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.log.lock().unwrap().push('.');
    }
}

fn scripted(name: char, script: &[Step], log: &Arc<Mutex<String>>) -> Box<dyn Engine + Send> {
    let script = script.iter().cloned().collect();
    Box::new(Scripted { name, script, log: Arc::clone(log) })
}

#[tokio::test]
async fn engines_take_turns_one_step_each() {
    let log = Arc::new(Mutex::new(String::new()));
    let engines = vec![
        scripted('a', &[Step::Worked, Step::Worked, Step::Worked], &log),
        // Idle beside a working one does not put the thread to sleep.
        scripted('b', &[IDLE, IDLE], &log),
        scripted('c', &[], &log),
    ];
    let bell = Bell::default();
    DeviceThread::spawn("turns", bell.clone(), engines).unwrap().finished().await.unwrap();
    assert_eq!(*log.lock().unwrap(), "abc.abab.a.");
    assert!(bell.sleeps.lock().unwrap().is_empty());
}

/// Reports an idle step, then takes the next item that came by channel.
struct Receiving {
    inbox: Receiver<u32>,
    idle: SyncSender<()>,
    sum: Arc<Mutex<u32>>,
}

impl Engine for Receiving {
    fn step(&mut self) -> Step {
        match self.inbox.try_recv() {
            Ok(0) => Step::Finished,
            Ok(item) => {
                *self.sum.lock().unwrap() += item;
                Step::Worked
            }
            Err(_) => {
                let _ = self.idle.try_send(());
                IDLE
            }
        }
    }
}

#[tokio::test]
async fn a_ring_wakes_the_sleeper_and_none_is_lost() {
    let (bell, sum) = (Bell::default(), Arc::new(Mutex::new(0)));
    let ((send, inbox), (idle, idled)) = (sync_channel(1), sync_channel(1));
    let engine = Receiving { inbox, idle, sum: Arc::clone(&sum) };
    let thread = DeviceThread::spawn("ring", bell.clone(), vec![Box::new(engine)]).unwrap();
    let sender = std::thread::spawn(move || {
        for item in (1..=100).chain([0]) {
            // The engine has just found nothing: the ring meets it spinning, falling asleep or asleep.
            idled.recv().unwrap();
            send.send(item).unwrap();
            bell.ring();
        }
    });
    thread.finished().await.unwrap();
    sender.join().unwrap();
    assert_eq!(*sum.lock().unwrap(), 5050);
}

#[tokio::test]
async fn the_nearest_timer_of_all_engines_ends_the_sleep() {
    let log = Arc::new(Mutex::new(String::new()));
    let soon = Instant::now() + Duration::from_millis(2);
    let later = soon + Duration::from_secs(60);
    let bell = Bell::default();
    let engines = vec![
        scripted('a', &[Step::Idle { wake_at: Some(later) }], &log),
        scripted('b', &[Step::Idle { wake_at: Some(soon) }], &log),
        scripted('c', &[IDLE], &log),
    ];
    DeviceThread::spawn("timer", bell.clone(), engines).unwrap().finished().await.unwrap();
    assert_eq!(*bell.sleeps.lock().unwrap(), [Some(soon)]);
    assert_eq!(*log.lock().unwrap(), "abca.b.c.");
}

struct Broken;

impl Engine for Broken {
    fn step(&mut self) -> Step {
        panic!("layer 3 has no weights");
    }
}

#[tokio::test]
async fn a_panic_is_reported_with_its_thread() {
    let bell = Bell::default();
    let thread = DeviceThread::spawn("cpu", bell, vec![Box::new(Broken)]).unwrap();
    let died = thread.finished().await.unwrap_err();
    assert_eq!(died.to_string(), "device thread cpu died: layer 3 has no weights");
}

#[tokio::test]
async fn an_engine_that_fails_ends_the_thread_with_its_sentence() {
    let log = Arc::default();
    let failing = scripted('a', &[Step::Worked, Step::Failed("the GPU is gone".into())], &log);
    let other = scripted('b', &vec![Step::Worked; 8], &log);
    let thread = DeviceThread::spawn("gpu", Bell::default(), vec![failing, other]).unwrap();
    let died = thread.finished().await.unwrap_err();
    assert_eq!(died.to_string(), "device thread gpu died: the GPU is gone");
}
