//! The bill of materials of the programs, as CycloneDX: every crate that is in them, its licence and its checksum.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write as _,
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::root;

/// The rooms that have a program which is shipped.
pub const PROGRAMS: [&str; 5] = ["attention-node", "cli", "coordinator", "expert-node", "gateway"];
/// What they are shipped with.
pub const FEATURES: &str = "coordinator/etcd";

/// What cargo says of a package.
#[derive(Debug, Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    repository: Option<String>,
    source: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Debug, Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

/// A package and what it depends on.
#[derive(Debug, Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<Kind>,
}

/// None is what is linked; others are for builds and tests.
#[derive(Debug, Deserialize)]
struct Kind {
    kind: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Lock {
    package: Vec<Locked>,
}

#[derive(Debug, Deserialize)]
struct Locked {
    name: String,
    version: String,
    checksum: Option<String>,
}

/// Prints the bill.
///
/// # Errors
/// Cargo fails, or Cargo.lock is not up to date.
pub fn run() -> Result<()> {
    let text = serde_json::to_string_pretty(&bill()?)?;
    Ok(writeln!(std::io::stdout().lock(), "{text}")?)
}

/// The bill of the programs for the machine this runs on. Equal sources make an equal bill.
///
/// # Errors
/// Cargo fails, or Cargo.lock is not up to date.
pub fn bill() -> Result<Value> {
    let metadata: Metadata = serde_json::from_str(&cargo_metadata()?)?;
    let lock: Lock = toml::from_str(&fs::read_to_string(root().join("Cargo.lock"))?)?;
    let sums: BTreeMap<_, _> = lock
        .package
        .into_iter()
        .filter_map(|locked| Some(((locked.name, locked.version), locked.checksum?)))
        .collect();
    let edges: BTreeMap<&str, BTreeSet<&str>> =
        metadata.resolve.nodes.iter().map(|node| (&*node.id, linked(node))).collect();
    let packages: BTreeMap<&str, &Package> =
        metadata.packages.iter().map(|package| (&*package.id, package)).collect();
    let (mut found, mut open) = (BTreeMap::new(), Vec::new());
    let programs = metadata.packages.iter().filter(|package| package.source.is_none());
    open.extend(programs.filter(|package| PROGRAMS.contains(&&*package.name)).map(|p| &*p.id));
    ensure!(open.len() == PROGRAMS.len(), "cargo knows {} of {PROGRAMS:?}", open.len());
    while let Some(id) = open.pop() {
        let package = packages.get(id).with_context(|| format!("cargo does not describe {id}"))?;
        let name = (&*package.name, &*package.version);
        if found.insert(name, *package).is_none() {
            open.extend(edges.get(id).into_iter().flatten());
        }
    }
    let components: Vec<_> = found.values().map(|package| component(package, &sums)).collect();
    let dependencies: Vec<_> = found
        .values()
        .map(|package| {
            let on = edges.get(&*package.id).into_iter().flatten();
            let on: BTreeSet<_> = on.filter_map(|id| packages.get(id)).map(|p| url(p)).collect();
            json!({"ref": url(package), "dependsOn": on})
        })
        .collect();
    Ok(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": "amoe",
                "name": "amoe",
                "version": env!("CARGO_PKG_VERSION"),
            },
        },
        "components": components,
        "dependencies": dependencies,
    }))
}

fn cargo_metadata() -> Result<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let rustc = Command::new("rustc").arg("-vV").output().context("starting rustc")?;
    let said = String::from_utf8(rustc.stdout)?;
    let host = said.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.context("rustc -vV names no host")?;
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--locked", "--features", FEATURES])
        .args(["--filter-platform", host])
        .current_dir(root())
        .output()
        .context("starting cargo")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "cargo metadata: {complaint}");
    Ok(String::from_utf8(output.stdout)?)
}

/// What a package is linked with.
fn linked(node: &Node) -> BTreeSet<&str> {
    let linked = |dependency: &&Dependency| dependency.dep_kinds.iter().any(|k| k.kind.is_none());
    node.deps.iter().filter(linked).map(|dependency| &*dependency.pkg).collect()
}

fn component(package: &Package, sums: &BTreeMap<(String, String), String>) -> Value {
    let Package { name, version, .. } = package;
    let mut component = json!({
        "type": "library",
        "bom-ref": url(package),
        "name": name,
        "version": version,
        "purl": url(package),
    });
    if let Some(license) = &package.license {
        // Crates of old times wrote a slash for "or".
        let expression = license.replace(" / ", " OR ").replace('/', " OR ");
        component["licenses"] = json!([{"expression": expression}]);
    }
    if let Some(repository) = &package.repository {
        component["externalReferences"] = json!([{"type": "vcs", "url": repository}]);
    }
    if let Some(sum) = sums.get(&(name.clone(), version.clone())) {
        component["hashes"] = json!([{"alg": "SHA-256", "content": sum}]);
    }
    component
}

/// The name of a package that bills of materials agree on.
fn url(package: &Package) -> String {
    format!("pkg:cargo/{}@{}", package.name, package.version)
}
