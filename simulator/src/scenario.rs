//! A scenario file: runs laid over a base, sweeps over lists of values, and results worked out from them.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;
use toml::{Table, Value};

use crate::{
    outcome::Outcome,
    results::{Results, Wanted},
    spec::Run,
};

/// Points that one scenario may have.
const POINTS_MAX: usize = 4096;

/// The file as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// What it is about.
    title: String,
    /// What all runs begin from.
    #[serde(default)]
    base: Table,
    /// The runs.
    run: Vec<FileRun>,
    /// What is to be worked out.
    #[serde(default)]
    result: Vec<Wanted>,
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
    /// What it is about.
    pub title: String,
    /// Every run of every sweep, in the order of the file.
    pub points: Vec<Point>,
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
    /// A run could not be set up.
    #[error("scenario {path}, run {point}: {what}")]
    SetUp {
        /// The file.
        path: String,
        /// The run.
        point: String,
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
        let scenario = Self::parse(&text, seed)
            .map_err(|what| ScenarioError::Bad { path: place, what })?;
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
            for (at, table) in swept(&table, &run.sweep).map_err(|what| format!("run {}: {what}", run.id))? {
                points.push(point(&run.id, at, table, seed)?);
            }
            if points.len() > POINTS_MAX {
                return Err(format!("more than {POINTS_MAX} runs"));
            }
        }
        let ids: Vec<&str> = points.iter().map(|point| point.id.as_str()).collect();
        file.result.iter().try_for_each(|wanted| wanted.check(&ids))?;
        Ok(Self {
            title: file.title,
            points,
            wanted: file.result,
            folder: PathBuf::new(),
            path: PathBuf::new(),
        })
    }

    /// Keeps only the run of this name, `id` or `id key=value …`; results are not worked out then.
    ///
    /// # Errors
    /// There is none.
    pub fn only(mut self, name: &str) -> Result<Self, ScenarioError> {
        self.points.retain(|point| point.id == name || point.name() == name);
        self.wanted.clear();
        if self.points.is_empty() {
            let what = format!("there is no run `{name}`");
            return Err(ScenarioError::Bad { path: self.path.display().to_string(), what });
        }
        Ok(self)
    }

    /// Runs everything on up to `threads` threads and works the results out.
    ///
    /// # Errors
    /// The first run, in the order of the file, that cannot be set up or broke a rule.
    pub fn run(&self, threads: usize) -> Result<Results, ScenarioError> {
        let mut outcomes: Vec<Option<Result<Done, ScenarioError>>> = Vec::new();
        outcomes.resize_with(self.points.len(), || None);
        let next = std::sync::atomic::AtomicUsize::new(0);
        let taken = std::sync::Mutex::new(&mut outcomes);
        std::thread::scope(|scope| {
            for _ in 0..threads.clamp(1, self.points.len()) {
                scope.spawn(|| {
                    while let Some(at) = self.take(&next) {
                        let done = self.run_point(&self.points[at]);
                        if let Ok(mut outcomes) = taken.lock() {
                            outcomes[at] = Some(done);
                        }
                    }
                });
            }
        });
        let done = outcomes.into_iter().flatten().collect::<Result<Vec<_>, _>>()?;
        Ok(Results::new(&self.title, &self.points, done, &self.wanted))
    }

    fn take(&self, next: &std::sync::atomic::AtomicUsize) -> Option<usize> {
        let at = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        (at < self.points.len()).then_some(at)
    }

    fn run_point(&self, point: &Point) -> Result<Done, ScenarioError> {
        let path = || self.path.display().to_string();
        let outcome = crate::simulate(&point.run, &self.folder);
        outcome.map_err(|error| match error {
            crate::RunError::SetUp(what) => {
                ScenarioError::SetUp { path: path(), point: point.name(), what }
            }
            crate::RunError::Violated(violation) => ScenarioError::Violated {
                path: path(),
                point: point.name(),
                seed: point.run.seed,
                violation,
            },
        })
    }
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
        let seed = i64::try_from(seed).map_err(|_| format!("seed {seed}: expected at most 2^63"))?;
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
        let what = one_line(error.inner());
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
