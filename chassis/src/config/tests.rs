//! What a configuration accepts, and the sentence for everything it refuses.

use std::{collections::BTreeMap, fs};

use serde::Deserialize;

use super::{ConfigError, Layers};

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    name: String,
    engine: Engine,
    peers: Vec<String>,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Engine {
    drain_cap: u32,
    schedule: Schedule,
    limits: BTreeMap<String, u8>,
    window: Option<Window>,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Window {
    steps: u32,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Schedule {
    #[default]
    Async,
    Lockstep,
}

/// Reads `file` as `node.toml`, with `environment` as `NAME=text` over it.
fn load(file: &str, environment: &[&str]) -> Result<Settings, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("node.toml");
    fs::write(&path, file).unwrap();
    let variables = environment.iter().map(|pair| {
        let (name, text) = pair.split_once('=').unwrap();
        (name.to_owned(), text.to_owned())
    });
    Layers::merge(Some(&path), variables)
        .and_then(Layers::decode)
        .map_err(|error: ConfigError| error.to_string().replace(&path.display().to_string(), "F"))
}

#[test]
fn the_environment_lies_over_the_file() {
    let file = "name = 'a'\npeers = ['x']\n[engine]\ndrain_cap = 8\nschedule = 'async'\n";
    let settings = load(
        file,
        &[
            "AMOE__NAME=17",
            "AMOE__PEERS=[\"y\", \"z\"]",
            "AMOE_ENGINE__SCHEDULE=lockstep",
            "AMOE_ENGINE__WINDOW__STEPS=4",
            // Not ours: what Kubernetes adds for a service, and other programs' variables.
            "AMOE_GATEWAY_PORT=tcp://10.0.0.1:8000",
            "PATH=/bin",
        ],
    );
    let expected = Settings {
        name: "17".to_owned(),
        peers: vec!["y".to_owned(), "z".to_owned()],
        engine: Engine {
            drain_cap: 8,
            schedule: Schedule::Lockstep,
            window: Some(Window { steps: 4 }),
            ..Engine::default()
        },
    };
    assert_eq!(settings, Ok(expected));
}

#[test]
fn no_file_and_no_environment_is_the_default() {
    let layers = Layers::merge(None, []).unwrap();
    assert_eq!(layers.decode::<Settings>().unwrap(), Settings::default());
}

#[test]
fn a_section_can_be_taken_out() {
    let environment = [("AMOE_ENGINE__DRAIN_CAP".to_owned(), "9".to_owned())];
    let mut layers = Layers::merge(None, environment).unwrap();
    assert_eq!(layers.take::<Engine>("engine").unwrap().drain_cap, 9);
    assert_eq!(layers.take::<Engine>("engine").unwrap(), Engine::default());
    let environment = [("AMOE_ENGINE__DRAIN_CAP".to_owned(), "many".to_owned())];
    let mut layers = Layers::merge(None, environment).unwrap();
    assert_eq!(
        layers.take::<Engine>("engine").unwrap_err().to_string(),
        "environment variable AMOE_ENGINE__DRAIN_CAP: key `engine.drain_cap`: \
         invalid type: string \"many\", expected u32"
    );
}

/// File, environment, sentence.
const REFUSALS: &[(&str, &[&str], &str)] = &[
    (
        "nmae = 'a'",
        &[],
        "F: key `nmae`: unknown field `nmae`, expected one of `name`, `engine`, `peers`",
    ),
    (
        "[engine]\ndrain = 1",
        &[],
        "F: key `engine.drain`: unknown field `drain`, \
             expected one of `drain_cap`, `schedule`, `limits`, `window`",
    ),
    (
        "[engine]\ndrain_cap = 'many'",
        &[],
        "F: key `engine.drain_cap`: invalid type: string \"many\", expected u32",
    ),
    (
        "[engine]\ndrain_cap = -1",
        &[],
        "F: key `engine.drain_cap`: invalid value: integer `-1`, expected u32",
    ),
    (
        "[engine]\nschedule = 'eager'",
        &[],
        "F: key `engine.schedule`: unknown variant `eager`, expected `async` or `lockstep`",
    ),
    ("[engine.window]", &[], "F: key `engine.window`: missing field `steps`"),
    ("peers = ['x', 3]", &[], "F: key `peers[1]`: invalid type: integer `3`, expected a string"),
    ("name = 'a'\nname = 'b'", &[], "F: line 2 is not TOML: duplicate key"),
    (
        "",
        &["AMOE_ENGINE__DRAIN_CAP=many"],
        "environment variable AMOE_ENGINE__DRAIN_CAP: key `engine.drain_cap`: \
             invalid type: string \"many\", expected u32",
    ),
    (
        "",
        &["AMOE_ENGINE__DRAIN=1"],
        "environment variable AMOE_ENGINE__DRAIN: key `engine.drain`: unknown field `drain`, \
             expected one of `drain_cap`, `schedule`, `limits`, `window`",
    ),
    (
        "name = 'a'",
        &["AMOE_ENGIN__DRAIN_CAP=1"],
        "environment variable AMOE_ENGIN__DRAIN_CAP: key `engin`: unknown field `engin`, \
             expected one of `name`, `engine`, `peers`",
    ),
    (
        "name = 'a'",
        &["AMOE_NAME__FIRST=b"],
        "environment variable AMOE_NAME__FIRST: names a key below one that is not a section",
    ),
    (
        "",
        &["AMOE_ENGINE__=b"],
        "environment variable AMOE_ENGINE__: has an empty part in its name; \
             expected AMOE_SECTION__KEY",
    ),
];

#[test]
fn every_refusal_names_file_key_and_expectation() {
    for (file, environment, expected) in REFUSALS {
        assert_eq!(
            load(file, environment),
            Err((*expected).to_owned()),
            "{file:?} {environment:?}"
        );
    }
}

#[test]
fn a_missing_file_is_named() {
    let error = super::load::<Settings>(Some("/no/such/node.toml".as_ref())).unwrap_err();
    assert_eq!(
        error.to_string(),
        "/no/such/node.toml: cannot be read: No such file or directory (os error 2)"
    );
}

#[test]
fn other_programs_name_of_the_collector_counts_where_ours_is_not_set() {
    #[derive(Debug, Default, PartialEq, Deserialize)]
    struct Traced {
        tracing: BTreeMap<String, String>,
    }
    let read = |environment: &[(&str, &str)]| {
        let own = |&(name, text): &(&str, &str)| (name.to_owned(), text.to_owned());
        let layers = Layers::merge(None, environment.iter().map(own)).unwrap();
        layers.decode::<Traced>().map(|mut all| all.tracing.remove("otlp_endpoint")).ok().flatten()
    };
    let theirs = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://theirs:4317");
    let ours = ("AMOE_TRACING__OTLP_ENDPOINT", "http://ours:4317");
    assert_eq!(read(&[theirs]).as_deref(), Some("http://theirs:4317"));
    assert_eq!(read(&[theirs, ours]).as_deref(), Some("http://ours:4317"));
    assert_eq!(read(&[(theirs.0, "")]), None);
}
