//! One term of leadership: takes over what is stored, then turns messages and time into effects until
//! the leadership is lost or the process stops.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use domain::{ClusterView, Guidance, NodeId};
use futures::future::{BoxFuture, FutureExt, OptionFuture};
use proto::control::Welcome;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, Interval, MissedTickBehavior},
};
use tonic::Status;

use crate::{
    cluster::{Cluster, Effect, Event, Rules, Save, Stale, stored_shape},
    leader::Candidate,
    metrics::Metrics,
    nodes::{Refusal, SessionId},
    reconcile::{Made, Step},
    record::{self, Past, Record, StoredPlan},
    service::{Admission, Message},
    store::{Outcome, Store, StoreError, Write},
};

/// Messages that sessions may have under way to the loop; they wait when it is full.
pub(crate) const INBOX_MAX: usize = 1024;
/// Messages that are taken at once, so that they share one plan, one write and one view.
const BATCH_MAX: usize = 256;

/// Why a term is over.
#[derive(Debug)]
pub(crate) enum End {
    /// Another coordinator leads, or may.
    Deposed,
    /// The process stops.
    Stopped,
}

/// What every leader finds on its desk.
#[derive(Debug)]
pub(crate) struct Desk {
    pub(crate) rules: Rules,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) metrics: Metrics,
    /// Where sessions read the newest view.
    pub(crate) views: watch::Sender<Arc<ClusterView>>,
    /// Where sessions read the newest advice.
    pub(crate) guidance: watch::Sender<Arc<Guidance>>,
}

/// The leader's state and its connections to the outside.
pub(crate) struct Term {
    desk: Desk,
    candidate: Candidate,
    cluster: Cluster,
    started: Instant,
    sessions: HashMap<SessionId, Session>,
    waiting: HashMap<SessionId, Waiting>,
    version: u64,
    saving: Option<Saving>,
    save_after: Instant,
}

struct Session {
    end: mpsc::Sender<Status>,
}

struct Waiting {
    admitted: oneshot::Sender<Result<Admission, Refusal>>,
    end: mpsc::Sender<Status>,
}

type Saving = BoxFuture<'static, (Save, Result<Outcome, StoreError>)>;

impl Term {
    /// Reads what is stored and puts this leader's mark on it.
    pub(crate) async fn take_over(desk: Desk, candidate: Candidate) -> Result<Self, StoreError> {
        let (mut record, history, obsolete) = read(&*desk.store).await?;
        let born = clock_seconds();
        record.term = (record.term + 1).max(born);
        let mut then = vec![put_json(record::CLUSTER.to_owned(), &record)?];
        then.extend(obsolete.into_iter().map(|key| Write::Delete { key }));
        if desk.store.commit(candidate.fenced(then)).await? == Outcome::Conflict {
            return Err(StoreError::LeaseGone);
        }
        let started = Instant::now();
        // Views of a later leader are newer than all of an earlier one.
        let version = record.term << 32;
        let cluster = Cluster::restore(desk.rules, record, history, Duration::ZERO, born);
        desk.metrics.leads(true);
        let mut term = Self {
            desk,
            candidate,
            cluster,
            started,
            sessions: HashMap::new(),
            waiting: HashMap::new(),
            version,
            saving: None,
            save_after: started,
        };
        term.publish(false);
        Ok(term)
    }

    /// Leads until the end.
    pub(crate) async fn lead(
        mut self,
        mut inbox: mpsc::Receiver<Message>,
        stop: impl Future<Output = ()>,
    ) -> End {
        let mut ticks = tokio::time::interval(self.desk.rules.terms.heartbeat / 2);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut advice = self.desk.rules.advice.map(tokio::time::interval);
        if let Some(advice) = &mut advice {
            advice.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        let mut stop = std::pin::pin!(stop);
        let mut messages = Vec::with_capacity(BATCH_MAX);
        let mut loads_due = self.started;
        let end = loop {
            let mut ticked = false;
            tokio::select! {
                taken = inbox.recv_many(&mut messages, BATCH_MAX) => {
                    if taken == 0 {
                        break End::Stopped;
                    }
                    for message in messages.drain(..) {
                        self.take(message);
                    }
                }
                _ = ticks.tick() => {
                    let effects = self.cluster.tick(self.now());
                    self.carry_out(effects);
                    self.desk.metrics.members_silent(self.cluster.registry().silent(self.now()));
                    ticked = true;
                }
                Some(_) = OptionFuture::from(advice.as_mut().map(Interval::tick)) => {
                    self.cluster.end_step(self.now());
                    self.advise();
                }
                Some((save, outcome)) = OptionFuture::from(self.saving.as_mut()) => {
                    self.saving = None;
                    if self.stored(save, outcome) {
                        break End::Deposed;
                    }
                }
                () = self.candidate.lost() => break End::Deposed,
                () = &mut stop => break End::Stopped,
            }
            self.start_saving();
            let loads = ticked && Instant::now() >= loads_due;
            if loads {
                loads_due = Instant::now() + self.desk.rules.terms.heartbeat;
            }
            self.publish(loads);
            if self.cluster.lease_is_old() {
                self.advise();
            }
        };
        self.abdicate(&end).await;
        end
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn take(&mut self, message: Message) {
        let now = self.now();
        let event = match message {
            Message::Ask(ask) => {
                let effects = ask.carry_out(&mut self.cluster, now);
                return self.carry_out(effects);
            }
            Message::Register { session, registration, admitted, end } => {
                self.waiting.insert(session, Waiting { admitted, end });
                Event::Registered { session, registration }
            }
            Message::Event(event) => {
                if let Event::Left { session, .. } = event {
                    self.sessions.remove(&session);
                }
                event
            }
        };
        let effects = self.cluster.on(now, event);
        self.carry_out(effects);
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        self.cluster.note(self.now(), &effects);
        for effect in effects {
            match effect {
                Effect::Admit { session, id } => self.admit(session, id),
                Effect::Refuse { session, refusal } => self.refuse(session, refusal),
                Effect::Replace { session } => {
                    self.close(session, "the node opened another session");
                }
                Effect::Lost(lost) => {
                    tracing::warn!(node = lost.name, role = %lost.role, "a node is lost");
                    self.desk.metrics.member_lost(lost.role);
                    if let Some(session) = lost.session {
                        self.close(session, "no heartbeat came before the lease ran out");
                    }
                }
                Effect::Plans(step) => self.log(&step),
            }
        }
        self.desk.metrics.sessions(self.sessions.len());
    }

    fn admit(&mut self, session: SessionId, id: NodeId) {
        let Some(Waiting { admitted, end }) = self.waiting.remove(&session) else {
            return;
        };
        let terms = self.desk.rules.terms;
        let admission = Admission {
            welcome: Welcome {
                node_id: id,
                lease_ms: millis(terms.lease),
                heartbeat_ms: millis(terms.heartbeat),
                report_ms: self.desk.rules.advice.map_or(0, millis),
            },
            views: self.desk.views.subscribe(),
            guidance: self.desk.guidance.subscribe(),
        };
        if admitted.send(Ok(admission)).is_ok() {
            let name = self.cluster.registry().name(id);
            tracing::info!(node = %id, name, "a node has joined");
            self.sessions.insert(session, Session { end });
        } else {
            // It did not wait for the answer.
            let effects = self.cluster.on(self.now(), Event::Left { session, id });
            self.carry_out(effects);
        }
    }

    fn refuse(&mut self, session: SessionId, refusal: Refusal) {
        tracing::warn!(%refusal, "a registration was refused");
        self.desk.metrics.refused(refusal.reason());
        if let Some(waiting) = self.waiting.remove(&session) {
            // Whoever did not wait for the answer needs none.
            let _ = waiting.admitted.send(Err(refusal));
        }
    }

    fn close(&mut self, session: SessionId, why: &'static str) {
        self.waiting.remove(&session);
        if let Some(session) = self.sessions.remove(&session) {
            // A session that is ending already has its reason.
            let _ = session.end.try_send(Status::aborted(why));
        }
    }

    fn log(&self, step: &Step) {
        let outcome = match step {
            Step::Target { epoch, reason, explanation } => {
                let explanation = explanation.as_ref().map(ToString::to_string).unwrap_or_default();
                tracing::info!(%epoch, %reason, explanation, "a new plan is to be prepared");
                "target"
            }
            Step::Serving { epoch } => {
                tracing::info!(%epoch, "the new plan serves");
                "serving"
            }
            Step::Kept { reason } => {
                tracing::info!(%reason, "planned again: the plan stays as it is");
                "kept"
            }
            Step::Infeasible { reason, why } => {
                tracing::warn!(%reason, %why, "no plan is possible; the last one goes on serving");
                "infeasible"
            }
            Step::Refused { reason, violations } => {
                let violations: Vec<String> = violations.iter().map(ToString::to_string).collect();
                let violations = violations.join("; ");
                tracing::error!(%reason, violations, "the planner's plan is not legal");
                "refused"
            }
        };
        self.desk.metrics.planned(outcome);
    }

    fn start_saving(&mut self) {
        if self.saving.is_some() || Instant::now() < self.save_after {
            return;
        }
        let Some(save) = self.cluster.pending_save() else {
            return;
        };
        let commit = writes(&save).map(|then| self.candidate.fenced(then));
        let store = self.desk.store.clone();
        self.saving = Some(
            async move {
                let outcome = match commit {
                    Ok(commit) => store.commit(commit).await,
                    Err(error) => Err(error),
                };
                (save, outcome)
            }
            .boxed(),
        );
    }

    /// Takes the outcome of a save; whether the leadership is lost.
    fn stored(&mut self, save: Save, outcome: Result<Outcome, StoreError>) -> bool {
        match outcome {
            Ok(Outcome::Done(_)) => {
                let effects = self.cluster.saved(save);
                self.carry_out(effects);
                false
            }
            Ok(Outcome::Conflict) => true,
            Err(error) => {
                // That the store is away was said when it went.
                if !matches!(error, StoreError::Unavailable(_)) {
                    tracing::error!(%error, "the cluster's state cannot be stored");
                }
                self.cluster.not_saved();
                self.save_after = Instant::now() + self.desk.rules.terms.heartbeat;
                false
            }
        }
    }

    fn publish(&mut self, loads: bool) {
        let due = match self.cluster.stale() {
            Stale::No => false,
            Stale::Loads => loads,
            Stale::Yes => true,
        };
        if !due {
            return;
        }
        self.version += 1;
        let view = self.cluster.view(self.version);
        self.desk.metrics.members(&view.members);
        self.desk.metrics.published(self.cluster.published());
        self.desk.views.send_replace(Arc::new(view));
    }

    /// Publishes the newest advice, if it says anything new.
    fn advise(&mut self) {
        let now = self.now();
        let guidance = self.cluster.advise(now);
        self.desk.metrics.advised(now, &self.cluster);
        self.desk.guidance.send_if_modified(|current| {
            let new = **current != guidance;
            if new {
                *current = Arc::new(guidance);
            }
            new
        });
    }

    /// Ends all sessions, so that nodes look for the next leader, and gives the lease back.
    async fn abdicate(self, end: &End) {
        let why = match end {
            End::Deposed => "this coordinator does not lead any more",
            End::Stopped => "this coordinator stops",
        };
        for session in self.sessions.into_values() {
            // A session that is ending already has its reason.
            let _ = session.end.try_send(Status::unavailable(why));
        }
        self.desk.metrics.leads(false);
        self.candidate.resign().await;
    }
}

/// What is stored: the record, its plans, oldest first, and the keys of plans that it does not name.
async fn read(store: &dyn Store) -> Result<(Record, Vec<Made>, Vec<String>), StoreError> {
    let Some(stored) = crate::store::get(store, record::CLUSTER).await? else {
        return Ok((Record::default(), Vec::new(), Vec::new()));
    };
    let broken = |key: &str, why: &dyn std::fmt::Display| {
        StoreError::Refused(format!("what lies at {key} in {} is broken: {why}", store.place()))
    };
    let record: Record =
        serde_json::from_slice(&stored.value).map_err(|error| broken(record::CLUSTER, &error))?;
    let shape = stored_shape(&record);
    let mut history = Vec::new();
    let mut obsolete = Vec::new();
    for entry in store.range(record::PLANS).await?.entries {
        let Some(past) = record.plan_at(&entry.key) else {
            obsolete.push(entry.key);
            continue;
        };
        let read = || -> Result<_, String> {
            let shape = shape.as_ref().ok_or("there is a plan and no model")?;
            let plan: StoredPlan =
                serde_json::from_slice(&entry.value).map_err(|error| error.to_string())?;
            plan.into_plan(shape).map_err(|error| error.to_string())
        };
        let plan = Arc::new(read().map_err(|why| broken(&entry.key, &why))?);
        let Past { reason, made_at, .. } = past;
        history.push(Made { plan, reason, at: made_at });
    }
    history.sort_by_key(|made| made.plan.epoch());
    let there = |epoch: Option<u64>| {
        epoch.is_none_or(|epoch| history.iter().any(|made| made.plan.epoch().0 == epoch))
    };
    if !there(record.serving) || !there(record.target) {
        return Err(broken(record::PLANS, &"a plan that the record names is missing"));
    }
    Ok((record, history, obsolete))
}

fn writes(save: &Save) -> Result<Vec<Write>, StoreError> {
    let mut writes = vec![put_json(record::CLUSTER.to_owned(), &save.record)?];
    for plan in &save.plans {
        writes.push(put_json(record::plan_key(plan.epoch()), &StoredPlan::from(&**plan))?);
    }
    writes
        .extend(save.obsolete.iter().map(|&epoch| Write::Delete { key: record::plan_key(epoch) }));
    Ok(writes)
}

fn put_json<T: serde::Serialize>(key: String, value: &T) -> Result<Write, StoreError> {
    let value = serde_json::to_vec(value)
        .map_err(|error| StoreError::Refused(format!("{key} cannot be written: {error}")))?;
    Ok(Write::Put { key, value, lease: None })
}

/// Terms begin at the wall clock, so that a coordinator whose store was lost still comes after the
/// terms that nodes remember.
fn clock_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
