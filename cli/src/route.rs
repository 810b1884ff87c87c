//! `amoe route`: one routing decision, from JSON to JSON.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use clap::Args;
use domain::CostCurve;
use policy::routing::{Assignment, Hosts, Instance, Policy, Router};
use serde::{Deserialize, Serialize};

use crate::stdout;

/// Flags of `amoe route`.
#[derive(Debug, Args)]
pub(crate) struct Flags {
    /// How replicas are chosen: even-split, metro, aebs, exact or time.
    #[arg(long, default_value_t)]
    policy: Policy,
    /// The instance as JSON; `-` or nothing for standard input.
    #[arg(default_value = "-")]
    file: PathBuf,
}

/// Who has which expert, and what is asked of them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    /// Per expert, the nodes that have it.
    hosts: Vec<Vec<u16>>,
    /// Per expert.
    tokens: Vec<u32>,
    nodes: usize,
    /// Per node, `[tokens, ns]` points of one activated expert's time.
    #[serde(default)]
    curves: Vec<CostCurve>,
    /// Per node.
    #[serde(default)]
    backlog_ns: Vec<u64>,
}

/// What a policy makes of it.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    /// Per expert, `[node, tokens]`.
    assignment: Vec<Vec<(u16, u32)>>,
    activated: &'a [u32],
    time_ns: &'a [u64],
    max_activated: u32,
}

/// Prints the decision.
pub(crate) fn run(flags: &Flags) -> Result<()> {
    let file = match flags.file.to_str() {
        Some("-") => None,
        _ => Some(flags.file.as_path()),
    };
    let name = file.map_or("standard input".to_owned(), |file| file.display().to_string());
    let question = read(file).with_context(|| format!("cannot read {name}"))?;
    let answer = answer(&question, flags.policy).with_context(|| format!("cannot route {name}"))?;
    stdout::print(answer + "\n")
}

/// Reads a file, or standard input.
fn read(file: Option<&Path>) -> std::io::Result<String> {
    file.map_or_else(|| std::io::read_to_string(std::io::stdin()), std::fs::read_to_string)
}

fn answer(question: &str, policy: Policy) -> Result<String> {
    let question: Question = parse(question)?;
    let hosts = Hosts::new(question.nodes, &question.hosts)?;
    let instance = Instance {
        hosts: &hosts,
        tokens: &question.tokens,
        curves: &question.curves,
        backlog_ns: &question.backlog_ns,
    };
    let mut router = Router::new(policy);
    let assignment = router.route(&instance)?;
    Ok(serde_json::to_string(&Answer::new(assignment, hosts.experts()))?)
}

/// Reads JSON; an error begins with where it is.
pub(crate) fn parse<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T> {
    let mut json = serde_json::Deserializer::from_str(text);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let at = error.path().to_string();
        let error = error.into_inner();
        // That is how the whole, and a place that was not reached, are spelled.
        if [".", "?"].contains(&at.as_str()) { anyhow!(error) } else { anyhow!("{at}: {error}") }
    })?;
    json.end()?;
    Ok(value)
}

impl<'a> Answer<'a> {
    fn new(assignment: &'a Assignment, experts: usize) -> Self {
        let shares = |expert| {
            assignment.shares(expert).iter().map(|share| (share.node, share.tokens)).collect()
        };
        Self {
            assignment: (0..experts).map(shares).collect(),
            activated: assignment.activated(),
            time_ns: assignment.time_ns(),
            max_activated: assignment.max_activated(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_answered() {
        let question = r#"{"hosts":[[0,1],[0],[1]],"tokens":[8,3,0],"nodes":2}"#;
        assert_eq!(
            answer(question, Policy::Exact).unwrap(),
            r#"{"assignment":[[[1,8]],[[0,3]],[]],"activated":[1,1],"time_ns":[1,1],"max_activated":1}"#
        );
        assert_eq!(
            answer(question, Policy::EvenSplit).unwrap(),
            r#"{"assignment":[[[0,4],[1,4]],[[0,3]],[]],"activated":[2,1],"time_ns":[2,1],"max_activated":2}"#
        );
    }

    #[test]
    fn curves_and_backlogs_count() {
        let question = r#"{"hosts":[[0,1]],"tokens":[9],"nodes":2,
            "curves":[[[16,100]],[[16,150]]],"backlog_ns":[60,0]}"#;
        assert_eq!(
            answer(question, Policy::Time).unwrap(),
            r#"{"assignment":[[[1,9]]],"activated":[0,1],"time_ns":[60,150],"max_activated":1}"#
        );
    }

    #[test]
    fn bad_instances_are_told_why() {
        let cases = [
            (
                r#"{"hosts":[[0],[0,3]],"tokens":[1,1],"nodes":3}"#,
                "expert 1 is hosted by node 3, expected a node below 3",
            ),
            (r#"{"hosts":[[0],[]],"tokens":[0,5],"nodes":1}"#, "expert 1 has 5 tokens and no host"),
            (
                r#"{"hosts":[[0]],"tokens":[1,1],"nodes":1}"#,
                "hosts are listed for 1 experts, tokens for 2",
            ),
            (
                r#"{"hosts":[[0]],"tokens":[1],"nodes":1,"backlog_ns":[1,2]}"#,
                "1 nodes need as many backlogs or none, found 2",
            ),
            (
                r#"{"hosts":[[0]],"tokens":[1],"nodes":2,"curves":[[[1,1]]]}"#,
                "2 nodes need as many cost curves or none, found 1",
            ),
            (r#"{"hosts":[[0]],"tokens":[1]}"#, "missing field `nodes`"),
            (r#"{"hosts":[[0]],"tokens":[1],"nodes":1,"node":2}"#, "node: unknown field `node`"),
            (r#"{"hosts":[[0,-1]],"tokens":[1],"nodes":1}"#, "hosts[0][1]: invalid value"),
            (
                r#"{"hosts":[[0]],"tokens":[1],"nodes":1,"curves":[[[2,5],[1,6]]]}"#,
                "curves[0]: point 1 of a cost curve does not follow the one before it",
            ),
            (r#"{"hosts":[],"tokens":[],"nodes":1} x"#, "trailing characters"),
            ("", "EOF while parsing"),
            ("{", "EOF while parsing"),
        ];
        for (question, complaint) in cases {
            let error = answer(question, Policy::Time).unwrap_err().to_string();
            assert!(error.starts_with(complaint), "{question}: {error}");
        }
    }
}
