//! Clients that ask one question after the other, at whichever gateway answers, and compare the answers.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    questions::{Answer, Question, questions},
    record::Record,
};
use crate::http::{self, Server};

/// A request that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long a client leaves a gateway alone that broke off.
const AVOIDED: Duration = Duration::from_secs(1);
/// Between two tries of a request.
const PAUSE: Duration = Duration::from_millis(50);

/// How a gateway stands, as whoever makes the faults knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Standing {
    /// It has been asked to end, or has ended, and is not back.
    leaving: bool,
    /// How often it was killed.
    deaths: u32,
    /// It was killed and is not back.
    dead: bool,
}

/// A gateway.
#[derive(Debug)]
struct Door {
    name: String,
    server: Server,
    standing: Mutex<Standing>,
    /// Clients leave it alone until then.
    avoided: Mutex<Option<Instant>>,
}

/// Questions, their answers and the gateways that are asked.
#[derive(Debug)]
pub(super) struct Load {
    doors: Vec<Door>,
    /// Whether somebody else makes the faults, so that nothing is known of them.
    foreign: bool,
    expected: Vec<(Question, Answer)>,
    seed: u64,
    turn: AtomicUsize,
    stopped: AtomicBool,
    pub(super) record: Record,
}

/// Everything is set at once, so a panic elsewhere leaves it whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Door ===

impl Door {
    fn new(name: String, url: &str, key: Option<String>) -> Result<Self> {
        let server = Server::new(url, key)?;
        Ok(Self { name, server, standing: Mutex::default(), avoided: Mutex::default() })
    }

    fn standing(&self) -> Standing {
        *lock(&self.standing)
    }

    fn is_avoided(&self) -> bool {
        lock(&self.avoided).is_some_and(|until| Instant::now() < until)
    }

    fn avoid(&self) {
        *lock(&self.avoided) = Some(Instant::now() + AVOIDED);
    }
}

/// Whether a client may ask again that was cut off: only the end of its gateway is a reason. A
/// gateway that was killed takes everything with it; one that was asked to end has to finish every
/// answer that it has begun.
fn may_ask_again(before: Standing, after: Standing, begun: bool) -> bool {
    after.dead || after.deaths > before.deaths || ((before.leaving || after.leaving) && !begun)
}

// === impl Load ===

impl Load {
    /// Asks every question once: the answers are what is expected from then on.
    pub(super) async fn prepare(
        urls: &[String],
        key: Option<&str>,
        foreign: bool,
        seed: u64,
    ) -> Result<Self> {
        let doors = urls.iter().enumerate().map(|(at, url)| {
            let name = if foreign { url.clone() } else { format!("gateway-{at}") };
            Door::new(name, url, key.map(ToOwned::to_owned))
        });
        let doors = doors.collect::<Result<Vec<_>>>()?;
        let url = urls.first().context("there is no gateway to ask")?;
        let server = Arc::new(Server::new(url, key.map(ToOwned::to_owned))?);
        // A model without a chat template is asked for completions only.
        let probe = questions(true).into_iter().next_back().context("there are questions")?;
        let chats = probe.ask(&server, "chaos-probe", |_| ()).await.is_ok();
        let mut asked = JoinSet::new();
        for (at, question) in questions(chats).into_iter().enumerate() {
            let (server, id) = (Arc::clone(&server), format!("chaos-{seed}-expected-{at}"));
            asked.spawn(async move {
                let answer = timeout(PATIENCE, question.ask(&server, &id, |_| ())).await;
                let answer = answer.context("hangs").flatten();
                anyhow::Ok((at, question, answer.context("a question before the faults")?))
            });
        }
        let mut expected = asked.join_all().await.into_iter().collect::<Result<Vec<_>>>()?;
        expected.sort_by_key(|(at, ..)| *at);
        Ok(Self {
            doors,
            foreign,
            expected: expected
                .into_iter()
                .map(|(_, question, answer)| (question, answer))
                .collect(),
            seed,
            turn: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
            record: Record::new(),
        })
    }

    /// So many clients at once until [`Self::stop`]; returns when all have their last answer.
    pub(super) async fn run(self: Arc<Self>, clients: usize) {
        let mut running = JoinSet::new();
        for client in 0..clients {
            running.spawn(Arc::clone(&self).client(client));
        }
        running.join_all().await;
    }

    /// Lets clients finish what they have asked; the time of the record.
    pub(super) fn stop(&self) -> Duration {
        self.stopped.store(true, Ordering::Relaxed);
        self.record.now()
    }

    async fn client(self: Arc<Self>, client: usize) {
        let mut random = StdRng::seed_from_u64(self.seed.rotate_left(32) ^ client as u64);
        let mut number = 0_u64;
        while !self.stopped.load(Ordering::Relaxed) {
            let (question, expected) = &self.expected[random.random_range(0..self.expected.len())];
            let id = format!("chaos-{}-{client}-{number}", self.seed);
            number += 1;
            let answer = timeout(PATIENCE, self.ask(question, &id)).await;
            match answer.with_context(|| format!("no answer within {PATIENCE:?}")).flatten() {
                Ok(answer) => {
                    let changed = (answer != *expected).then(|| expected.difference(&answer));
                    self.record.answered(changed.map(|how| format!("{id}: {how}")));
                }
                Err(error) => {
                    self.record.failed(format!("{id}: {error:#}"));
                    // Whatever is wrong is not to be asked a thousand times a second.
                    sleep(AVOIDED).await;
                }
            }
        }
    }

    /// Asks until there is an answer, under the same id, as long as gateways end.
    async fn ask(&self, question: &Question, id: &str) -> Result<Answer> {
        // What a client waits for its next token does not begin anew when it asks again.
        let mut last = Instant::now();
        loop {
            let door = self.door();
            let before = door.standing();
            let mut begun = false;
            let answer = question.ask(&door.server, id, |tokens| {
                begun = true;
                if let Some(tokens) = tokens.filter(|tokens| *tokens > 0) {
                    self.record.arrived(last.elapsed(), tokens);
                    last = Instant::now();
                }
            });
            let error = match answer.await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let ended = match self.foreign {
                // The next one may be another one, or the same behind another address.
                true => self.doors.len() > 1,
                false => may_ask_again(before, door.standing(), begun),
            };
            ensure!(ended && http::broke_off(&error), "{} broke off: {error:#}", door.name);
            door.avoid();
            self.record.retried();
            if self.doors.iter().all(Door::is_avoided) {
                sleep(PAUSE).await;
            }
        }
    }

    /// The next gateway in turn that did not break off lately, or else the next.
    fn door(&self) -> &Door {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let count = self.doors.len();
        let mut doors = (0..count).map(|at| &self.doors[(turn + at) % count]);
        doors
            .clone()
            .find(|door| !door.is_avoided())
            .or_else(|| doors.next())
            .unwrap_or(&self.doors[0])
    }

    fn change(&self, name: &str, change: impl FnOnce(&mut Standing)) {
        if let Some(door) = self.doors.iter().find(|door| door.name == name) {
            change(&mut lock(&door.standing));
        }
    }

    /// A gateway is killed now.
    pub(super) fn is_killed(&self, name: &str) {
        self.change(name, |standing| {
            standing.deaths += 1;
            standing.dead = true;
        });
    }

    /// A gateway is asked to end now.
    pub(super) fn is_leaving(&self, name: &str) {
        self.change(name, |standing| standing.leaving = true);
    }

    /// A gateway is ready again.
    pub(super) fn is_back(&self, name: &str) {
        self.change(name, |standing| {
            (standing.leaving, standing.dead) = (false, false);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::{Standing, may_ask_again};

    #[test]
    fn only_the_end_of_a_gateway_is_a_reason_to_ask_again() {
        let alive = Standing::default();
        let leaving = Standing { leaving: true, ..alive };
        let dead = Standing { deaths: 1, dead: true, ..alive };
        let back = Standing { deaths: 1, ..alive };
        for begun in [true, false] {
            assert!(!may_ask_again(alive, alive, begun));
            assert!(may_ask_again(alive, dead, begun));
            assert!(may_ask_again(alive, back, begun), "it died and came back meanwhile");
            assert!(!may_ask_again(back, back, begun), "that death was before");
            assert_eq!(may_ask_again(alive, leaving, begun), !begun);
            assert_eq!(may_ask_again(leaving, alive, begun), !begun);
        }
    }
}
