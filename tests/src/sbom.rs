//! A list of all that the programs are built from (a software bill of materials, CycloneDX 1.5): `cargo run -p tests -- sbom > fleetcron.cdx.json`.
//! Made of what cargo itself knows, without a tool; the same for the same Cargo.lock.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::Context;
use serde_json::{Value, json};

/// The packages whose programs are delivered. What only tests use is not in the list.
const DELIVERED: [&str; 3] = ["functions", "local-dev", "worker"];

/// The list, as JSON.
///
/// # Errors
/// When cargo does not tell what there is, or Cargo.lock cannot be read.
pub fn list(workspace: &Path, cargo: &mut Command) -> anyhow::Result<Value> {
    let output = cargo
        .current_dir(workspace)
        .args(["metadata", "--format-version", "1", "--locked"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .output()
        .context("run cargo metadata")?;
    if !output.status.success() {
        anyhow::bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    }
    let metadata: Value = serde_json::from_slice(&output.stdout).context("read cargo metadata")?;
    let lock = std::fs::read_to_string(workspace.join("Cargo.lock")).context("read Cargo.lock")?;
    bill(&metadata, &checksums(&lock))
}

fn bill(metadata: &Value, checksums: &BTreeMap<String, String>) -> anyhow::Result<Value> {
    let listed = |value: &Value| value.as_array().cloned().context("cargo metadata has another form");
    let packages = listed(&metadata["packages"])?;
    let by_id: BTreeMap<&str, &Value> =
        packages.iter().filter_map(|package| Some((package["id"].as_str()?, package))).collect();
    let nodes = listed(&metadata["resolve"]["nodes"])?;
    let uses: BTreeMap<&str, BTreeSet<&str>> =
        nodes.iter().filter_map(|node| Some((node["id"].as_str()?, used(node)))).collect();
    let is_delivered = |package: &&Value| {
        package["source"].is_null() && package["name"].as_str().is_some_and(|name| DELIVERED.contains(&name))
    };
    let mut waiting: Vec<&str> =
        packages.iter().filter(is_delivered).filter_map(|package| package["id"].as_str()).collect();
    let mut found = BTreeSet::new();
    while let Some(id) = waiting.pop() {
        if found.insert(id) {
            waiting.extend(uses.get(id).into_iter().flatten());
        }
    }
    let known = || found.iter().filter_map(|id| Some((*id, *by_id.get(id)?)));
    let mut components: Vec<Value> = known().map(|(_, package)| component(package, checksums)).collect();
    let mut dependencies: Vec<Value> = known()
        .map(|(id, package)| {
            let on: BTreeSet<String> =
                uses.get(id).into_iter().flatten().filter_map(|id| Some(purl(by_id.get(id)?))).collect();
            json!({"ref": purl(package), "dependsOn": on})
        })
        .collect();
    for list in [&mut components, &mut dependencies] {
        list.sort_by_key(ToString::to_string);
    }
    Ok(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {"type": "application", "name": "fleetcron", "version": env!("CARGO_PKG_VERSION")}},
        "components": components,
        "dependencies": dependencies,
    }))
}

/// What a package uses when it is built and when it runs, and not only in its tests.
fn used(node: &Value) -> BTreeSet<&str> {
    let only_tests = |dependency: &&Value| {
        let kinds = dependency["dep_kinds"].as_array();
        kinds.is_some_and(|kinds| kinds.iter().all(|kind| kind["kind"] == "dev"))
    };
    let dependencies = node["deps"].as_array().into_iter().flatten();
    dependencies.filter(|one| !only_tests(one)).filter_map(|one| one["pkg"].as_str()).collect()
}

fn component(package: &Value, checksums: &BTreeMap<String, String>) -> Value {
    let purl = purl(package);
    let mut component = json!({
        "type": "library",
        "bom-ref": purl,
        "name": package["name"],
        "version": package["version"],
        "purl": purl,
    });
    if let Some(licence) = package["license"].as_str() {
        // The old form of "or" in Cargo manifests is a slash.
        component["licenses"] = json!([{"expression": licence.replace('/', " OR ")}]);
    }
    if let Some(checksum) = checksums.get(&purl) {
        component["hashes"] = json!([{"alg": "SHA-256", "content": checksum}]);
    }
    component
}

fn purl(package: &Value) -> String {
    let text = |field: &str| package[field].as_str().unwrap_or_default();
    format!("pkg:cargo/{}@{}", text("name"), text("version").replace('+', "%2B"))
}

/// The checksums of Cargo.lock. Of TOML it knows as much as cargo writes there.
fn checksums(lock: &str) -> BTreeMap<String, String> {
    lock.split("[[package]]")
        .filter_map(|package| {
            let field = |name: &str| {
                let start = format!("{name} = \"");
                package.lines().find_map(|line| line.strip_prefix(&start)?.strip_suffix('"'))
            };
            let purl = purl(&json!({"name": field("name")?, "version": field("version")?}));
            Some((purl, field("checksum")?.to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_programs_are_built_from_is_listed_and_what_tests_use_is_not() {
        let package = |name: &str, source: Value| json!({"id": name, "name": name, "version": "1.0.0+x", "source": source, "license": "MIT/ISC"});
        let uses = |name: &str, kind: Value| json!({"pkg": name, "dep_kinds": [{"kind": kind}]});
        let metadata = json!({
            "packages": [
                package("worker", json!(null)),
                package("tests", json!(null)),
                package("used", json!("registry+x")),
                package("builds", json!("registry+x")),
                package("oracle", json!("registry+x")),
            ],
            "resolve": {"nodes": [
                {"id": "worker", "deps": [uses("used", json!(null)), uses("oracle", json!("dev"))]},
                {"id": "used", "deps": [uses("builds", json!("build"))]},
                {"id": "tests", "deps": [uses("oracle", json!(null))]},
            ]},
        });
        let lock = "[[package]]\nname = \"used\"\nversion = \"1.0.0+x\"\nchecksum = \"ab\"\n";
        let bill = bill(&metadata, &checksums(lock)).unwrap();
        let names: Vec<&str> =
            bill["components"].as_array().unwrap().iter().filter_map(|one| one["name"].as_str()).collect();
        assert_eq!(names, ["builds", "used", "worker"]);
        let used = &bill["components"][1];
        assert_eq!(used["purl"], "pkg:cargo/used@1.0.0%2Bx");
        assert_eq!(used["hashes"], json!([{"alg": "SHA-256", "content": "ab"}]));
        assert_eq!(used["licenses"], json!([{"expression": "MIT OR ISC"}]));
        let of_used = bill["dependencies"].as_array().unwrap().iter().find(|one| one["ref"] == used["purl"]);
        assert_eq!(of_used.unwrap()["dependsOn"], json!(["pkg:cargo/builds@1.0.0%2Bx"]));
    }
}
