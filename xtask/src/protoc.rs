//! Stands in for `protoc` where a dependency's build asks for one (etcd-client's does).
//!
//! `PROTOC=$(cargo xtask protoc) cargo build -p coordinator --features etcd`

use std::{
    env, fs,
    io::Write as _,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use protox::Compiler;

/// Without arguments writes an executable that builds can call as `protoc` and prints its path; with
/// arguments is that protoc.
pub fn run(arguments: impl Iterator<Item = String>) -> Result<()> {
    let arguments: Vec<String> = arguments.collect();
    if arguments.is_empty() {
        let mut out = std::io::stdout().lock();
        return Ok(writeln!(out, "{}", install()?.display())?);
    }
    let order = Order::read(arguments)?;
    fs::write(&order.output, order.compile()?)
        .with_context(|| format!("writing {}", order.output.display()))
}

/// Writes a script beside this program that calls it back, and says where. A build cannot start cargo itself, which would
/// wait for the build.
pub fn install() -> Result<PathBuf> {
    let program = env::current_exe()?;
    let script = program.with_file_name("protoc");
    let quoted = program.display().to_string().replace('\'', r"'\''");
    write_executable(&script, &format!("#!/bin/sh\nexec '{quoted}' protoc \"$@\"\n"))
        .with_context(|| format!("writing {}", script.display()))?;
    Ok(script)
}

fn write_executable(path: &Path, text: &str) -> std::io::Result<()> {
    // Renamed into place, so that a build that runs it meanwhile reads all of one or the other.
    let new = path.with_extension("new");
    fs::write(&new, text)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755))?;
    fs::rename(new, path)
}

/// What prost-build asks of a protoc.
#[derive(Debug, Default, PartialEq, Eq)]
struct Order {
    files: Vec<PathBuf>,
    includes: Vec<PathBuf>,
    output: PathBuf,
    imports: bool,
    source_info: bool,
}

impl Order {
    fn read(arguments: impl IntoIterator<Item = String>) -> Result<Self> {
        let mut order = Self::default();
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let mut value =
                || arguments.next().with_context(|| format!("{argument} needs a value"));
            match argument.as_str() {
                "-I" => order.includes.push(value()?.into()),
                "-o" => order.output = value()?.into(),
                "--include_imports" => order.imports = true,
                "--include_source_info" => order.source_info = true,
                flag if flag.starts_with('-') => bail!("this protoc does not know {flag}"),
                file => order.files.push(file.into()),
            }
        }
        if order.output.as_os_str().is_empty() || order.files.is_empty() {
            bail!("this protoc writes a descriptor set: name .proto files and -o FILE");
        }
        Ok(order)
    }

    fn compile(&self) -> Result<Vec<u8>> {
        let mut compiler = Compiler::new(&self.includes)?;
        compiler.include_imports(self.imports).include_source_info(self.source_info);
        compiler.open_files(&self.files)?;
        Ok(compiler.encode_file_descriptor_set())
    }
}

#[cfg(test)]
mod tests {
    use super::{Order, run};
    use std::fs;

    fn words(text: &str) -> impl Iterator<Item = String> + '_ {
        text.split_whitespace().map(str::to_owned)
    }

    #[test]
    fn compiles_what_prost_build_asks_for() {
        let folder = tempfile::tempdir().unwrap();
        let text = "syntax = \"proto3\"; package p; message Found {}";
        fs::write(folder.path().join("a.proto"), text).unwrap();
        let (at, out) = (folder.path().display(), folder.path().join("out.bin"));
        let order = format!(
            "--include_imports --include_source_info -o {} -I {at} {at}/a.proto",
            out.display()
        );
        run(words(&order)).unwrap();
        let written = fs::read(out).unwrap();
        assert!(written.windows(5).any(|window| window == b"Found"));
    }

    #[test]
    fn refuses_in_a_sentence_what_it_cannot_do() {
        for (order, expected) in [
            ("--cpp_out=x a.proto", "this protoc does not know --cpp_out=x"),
            ("a.proto -o", "-o needs a value"),
            ("a.proto", "this protoc writes a descriptor set: name .proto files and -o FILE"),
        ] {
            assert_eq!(Order::read(words(order)).unwrap_err().to_string(), expected);
        }
    }
}
