//! Notices when a device's thread stands still within a step: its engines can then say nothing of themselves.

use std::time::Duration;

use chassis::{Readiness, engine::Turns};
use domain::Health;
use proto::control::Beat;
use tokio::{sync::watch, time};

/// The condition that a site names to its process's readiness.
const DEVICE: &str = "device";

/// Between two looks at a thread.
pub(crate) const LOOK: Duration = Duration::from_secs(1);
/// Looks during which one step may last.
const LOOKS_MAX: u32 = 5;

/// Looks at a device's thread every so often: tells `readiness` and `stalled` whether it stands still. Never returns.
pub(crate) async fn notice(
    turns: Turns,
    look: Duration,
    readiness: Readiness,
    stalled: watch::Sender<bool>,
) {
    readiness.set(DEVICE, true);
    let (mut seen, mut looks) = (turns.count(), 0);
    loop {
        time::sleep(look).await;
        let now = turns.count();
        looks = if now.is_working() && now == seen { looks + 1 } else { 0 };
        seen = now;
        let stands = looks > LOOKS_MAX;
        match stands {
            true => readiness.lack(DEVICE, "its thread stands still within a step"),
            false => readiness.set(DEVICE, true),
        }
        stalled.send_if_modified(|before| std::mem::replace(before, stands) != stands);
    }
}

/// Takes back a node's word that it is ready while its device stands still. The engine gives it again.
pub(crate) async fn confess(beats: watch::Sender<Beat>, mut stalled: watch::Receiver<bool>) {
    while stalled.wait_for(|stands| *stands).await.is_ok() {
        beats.send_if_modified(|beat| {
            let was = beat.health == Health::Ready;
            if was {
                beat.health = Health::Joining;
            }
            was
        });
        if stalled.wait_for(|stands| !*stands).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, Barrier},
        time::Instant,
    };

    use chassis::engine::{DeviceThread, Engine, Step, Wait};
    use domain::{Epoch, Load};

    use super::*;

    struct Stuck(Arc<Barrier>);

    impl Engine for Stuck {
        fn step(&mut self) -> Step {
            // A device that does not come back.
            self.0.wait();
            Step::Finished
        }
    }

    struct NoBell;

    impl Wait for NoBell {
        fn ready(&self) -> bool {
            true
        }

        fn wait(&self, _: Option<Instant>) {}
    }

    #[tokio::test]
    async fn a_node_is_not_ready_while_its_device_stands_still() {
        let back = Arc::new(Barrier::new(2));
        let stuck = Box::new(Stuck(Arc::clone(&back)));
        let thread = DeviceThread::spawn("device", NoBell, vec![stuck]).unwrap();
        let turns = thread.turns();
        while !turns.count().is_working() {
            std::thread::yield_now();
        }
        let (readiness, stalled) = (Readiness::default(), watch::Sender::new(false));
        let beat = Beat { health: Health::Ready, load: Load::default(), epoch_ready: Epoch(1) };
        let beats = watch::Sender::new(beat);
        let tasks = [
            tokio::spawn(notice(
                turns,
                Duration::from_millis(5),
                readiness.clone(),
                stalled.clone(),
            )),
            tokio::spawn(confess(beats.clone(), stalled.subscribe())),
        ];
        let mut heard = beats.subscribe();
        heard.wait_for(|beat| beat.health == Health::Joining).await.unwrap();
        assert_eq!(readiness.unmet(), ["device (its thread stands still within a step)"]);
        back.wait();
        thread.finished().await.unwrap();
        readiness.ready().await;
        tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}
