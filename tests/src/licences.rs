//! Holds every dependency against `deny.toml`: its licence, its name, where it comes from.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use serde_json::Value;

/// What `deny.toml` says, as far as it is held here.
struct Rules {
    licences: BTreeSet<String>,
    banned: BTreeSet<String>,
}

/// Checks every package that the workspace is built from on Linux; answers how many.
///
/// # Errors
/// Every package that breaks a rule, one per line.
pub fn check(workspace: &Path, cargo: &mut Command) -> anyhow::Result<usize> {
    let text = std::fs::read_to_string(workspace.join("deny.toml")).context("read deny.toml")?;
    let rules =
        Rules { licences: strings(&text, "licenses", "allow"), banned: strings(&text, "bans", "deny") };
    if rules.licences.is_empty() || rules.banned.is_empty() {
        bail!("deny.toml allows no licence or bans no crate: it was not understood");
    }
    let output = cargo
        .current_dir(workspace)
        .args(["metadata", "--format-version", "1", "--locked"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .output()
        .context("run cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    }
    let metadata: Value = serde_json::from_slice(&output.stdout).context("read cargo metadata")?;
    let packages = metadata["packages"].as_array().context("no packages in cargo metadata")?;
    // The platform filter leaves packages of other platforms in `packages`, but not in the graph.
    let built: BTreeSet<&str> = metadata["resolve"]["nodes"]
        .as_array()
        .context("no graph in cargo metadata")?
        .iter()
        .filter_map(|node| node["id"].as_str())
        .collect();
    let packages: Vec<&Value> =
        packages.iter().filter(|p| p["id"].as_str().is_some_and(|id| built.contains(id))).collect();
    let faults: Vec<String> = packages.iter().filter_map(|package| fault(package, &rules)).collect();
    if !faults.is_empty() {
        bail!("{}", faults.join("\n"));
    }
    Ok(packages.len())
}

/// Has cargo-deny hold the dependencies against the same file: their licences, the banned crates and the sources, or `what` of it is asked for. What it
/// knows beside (`advisories`) it fetches.
///
/// # Errors
/// It is not installed, or finds something: it says what by itself.
pub fn deny(workspace: &Path, cargo: &mut Command, what: &[String]) -> anyhow::Result<()> {
    let checks = ["licenses", "bans", "sources"].map(str::to_owned);
    let what = if what.is_empty() { &checks[..] } else { what };
    let status =
        cargo.current_dir(workspace).args(["deny", "check"]).args(what).status().context("run cargo")?;
    // Cargo's own answer to a command that it does not know.
    if status.code() == Some(101) {
        bail!("cargo deny could not be run; how to get it: cargo install cargo-deny --locked");
    }
    if !status.success() {
        bail!("cargo deny found what it told above");
    }
    Ok(())
}

fn fault(package: &Value, rules: &Rules) -> Option<String> {
    let name = package["name"].as_str().unwrap_or_default();
    let version = package["version"].as_str().unwrap_or_default();
    if rules.banned.contains(name) {
        return Some(format!("{name} {version}: banned by deny.toml"));
    }
    // Packages of the workspace have no source.
    let source = package["source"].as_str()?;
    if !(source.starts_with("registry+") && source.ends_with("crates.io-index")) {
        return Some(format!("{name} {version}: comes from {source}, not from the public registry"));
    }
    match package["license"].as_str() {
        None => Some(format!("{name} {version}: says no licence")),
        Some(expression) if !allowed(expression, &rules.licences) => {
            Some(format!("{name} {version}: licence {expression:?} is not allowed by deny.toml"))
        }
        Some(_) => None,
    }
}

/// Whether an SPDX expression can be met with allowed licences alone.
fn allowed(expression: &str, licences: &BTreeSet<String>) -> bool {
    // The old form of "or" in Cargo manifests is a slash.
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let tokens: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = tokens.as_slice();
    let met = any(&mut rest, licences);
    met && rest.is_empty()
}

fn any(tokens: &mut &[&str], licences: &BTreeSet<String>) -> bool {
    let mut met = all(tokens, licences);
    while let ["OR", rest @ ..] = tokens {
        *tokens = rest;
        met |= all(tokens, licences);
    }
    met
}

fn all(tokens: &mut &[&str], licences: &BTreeSet<String>) -> bool {
    let mut met = one(tokens, licences);
    while let ["AND", rest @ ..] = tokens {
        *tokens = rest;
        met &= one(tokens, licences);
    }
    met
}

fn one(tokens: &mut &[&str], licences: &BTreeSet<String>) -> bool {
    match tokens {
        ["(", rest @ ..] => {
            *tokens = rest;
            let met = any(tokens, licences);
            if let [")", rest @ ..] = tokens {
                *tokens = rest;
            }
            met
        }
        [licence, "WITH", exception, rest @ ..] => {
            *tokens = rest;
            // An exception only adds rights.
            licences.contains(*licence) || licences.contains(&format!("{licence} WITH {exception}"))
        }
        [licence, rest @ ..] => {
            *tokens = rest;
            licences.contains(*licence)
        }
        [] => false,
    }
}

/// The strings of the list `key = [...]` in `[section]`. Of TOML it knows as much as `deny.toml` uses.
fn strings(toml: &str, section: &str, key: &str) -> BTreeSet<String> {
    let mut in_section = false;
    let mut in_list = false;
    let mut found = BTreeSet::new();
    for line in toml.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        if !in_list && line.starts_with('[') {
            in_section = line == format!("[{section}]");
            continue;
        }
        in_list |= in_section && line.split_once('=').is_some_and(|(name, _)| name.trim() == key);
        if in_list {
            found.extend(line.split('"').skip(1).step_by(2).map(str::to_owned));
            in_list = !line.ends_with(']');
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_is_met_by_allowed_licences_alone() {
        let licences = ["MIT", "Apache-2.0", "ISC"].map(str::to_owned).into();
        for (expression, met) in [
            ("MIT", true),
            ("MIT OR Apache-2.0", true),
            ("MIT/Apache-2.0", true),
            ("GPL-3.0 OR MIT", true),
            ("Apache-2.0 AND ISC", true),
            ("Apache-2.0 AND GPL-3.0", false),
            ("(MIT OR GPL-2.0) AND ISC", true),
            ("(MIT AND GPL-2.0) OR LGPL-3.0", false),
            ("Apache-2.0 WITH LLVM-exception OR GPL-2.0", true),
            ("GPL-2.0 WITH Classpath-exception-2.0", false),
            ("", false),
            ("MIT ISC", false),
        ] {
            assert_eq!(allowed(expression, &licences), met, "{expression}");
        }
    }

    #[test]
    fn lists_are_read_from_the_right_section() {
        let toml = "[a]\nallow = [\"no\"]\n[b]\n# \"no\"\nallow = [\n  \"x\",\n  { crate = \"y\" },\n]\nmore = [\"no\"]\n";
        assert_eq!(strings(toml, "b", "allow"), ["x", "y"].map(str::to_owned).into());
    }
}
