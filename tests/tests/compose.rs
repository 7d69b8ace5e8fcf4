//! `local-dev/docker-compose.yml`: docker compose's own library reads it without a complaint and as the native launcher does, and it says
//! what it has to. Without that library (`cargo run -p tests` builds it) the tests that need it say SKIPPED.
//!
//! That containers come up from it is not tried here: there is no docker engine to try it with.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use local_dev::native::compose::{Compose, Service, Source};
use local_dev::native::ports::free_port;
use local_dev::native::{provision, workspace};
use serde_json::{Value, json};
use tests::dockerfile::{Dockerfile, Instruction};
use tests::fixtures::{TestDir, program, skip};

/// What compose-go says of a file; `None`, loudly, where it was not built.
fn library(test: &str, file: &Path) -> Option<Result<Value, String>> {
    if !provision::compose_path().exists() {
        skip(test, "no compose library in target/servers");
        return None;
    }
    let output = Command::new(provision::compose_path()).arg(file).env_clear().output().unwrap();
    Some(if output.status.success() {
        Ok(serde_json::from_slice(&output.stdout).unwrap())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    })
}

/// The workspace's own file, as compose-go reads it.
fn project(test: &str) -> Option<Value> {
    library(test, &Compose::path()).map(Result::unwrap)
}

fn services(project: &Value) -> impl Iterator<Item = (&String, &Value)> {
    project["services"].as_object().unwrap().iter()
}

fn workers(compose: &Compose) -> Vec<(&String, &Service)> {
    let found: Vec<_> = compose
        .services
        .iter()
        .filter(|(_, s)| s.words().next().is_some_and(|word| word == "worker"))
        .collect();
    assert_eq!(found.len(), 2);
    found
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap()
}

#[test]
fn the_library_loads_it_without_a_warning() {
    let Some(project) = project("compose-warnings") else { return };
    assert_eq!(project["warnings"], json!([]));
    assert_eq!(project["name"], "fleetcron");
}

#[test]
fn the_library_would_say_what_is_wrong() {
    let dir = TestDir::new("compose-faults");
    let text = std::fs::read_to_string(Compose::path()).unwrap();
    for (part, other, named) in [
        ("init: true", "initial: true", "initial"),
        ("- mongo-data:/data/db", "- other-data:/data/db", "other-data"),
        ("name: fleetcron\n", "name: fleetcron\nversion: \"3\"\n", "version"),
        ("CRON_WORKER_ID: worker-1", "CRON_WORKER_ID: $HERE", "HERE"),
        ("      etcd:\n        condition", "      etdc:\n        condition", "etdc"),
    ] {
        assert!(text.contains(part), "{part}");
        let file = dir.path().join("docker-compose.yml");
        std::fs::write(&file, text.replacen(part, other, 1)).unwrap();
        let Some(read) = library("compose-faults", &file) else { return };
        let said = read.map_or_else(|why| why, |project| project["warnings"].to_string());
        assert!(said.contains(named), "{other}: {said}");
    }
}

/// The launcher's reading in the library's words.
fn as_the_library_says(service: &Service) -> Value {
    let words = |words: &[String]| if words.is_empty() { Value::Null } else { json!(words) };
    let mounts: Vec<Value> = service
        .mounts
        .iter()
        .map(|mount| {
            let (kind, source) = match &mount.source {
                Source::Volume(name) => ("volume", name.clone()),
                Source::Workspace => ("bind", workspace().display().to_string()),
            };
            json!({"type": kind, "source": source, "target": mount.target, "readOnly": mount.read_only})
        })
        .collect();
    let ports: Vec<Value> = service
        .ports
        .iter()
        .map(|port| {
            json!({
                "hostIp": "127.0.0.1", "published": port.host.to_string(), "target": port.container, "protocol": "tcp",
            })
        })
        .collect();
    let health = &service.health;
    let test: Vec<&str> = std::iter::once("CMD").chain(health.test.iter().map(String::as_str)).collect();
    let depends_on: BTreeMap<&str, &str> =
        service.depends_on.iter().map(|name| (name.as_str(), "service_healthy")).collect();
    json!({
        "entrypoint": words(&service.entrypoint),
        "command": words(&service.command),
        "environment": service.environment,
        "workingDir": service.working_dir.clone().unwrap_or_default(),
        "mounts": if mounts.is_empty() { Value::Null } else { json!(mounts) },
        "ports": if ports.is_empty() { Value::Null } else { json!(ports) },
        "dependsOn": depends_on,
        "health": {
            "test": test,
            "intervalMs": ms(health.interval),
            "timeoutMs": ms(health.timeout),
            "startPeriodMs": ms(health.start_period),
            "retries": health.retries,
        },
        "stopSignal": match service.stop_signal {
            rustix::process::Signal::TERM => "SIGTERM",
            rustix::process::Signal::INT => "SIGINT",
            other => panic!("{other:?}"),
        },
        "stopGraceMs": ms(service.stop_grace),
    })
}

#[test]
fn the_launcher_reads_it_as_the_library_does() {
    let Some(project) = project("compose-equal") else { return };
    let compose = Compose::load().unwrap();
    let names: BTreeSet<&String> = services(&project).map(|(name, _)| name).collect();
    assert_eq!(names, compose.services.keys().collect());
    for (name, service) in services(&project) {
        let ours = as_the_library_says(&compose.services[name]);
        for (key, value) in ours.as_object().unwrap() {
            assert_eq!(&service[key], value, "{name}: {key}");
        }
    }
}

#[test]
fn nothing_is_published_beyond_this_machine() {
    let Some(project) = project("compose-ports") else { return };
    let mut hosts = BTreeSet::new();
    for (name, service) in services(&project) {
        for port in service["ports"].as_array().unwrap() {
            assert_eq!(port["hostIp"], "127.0.0.1", "{name}");
            assert!(hosts.insert(port["published"].to_string()), "{name}: published twice: {port}");
        }
    }
    let listen = common::config::Settings::default().listen;
    assert_eq!(Compose::load().unwrap().service("functions").unwrap().ports[0].host, listen.port());
}

#[test]
fn every_service_has_what_a_long_life_wants() {
    let Some(project) = project("compose-life") else { return };
    for (name, service) in services(&project) {
        assert_eq!(service["restart"], "unless-stopped", "{name}");
        assert!(service["logOptions"]["max-size"].is_string(), "{name}: logs are rotated");
        assert!(service["logOptions"]["max-file"].is_string(), "{name}: logs are rotated");
        let built = !service["build"].is_null();
        assert_eq!(
            built,
            service["init"] == true,
            "{name}: what is built here runs commands, and needs an init that reaps"
        );
        assert_eq!(
            built,
            service["image"] == "",
            "{name}: an image by name would be looked for in a registry first"
        );
        if !built {
            let (_, tag) = service["image"].as_str().unwrap().rsplit_once(':').unwrap();
            assert_eq!(tag.split('.').count(), 3, "{name}: {tag} is no whole version");
        }
    }
    let tag = project["services"]["etcd"]["image"].as_str().unwrap().rsplit_once(":v").unwrap().1;
    let version: Vec<u32> = tag.split('.').map(|number| number.parse().unwrap()).collect();
    assert!(version >= vec![3, 5, 8], "{tag}");
}

#[test]
fn etcd_compacts_itself_and_has_a_quota() {
    let compose = Compose::load().unwrap();
    let etcd = compose.service("etcd").unwrap();
    let flag = |name: &str| {
        let prefix = format!("--{name}=");
        let found = etcd.words().find_map(|word| word.strip_prefix(&prefix));
        found.unwrap_or_else(|| panic!("no --{name}")).to_owned()
    };
    assert_eq!(flag("auto-compaction-mode"), "periodic");
    assert_eq!(flag("auto-compaction-retention"), "5m");
    let quota: u64 = flag("quota-backend-bytes").parse().unwrap();
    // etcd's own default, and what it warns beyond.
    assert!((2 << 30..=8 << 30).contains(&quota), "{quota}");
}

#[test]
fn workers_are_given_longer_to_stop_than_their_drain_takes() {
    let last_records = worker::LAST_RECORDS_MAX.as_secs();
    let compose = Compose::load().unwrap();
    for (name, worker) in workers(&compose) {
        let drain: u64 = worker.environment["CRON_DRAIN_SECONDS"].parse().unwrap();
        let grace = worker.stop_grace.as_secs();
        assert!(grace > drain + last_records, "{name}: {grace} s for {drain} s and the last records");
    }
}

#[test]
fn workers_differ_in_name_data_and_port_only() {
    let compose = Compose::load().unwrap();
    let mut seen = BTreeSet::new();
    let mut rest = BTreeSet::new();
    for (name, worker) in workers(&compose) {
        assert_eq!(&worker.environment["CRON_WORKER_ID"], name);
        let [mount] = worker.mounts.as_slice() else { panic!("{name}: {:?}", worker.mounts) };
        assert_eq!(mount.target, worker.environment["CRON_DATA_DIR"], "{name}: its data outlive it");
        let Source::Volume(volume) = &mount.source else { panic!("{name}: {mount:?}") };
        assert!(seen.insert(volume.clone()), "{name}: two workers cannot have one data directory");
        let mut other = worker.clone();
        other.environment.remove("CRON_WORKER_ID");
        other.mounts.clear();
        other.ports.clear();
        rest.insert(format!("{other:?}"));
    }
    assert_eq!(rest.len(), 1, "{rest:#?}");
}

#[test]
fn the_functions_are_all_built_before_they_are_served() {
    let compose = Compose::load().unwrap();
    let functions = compose.service("functions").unwrap();
    let words: Vec<&String> = functions.words().collect();
    assert_eq!(&words[..2], ["bash", "-euc"], "a failed build ends it");
    let lines: Vec<&str> = words[2].lines().collect();
    let [build, watch] = lines.as_slice() else { panic!("{lines:?}") };
    // Every program of the package (`routes.rs`: these are the routes' functions), and the package that is served.
    assert_eq!(*build, "cargo build --locked -p functions");
    assert!(watch.starts_with("exec cargo lambda watch --locked -p functions "), "{watch}");
    let mount = |path: &str| functions.mounts.iter().find(|mount| mount.target == path).unwrap();
    for cache in ["/cargo", "/target"] {
        assert!(matches!(mount(cache).source, Source::Volume(_)), "{cache} is kept");
    }
    assert_eq!(mount("/src").source, Source::Workspace);
    assert_eq!(functions.working_dir.as_deref(), Some("/src"));
    assert!(functions.health.start_period >= Duration::from_secs(15 * 60), "a first build takes minutes");
}

#[tokio::test]
async fn every_setting_is_one_that_the_programs_know() {
    let worker = program("worker").await;
    let check = |environment: &BTreeMap<String, String>| {
        let mut worker = Command::new(&worker);
        let output = worker.arg("--check-config").env_clear().envs(environment).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (name, service) in Compose::load().unwrap().services {
        let (good, said) = check(&service.environment);
        assert!(good, "{name}: {said}");
        assert!(service.environment.keys().all(|key| key.starts_with("CRON_")), "{name}");
    }
    let (good, said) =
        check(&BTreeMap::from([("CRON_WORKER_LISTENS".to_owned(), "0.0.0.0:9070".to_owned())]));
    assert!(!good && said.contains("CRON_WORKER_LISTEN"), "an unknown one would be found: {said}");
}

/// Answers one connection after the other as it is told, on a port of its own.
fn answering(answer: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read == 1) {
                head.push(byte[0]);
            }
            let _closed_early = stream.write_all(answer.as_bytes());
        }
    });
    port
}

#[test]
fn the_health_checks_that_are_scripts_say_yes_to_200_and_no_to_anything_else() {
    for (name, port, path) in
        [("functions", 8070, "/"), ("worker-1", 9070, "/readyz"), ("worker-2", 9070, "/readyz")]
    {
        let test = Compose::load().unwrap().service(name).unwrap().health.test.clone();
        let passes = |here: u16| {
            let words = test.iter().map(|word| word.replace(&format!("/{port}"), &format!("/{here}")));
            let words: Vec<String> = words.collect();
            let mut command = Command::new(&words[0]);
            let output = command.args(&words[1..]).stdin(Stdio::null()).output().unwrap();
            output.status.success()
        };
        assert!(passes(answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")), "{name}: 200");
        assert!(passes(answering("HTTP/1.0 200 OK\r\n\r\n")), "{name}: 200 by HTTP/1.0");
        for other in
            ["HTTP/1.1 503 Service Unavailable\r\n\r\n200", "HTTP/1.1 404 Not Found\r\n\r\n", "", "200"]
        {
            assert!(!passes(answering(other)), "{name}: {other:?}");
        }
        let nobody = free_port().unwrap();
        assert!(!passes(nobody), "{name}: nobody listens");
        assert!(test[2].contains(&format!("GET {path} HTTP/1.1\\r\\nHost: ")), "{name}");
    }
}

#[test]
fn what_is_built_has_a_dockerfile_with_the_stage_the_arguments_and_the_directories_of_its_volumes() {
    let Some(project) = project("compose-dockerfiles") else { return };
    let mut built = BTreeSet::new();
    for (name, service) in services(&project).filter(|(_, service)| !service["build"].is_null()) {
        let build = &service["build"];
        assert_eq!(build["context"], workspace().display().to_string(), "{name}");
        let path = workspace().join(build["dockerfile"].as_str().unwrap());
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let file = Dockerfile::parse(&text).unwrap_or_else(|why| panic!("{}: {why:#}", path.display()));
        let target = build["target"].as_str().unwrap();
        let stage = file.stage((!target.is_empty()).then_some(target));
        let stage = stage.unwrap_or_else(|| panic!("{name}: no stage {target:?} in {}", path.display()));
        for argument in build["arguments"].as_array().unwrap() {
            let declares = |instruction: &Instruction| matches!(instruction, Instruction::Arg(declared, _) if argument == declared);
            let mut instructions = file.stages.iter().flat_map(|stage| &stage.instructions);
            assert!(instructions.any(declares), "{name}: no ARG {argument}");
        }
        // A new volume gets its owner from the image's directory: without one it would be root's, and the program is not root.
        let mut volumes = BTreeSet::new();
        for instruction in &stage.instructions {
            if let Instruction::Volume(paths) = instruction {
                volumes.extend(paths.iter().map(PathBuf::as_path));
            }
        }
        for mount in service["mounts"].as_array().unwrap().iter().filter(|mount| mount["type"] == "volume") {
            let target = mount["target"].as_str().unwrap();
            assert!(volumes.contains(Path::new(target)), "{name}: {target} is no VOLUME: {volumes:?}");
        }
        built.insert(name.clone());
    }
    assert_eq!(built, ["functions", "worker-1", "worker-2"].map(str::to_owned).into());
}
