//! A role as its operator meets it: flags, files, signals and exit codes of a real child process.

use std::{
    ffi::OsString,
    fs,
    io::{BufRead, BufReader, Read},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use serde::Deserialize;

use super::{Exit, Process, RoleConfig, USAGE, enter};

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    stubborn: bool,
    refuse: String,
}

impl RoleConfig for Config {
    fn check(&self) -> Result<(), String> {
        let sane = !self.stubborn || self.refuse.is_empty();
        sane.then_some(()).ok_or("key `refuse`: expected nothing from a stubborn role".to_owned())
    }
}

/// Serves until the stop, then drains, or not when stubborn.
async fn run(config: Config, process: Process) -> Result<(), String> {
    if !config.refuse.is_empty() {
        return Err(config.refuse);
    }
    println!("serving");
    process.shutdown.requested().await;
    println!("draining");
    if config.stubborn {
        std::future::pending::<()>().await;
    }
    Ok(())
}

/// A file with `text`, and the folder that keeps it.
fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("role.toml");
    fs::write(&path, text).unwrap();
    (folder, path)
}

/// What `role ARGUMENTS…` comes to when it must not get as far as serving.
fn check(arguments: &[&str], file_text: &str) -> Result<(), Exit> {
    let (_folder, path) = file(file_text);
    let path = path.to_str().unwrap();
    let arguments = ["role"].iter().chain(arguments).map(|word| word.replace("FILE", path).into());
    enter("role", arguments.collect::<Vec<OsString>>(), async |_: Config, _| {
        Err::<(), _>("it served")
    })
    .map_err(|exit| Exit { sentence: exit.sentence.replace(path, "FILE"), ..exit })
}

#[test]
fn a_good_configuration_passes_the_check() {
    let good = "stubborn = true\n[admin]\naddress = '127.0.0.1:1'\n[telemetry]\nformat = 'json'\n";
    assert_eq!(check(&["--config", "FILE", "--check-config"], good), Ok(()));
    assert_eq!(check(&["--check-config"], ""), Ok(()));
}

#[test]
fn wrong_flags_and_files_are_usage_errors_with_a_sentence() {
    let table = [
        (
            "[admin]\nadress = 'x'",
            "FILE: key `admin.adress`: unknown field `adress`, expected `address` or `tls`",
        ),
        ("[admin]\naddress = 'x'", "FILE: key `admin.address`: invalid socket address syntax"),
        (
            "[shutdown]\ndrain_ms = -1",
            "FILE: key `shutdown.drain_ms`: invalid value: integer `-1`, expected u64",
        ),
        (
            "[telemetry]\nlog = 'loud=9'",
            "FILE: key `telemetry.log`: \"loud=9\" is no log filter, expected something like `info` or \
             `warn,gateway=debug`: error parsing level filter: expected one of \"off\", \"error\", \
             \"warn\", \"info\", \"debug\", \"trace\", or a number 0-5",
        ),
        (
            "stubborn = true\nrefuse = 'no'",
            "FILE: key `refuse`: expected nothing from a stubborn role",
        ),
        (
            "stuborn = 1",
            "FILE: key `stuborn`: unknown field `stuborn`, expected `stubborn` or `refuse`",
        ),
    ];
    for (text, sentence) in table {
        let refused = Exit { code: USAGE, sentence: sentence.to_owned() };
        assert_eq!(check(&["--config", "FILE"], text), Err(refused), "{text}");
    }
    let unknown = check(&["--port", "1"], "").unwrap_err();
    assert_eq!(unknown.code, USAGE);
    assert!(unknown.sentence.starts_with("unexpected argument '--port' found"), "{unknown:?}");
}

/// Environment variable by which a test hands its child the configuration file.
const CHILD: &str = "CHASSIS_TEST_ROLE_CONFIG";

#[test]
#[ignore = "the body of the child processes below"]
fn child() {
    let config = std::env::var_os(CHILD).expect("started by another test");
    let arguments = ["role".into(), "--config".into(), config];
    // By word of mouth, because the test runner has exit codes of its own.
    match enter("role", arguments, run) {
        Ok(()) => println!("exit 0"),
        Err(exit) => println!("exit {}: {}", exit.code, exit.sentence),
    }
}

struct Role {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
    _folder: tempfile::TempDir,
}

impl Role {
    fn start(text: &str) -> Self {
        let (folder, path) = file(&format!("{text}\n[admin]\naddress = '127.0.0.1:0'\n"));
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["role::tests::child", "--exact", "--ignored", "--nocapture"])
            .env(CHILD, path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, output, _folder: folder }
    }

    /// Reads on to the line that is `expected`.
    fn says(&mut self, expected: &str) {
        let found = self.output.by_ref().lines().any(|line| line.unwrap() == expected);
        assert!(found, "the role never said {expected:?}");
    }

    fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// Sees the role off, its last words being `exit …`.
    fn ends(mut self, exit: &str) {
        self.says(&format!("exit {exit}"));
        assert!(self.child.wait().unwrap().success());
    }
}

#[test]
fn either_signal_drains_and_exits_0() {
    for signal in ["TERM", "INT"] {
        let mut role = Role::start("");
        role.says("serving");
        role.signal(signal);
        role.says("draining");
        role.ends("0");
    }
}

#[test]
fn a_second_signal_ends_a_stubborn_role_at_once() {
    let mut role = Role::start("stubborn = true");
    role.says("serving");
    role.signal("TERM");
    role.says("draining");
    role.signal("TERM");
    role.ends("1: stopped at once by a second signal, work was dropped");
}

#[test]
fn the_deadline_ends_a_stubborn_role() {
    let mut role = Role::start("stubborn = true\n[shutdown]\ndrain_ms = 10");
    role.says("serving");
    role.signal("TERM");
    role.ends("1: work was still in progress 10 ms after the stop");
}

#[test]
fn an_error_of_the_role_is_its_last_sentence() {
    Role::start("refuse = 'no coordinator answers'").ends("1: no coordinator answers");
}
