//! The bill of materials names what cargo builds the programs from, and nothing that Cargo.lock does not know.

use std::{collections::BTreeSet, fs, process::Command};

use serde_json::Value;
use xtask::sbom::{FEATURES, PROGRAMS, bill};

/// `name version` of what cargo links the programs from, by its own account.
fn built_from() -> BTreeSet<String> {
    let mut tree = Command::new(env!("CARGO"));
    tree.args(["tree", "--locked", "--edges", "normal", "--prefix", "none", "--format", "{p}"]);
    tree.args(["--features", FEATURES]).current_dir(xtask::root());
    for program in PROGRAMS {
        tree.args(["--package", program]);
    }
    let output = tree.output().expect("cargo starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).expect("cargo writes text");
    let words = |line: &str| {
        let mut words = line.split_whitespace();
        let (name, version) = (words.next()?, words.next()?);
        Some(format!("{name} {}", version.strip_prefix('v')?))
    };
    lines.lines().filter_map(words).collect()
}

#[test]
fn the_bill_names_all_that_the_programs_are_built_from() {
    let bill = bill().unwrap();
    assert_eq!((&bill["bomFormat"], &bill["specVersion"]), (&"CycloneDX".into(), &"1.6".into()));
    let components = bill["components"].as_array().unwrap();
    let text = |component: &Value, key: &str| component[key].as_str().unwrap().to_owned();
    let listed: BTreeSet<_> =
        components.iter().map(|c| format!("{} {}", text(c, "name"), text(c, "version"))).collect();
    assert_eq!(listed.len(), components.len(), "a crate is listed twice");
    let built_from = built_from();
    assert!(built_from.contains(&format!("gateway {}", env!("CARGO_PKG_VERSION"))));
    assert!(built_from.len() > 200, "{built_from:?}");
    let missing: Vec<_> = built_from.difference(&listed).collect();
    assert!(missing.is_empty(), "not in the bill: {missing:?}");

    let lock = fs::read_to_string(xtask::root().join("Cargo.lock")).unwrap();
    for component in components {
        let (name, version) = (text(component, "name"), text(component, "version"));
        let locked = format!("name = \"{name}\"\nversion = \"{version}\"\n");
        let (_, rest) = lock.split_once(&locked).unwrap_or_else(|| panic!("{name} is not locked"));
        let sum = component["hashes"][0]["content"].as_str();
        let sealed = rest.split("[[package]]").next().unwrap().contains("checksum = ");
        assert_eq!(sum.is_some(), sealed, "{name} {version}");
        assert!(sum.is_none_or(|sum| rest.contains(sum)));
        assert!(!sealed || component["licenses"][0]["expression"].is_string(), "{name}");
    }

    let refs: BTreeSet<_> = components.iter().map(|c| text(c, "bom-ref")).collect();
    for dependency in bill["dependencies"].as_array().unwrap() {
        let on = dependency["dependsOn"].as_array().unwrap().iter();
        assert!(on.map(|to| to.as_str().unwrap()).all(|to| refs.contains(to)), "{dependency}");
    }
}
