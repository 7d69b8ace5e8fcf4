//! The table of routes, the functions' programs, the router of `cargo lambda watch` and the template for AWS say the same.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

fn functions_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../functions")
}

fn manifest() -> String {
    std::fs::read_to_string(functions_dir().join("Cargo.toml")).unwrap()
}

/// The lines of a section of Cargo.toml.
fn section(manifest: &str, header: &str) -> Vec<String> {
    let lines = manifest.lines().skip_while(|line| line.trim() != header).skip(1);
    let body = lines.take_while(|line| !line.starts_with('['));
    body.filter(|line| line.contains('=')).map(str::to_owned).collect()
}

fn unquoted(text: &str) -> String {
    let text = text.trim();
    let inner = text.strip_prefix('"').and_then(|t| t.strip_suffix('"'));
    // The table form `[{ method = … }]` would leave some methods to the gateway, and 405 to nobody.
    inner.unwrap_or_else(|| panic!("{text} is not a plain string")).to_owned()
}

#[test]
fn the_watch_router_has_exactly_the_routes() {
    let header = "[package.metadata.lambda.watch.router]";
    let router: BTreeMap<String, String> = section(&manifest(), header)
        .iter()
        .map(|line| line.split_once('=').unwrap())
        .map(|(path, function)| (unquoted(path), unquoted(function)))
        .collect();
    let routes: BTreeMap<String, String> =
        functions::ROUTES.iter().map(|route| (route.path.to_owned(), route.function.to_owned())).collect();
    assert_eq!(routes.len(), functions::ROUTES.len(), "a path stands twice in ROUTES");
    assert_eq!(router, routes);
}

#[test]
fn every_function_has_a_program_and_every_program_a_route() {
    assert!(!manifest().contains("[[bin]]"), "programs are found by their place in src/bin");
    let programs: BTreeSet<String> = std::fs::read_dir(functions_dir().join("src/bin"))
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    let routed: BTreeSet<String> = functions::ROUTES.iter().map(|route| route.function.to_owned()).collect();
    assert_eq!(programs, routed);
}

#[test]
fn every_program_serves_its_own_endpoint() {
    for route in &functions::ROUTES {
        let path = functions_dir().join("src/bin").join(route.function).with_extension("rs");
        let source = std::fs::read_to_string(path).unwrap();
        let function = route.function;
        assert!(source.contains(&format!("serve(\"{function}\"")), "{function} says another name");
        assert!(
            source.contains(&format!("endpoints::{function}::handle")),
            "{function} serves another endpoint"
        );
    }
}

/// Read as text, so that it needs no tool; `infra.rs` looks at what the gateway makes of it.
#[test]
fn the_template_has_exactly_the_routes_and_the_functions() {
    let template = std::fs::read_to_string(functions_dir().join("../infra/template.yaml")).unwrap();
    let mut function = String::new();
    let mut programs = BTreeSet::new();
    let mut routed = BTreeMap::new();
    for line in template.lines() {
        if let Some(name) = line.trim().strip_prefix("FunctionName: !Sub '${AWS::StackName}-") {
            function = name.trim_end_matches('\'').to_owned();
            programs.insert(function.clone());
        }
        if let Some(path) = line.trim().strip_prefix("CodeUri: ") {
            assert_eq!(path, format!("../target/lambda/{function}/bootstrap.zip"));
        }
        if let Some((_, event)) = line.split_once("Type: HttpApi, Properties: {") {
            let (_, path) = event.split_once("Path: ").unwrap();
            let path = path.split(", Method: ANY}").next().unwrap().trim_matches('\'');
            assert!(line.contains("Method: ANY}"), "{path} leaves some methods to the gateway");
            assert_eq!(routed.insert(path.to_owned(), function.clone()), None, "{path} stands twice");
        }
    }
    let routes: BTreeMap<String, String> =
        functions::ROUTES.iter().map(|route| (route.path.to_owned(), route.function.to_owned())).collect();
    assert_eq!(routed, routes);
    assert_eq!(programs, routes.values().cloned().collect());
}
