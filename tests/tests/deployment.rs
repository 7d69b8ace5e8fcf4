//! What infra/ and the Dockerfiles say, held without deploying it: schemas, grace numbers, what the images are given.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use local_dev::native::servers::without_cargo_variables;
use local_dev::native::{provision, workspace};
use serde_json::Value;
use tests::context::{self, Rules};
use tests::dockerfile::{Dockerfile, Instruction};
use tests::fixtures::{TestDir, skip};

const DOCKERFILES: [&str; 2] = ["worker/Dockerfile", "local-dev/Dockerfile"];
const KUBERNETES: &str = "infra/kubernetes/worker.yaml";
/// The oldest and the newest Kubernetes that the manifests are held against.
const KUBERNETES_VERSIONS: [&str; 2] = ["1.28.0", "1.37.0"];

fn read(path: &str) -> String {
    fs::read_to_string(workspace().join(path)).unwrap_or_else(|why| panic!("{path}: {why}"))
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

// --- grace ---------------------------------------------------------------------------------------------------------------------------

/// How a deployment ends a worker.
struct Grace {
    place: String,
    /// `CRON_DRAIN_SECONDS`.
    drain: Duration,
    /// From SIGTERM to SIGKILL.
    until_kill: Duration,
}

/// What the worker may need when the drain is over and before it waits for MongoDB, and after that: runs that were killed are closed
/// (output that is held open gets 5 s and another second), the session is revoked (3 s).
const MARGIN: Duration = Duration::from_secs(10);

#[test]
fn whoever_kills_a_worker_waits_longer_than_its_drain_and_its_last_records() {
    // The README, the units and the manifests speak of 30 s.
    assert_eq!(worker::LAST_RECORDS_MAX, Duration::from_secs(30));
    let mut graces = vec![systemd_grace()];
    graces.extend(kubernetes_graces());
    // Never without a worker, and never not understood.
    for (file, graces_of) in [
        ("local-dev/docker-compose.yml", compose_graces as fn(&str) -> Vec<Grace>),
        ("infra/template.yaml", ecs_graces),
    ] {
        let found = graces_of(file);
        assert!(!found.is_empty(), "{file} has no worker");
        graces.extend(found);
    }
    for Grace { place, drain, until_kill } in &graces {
        let needed = *drain + worker::LAST_RECORDS_MAX + MARGIN;
        assert!(
            *until_kill >= needed,
            "{place}: killed after {until_kill:?}, but the worker may need {needed:?}"
        );
    }
}

fn systemd_grace() -> Grace {
    let place = "infra/systemd/fleetcron-worker.service";
    let unit = Unit::read(place);
    Grace {
        place: place.to_owned(),
        drain: seconds(&unit.environment()["CRON_DRAIN_SECONDS"]),
        until_kill: seconds(unit.one("TimeoutStopSec")),
    }
}

fn kubernetes_graces() -> Vec<Grace> {
    let grace = |manifest: &Value| {
        let pod = &manifest["spec"]["template"]["spec"];
        let container = pod["containers"].as_array()?.first()?;
        let drain = environment_of(&container["env"], "name", "value").remove("CRON_DRAIN_SECONDS");
        Some(Grace {
            place: KUBERNETES.to_owned(),
            drain: seconds(drain.as_ref().and_then(Value::as_str).unwrap()),
            until_kill: Duration::from_secs(pod["terminationGracePeriodSeconds"].as_u64().unwrap()),
        })
    };
    let graces: Vec<Grace> = yaml(KUBERNETES).iter().filter_map(grace).collect();
    assert_eq!(graces.len(), 1, "one workload");
    graces
}

/// Services whose program is the worker, by their Dockerfile.
fn compose_graces(file: &str) -> Vec<Grace> {
    let [compose] = yaml(file).try_into().unwrap();
    let services = compose["services"].as_object().unwrap();
    let workers =
        services.iter().filter(|(_, service)| service["build"]["dockerfile"] == "worker/Dockerfile");
    let grace = |(name, service): (&String, &Value)| Grace {
        place: format!("{file}, {name}"),
        drain: seconds(service["environment"]["CRON_DRAIN_SECONDS"].as_str().unwrap()),
        until_kill: seconds(service["stop_grace_period"].as_str().unwrap()),
    };
    workers.map(grace).collect()
}

/// Containers of task definitions.
fn ecs_graces(file: &str) -> Vec<Grace> {
    let [template] = yaml(file).try_into().unwrap();
    let resources = template["Resources"].as_object().unwrap();
    let tasks = resources.iter().filter(|(_, resource)| resource["Type"] == "AWS::ECS::TaskDefinition");
    let mut graces = Vec::new();
    for (name, task) in tasks {
        for container in task["Properties"]["ContainerDefinitions"].as_array().unwrap() {
            let environment = environment_of(&container["Environment"], "Name", "Value");
            let number = |value: &Value| match value {
                Value::Number(number) => seconds(&number.to_string()),
                Value::String(text) => seconds(text),
                other => panic!("{file}, {name}: {other} is no number of seconds"),
            };
            let until_kill = number(&container["StopTimeout"]);
            assert!(until_kill <= Duration::from_secs(120), "Fargate takes no more");
            graces.push(Grace {
                place: format!("{file}, {name}"),
                drain: number(&environment["CRON_DRAIN_SECONDS"]),
                until_kill,
            });
        }
    }
    graces
}

/// A list of `{name: …, value: …}`; what stands in it only under a condition is left out.
fn environment_of(list: &Value, name: &str, value: &str) -> BTreeMap<String, Value> {
    let pairs = list.as_array().expect("a list of variables").iter();
    pairs.filter_map(|pair| Some((pair[name].as_str()?.to_owned(), pair[value].clone()))).collect()
}

/// `90` or `90s`: other units are not in use, so that one look compares the numbers.
fn seconds(text: &str) -> Duration {
    let number = text.strip_suffix('s').unwrap_or(text);
    Duration::from_secs(number.parse().unwrap_or_else(|_| panic!("{text:?} is no number of seconds")))
}

fn yaml(file: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(&read(file)).unwrap_or_else(|why| panic!("{file}: {why}"))
}

// --- systemd -------------------------------------------------------------------------------------------------------------------------

/// A unit's or a drop-in's lines.
struct Unit(Vec<(String, String)>);

impl Unit {
    fn read(path: &str) -> Self {
        let text = read(path);
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        Self(
            lines
                .filter_map(|line| line.split_once('='))
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .collect(),
        )
    }

    fn one(&self, key: &str) -> &str {
        let values: Vec<&str> = self.0.iter().filter(|(k, _)| k == key).map(|(_, v)| v.as_str()).collect();
        assert_eq!(values.len(), 1, "{key}: {values:?}");
        values[0]
    }

    fn environment(&self) -> BTreeMap<String, String> {
        let lines = self.0.iter().filter(|(k, _)| k == "Environment");
        lines.filter_map(|(_, v)| v.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
    }
}

/// The units: the plain one, and with its drop-in.
const UNITS: [&str; 2] = ["fleetcron-worker", "fleetcron-api"];

fn drop_in(unit: &str) -> String {
    format!("infra/systemd/{unit}.service.d/hardening.conf")
}

#[test]
fn the_units_set_what_their_programs_know_and_read_no_secret_from_the_unit() {
    let programs = BTreeMap::from([("fleetcron-worker", "worker"), ("fleetcron-api", "local-dev")]);
    for name in UNITS {
        let unit = Unit::read(&format!("infra/systemd/{name}.service"));
        assert_eq!(unit.one("ExecStart"), format!("/usr/local/bin/{}", programs[name]));
        assert_eq!(unit.one("User"), unit.one("Group"));
        assert_ne!(unit.one("User"), "root");
        for (variable, value) in unit.environment() {
            assert!(!value.contains('@'), "{name}: {variable} has a password in it");
            let set = [(variable.to_owned(), value.to_owned())];
            let taken = common::config::parse(programs[name], set.into_iter(), std::iter::empty());
            assert!(taken.is_ok(), "{name}: {variable}={value}: {}", taken.err().unwrap());
        }
        let hardening = Unit::read(&drop_in(name));
        for (key, value) in &hardening.0 {
            // What decides how it ends stands once, in the unit.
            let of_the_unit = unit.0.iter().any(|(k, _)| k == key);
            assert!(!of_the_unit, "{}: {key}={value} is said in the unit, too", drop_in(name));
        }
    }
    let api = Unit::read("infra/systemd/fleetcron-api.service");
    assert_eq!(api.environment()["CRON_WORKERS"], "0");
    assert!(api.environment()["CRON_LISTEN"].starts_with("127.0.0.1:"), "there is no TLS");
    assert_eq!(api.environment()["CRON_AUTH"], "required", "every user of the machine reaches it");
    let worker = Unit::read("infra/systemd/fleetcron-worker.service");
    assert_eq!(worker.one("KillMode"), "mixed", "the worker drains, jobs are not told");
    assert_ne!(api.one("User"), worker.one("User"), "jobs are not the API's user");
}

#[test]
fn the_readme_says_of_each_line_of_hardening_what_it_does_to_jobs() {
    let readme = read("infra/README.md");
    for (key, _) in Unit::read(&drop_in("fleetcron-worker")).0 {
        assert!(readme.contains(&format!("`{key}")), "infra/README.md does not name {key}");
    }
}

#[test]
fn systemd_takes_the_units() {
    // Not a SKIPPED, which fails in CI: the tool comes only with a systemd, and nothing that could be fetched has it. Where it is not,
    // the units are still held by the tests above.
    let Some(tool) = provision::search("systemd-analyze") else {
        eprintln!("systemd-analyze is not installed: the units were not given to it");
        return;
    };
    let dir = TestDir::new("units");
    for (variant, worst) in [("plain", None), ("hardened", Some("20"))] {
        for name in UNITS {
            let place = dir.path().join(format!("{variant}-{name}"));
            let file = place.join(format!("{name}.service"));
            fs::create_dir_all(place.join(format!("{name}.service.d"))).unwrap();
            // It looks whether the program is there.
            let unit = read(&format!("infra/systemd/{name}.service"));
            let program = unit.lines().find(|line| line.starts_with("ExecStart=")).unwrap();
            fs::write(&file, unit.replace(program, "ExecStart=/bin/true")).unwrap();
            if worst.is_some() {
                fs::copy(
                    workspace().join(drop_in(name)),
                    place.join(format!("{name}.service.d/hardening.conf")),
                )
                .unwrap();
            }
            let analyze = |words: &[&str]| {
                let mut command = Command::new(&tool);
                // The colon: and where units lie otherwise, for the targets that ours name.
                command.env("SYSTEMD_UNIT_PATH", format!("{}:", place.display())).args(words).arg(&file);
                command.output().unwrap()
            };
            let verified = analyze(&["verify", "--man=no"]);
            assert!(
                verified.status.success() && said(&verified).is_empty(),
                "{variant} {name}: {}",
                said(&verified)
            );
            if let Some(worst) = worst {
                let threshold = format!("--threshold={worst}");
                let exposed = analyze(&["security", "--offline=true", "--no-pager", &threshold]);
                assert!(
                    exposed.status.success(),
                    "{name} is exposed more than {worst} tenths: {}",
                    said(&exposed)
                );
            }
        }
    }
}

// --- Kubernetes ----------------------------------------------------------------------------------------------------------------------

#[test]
fn kubernetes_takes_the_manifests() {
    let tool = match provision::kubernetes_validate() {
        Ok(found) => found.program,
        Err(missing) => return skip("kubernetes_takes_the_manifests", &missing.what),
    };
    for version in KUBERNETES_VERSIONS {
        let validate = |file: &Path| {
            Command::new(&tool)
                .args(["--strict", "--kubernetes-version", version])
                .arg(file)
                .output()
                .unwrap()
        };
        let output = validate(&workspace().join(KUBERNETES));
        assert!(output.status.success(), "{version}: {}", said(&output));
        assert_eq!(
            said(&output).matches(" passed for ").count(),
            yaml(KUBERNETES).len(),
            "{}",
            said(&output)
        );
        // It would notice a name that does not exist.
        let dir = TestDir::new("kubernetes");
        let broken = dir.path().join("broken.yaml");
        fs::write(&broken, read(KUBERNETES).replace("failureThreshold", "failuresThreshold")).unwrap();
        assert!(!validate(&broken).status.success());
    }
    // `kubectl apply -k` puts it together; kubectl is looked at where it is, like systemd-analyze.
    if let Some(kubectl) = provision::search("kubectl") {
        let output = Command::new(kubectl)
            .arg("kustomize")
            .arg(workspace().join("infra/kubernetes"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", said(&output));
        let manifests: Vec<Value> =
            serde_saphyr::from_multiple(&String::from_utf8_lossy(&output.stdout)).unwrap();
        assert_eq!(manifests.len(), yaml(KUBERNETES).len());
        assert!(manifests.iter().all(|manifest| manifest["metadata"]["namespace"] == "fleetcron"));
    }
}

#[test]
fn a_worker_in_kubernetes_is_who_its_pod_is_and_may_do_nothing_else() {
    let manifests = yaml(KUBERNETES);
    let of_kind = |kind: &str| {
        let mut found = manifests.iter().filter(|manifest| manifest["kind"] == kind);
        let one = found.next().unwrap_or_else(|| panic!("no {kind}"));
        assert!(found.next().is_none(), "one {kind}");
        one
    };
    let set = of_kind("StatefulSet");
    let pod = &set["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    assert_eq!(pod["containers"].as_array().unwrap().len(), 1);

    let variables = container["env"].as_array().unwrap();
    let variable =
        |name: &str| variables.iter().find(|v| v["name"] == name).unwrap_or_else(|| panic!("no {name}"));
    let names = setting_names();
    for variable in variables {
        let name = variable["name"].as_str().unwrap();
        assert!(names.contains(&name.to_owned()), "{name}");
        let secret = ["ETCD_ENDPOINTS", "ETCD_USERNAME", "ETCD_PASSWORD", "MONGODB_URI"]
            .iter()
            .any(|n| name.ends_with(n))
            || name.starts_with("OTEL_")
            || name == "CRON_SECRETS_FILE";
        assert_eq!(variable["valueFrom"]["secretKeyRef"].is_object(), secret, "{name}");
    }
    assert_eq!(variable("CRON_WORKER_ID")["valueFrom"]["fieldRef"]["fieldPath"], "metadata.name");
    assert_eq!(variable("CRON_WORKER_LISTEN")["value"], "0.0.0.0:9070");
    assert_eq!(variable("CRON_DATA_DIR")["value"], "/var/lib/fleetcron");
    for optional in [
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_EXPORTER_OTLP_HEADERS",
        "OTEL_TRACES_SAMPLER_ARG",
        "CRON_SECRETS_FILE",
    ] {
        assert_eq!(variable(optional)["valueFrom"]["secretKeyRef"]["optional"], true, "{optional}");
    }

    for (probe, path) in
        [("startupProbe", "/healthz"), ("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")]
    {
        assert_eq!(container[probe]["httpGet"]["path"], path, "{probe}");
        assert_eq!(container[probe]["httpGet"]["port"], container["ports"][0]["name"], "{probe}");
    }
    assert_eq!(container["ports"][0]["containerPort"], 9070);
    let policy = &of_kind("NetworkPolicy")["spec"];
    assert_eq!(policy["ingress"][0]["ports"][0]["port"], 9070, "metrics have no password");
    assert!(policy["ingress"][0]["from"].is_array(), "from everywhere is no policy");

    // The number of the image's user, who owns the volume.
    for number in ["runAsUser", "runAsGroup", "fsGroup"] {
        assert_eq!(pod["securityContext"][number], 10001, "{number}");
    }
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    let security = &container["securityContext"];
    assert_eq!(security["readOnlyRootFilesystem"], true);
    assert_eq!(security["allowPrivilegeEscalation"], false);
    assert_eq!(security["capabilities"], serde_json::json!({"drop": ["ALL"]}));
    assert_eq!(pod["automountServiceAccountToken"], false);
    assert_eq!(of_kind("ServiceAccount")["automountServiceAccountToken"], false);
    assert_eq!(pod["enableServiceLinks"], false, "a Service called cron-x would stop the workers");
    let (fixed, writable): (Vec<&Value>, Vec<&Value>) =
        container["volumeMounts"].as_array().unwrap().iter().partition(|mount| mount["readOnly"] == true);
    let paths = |mounts: Vec<&Value>| mounts.iter().map(|m| m["mountPath"].clone()).collect::<Vec<Value>>();
    assert_eq!(paths(writable), ["/var/lib/fleetcron", "/tmp"], "what is writable");
    // The secrets of jobs: a pod starts without them, and its user can read them.
    assert_eq!(paths(fixed), ["/etc/fleetcron/jobs"]);
    let volumes = pod["volumes"].as_array().unwrap();
    let secrets = &volumes.iter().find(|volume| volume["name"] == "job-secrets").unwrap()["secret"];
    assert_eq!(secrets["optional"], true);
    assert_eq!(secrets["defaultMode"], 0o440, "the group of fsGroup reads them");

    let labels = &set["spec"]["template"]["metadata"]["labels"];
    let budget = of_kind("PodDisruptionBudget");
    let spread = pod["topologySpreadConstraints"].as_array().unwrap();
    let selectors = [&set["spec"]["selector"], &budget["spec"]["selector"], &policy["podSelector"]];
    for selector in selectors.into_iter().chain(spread.iter().map(|constraint| &constraint["labelSelector"]))
    {
        for (label, value) in selector["matchLabels"].as_object().unwrap() {
            assert_eq!(&labels[label], value, "{selector}");
        }
    }
    let image = container["image"].as_str().unwrap();
    assert!(image.ends_with(concat!(":", env!("CARGO_PKG_VERSION"))), "{image}");
}

/// The names of the settings, from the README's table.
fn setting_names() -> Vec<String> {
    let readme = read("README.md");
    let words = readme
        .split(|c: char| !c.is_ascii_uppercase() && c != '_')
        .filter(|word| ["CRON_", "OTEL_"].iter().any(|prefix| word.starts_with(prefix)));
    let names: Vec<String> = words.map(str::to_owned).collect();
    assert!(names.iter().any(|name| name == "CRON_DRAIN_SECONDS"), "the table was not found");
    names
}

// --- images --------------------------------------------------------------------------------------------------------------------------

#[test]
fn the_build_context_holds_what_the_images_need() {
    let dir = TestDir::new("context");
    context::copy(workspace(), dir.path()).unwrap();
    for path in DOCKERFILES {
        let file = Dockerfile::parse(&read(path)).unwrap_or_else(|why| panic!("{path}: {why:#}"));
        for stage in &file.stages {
            for instruction in &stage.instructions {
                match instruction {
                    Instruction::Copy { from: None, sources, .. } => {
                        for source in sources {
                            assert!(dir.path().join(source).exists(), "{path}: COPY {source}");
                        }
                    }
                    Instruction::Copy { from: Some(from), .. } => {
                        assert!(file.stage(Some(from)).is_some(), "{path}: COPY --from={from}");
                    }
                    Instruction::Run(words) => {
                        let script = Path::new(&words[0]).file_name().unwrap();
                        let script = dir.path().join("infra/images").join(script);
                        let executable = fs::metadata(&script).map(|file| is_executable(&file));
                        assert!(executable.is_ok_and(|yes| yes), "{path}: {}", script.display());
                    }
                    _ => {}
                }
            }
        }
    }
    // Cargo finds every member, and needs nothing else.
    let mut cargo = Command::new("cargo");
    without_cargo_variables(&mut cargo);
    let words = ["metadata", "--locked", "--offline", "--format-version=1", "--filter-platform"];
    let here = format!("{}-unknown-linux-gnu", std::env::consts::ARCH); // other platforms' crates were never fetched
    let output = cargo.current_dir(dir.path()).args(words).arg(here).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(metadata["workspace_members"].as_array().unwrap().len(), 5);
}

fn is_executable(file: &fs::Metadata) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.permissions().mode() & 0o111 == 0o111
}

#[test]
fn the_build_context_is_small_and_holds_no_secret() {
    let rules = Rules::parse(&read(".dockerignore"));
    for secret in [
        ".env",
        "worker/.env.local",
        "local-dev/api.env",
        "common/ca/server.key",
        "functions/client.pem",
        "tests/a.p12",
        ".git/config",
        ".fleetcron/kv.sqlite",
        "local-dev/.fleetcron/kv.sqlite",
        "target/debug/worker",
        "functions/target/lambda/save/bootstrap",
        "infra/worker.env",
        "notes.txt",
    ] {
        assert!(rules.ignore(secret), "{secret} would be sent");
    }
    let files = context::files(workspace()).unwrap();
    let size: u64 = files.iter().map(|file| fs::metadata(workspace().join(file)).unwrap().len()).sum();
    assert!(size < 5_000_000, "{size} bytes in {} files", files.len());
}

#[test]
fn the_images_are_alike_where_they_must_be() {
    let mut entered = 0;
    for path in DOCKERFILES {
        let file = Dockerfile::parse(&read(path)).unwrap_or_else(|why| panic!("{path}: {why:#}"));
        for stage in &file.stages {
            let name = format!("{path}, {}", stage.name.as_deref().unwrap_or("last"));
            let base = format!("debian:{}-slim", provision::DEBIAN);
            assert!(
                stage.from == base || file.stage(Some(&stage.from)).is_some(),
                "{name}: FROM {}",
                stage.from
            );
            for instruction in &stage.instructions {
                if let Instruction::Env(pairs) = instruction {
                    for (variable, _) in pairs {
                        let secret = ["PASSWORD", "SECRET", "TOKEN", "URI", "ENDPOINTS"];
                        assert!(
                            !secret.iter().any(|word| variable.contains(word)),
                            "{name}: {variable} in a layer"
                        );
                    }
                }
            }
            let has = |wanted: &Instruction| stage.instructions.contains(wanted);
            let entry = stage.instructions.iter().find_map(|instruction| match instruction {
                Instruction::Entrypoint(words) => Some(words),
                _ => None,
            });
            let Some(entry) = entry else { continue };
            entered += 1;
            assert_eq!(entry[..2], ["/usr/bin/tini", "--"], "{name}: an init that reaps");
            assert!(has(&Instruction::User(10001, 10001)), "{name}: not root, by number");
            assert!(has(&Instruction::StopSignal("SIGTERM".to_owned())), "{name}");
            let checked = stage.instructions.iter().any(|i| matches!(i, Instruction::HealthCheck(_)));
            assert!(checked || stage.name.as_deref() == Some("functions"), "{name}: no health check");
        }
    }
    assert_eq!(entered, 3, "worker, functions, local-dev");
    let functions = Dockerfile::parse(&read("local-dev/Dockerfile")).unwrap();
    let functions = functions.stage(Some("functions")).expect("docker-compose.yml names it");
    let volumes = Instruction::Volume(vec![PathBuf::from("/cargo"), PathBuf::from("/target")]);
    assert!(functions.instructions.contains(&volumes));
    let pinned = read("infra/images/cargo-lambda.txt");
    assert!(
        pinned.contains(&format!("{} ", provision::CARGO_LAMBDA_PACKAGE)),
        "the tests' version is another"
    );
}

#[test]
fn the_images_scripts_end_at_the_first_fault_and_say_what_is_missing() {
    for entry in fs::read_dir(workspace().join("infra/images")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "sh") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let name = path.display();
        assert!(text.lines().any(|line| line == "set -eu"), "{name}");
        assert!(
            text.starts_with("#!/bin/sh\n# ") || text.starts_with("#!/bin/bash\n# "),
            "{name} says what it is for"
        );
        // Each wants arguments.
        let output = Command::new(&path).current_dir("/").output().unwrap();
        assert!(!output.status.success(), "{name}");
        let own = path.file_name().unwrap().to_string_lossy().into_owned();
        assert!(said(&output).contains(&own), "{name}: {}", said(&output));
    }
}
