//! The zips that `sam deploy` uploads: how they are built, and that they are what the template names.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::process::Command;

use anyhow::{Context, bail, ensure};
use local_dev::native::{provision, workspace};
use serde_json::Value;

/// The words for cargo-lambda; infra/release.sh has the same command.
pub const BUILD: [&str; 9] = [
    "lambda",
    "build",
    "--profile",
    "function",
    "--arm64",
    "--package=functions",
    "--output-format",
    "zip",
    "--locked",
];

/// Holds each zip that the template names against what Lambda wants of it; answers a table of their sizes.
///
/// # Errors
/// A zip that is missing, or that is not one `bootstrap` for arm64.
pub fn check() -> anyhow::Result<String> {
    let template =
        std::fs::read_to_string(workspace().join("infra/template.yaml")).context("read the template")?;
    let named: BTreeSet<&str> =
        template.lines().filter_map(|line| line.trim().strip_prefix("CodeUri: ../")).collect();
    let routed: BTreeSet<&str> = functions::ROUTES.iter().map(|route| route.function).collect();
    let expected: BTreeSet<String> =
        routed.iter().map(|function| format!("target/lambda/{function}/bootstrap.zip")).collect();
    ensure!(
        named.iter().copied().eq(expected.iter().map(String::as_str)),
        "the template names {named:?}, the functions are built to {expected:?}"
    );
    let output = Command::new(provision::python())
        .current_dir(workspace())
        .arg("tests/infra/zips.py")
        .args(&expected)
        .output()
        .context("run zips.py")?;
    if !output.status.success() {
        bail!("zips.py: {}", String::from_utf8_lossy(&output.stderr));
    }
    let zips: Vec<Value> = serde_json::from_slice(&output.stdout).context("read what zips.py says")?;
    let mut table = format!("{:<36} {:>10} {:>10}", "zip", "bytes", "unpacked");
    for zip in &zips {
        write!(table, "\n{}", row(zip)?).context("write the table")?;
    }
    Ok(table)
}

/// A zip's line in the table, when it is what Lambda wants.
fn row(zip: &Value) -> anyhow::Result<String> {
    let path = zip["path"].as_str().unwrap_or_default();
    let file = match zip["files"].as_array().map(Vec::as_slice) {
        Some([file]) => file,
        _ => bail!("{path} holds {}, not one file", zip["files"]),
    };
    let said = (file["name"].as_str(), file["mode"].as_str(), file["machine"].as_str());
    ensure!(
        said == (Some("bootstrap"), Some("755"), Some("aarch64")),
        "{path}: {said:?} is not a program `bootstrap` for arm64"
    );
    Ok(format!("{path:<36} {:>10} {:>10}", zip["size"], file["size"]))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_zip_is_one_executable_bootstrap_for_arm64() {
        let file = |name: &str, mode: &str, machine: Option<&str>| json!({"name": name, "mode": mode, "size": 1, "machine": machine});
        let good = file("bootstrap", "755", Some("aarch64"));
        for (files, fits) in [
            (json!([good]), true),
            (json!([]), false),
            (json!([good, good]), false),
            (json!([file("save", "755", Some("aarch64"))]), false),
            (json!([file("bootstrap", "644", Some("aarch64"))]), false),
            (json!([file("bootstrap", "755", Some("x86_64"))]), false),
            (json!([file("bootstrap", "755", None)]), false),
        ] {
            assert_eq!(row(&json!({"path": "z", "size": 1, "files": files})).is_ok(), fits, "{files}");
        }
    }
}
