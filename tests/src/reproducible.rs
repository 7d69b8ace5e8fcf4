//! `cargo run -p tests -- reproducible [worker|functions|NAME…]`: builds a release twice and holds the two against each other, byte by byte.
//!
//! Each build has a copy of the sources, in directories of other names and lengths; the second comes later, with another `CARGO_HOME` and in
//! another zone. Both are `infra/release.sh`, as releases are made. Compiler and C library are the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use local_dev::native::servers::without_cargo_variables;
use local_dev::native::{provision, target, workspace};
use sha2::{Digest as _, Sha256};

/// Where the two are built, below `target/reproducible`; as long as each other they are not.
const PLACES: [&str; 2] = ["one", "another-place-with-a-longer-name"];

/// A file of a release: a zip, or a program, also one that is in a zip.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Made {
    bytes: usize,
    sha256: String,
}

type Release = BTreeMap<String, Made>;

/// Builds twice, and prints what came out.
///
/// # Errors
/// A build fails, or the two differ, or name the directories that they were built in.
pub fn run(what: &[String]) -> anyhow::Result<()> {
    let dir = target().join("reproducible");
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
    }
    // Both builds lie below the workspace and have one compiler: what names these would differ on another machine only.
    let named = [workspace().to_owned(), cargo_home()?, sysroot()?];
    // Both at once: who goes on working changes the sources.
    let sources = PLACES.map(|place| dir.join(place));
    sources.iter().try_for_each(|sources| copy_sources(sources))?;
    let mut releases = Vec::new();
    for (number, sources) in sources.iter().enumerate() {
        let mut script = Command::new("infra/release.sh");
        let made = dir.join(format!("release-{number}"));
        script.arg(&made).args(what);
        if number > 0 {
            script.env("CARGO_HOME", other_home(&dir.join("a-cargo-home-of-another-name"))?);
            script.env("TZ", "Pacific/Kiritimati");
        }
        println!("== {}", sources.display());
        build(script, sources)?;
        // Gigabytes, of which nothing is needed.
        fs::remove_dir_all(sources).with_context(|| format!("remove {}", sources.display()))?;
        releases.push(release(&made, &named)?);
    }
    let [one, other] = releases.as_slice() else { bail!("there are not two releases") };
    println!("{}", table(one, other));
    ensure!(one == other, "the two builds differ; they are in {}", dir.display());
    Ok(fs::remove_dir_all(&dir)?)
}

/// The files that git knows or would take, as they are now.
fn copy_sources(to: &Path) -> anyhow::Result<()> {
    let listed = Command::new("git")
        .current_dir(workspace())
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .output()
        .context("run git, which says what belongs to the sources")?;
    ensure!(listed.status.success(), "git: {}", String::from_utf8_lossy(&listed.stderr));
    for name in String::from_utf8(listed.stdout)?.split_terminator('\0') {
        let from = workspace().join(name);
        // Deleted and not committed yet.
        if !from.exists() {
            continue;
        }
        let target = to.join(name);
        fs::create_dir_all(target.parent().context("a file lies in a directory")?)?;
        fs::copy(&from, &target).with_context(|| format!("copy {name}"))?;
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "it is no setting of the product")]
fn cargo_home() -> anyhow::Result<PathBuf> {
    let own = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let own = own.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    own.context("neither CARGO_HOME nor HOME is set")
}

/// Where the compiler and its libraries lie.
fn sysroot() -> anyhow::Result<PathBuf> {
    let mut ask = Command::new("rustc");
    let output = ask.current_dir(workspace()).args(["--print", "sysroot"]).output().context("run rustc")?;
    ensure!(output.status.success(), "rustc: {}", String::from_utf8_lossy(&output.stderr));
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim()))
}

/// Cargo's own directory under another name: the same packages and settings, nothing is fetched again.
fn other_home(to: &Path) -> anyhow::Result<PathBuf> {
    let own = cargo_home()?;
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(&own).with_context(|| format!("list {}", own.display()))? {
        let entry = entry?;
        std::os::unix::fs::symlink(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(to.to_owned())
}

fn build(mut script: Command, sources: &Path) -> anyhow::Result<()> {
    let tools = provision::cargo_lambda().and_then(|lambda| Ok((lambda, provision::arm64_tools()?)));
    let (lambda, zig) = tools
        .map_err(|missing| anyhow::anyhow!("{}; how to get it: {}", missing.what, missing.how_to_get))?;
    // cargo-lambda is a subcommand of cargo's, which looks for it on the path.
    let [lambda, zig] = [&lambda, &zig].map(|tool| tool.program.parent().unwrap_or(Path::new("")));
    script.env("PATH", provision::path_with(&[lambda, zig])?);
    // The sources have a target directory of their own.
    without_cargo_variables(&mut script).env_remove("CARGO_TARGET_DIR").current_dir(sources);
    let status = script.status().context("run infra/release.sh")?;
    ensure!(status.success(), "infra/release.sh in {}: {status}", sources.display());
    Ok(())
}

/// What `infra/release.sh` left in `dir`; of each zip also what is in it. No file may name one of these directories.
fn release(dir: &Path, directories: &[PathBuf]) -> anyhow::Result<Release> {
    let mut zips = Vec::new();
    let mut files = vec!["SHA256SUMS".to_owned()];
    let sums = fs::read_to_string(dir.join("SHA256SUMS")).context("read SHA256SUMS")?;
    for line in sums.lines() {
        let (_, name) = line.split_once("  ").with_context(|| format!("SHA256SUMS: {line}"))?;
        files.push(name.to_owned());
        zips.extend(name.strip_suffix(".zip"));
    }
    ensure!(files.len() > 1, "nothing was built");
    for zip in zips {
        let mut unpack = Command::new(provision::python());
        unpack.current_dir(dir).args(["-m", "zipfile", "-e", &format!("{zip}.zip"), zip]);
        let output = unpack.output().context("run python")?;
        ensure!(output.status.success(), "unpack {zip}.zip: {}", String::from_utf8_lossy(&output.stderr));
        files.push(format!("{zip}/bootstrap"));
    }
    let mut made = Release::new();
    for name in files {
        let bytes = fs::read(dir.join(&name)).with_context(|| format!("read {name}"))?;
        for directory in directories {
            let path = directory.as_os_str().as_bytes();
            let named = bytes.windows(path.len()).any(|part| part == path);
            ensure!(!named, "{}/{name} names {}", dir.display(), directory.display());
        }
        let sha256 = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        made.insert(name, Made { bytes: bytes.len(), sha256 });
    }
    Ok(made)
}

/// A line for each file: its size, its checksum, and whether the other build has the same.
fn table(one: &Release, other: &Release) -> String {
    let names: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
    let mut table = format!("{:<44} {:>10}  {:<64}  the other build", "file", "bytes", "sha256");
    let none = Made { bytes: 0, sha256: "(none)".to_owned() };
    for name in names {
        let (here, there) = (one.get(name).unwrap_or(&none), other.get(name).unwrap_or(&none));
        let verdict = if here == there {
            "same".to_owned()
        } else {
            format!("DIFFERS: {} {}", there.bytes, there.sha256)
        };
        let _infallible = write!(table, "\n{name:<44} {:>10}  {:<64}  {verdict}", here.bytes, here.sha256);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_says_what_differs() {
        let made = |bytes, sha256: &str| Made { bytes, sha256: sha256.to_owned() };
        let one = Release::from([("a".to_owned(), made(1, "aa")), ("b".to_owned(), made(2, "bb"))]);
        let other = Release::from([("a".to_owned(), made(1, "aa")), ("c".to_owned(), made(3, "cc"))]);
        let table = table(&one, &other);
        let said: Vec<&str> = table.lines().skip(1).map(|line| line.rsplit("  ").next().unwrap()).collect();
        assert_eq!(said, ["same", "DIFFERS: 0 (none)", "DIFFERS: 3 cc"]);
    }

    /// Two zips of the same files, made at different times and in another order; tells what is in the first once they are plain.
    const ZIPS: &str = r#"
import subprocess, sys, zipfile
script, *zips = sys.argv[1:]
for path, year, names in zip(zips, (1999, 2026), (("b", "a"), ("a", "b"))):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            info = zipfile.ZipInfo(name, (year, 2, 3, 4, 5, 6))
            info.external_attr = 0o100755 << 16
            archive.writestr(info, name * 1000, zipfile.ZIP_DEFLATED)
different = open(zips[0], "rb").read() != open(zips[1], "rb").read()
subprocess.run([sys.executable, script, *zips], check=True)
with zipfile.ZipFile(zips[0]) as archive:
    files = [(info.filename, oct(info.external_attr >> 16), info.date_time[0], len(archive.read(info))) for info in archive.infolist()]
print(different, files)
"#;

    #[test]
    fn zips_of_the_same_files_are_the_same_bytes_once_they_are_plain() {
        if !provision::python().exists() {
            ::tests::fixtures::skip("plain-zips", "no Python in target/tools");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let zips = ["one.zip", "two.zip"].map(|name| dir.path().join(name));
        let script = workspace().join("infra/plain-zips.py");
        let mut python = Command::new(provision::python());
        let output = python.args(["-c", ZIPS]).arg(script).args(&zips).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let expected = "True [('a', '0o100755', 1980, 1000), ('b', '0o100755', 1980, 1000)]\n";
        assert_eq!(said, expected, "{}", String::from_utf8_lossy(&output.stderr));
        let [one, two] = zips.map(|zip| fs::read(zip).unwrap());
        assert!(one == two);
    }

    #[test]
    fn a_release_has_the_zips_that_are_tested() {
        let script = fs::read_to_string(workspace().join("infra/release.sh")).unwrap();
        assert!(script.contains(&format!("cargo {} \"$@\"", crate::zips::BUILD.join(" "))));
    }
}
