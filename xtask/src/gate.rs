//! `cargo xtask gate`: every check a change has to pass, and one closing line `N passed, N failed`.

use std::{
    io::{BufRead, BufReader},
    ops::AddAssign,
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};

use crate::{protoc, root, tools};

struct Step {
    name: &'static str,
    command: &'static str,
}

/// The same features and profile throughout, so that little is compiled twice. Whole-cluster tests
/// start the binaries of the rooms, so these are built before any test runs.
const STEPS: [Step; 9] = [
    Step { name: "format", command: "cargo fmt --all --check" },
    Step {
        name: "clippy",
        command: "cargo clippy --locked --workspace --all-targets --features coordinator/etcd \
                  -- -D warnings",
    },
    Step {
        name: "build",
        command: "cargo build --locked --workspace --bins --tests --features coordinator/etcd",
    },
    Step {
        name: "tests",
        command: "cargo nextest run --locked --workspace --features coordinator/etcd \
                  --no-fail-fast",
    },
    Step {
        name: "doc tests",
        command: "cargo test --locked --workspace --doc --features coordinator/etcd",
    },
    Step {
        name: "documentation",
        command: "RUSTDOCFLAGS='-D warnings' \
                  cargo doc --locked --workspace --no-deps --features coordinator/etcd",
    },
    // Wants PyPI for the compiler, and no GPU.
    Step { name: "CUDA kernels", command: "cargo xtask kernels --check" },
    // Charts, compose, rules and board, by the binaries built above; beyond crates it needs npm and PyPI.
    Step { name: "deployment", command: "tests/deploy/check.sh" },
    // Not advisories: their database is a download, and the gate needs nothing beyond registries.
    Step {
        name: "dependencies",
        command: "cargo deny --locked check --hide-inclusion-graph bans licenses sources",
    },
];

/// Tests that passed and failed; a step without tests counts as one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    passed: usize,
    failed: usize,
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

/// Installs what is missing, runs every step whatever became of those before, and fails when any did.
#[expect(clippy::print_stdout, reason = "a chore talks to the person who ran it")]
pub fn run() -> Result<()> {
    tools::install_missing()?;
    let protoc = protoc::install()?;
    let mut total = Count::default();
    for step in &STEPS {
        println!("── {}: {}", step.name, step.command);
        let start = Instant::now();
        let count = execute(step, &protoc)?;
        let seconds = start.elapsed().as_secs();
        println!("── {}: {} passed, {} failed, {seconds} s", step.name, count.passed, count.failed);
        total += count;
    }
    println!("{} passed, {} failed", total.passed, total.failed);
    if total.failed > 0 {
        bail!("the gate is closed");
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "shows what the step prints, as it comes")]
fn execute(step: &Step, protoc: &Path) -> Result<Count> {
    let mut child = Command::new("sh")
        .args(["-c", &format!("exec 2>&1; {}", step.command)])
        .current_dir(root())
        .env("PROTOC", protoc)
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting step {}", step.name))?;
    let output = child.stdout.take().context("the output of a step is piped")?;
    let mut counts = Vec::new();
    for line in BufReader::new(output).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        counts.extend(counted(&line));
    }
    Ok(judge(&counts, child.wait()?.success()))
}

/// What a step came to, from the lines of its test runner and its exit code.
fn judge(counts: &[Count], success: bool) -> Count {
    let mut total = Count::default();
    for count in counts {
        total += *count;
    }
    match (success, counts.is_empty()) {
        (true, true) => Count { passed: 1, failed: 0 },
        (false, _) if total.failed == 0 => Count { failed: 1, ..total },
        _ => total,
    }
}

/// The count in a test runner's closing line, nextest's or that of `cargo test`.
fn counted(line: &str) -> Option<Count> {
    // nextest shows a failed test's own closing line, indented; only an outermost one counts.
    if !line.trim_start().starts_with("Summary [") && !line.starts_with("test result: ") {
        return None;
    }
    let number = |what: &str| -> Option<usize> {
        let (before, _) = line.split_once(what)?;
        before.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    };
    let passed = number(" passed")?;
    // nextest names several ways to fail (failed, timed out, exec failed), so take what did not pass.
    let failed = match number(" tests run").or_else(|| number(" test run")) {
        Some(ran) => ran - passed,
        None => number(" failed")?,
    };
    Some(Count { passed, failed })
}

#[cfg(test)]
mod tests {
    use super::{Count, counted, judge};

    #[test]
    fn closing_lines_of_test_runners_are_counted() {
        let table = [
            ("     Summary [   0.269s] 25 tests run: 25 passed, 1 skipped", Some((25, 0))),
            ("Summary [1s] 30 tests run: 25 passed (1 slow), 3 failed, 2 timed out", Some((25, 5))),
            ("     Summary [   0.010s] 1 test run: 0 passed, 1 failed", Some((0, 1))),
            ("test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured", Some((3, 0))),
            ("test result: FAILED. 2 passed; 7 failed; 0 ignored; 0 measured", Some((2, 7))),
            ("    test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured", None),
            ("        PASS [   0.006s] (14/25) chassis 3 passed", None),
        ];
        for (line, expected) in table {
            let expected = expected.map(|(passed, failed)| Count { passed, failed });
            assert_eq!(counted(line), expected, "{line}");
        }
    }

    #[test]
    fn a_step_that_breaks_off_counts_as_a_failure() {
        let (good, bad) = (Count { passed: 4, failed: 0 }, Count { passed: 1, failed: 2 });
        assert_eq!(judge(&[], true), Count { passed: 1, failed: 0 });
        assert_eq!(judge(&[], false), Count { passed: 0, failed: 1 });
        assert_eq!(judge(&[good, bad], false), Count { passed: 5, failed: 2 });
        assert_eq!(judge(&[good], false), Count { passed: 4, failed: 1 });
        assert_eq!(judge(&[Count::default()], true), Count::default());
    }
}
