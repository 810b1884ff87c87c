//! Generates the Rust code of `proto/proto/**.proto` without protoc.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result};
use protox::prost::Message;

use crate::root;

const SOURCES: [&str; 5] = [
    "amoe/v1/admin.proto",
    "amoe/v1/inference.proto",
    "amoe/internal/v1/control.proto",
    "amoe/internal/v1/link.proto",
    "amoe/internal/v1/sequence.proto",
];

/// Files whose descriptors a gateway shows by reflection: what it serves to everybody.
const PUBLIC: [&str; 1] = ["amoe/v1/inference.proto"];

/// What consoles and scripts get as JSON, with all that is nested in it.
const JSON: [&str; 3] = [".amoe.v1.Overview", ".amoe.v1.Move", ".amoe.v1.PlanSummary"];

/// The generated files by name, as they ought to be.
pub fn generate() -> Result<BTreeMap<String, Vec<u8>>> {
    let include = root().join("proto/proto");
    let descriptors = protox::compile(SOURCES, [&include]).context("compiling the .proto files")?;
    let out = tempfile::tempdir()?;
    let builder = tonic_prost_build::configure()
        .bytes(".amoe.internal.v1.Dispatch")
        .bytes(".amoe.internal.v1.Output")
        .out_dir(out.path());
    let builder = JSON.iter().fold(builder, |builder, message| {
        builder.type_attribute(message, "#[derive(serde::Serialize)]")
    });
    builder.compile_fds(descriptors)?;
    let mut files = read_folder(out.path())?;
    let public = protox::compile(PUBLIC, [&include])?;
    files.insert("public_descriptors.bin".to_owned(), public.encode_to_vec());
    Ok(files)
}

/// Writes the generated files into `proto/src/generated`.
pub fn write() -> Result<()> {
    let folder = root().join("proto/src/generated");
    fs::create_dir_all(&folder)?;
    for (name, bytes) in generate()? {
        fs::write(folder.join(name), bytes)?;
    }
    Ok(())
}

/// The generated files as they lie in the repository.
pub fn committed() -> Result<BTreeMap<String, Vec<u8>>> {
    read_folder(&root().join("proto/src/generated"))
}

fn read_folder(folder: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    fs::read_dir(folder)
        .with_context(|| format!("reading {}", folder.display()))?
        .map(|entry| {
            let entry = entry?;
            Ok((entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path())?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{committed, generate};

    #[test]
    fn generated_code_is_current() {
        let (expected, found) = (generate().unwrap(), committed().unwrap());
        assert_eq!(
            expected.keys().collect::<Vec<_>>(),
            found.keys().collect::<Vec<_>>(),
            "proto/src/generated holds other files: run `cargo xtask proto`"
        );
        for (name, bytes) in &expected {
            assert!(bytes == &found[name], "{name} is out of date: run `cargo xtask proto`");
        }
    }
}
