//! Secrets of files; those of AWS stand on a shelf.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use async_trait::async_trait;
use common::secrets::Source;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::exec::supplies::Supplies;

/// Keeps the secret `here`, says nothing of `silent`, and counts how often it is asked.
#[derive(Default)]
pub(in crate::exec) struct OneSecret(AtomicUsize);

#[async_trait]
impl Vault for OneSecret {
    async fn read(&self, sources: &[Source]) -> Vec<Result<String, Problem>> {
        self.0.fetch_add(1, Relaxed);
        if sources[0].name == "silent" {
            std::future::pending::<()>().await;
        }
        let says = || "arn:aws:sts::1:assumed-role/worker may not".to_owned();
        let read = |source: &Source| match source.name.as_str() {
            "here" => Ok("of-the-shelf".to_owned()),
            name => {
                Err(Problem::Denied { action: "ssm:GetParameter", resource: name.to_owned(), says: says() })
            }
        };
        sources.iter().map(read).collect()
    }
}

/// A directory with the operator's file, and secrets in files.
pub(in crate::exec) struct Scene {
    pub(in crate::exec) dir: TempDir,
    vault: Arc<OneSecret>,
}

impl Scene {
    /// With these secrets in files, each for all jobs.
    pub(in crate::exec) fn new(files: &[(&str, &str)]) -> Self {
        let scene = Self { dir: tempfile::tempdir().unwrap(), vault: Arc::default() };
        let mut all = serde_json::Map::new();
        for (name, value) in files {
            scene.put(name, value);
            all.insert((*name).to_owned(), scene.kept(name));
        }
        scene.say(&all.into());
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn kept(&self, name: &str) -> Value {
        json!({"file": self.path(name)})
    }

    pub(in crate::exec) fn put(&self, name: &str, value: &str) {
        fs::write(self.path(name), value).unwrap();
    }

    /// Also with what the vault keeps, by the same names.
    pub(in crate::exec) fn with_vault(self, names: &[&str]) -> Self {
        let mut all: Value = serde_json::from_slice(&fs::read(self.path("secrets.json")).unwrap()).unwrap();
        for name in names {
            all[*name] = format!("ssm:{name}").into();
        }
        self.say(&all);
        self
    }

    fn say(&self, file: &Value) {
        fs::write(self.path("secrets.json"), file.to_string()).unwrap();
    }

    pub(in crate::exec) fn secrets(&self) -> Arc<Secrets> {
        Arc::new(Secrets::new(Some(&self.path("secrets.json")), Arc::clone(&self.vault) as Arc<dyn Vault>))
    }

    /// These secrets, and no traces.
    pub(in crate::exec) fn supplies(&self) -> Supplies {
        Supplies { secrets: self.secrets(), ..Supplies::default() }
    }
}

fn naming(env: &Value) -> Execution {
    let env = common::domain::execution::Environment::parse(env).unwrap();
    Execution { env: Some(env), ..Execution::default() }
}

async fn value(secrets: &Secrets, job: &str, name: &str) -> Result<String, String> {
    let reference = format!("secret:{name}");
    let execution = naming(&json!({ "A": reference }));
    let resolved = secrets.of(&JobName::parse(job).unwrap(), &execution).await?;
    Ok(resolved.in_value(&reference).to_owned())
}

#[tokio::test]
async fn a_secret_and_the_operators_file_are_as_they_are_now() {
    let scene = Scene::new(&[("db", "first-value\n")]);
    let secrets = scene.secrets();
    assert_eq!(value(&secrets, "a", "db").await.unwrap(), "first-value");
    scene.put("db", "second-value");
    assert_eq!(value(&secrets, "a", "db").await.unwrap(), "second-value");
    let unknown = "secret:new is not in this worker's CRON_SECRETS_FILE";
    assert_eq!(value(&secrets, "a", "new").await.unwrap_err(), unknown);
    scene.put("new", "another-value");
    scene.say(&json!({"new": {"file": scene.path("new"), "jobs": ["billing-"]}}));
    assert_eq!(value(&secrets, "billing-x", "new").await.unwrap(), "another-value");
    assert!(value(&secrets, "a", "new").await.unwrap_err().contains("secret:new is not for this job"));
    assert!(value(&secrets, "a", "db").await.unwrap_err().contains("secret:db is not in"));
    // A file that is half written, or gone, changes nothing.
    fs::write(scene.path("secrets.json"), "{\"new\":").unwrap();
    assert_eq!(value(&secrets, "billing-x", "new").await.unwrap(), "another-value");
    fs::remove_file(scene.path("secrets.json")).unwrap();
    assert_eq!(value(&secrets, "billing-x", "new").await.unwrap(), "another-value");
}

#[tokio::test]
async fn a_run_is_told_which_secret_it_cannot_have_and_why_and_no_value() {
    let scene = Scene::new(&[("short", "geheim\n"), ("nul", "geheim-\0-geheim"), ("gone", "")]);
    let large = "geheim".repeat(5_000);
    scene.put("large", &large);
    fs::remove_file(scene.path("gone")).unwrap();
    scene.say(&json!({
        "short": scene.kept("short"), "nul": scene.kept("nul"), "gone": scene.kept("gone"), "large": scene.kept("large"),
        "dir": {"file": scene.dir.path()}, "no": "ssm:/fleetcron/jobs/no",
    }));
    let secrets = scene.secrets();
    for (name, says) in [
        ("short", "secret:short has less than 8 bytes"),
        ("nul", "secret:nul has a NUL character"),
        ("gone", "secret:gone cannot be read: its file: No such file"),
        ("large", "secret:large cannot be read: its file: longer than 16384 bytes"),
        ("dir", "secret:dir cannot be read: its file: not a file"),
        ("no", "secret:no cannot be read: ssm: the worker may not read it; the worker's log says more"),
    ] {
        let why = value(&secrets, "a", name).await.unwrap_err();
        assert!(why.contains(says), "{why}");
        for hidden in ["geheim", "assumed-role", "/fleetcron", scene.dir.path().to_str().unwrap()] {
            assert!(!why.contains(hidden), "{why}");
        }
    }
    let both = naming(&json!({"A": "secret:gone", "B": "secret:short", "C": "plain"}));
    let why = secrets.of(&JobName::parse("a").unwrap(), &both).await.err().unwrap();
    assert!(why.contains("secret:gone") && why.contains("; secret:short"), "{why}");
    let none = Secrets::default();
    assert!(value(&none, "a", "db").await.unwrap_err().contains("this worker has no CRON_SECRETS_FILE"));
    assert!(!format!("{secrets:?}").contains("geheim"));
}

#[tokio::test]
async fn what_aws_keeps_is_read_once_for_many_runs() {
    let scene = Scene::new(&[]).with_vault(&["here"]);
    let secrets = scene.secrets();
    for _run in 0..5 {
        assert_eq!(value(&secrets, "a", "here").await.unwrap(), "of-the-shelf");
    }
    assert_eq!(scene.vault.0.load(Relaxed), 1);
}
