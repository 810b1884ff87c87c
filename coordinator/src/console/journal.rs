//! What was decided and what happened lately, in sentences with the names of nodes in them.

use std::{collections::VecDeque, sync::Arc};

use domain::{Leased, NodeId};

use crate::{cluster::Effect, draft::Drafted, reconcile::Step};

/// Entries that are kept.
const ENTRIES_MAX: usize = 64;

/// What an entry is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum About {
    Plan,
    Node,
}

/// Whether somebody should look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    Info,
    Warning,
    Error,
}

/// Something that was decided or happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Seconds since 1970.
    pub(crate) at: u64,
    pub(crate) about: About,
    pub(crate) level: Level,
    pub(crate) what: String,
    /// The reason and the explanation; may be empty.
    pub(crate) why: String,
}

/// The leases so far, and the last one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Leases {
    pub(crate) count: u64,
    pub(crate) at: u64,
    /// Experts that it gave to other nodes, or in other parts.
    pub(crate) changed: usize,
    /// Experts that several nodes share.
    pub(crate) shared: usize,
    pub(crate) why: String,
}

/// What a leader remembers of its term.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    entries: VecDeque<Entry>,
    leases: Leases,
    /// What the last comparison of the plan with a new one came to, and when it was.
    review: (u64, String),
}

// === impl Journal ===

impl Journal {
    /// The entries, newest first.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().rev()
    }

    pub(crate) fn leases(&self) -> &Leases {
        &self.leases
    }

    pub(crate) fn review(&self) -> (u64, &str) {
        (self.review.0, &self.review.1)
    }

    /// Writes down what sessions, logs and metrics are told.
    pub(crate) fn note(&mut self, at: u64, effect: &Effect, name: &dyn Fn(NodeId) -> String) {
        let (about, level, what, why) = match effect {
            Effect::Replace { .. } => return,
            Effect::Admit { id, .. } => {
                (About::Node, Level::Info, format!("{} has joined", name(*id)), String::new())
            }
            Effect::Refuse { refusal, .. } => {
                (About::Node, Level::Warning, "a node may not join".to_owned(), refusal.to_string())
            }
            Effect::Lost(lost) => {
                let why = "no heartbeat came before its lease ran out".to_owned();
                (About::Node, Level::Warning, format!("{} is lost", lost.name), why)
            }
            Effect::Plans(step) => {
                let (level, what, why) = planned(step);
                (About::Plan, level, what, legible(&why, name))
            }
        };
        self.add(Entry { at, about, level, what, why });
    }

    /// A node that wanted to leave has left.
    pub(crate) fn left(&mut self, at: u64, name: &str) {
        let (about, level) = (About::Node, Level::Info);
        let what = format!("{name} has left");
        self.add(Entry { at, about, level, what, why: String::new() });
    }

    /// What is said again and again stands there once, with the last time.
    fn add(&mut self, entry: Entry) {
        let again = |last: &&mut Entry| last.what == entry.what && last.why == entry.why;
        if let Some(last) = self.entries.back_mut().filter(again) {
            last.at = entry.at;
            return;
        }
        self.entries.push_back(entry);
        if self.entries.len() > ENTRIES_MAX {
            self.entries.pop_front();
        }
    }

    /// The lease is `after` now, made for `why`.
    pub(crate) fn leased(
        &mut self,
        at: u64,
        before: Option<&Arc<Leased>>,
        after: Option<&Arc<Leased>>,
        why: String,
    ) {
        let Some(after) = after else {
            self.leases = Leases::default();
            return;
        };
        let before = before.filter(|before| before.epoch == after.epoch);
        let same = |slot: usize| before.is_some_and(|b| b.holders[slot] == after.holders[slot]);
        self.leases = Leases {
            count: self.leases.count + 1,
            at,
            changed: (0..after.holders.len()).filter(|&slot| !same(slot)).count(),
            shared: after.holders.iter().filter(|holders| holders.len() > 1).count(),
            why,
        };
    }

    /// The plan was compared with the one that was drafted; `gain_percent` is what that has to save.
    pub(crate) fn reviewed(
        &mut self,
        at: u64,
        drafted: &Drafted,
        gain_percent: u8,
        name: &dyn Fn(NodeId) -> String,
    ) {
        let policy = drafted.draft.policy;
        let came = match &drafted.outcome {
            Err(why) => why.to_string(),
            Ok(proposal) => match (&proposal.explanation.revision, drafted.costs_ns) {
                (Some(revision), _) => revision.to_string(),
                (None, Some((before, after))) => {
                    let saved = 100.0 * (1.0 - after as f64 / before.max(1) as f64);
                    format!(
                        "saves {saved:.1} % ({before} ns -> {after} ns), wanted {gain_percent} %"
                    )
                }
                (None, None) => "nothing was observed".to_owned(),
            },
        };
        self.review = (at, format!("{policy}: {}", legible(&came, name)));
    }
}

/// What came of planning, as a level, a sentence and the reason.
fn planned(step: &Step) -> (Level, String, String) {
    match step {
        Step::Target { epoch, reason, explanation } => {
            let explanation = explanation.as_ref().map(|why| format!(" ({why})"));
            let why = format!("{reason}{}", explanation.unwrap_or_default());
            (Level::Info, format!("plan {} is prepared", epoch.0), why)
        }
        Step::Serving { epoch } => (Level::Info, format!("plan {} serves", epoch.0), String::new()),
        Step::Kept { reason } => {
            (Level::Info, "the plan stays as it is".to_owned(), reason.to_string())
        }
        Step::Infeasible { reason, why } => {
            (Level::Warning, "no plan is possible".to_owned(), format!("{reason}: {why}"))
        }
        Step::Refused { reason, violations } => {
            let violations: Vec<_> = violations.iter().map(ToString::to_string).collect();
            let why = format!("{reason}: {}", violations.join("; "));
            (Level::Error, "the planner's plan is not legal".to_owned(), why)
        }
    }
}

/// A policy's words for people: nodes by their names instead of `n7`, times and sizes in fitting units.
pub(crate) fn legible(text: &str, name: &dyn Fn(NodeId) -> String) -> String {
    let word = |c: char| c.is_ascii_alphanumeric();
    let mut legible = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(begin) = rest.find(word) {
        let (before, from) = rest.split_at(begin);
        let (found, after) = from.split_at(from.find(|c| !word(c)).unwrap_or(from.len()));
        legible.push_str(before);
        rest = after;
        if let Some(id) = found.strip_prefix('n').and_then(|number| number.parse().ok()) {
            legible.push_str(&name(NodeId(id)));
            continue;
        }
        let unit = |unit: &str| {
            let number: f64 = found.parse().ok()?;
            let after = after.strip_prefix(unit)?;
            (!after.starts_with(word)).then_some((number, after))
        };
        if let Some((ns, after)) = unit(" ns") {
            legible.push_str(&scaled(ns, 1e3, &["ns", "µs", "ms", "s"]));
            rest = after;
        } else if let Some((bytes, after)) = unit(" bytes") {
            legible.push_str(&scaled(bytes, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB"]));
            rest = after;
        } else {
            legible.push_str(found);
        }
    }
    legible + rest
}

/// A number in the largest of `units` in which it is at least 1; each is `step` times the one before.
fn scaled(number: f64, step: f64, units: &[&str]) -> String {
    let fits = |&power: &usize| number >= step.powf(power as f64);
    let power = (1..units.len()).rev().find(fits).unwrap_or(0);
    let decimals = if power == 0 { 0 } else { 2 };
    format!("{:.decimals$} {}", number / step.powf(power as f64), units[power])
}

#[cfg(test)]
mod tests {
    use domain::{Epoch, Holder, Role};
    use policy::placement::{Infeasible, adoption::Reason};

    use super::*;
    use crate::nodes::{Lost, Refusal, SessionId};

    fn name(id: NodeId) -> String {
        format!("expert-{}", id.0)
    }

    #[test]
    fn policies_words_become_legible() {
        let text = "gem: n3 12+0 of 24 n41 1+0 of 2; predicted 3450000 ns, 0 ns, 5242880 bytes, net n, 2 nsx";
        let expected = "gem: expert-3 12+0 of 24 expert-41 1+0 of 2; predicted 3.45 ms, 0 ns, 5.00 MiB, net n, 2 nsx";
        assert_eq!(legible(text, &name), expected);
        assert_eq!(legible("", &name), "");
        assert_eq!(legible("n3 -> µ n4", &name), "expert-3 -> µ expert-4");
    }

    #[test]
    fn the_newest_is_first_and_nothing_stands_there_twice() {
        let mut journal = Journal::default();
        let session = SessionId(1);
        let refuse = || Effect::Refuse { session, refusal: Refusal::Full { max: 3 } };
        let reason = Reason::Hosts { joined: vec![NodeId(3)], left: vec![] };
        let why = Infeasible { needed: 8, found: 2, hosts: 1 };
        let lost = Lost { name: "e2".to_owned(), role: Role::Expert, session: None };
        let effects = [
            Effect::Admit { session, id: NodeId(3) },
            Effect::Replace { session },
            refuse(),
            refuse(),
            Effect::Plans(Step::Infeasible { reason, why }),
            Effect::Plans(Step::Serving { epoch: Epoch(4) }),
            Effect::Lost(lost),
        ];
        for (at, effect) in (1..).zip(&effects) {
            journal.note(at, effect, &name);
        }
        let entries: Vec<_> =
            journal.entries().map(|e| (e.at, e.level, &*e.what, &*e.why)).collect();
        let expected = [
            (7, Level::Warning, "e2 is lost", "no heartbeat came before its lease ran out"),
            (6, Level::Info, "plan 4 serves", ""),
            (
                5,
                Level::Warning,
                "no plan is possible",
                "expert nodes changed: +expert-3: the model's 8 experts need as many slots, 1 hosts have 2",
            ),
            (
                4,
                Level::Warning,
                "a node may not join",
                "the cluster has 3 members, which is as many as it may have",
            ),
            (1, Level::Info, "expert-3 has joined", ""),
        ];
        assert_eq!(entries, expected);
        for at in 0..200 {
            journal.left(at, &format!("e{at}"));
        }
        assert_eq!(journal.entries().count(), ENTRIES_MAX);
    }

    #[test]
    fn leases_are_compared_with_the_one_before() {
        let lease = |epoch, nodes: [&[u32]; 3]| {
            let holder = |&id: &u32| Holder { node: NodeId(id), part: 1 };
            let holders = nodes.map(|nodes| nodes.iter().map(holder).collect()).to_vec();
            Arc::new(Leased { epoch: Epoch(epoch), holders })
        };
        let (a, b) = (lease(1, [&[1], &[2], &[1, 2]]), lease(1, [&[1], &[1], &[1, 2]]));
        let mut journal = Journal::default();
        journal.leased(5, None, Some(&a), "why".to_owned());
        assert_eq!(
            *journal.leases(),
            Leases { count: 1, at: 5, changed: 3, shared: 1, why: "why".to_owned() }
        );
        journal.leased(7, Some(&a), Some(&b), String::new());
        assert_eq!((journal.leases().count, journal.leases().changed), (2, 1));
        journal.leased(8, Some(&b), None, String::new());
        assert_eq!(*journal.leases(), Leases::default());
    }
}
