//! A scenario file: runs laid over a base, sweeps over lists of values, studies, and results worked out from them.

use std::{
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use serde::Deserialize;
use thiserror::Error;
use toml::{Table, Value};

use crate::{
    outcome::Outcome,
    results::{Results, Wanted},
    spec::Run,
    study,
};

/// Points that one scenario may have.
const POINTS_MAX: usize = 4096;

/// The file as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// What all runs begin from.
    #[serde(default)]
    base: Table,
    /// The runs.
    #[serde(default)]
    run: Vec<FileRun>,
    /// What is to be worked out from them.
    #[serde(default)]
    result: Vec<Wanted>,
    /// Studies that need no clock.
    #[serde(default)]
    study: Vec<study::Spec>,
}

/// One `[[run]]`: a name, lists of values, and whatever it has other than the base.
#[derive(Debug, Deserialize)]
struct FileRun {
    id: String,
    /// Dotted key → values. Several keys give every combination, the last one changing fastest.
    #[serde(default)]
    sweep: Table,
    #[serde(flatten)]
    over: Table,
}

/// A scenario, read and checked.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Every run of every sweep, in the order of the file.
    pub points: Vec<Point>,
    /// Studies, in the order of the file.
    pub studies: Vec<study::Spec>,
    wanted: Vec<Wanted>,
    folder: PathBuf,
    path: PathBuf,
}

/// One run of a scenario.
#[derive(Clone, Debug)]
pub struct Point {
    /// The run's id in the file.
    pub id: String,
    /// The swept values, `key=value` each; empty without a sweep.
    pub at: Vec<String>,
    /// The run.
    pub run: Run,
}

/// A scenario that cannot be run, or a run that broke a rule.
#[derive(Debug, Error)]
pub enum ScenarioError {
    /// The file cannot be read.
    #[error("cannot read scenario {path}: {error}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        error: std::io::Error,
    },
    /// The file says something that makes no sense.
    #[error("scenario {path}: {what}")]
    Bad {
        /// The file.
        path: String,
        /// What and where.
        what: String,
    },
    /// A run or a study could not be set up.
    #[error("scenario {path}, {name}: {what}")]
    SetUp {
        /// The file.
        path: String,
        /// The run or the study.
        name: String,
        /// Why.
        what: String,
    },
    /// A checker found something in a run.
    #[error(
        "scenario {path}, run {point}: {violation}; `amoe simulate {path} --run '{point}' --seed {seed}` replays it"
    )]
    Violated {
        /// The file.
        path: String,
        /// The run.
        point: String,
        /// Its seed.
        seed: u64,
        /// What was found.
        violation: crate::Violation,
    },
}

// === impl Scenario ===

impl Scenario {
    /// Reads a scenario. `seed` replaces those of the file.
    ///
    /// # Errors
    /// The file cannot be read, or one sentence that says where it makes no sense.
    pub fn read(path: &Path, seed: Option<u64>) -> Result<Self, ScenarioError> {
        let place = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|error| ScenarioError::Read { path: place.clone(), error })?;
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        let scenario =
            Self::parse(&text, seed).map_err(|what| ScenarioError::Bad { path: place, what })?;
        Ok(Self { folder, path: path.to_owned(), ..scenario })
    }

    /// The same from text; files that it names are looked up from the working directory.
    ///
    /// # Errors
    /// One sentence that says where it makes no sense.
    pub fn parse(text: &str, seed: Option<u64>) -> Result<Self, String> {
        let file: File = typed(text.parse::<Table>().map_err(|error| one_line(&error))?, "")?;
        let mut points: Vec<Point> = Vec::new();
        for run in file.run {
            if points.iter().any(|point| point.id == run.id) {
                return Err(format!("run {}: there are two of this id", run.id));
            }
            let mut table = file.base.clone();
            overlay(&mut table, run.over);
            for (at, table) in
                swept(&table, &run.sweep).map_err(|what| format!("run {}: {what}", run.id))?
            {
                points.push(point(&run.id, at, table, seed)?);
            }
            if points.len() > POINTS_MAX {
                return Err(format!("more than {POINTS_MAX} runs"));
            }
        }
        let ids: Vec<&str> = points.iter().map(|point| point.id.as_str()).collect();
        file.result.iter().try_for_each(|wanted| wanted.check(&ids))?;
        if points.is_empty() && file.study.is_empty() {
            return Err("there is neither a [[run]] nor a [[study]]".to_owned());
        }
        let mut studies = file.study;
        if let Some(seed) = seed {
            studies.iter_mut().for_each(|study| study.seed = seed);
        }
        Ok(Self {
            points,
            studies,
            wanted: file.result,
            folder: PathBuf::new(),
            path: PathBuf::new(),
        })
    }

    /// Keeps only the run or the study of this name, `id` or `id key=value …`; results that compare
    /// runs are not worked out then.
    ///
    /// # Errors
    /// There is none.
    pub fn only(mut self, name: &str) -> Result<Self, ScenarioError> {
        self.points.retain(|point| point.id == name || point.name() == name);
        self.studies.retain(|study| study.id == name);
        self.wanted.clear();
        if self.points.is_empty() && self.studies.is_empty() {
            let what = format!("there is no run or study `{name}`");
            return Err(ScenarioError::Bad { path: self.path.display().to_string(), what });
        }
        Ok(self)
    }

    /// Runs everything on up to `threads` threads and works the results out.
    ///
    /// # Errors
    /// The first run, in the order of the file, that cannot be set up or broke a rule.
    pub fn run(&self, threads: usize) -> Result<Results, ScenarioError> {
        let runs = in_parallel(threads, &self.points, |point| self.run_point(point));
        let runs = runs.into_iter().collect::<Result<Vec<_>, _>>()?;
        let studies = in_parallel(threads, &self.studies, |study| self.run_study(study));
        let findings = studies.into_iter().collect::<Result<Vec<_>, _>>()?;
        Ok(Results::new(&self.points, runs, &self.wanted, findings.concat()))
    }

    fn run_point(&self, point: &Point) -> Result<Done, ScenarioError> {
        crate::simulate(&point.run, &self.folder).map_err(|error| match error {
            crate::RunError::SetUp(what) => self.set_up(point.name(), what),
            crate::RunError::Violated(violation) => ScenarioError::Violated {
                path: self.path.display().to_string(),
                point: point.name(),
                seed: point.run.seed,
                violation,
            },
        })
    }

    fn run_study(&self, study: &study::Spec) -> Result<Vec<study::Finding>, ScenarioError> {
        study.run(&self.folder).map_err(|what| self.set_up(study.id.clone(), what))
    }

    fn set_up(&self, name: String, what: String) -> ScenarioError {
        ScenarioError::SetUp { path: self.path.display().to_string(), name, what }
    }
}

/// Does the work of every item on up to `threads` threads; the answers in the order of the items.
fn in_parallel<I: Sync, O: Send>(
    threads: usize,
    items: &[I],
    work: impl Fn(&I) -> O + Sync,
) -> Vec<O> {
    let mut answers: Vec<Option<O>> = Vec::new();
    answers.resize_with(items.len(), || None);
    let next = AtomicUsize::new(0);
    let slots = Mutex::new(&mut answers);
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, items.len().max(1)) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(at) else { return };
                    let answer = work(item);
                    if let Ok(mut slots) = slots.lock() {
                        slots[at] = Some(answer);
                    }
                }
            });
        }
    });
    answers.into_iter().flatten().collect()
}

/// A run's outcome and the first things that its devices did in its window.
pub(crate) type Done = (Outcome, Vec<crate::meter::Stretch>);

// === impl Point ===

impl Point {
    /// The run's id, and the swept values after it.
    #[must_use]
    pub fn name(&self) -> String {
        std::iter::once(&self.id).chain(&self.at).cloned().collect::<Vec<_>>().join(" ")
    }
}

fn point(id: &str, at: Vec<String>, mut table: Table, seed: Option<u64>) -> Result<Point, String> {
    if let Some(seed) = seed {
        let seed =
            i64::try_from(seed).map_err(|_| format!("seed {seed}: expected at most 2^63"))?;
        table.insert("seed".to_owned(), Value::Integer(seed));
    }
    let name = std::iter::once(id.to_owned()).chain(at.clone()).collect::<Vec<_>>().join(" ");
    let run: Run = typed(table, &format!("run {name}: "))?;
    run.check().map_err(|what| format!("run {name}: {what}"))?;
    Ok(Point { id: id.to_owned(), at, run })
}

/// Reads a table; an error says at which key.
fn typed<T: for<'de> Deserialize<'de>>(table: Table, place: &str) -> Result<T, String> {
    serde_path_to_error::deserialize(table).map_err(|error| {
        let path = error.path().to_string();
        let what = error.inner().message().replace('\n', "; ");
        if path == "." { format!("{place}{what}") } else { format!("{place}{path}: {what}") }
    })
}

fn one_line(error: &impl std::fmt::Display) -> String {
    error.to_string().trim().replace('\n', "; ")
}

/// Lays one table over another: tables of both are merged, anything else is replaced. A table with
/// another `kind` replaces as a whole.
fn overlay(base: &mut Table, over: Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(base)), Value::Table(over)) if same_kind(base, &over) => {
                overlay(base, over);
            }
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

fn same_kind(base: &Table, over: &Table) -> bool {
    over.get("kind").is_none_or(|kind| base.get("kind") == Some(kind))
}

/// A run's table at one combination of swept values, with their names.
type Swept = Vec<(Vec<String>, Table)>;

/// Every combination of the swept values, laid over the table.
fn swept(table: &Table, sweep: &Table) -> Result<Swept, String> {
    let mut swept = vec![(Vec::new(), table.clone())];
    for (key, values) in sweep {
        let values = values.as_array().filter(|values| !values.is_empty());
        let values = values.ok_or_else(|| format!("sweep.{key}: expected a list of values"))?;
        if swept.len() * values.len() > POINTS_MAX {
            return Err(format!("sweep: more than {POINTS_MAX} combinations"));
        }
        swept = swept
            .iter()
            .flat_map(|(at, table)| {
                values.iter().map(move |value| {
                    let mut table = table.clone();
                    overlay(&mut table, nested(key, value.clone()));
                    let named = format!("{key}={}", name_of(value));
                    (at.iter().cloned().chain([named]).collect(), table)
                })
            })
            .collect();
    }
    Ok(swept)
}

/// A swept value, in a point's name.
fn name_of(value: &Value) -> String {
    let json = serde_json::to_string(value).unwrap_or_default();
    json.chars().filter(|letter| !"\"{}".contains(*letter)).collect()
}

/// `a.b = value` as tables in a table.
fn nested(key: &str, value: Value) -> Table {
    match key.split_once('.') {
        Some((first, rest)) => Table::from_iter([(first.to_owned(), nested(rest, value).into())]),
        None => Table::from_iter([(key.to_owned(), value)]),
    }
}

#[cfg(test)]
mod tests;
