//! The coordinator's metrics.

use std::time::Duration;

use chassis::metrics::registered;
use domain::{Epoch, Health, Member, Role};
use prometheus::{
    Error, GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry,
};

use crate::cluster::{Cluster, Published};

const ROLES: [Role; 3] = [Role::Attention, Role::Expert, Role::Gateway];
const HEALTHS: [(Health, &str); 3] =
    [(Health::Joining, "joining"), (Health::Ready, "ready"), (Health::Draining, "draining")];
/// From a cached read in memory to a store that hardly answers any more.
const STORE_SECONDS: [f64; 10] =
    [0.000_1, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.05, 0.25, 1.0, 5.0];

/// Everything the coordinator counts.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    members: IntGaugeVec,
    members_silent: IntGauge,
    members_lost: IntCounterVec,
    plan_epoch: IntGaugeVec,
    plans: IntCounterVec,
    leader: IntGauge,
    sessions: IntGauge,
    refused: IntCounterVec,
    store_seconds: HistogramVec,
    store_errors: IntCounterVec,
    store_up: IntGauge,
    leased_experts: IntGaugeVec,
    slowdown: GaugeVec,
}

impl Metrics {
    /// Makes and registers them.
    pub(crate) fn register(registry: &Registry) -> Result<Self, Error> {
        let gauge = |name, help| registered(registry, IntGauge::new(name, help));
        let gauges = |name, help, labels| {
            registered(registry, IntGaugeVec::new(Opts::new(name, help), labels))
        };
        let counters = |name, help, labels| {
            registered(registry, IntCounterVec::new(Opts::new(name, help), labels))
        };
        let store_seconds = HistogramOpts::new(
            "amoe_coordinator_store_seconds",
            "Time of one call to the state store, failed ones too.",
        )
        .buckets(STORE_SECONDS.to_vec());
        Ok(Self {
            members: gauges(
                "amoe_coordinator_members",
                "Registered nodes by role and by the health they last reported.",
                &["role", "health"],
            )?,
            members_silent: gauge(
                "amoe_coordinator_members_silent",
                "Members that have missed heartbeats and are not lost yet.",
            )?,
            members_lost: counters(
                "amoe_coordinator_members_lost_total",
                "Members whose lease ran out.",
                &["role"],
            )?,
            plan_epoch: gauges(
                "amoe_coordinator_plan_epoch",
                "Epoch of the serving plan and of the target, 0 if there is none.",
                &["plan"],
            )?,
            plans: counters(
                "amoe_coordinator_plans_total",
                "What came of planning: target, serving, kept, infeasible or refused.",
                &["outcome"],
            )?,
            leader: gauge("amoe_coordinator_leader", "1 while this coordinator leads, else 0.")?,
            sessions: gauge("amoe_coordinator_sessions", "Open sessions of nodes.")?,
            refused: counters(
                "amoe_coordinator_registrations_refused_total",
                "Registrations that were refused, by reason.",
                &["reason"],
            )?,
            store_seconds: registered(registry, HistogramVec::new(store_seconds, &["call"]))?,
            store_errors: counters(
                "amoe_coordinator_store_errors_total",
                "Calls to the state store that failed.",
                &["call"],
            )?,
            store_up: gauge(
                "amoe_coordinator_store_up",
                "1 if the last call to the state store was answered, else 0.",
            )?,
            leased_experts: gauges(
                "amoe_coordinator_leased_experts",
                "Experts, over all layers, that an expert node is to run.",
                &["node"],
            )?,
            slowdown: registered(
                registry,
                GaugeVec::new(
                    Opts::new(
                        "amoe_coordinator_node_slowdown",
                        "How much longer an expert node takes than it should.",
                    ),
                    &["node"],
                ),
            )?,
        })
    }

    pub(crate) fn leads(&self, leads: bool) {
        self.leader.set(leads.into());
        if !leads {
            self.members.reset();
            self.plan_epoch.reset();
            self.leased_experts.reset();
            self.slowdown.reset();
            self.members_silent.set(0);
            self.sessions.set(0);
        }
    }

    pub(crate) fn sessions(&self, open: usize) {
        self.sessions.set(count(open));
    }

    pub(crate) fn members(&self, members: &[Member]) {
        for role in ROLES {
            // From the start: a counter that appears with its first loss has not grown by it.
            self.members_lost.with_label_values(&[&role.to_string()]);
            for (health, name) in HEALTHS {
                let alike = |member: &&Member| member.role == role && member.health == health;
                let number = members.iter().filter(alike).count();
                let labels = [&role.to_string(), name];
                self.members.with_label_values(&labels).set(count(number));
            }
        }
    }

    pub(crate) fn members_silent(&self, silent: usize) {
        self.members_silent.set(count(silent));
    }

    pub(crate) fn member_lost(&self, role: Role) {
        self.members_lost.with_label_values(&[&role.to_string()]).inc();
    }

    pub(crate) fn published(&self, published: &Published) {
        let epoch = |plan: &Option<_>| plan.as_deref().map_or(Epoch(0), domain::Plan::epoch);
        for (name, plan) in [("serving", &published.serving), ("target", &published.target)] {
            let epoch = i64::try_from(epoch(plan).0).unwrap_or(i64::MAX);
            self.plan_epoch.with_label_values(&[name]).set(epoch);
        }
    }

    pub(crate) fn advised(&self, now: Duration, cluster: &Cluster) {
        let leases = cluster.leases();
        self.leased_experts.reset();
        self.slowdown.reset();
        for member in cluster.registry().snapshot() {
            if member.role == Role::Expert {
                let leased = leases.get(&member.id).copied().unwrap_or(0);
                let slowdown = cluster.observations().slowdown(now, member.id);
                self.leased_experts.with_label_values(&[&member.name]).set(leased.into());
                self.slowdown.with_label_values(&[&member.name]).set(slowdown);
            }
        }
    }

    pub(crate) fn planned(&self, outcome: &'static str) {
        self.plans.with_label_values(&[outcome]).inc();
    }

    pub(crate) fn refused(&self, reason: &'static str) {
        self.refused.with_label_values(&[reason]).inc();
    }

    pub(crate) fn store_call(&self, call: &'static str, seconds: f64, failed: bool) {
        self.store_seconds.with_label_values(&[call]).observe(seconds);
        if failed {
            self.store_errors.with_label_values(&[call]).inc();
        }
    }

    pub(crate) fn store_up(&self, up: bool) {
        self.store_up.set(up.into());
    }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
