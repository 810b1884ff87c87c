//! What a run came to: one JSON object, a table, or a section of a document with a picture.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    fs,
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{
    effect::{Cause, Effect, Throughput, Waits, p99_ms},
    picture,
    record::{Arrival, Counts},
};

/// The end of what is written into a document.
const END: &str = "<!-- end -->";

/// What was asked for, as far as the outcome depends on it.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    /// Of every expert, in a cluster of this program.
    pub(super) replicas: Option<u8>,
    pub(super) clients: usize,
    pub(super) seed: u64,
    /// What else the machine did: its load average of a minute before the run, where there is such a thing.
    pub(super) busy: Option<f64>,
}

/// What a run came to.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    pub(super) setup: Setup,
    pub(super) counts: Counts,
    pub(super) effects: Vec<Effect>,
    pub(super) arrivals: Vec<Arrival>,
    pub(super) end: Duration,
}

/// The effects of all faults of a kind.
struct Group<'a> {
    cause: &'a Cause,
    effects: Vec<&'a Effect>,
}

fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e3).round() / 1e3
}

/// The load average of the last minute.
pub(super) fn load_average() -> Option<f64> {
    fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()
}

// === impl Group ===

impl Group<'_> {
    fn recoveries(&self) -> Vec<f64> {
        let mut all: Vec<_> = self.effects.iter().map(|effect| seconds(effect.recovery)).collect();
        all.sort_by(f64::total_cmp);
        all
    }

    fn worst(&self, of: impl Fn(&Effect) -> f64) -> f64 {
        self.effects.iter().map(|effect| of(effect)).fold(0.0, f64::max)
    }

    fn dip(&self) -> f64 {
        self.effects.iter().map(|effect| effect.dip).fold(1.0, f64::min)
    }

    /// The middle one of the effects' percentiles.
    fn median(&self, of: impl Fn(&Waits) -> f64) -> f64 {
        let mut all: Vec<_> = self.effects.iter().map(|effect| of(&effect.p99_ms)).collect();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    }
}

// === impl Outcome ===

impl Outcome {
    /// Whether every request was answered as expected.
    pub(super) fn is_good(&self) -> bool {
        self.counts.failed == 0 && self.counts.changed == 0
    }

    fn recovery_max(&self) -> f64 {
        self.effects.iter().map(|effect| seconds(effect.recovery)).fold(0.0, f64::max)
    }

    fn tokens(&self) -> usize {
        self.arrivals.iter().map(|arrival| arrival.tokens).sum()
    }

    fn throughput(&self) -> f64 {
        self.tokens() as f64 / self.end.as_secs_f64()
    }

    /// Kinds in their order, those that did not occur left out.
    fn groups(&self) -> Vec<Group<'_>> {
        let mut groups: BTreeMap<&Cause, Vec<&Effect>> = BTreeMap::new();
        for effect in &self.effects {
            groups.entry(&effect.mark.cause).or_default().push(effect);
        }
        groups.into_iter().map(|(cause, effects)| Group { cause, effects }).collect()
    }

    /// Everything, for programs.
    pub(super) fn to_json(&self) -> Value {
        let Counts { requests, failed, changed, retries, reasons } = &self.counts;
        let fault = |effect: &Effect| {
            let Waits { before, during, after } = effect.p99_ms;
            json!({
                "kind": effect.mark.cause.to_string(),
                "whom": effect.mark.whom,
                "at_s": seconds(effect.mark.struck),
                "healed_s": seconds(effect.mark.healed),
                "whole_s": seconds(effect.mark.whole),
                "tokens_per_s_before": effect.rate.round(),
                "dip": (effect.dip * 1e3).round() / 1e3,
                "recovery_s": seconds(effect.recovery),
                "longest_wait_s": seconds(effect.longest),
                "p99_wait_ms": {"before": before, "during": during, "after": after},
            })
        };
        json!({
            "requests": requests,
            "failed": failed,
            "changed": changed,
            "faults": self.effects.len(),
            "recovery_s_max": self.recovery_max(),
            "retries": retries,
            "seconds": seconds(self.end),
            "seed": self.setup.seed,
            "clients": self.setup.clients,
            "replicas": self.setup.replicas,
            "tokens": self.tokens(),
            "tokens_per_s": self.throughput().round(),
            "reasons": reasons,
            "by_fault": self.effects.iter().map(fault).collect::<Vec<_>>(),
        })
    }

    /// Writes this run's section of a document, and its picture beside it. The rest of the document stays.
    pub(super) fn write(&self, document: &Path) -> Result<()> {
        let (name, begin) = match self.setup.replicas {
            Some(number) => (format!("replicas-{number}"), format!("local --replicas {number}")),
            None => ("endpoint".to_owned(), "endpoint".to_owned()),
        };
        let stem = document.file_stem().context("--report names a file")?.to_string_lossy();
        let picture = format!("{stem}-{name}.svg");
        let begin = format!("<!-- written by `amoe chaos --{begin}` -->");
        let text = fs::read_to_string(document).unwrap_or_default();
        let section = self.section(&picture);
        let text = replaced(&text, &begin, &section);
        fs::write(document, text).with_context(|| document.display().to_string())?;
        let picture = document.with_file_name(picture);
        let throughput = Throughput::new(&self.arrivals, self.end);
        fs::write(&picture, picture::draw(&throughput, &self.effects))
            .with_context(|| picture.display().to_string())
    }

    fn section(&self, picture: &str) -> String {
        let Counts { requests, failed, changed, retries, .. } = &self.counts;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let build = if cfg!(debug_assertions) { "debug" } else { "release" };
        let Setup { replicas, clients, seed, busy } = self.setup;
        let busy = busy.map_or_else(String::new, |load| format!(", load average {load:.1} before"));
        let waits: Vec<_> = self.arrivals.iter().map(|arrival| arrival.waited).collect();
        let replicas = match replicas {
            None => String::new(),
            Some(1) => ", 1 replica of every expert".to_owned(),
            Some(number) => format!(", {number} replicas of every expert"),
        };
        let mut text = format!(
            "Measured on {} ({cores} processors for everything, {build} build, seed {seed}{replicas}{busy}): {clients} clients for {:.0} s, {} faults.\n\n\
             **{requests} requests, {failed} failed, {changed} changed.** {} tokens, {:.0} per second; 99 % came \
             within {:.0} ms of the one before. {retries} requests were sent again because their gateway was gone.\n\n",
            OffsetDateTime::now_utc().date(),
            self.end.as_secs_f64(),
            self.effects.len(),
            self.tokens(),
            self.throughput(),
            p99_ms(&waits),
        );
        text.push_str(
            "| fault | times | least throughput | full again after, median | worst | longest wait for a token \
             | p99 wait before | during | after |\n|---|---|---|---|---|---|---|---|---|\n",
        );
        for group in self.groups() {
            let recoveries = group.recoveries();
            let _ = writeln!(
                text,
                "| {} | {} | {:.0} % | {:.1} s | {:.1} s | {:.1} s | {:.0} ms | {:.0} ms | {:.0} ms |",
                group.cause.sentence(),
                group.effects.len(),
                group.dip() * 1e2,
                recoveries[recoveries.len() / 2],
                group.worst(|effect| seconds(effect.recovery)),
                group.worst(|effect| seconds(effect.longest)),
                group.median(|waits| waits.before),
                group.median(|waits| waits.during),
                group.median(|waits| waits.after),
            );
        }
        let _ = writeln!(text, "\n![Tokens per second, and the faults]({picture})");
        text
    }
}

/// A document with a section in place of what stood between its begin and the end after it, or at its end.
fn replaced(document: &str, begin: &str, section: &str) -> String {
    let (before, after) = match document.split_once(begin) {
        Some((before, rest)) => {
            (before.to_owned(), rest.split_once(END).map_or("", |(_, after)| after))
        }
        None => (format!("{document}\n"), "\n"),
    };
    format!("{before}{begin}\n{section}{END}{after}")
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { requests, failed, changed, retries, reasons } = &self.counts;
        writeln!(f, "requests    {requests}, {failed} failed, {changed} changed")?;
        writeln!(f, "sent again  {retries}, because their gateway was gone")?;
        writeln!(f, "tokens      {}, {:.0} per second", self.tokens(), self.throughput())?;
        writeln!(
            f,
            "faults      {}, full throughput after {:.1} s at the latest\n",
            self.effects.len(),
            self.recovery_max()
        )?;
        writeln!(
            f,
            "{:>7}  {:40}{:>6}{:>10}{:>10}{:>10}{:>9}{:>8}",
            "at s", "fault", "dip", "full in s", "longest s", "p99 ms", "during", "after"
        )?;
        for effect in &self.effects {
            let Waits { before, during, after } = effect.p99_ms;
            let mark = &effect.mark;
            writeln!(
                f,
                "{:7.1}  {:40}{:5.0}%{:10.1}{:10.1}{before:10.0}{during:9.0}{after:8.0}",
                seconds(mark.struck),
                format!("{} {}", mark.cause, mark.whom),
                effect.dip * 1e2,
                seconds(effect.recovery),
                seconds(effect.longest),
            )?;
        }
        for reason in reasons {
            writeln!(f, "{reason}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::replaced;

    #[test]
    fn a_section_replaces_itself_and_nothing_else() {
        let first = replaced("# Title\n", "<!-- a -->", "1\n");
        assert_eq!(first, "# Title\n\n<!-- a -->\n1\n<!-- end -->\n");
        let second = replaced(&first, "<!-- b -->", "2\n");
        assert_eq!(
            second,
            "# Title\n\n<!-- a -->\n1\n<!-- end -->\n\n<!-- b -->\n2\n<!-- end -->\n"
        );
        assert_eq!(replaced(&second, "<!-- a -->", "3\n"), second.replace("1\n<!--", "3\n<!--"));
    }
}
