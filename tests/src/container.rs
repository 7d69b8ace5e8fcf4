//! Runs our images without docker: a Dockerfile's steps in a Debian directory, and its entry point as process 1 of namespaces.
//!
//! Everything is mounted in a mount namespace of the process that needs it: nothing stays mounted, however a test ends.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail};
use local_dev::native::process::{Process, get};
use local_dev::native::provision::{self, DEBIAN};
use local_dev::native::{target, workspace};
use rustix::process::{Pid, Signal};

use crate::context;
use crate::dockerfile::{Dockerfile, Instruction, Stage, expand};
use crate::fixtures::{Fleet, SOON, skip, wait_for};

/// What docker gives every process.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Fits the base of our images.
const BASE: &str = "debian:bookworm-slim";
/// Changes the root. Arguments: the root; `ro` or `rw`; a number of pairs of directories, host and inside; `--`; the command.
const ENTER: &str = r#"
set -eu
root=$1 how=$2
shift 2
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero full random urandom tty; do
    : >"$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
ln -s /proc/self/fd "$root/dev/fd"
# The network is the host's, and so are its names.
for file in /etc/resolv.conf /etc/hosts; do
    [ -e "$root$file" ] || : >"$root$file"
    mount --bind "$file" "$root$file"
done
while [ "$1" != -- ]; do
    mount --bind "$1" "$root$2"
    shift 2
done
shift
if [ "$how" = ro ]; then
    mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
    mount -o remount,bind,ro "$root"
fi
exec chroot "$root" "$@"
"#;

/// An image, made in a directory.
#[derive(Debug)]
pub struct Image {
    root: PathBuf,
    environment: Vec<(String, String)>,
    user: (u32, u32),
    workdir: PathBuf,
    /// What is kept outside of the image.
    pub volumes: Vec<PathBuf>,
    entrypoint: Vec<String>,
    command: Vec<String>,
    /// What ends it.
    pub stop_signal: String,
    health_check: Vec<String>,
    /// What it says of itself.
    pub labels: Vec<(String, String)>,
    /// The words of each RUN, to do them again.
    steps: Vec<Vec<String>>,
}

/// Whether there is a Debian to run images' steps in; else the test says why it does not run.
#[must_use]
pub fn has_debian(test: &str) -> bool {
    let found = provision::debian_root_path().with_extension("stamp").exists()
        && rustix::process::geteuid().is_root();
    if !found {
        skip(test, "no Debian root in target/tools, or no root rights to change into it");
    }
    found
}

impl Image {
    /// Makes the last stage of a Dockerfile, or that of the name given, in `root`. What it copies from other stages is taken from
    /// `built`, as which their results stand on this machine.
    ///
    /// # Errors
    /// When a step fails; with the end of what it said.
    pub fn make(dockerfile: &Path, stage: Option<&str>, root: &Path, built: &Path) -> anyhow::Result<Self> {
        let text =
            fs::read_to_string(dockerfile).with_context(|| format!("read {}", dockerfile.display()))?;
        let file = Dockerfile::parse(&text).with_context(|| format!("{}", dockerfile.display()))?;
        let stage = file.stage(stage).context("no such stage")?;
        if stage.from != BASE {
            bail!("the base is {}, and the Debian here is {DEBIAN}", stage.from);
        }
        let context_dir = root.with_extension("context");
        context::copy(workspace(), &context_dir)?;
        command(&["cp", "-a", "--reflink=auto"], &[&provision::debian_root_path(), root])?;
        let mut image = Self {
            root: root.to_owned(),
            environment: vec![("PATH".to_owned(), PATH.to_owned())],
            user: (0, 0),
            workdir: PathBuf::from("/"),
            volumes: Vec::new(),
            entrypoint: Vec::new(),
            command: Vec::new(),
            stop_signal: String::new(),
            health_check: Vec::new(),
            labels: Vec::new(),
            steps: Vec::new(),
        };
        image.perform(stage, &context_dir, built)?;
        fs::remove_dir_all(&context_dir)?;
        Ok(image)
    }

    fn perform(&mut self, stage: &Stage, context_dir: &Path, built: &Path) -> anyhow::Result<()> {
        let mut arguments: Vec<(String, String)> = Vec::new();
        for instruction in &stage.instructions {
            let variables = [arguments.as_slice(), self.environment.as_slice()].concat();
            let all = |pairs: &[(String, String)]| -> anyhow::Result<Vec<(String, String)>> {
                pairs.iter().map(|(name, value)| Ok((name.clone(), expand(value, &variables)?))).collect()
            };
            match instruction {
                Instruction::Arg(name, default) => {
                    arguments.push((name.clone(), expand(default, &variables)?))
                }
                Instruction::Env(pairs) => {
                    for (name, value) in all(pairs)? {
                        self.environment.retain(|(known, _)| *known != name);
                        self.environment.push((name, value));
                    }
                }
                Instruction::Label(pairs) => self.labels.extend(all(pairs)?),
                Instruction::Copy { from, sources, target } => {
                    for source in sources {
                        // A stage's result is a file of the directory that build.sh was given.
                        let source = match from {
                            None => context_dir.join(source),
                            Some(_) => built.join(Path::new(source).file_name().context("a file")?),
                        };
                        self.copy(&source, target)?;
                    }
                }
                Instruction::Run(words) => {
                    let words: Vec<String> =
                        words.iter().map(|word| expand(word, &variables)).collect::<Result<_, _>>()?;
                    self.run(&words)?;
                    self.steps.push(words);
                }
                Instruction::User(uid, gid) => self.user = (*uid, *gid),
                Instruction::Workdir(path) => {
                    fs::create_dir_all(self.inside(path))?;
                    self.workdir.clone_from(path);
                }
                Instruction::Volume(paths) => self.volumes.extend(paths.iter().cloned()),
                Instruction::Entrypoint(words) => self.entrypoint.clone_from(words),
                Instruction::Cmd(words) => self.command.clone_from(words),
                Instruction::StopSignal(name) => self.stop_signal.clone_from(name),
                Instruction::HealthCheck(words) => self.health_check.clone_from(words),
                Instruction::Expose(_) => {}
            }
        }
        Ok(())
    }

    fn copy(&self, source: &Path, target: &str) -> anyhow::Result<()> {
        let mut to = self.inside(&self.workdir.join(target));
        if target.ends_with('/') {
            to.push(
                source
                    .file_name()
                    .context("a directory is copied as its contents, which is not in use here")?,
            );
        }
        fs::create_dir_all(to.parent().context("a parent")?)?;
        fs::copy(source, &to).with_context(|| format!("COPY {} {target}", source.display()))?;
        Ok(lchown(&to, Some(0), Some(0))?)
    }

    /// A path of the image, as this machine sees it.
    #[must_use]
    pub fn inside(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Does every RUN again.
    ///
    /// # Errors
    /// When one fails; with the end of what it said.
    pub fn run_steps_again(&self) -> anyhow::Result<()> {
        self.steps.iter().try_for_each(|words| self.run(words))
    }

    fn run(&self, words: &[String]) -> anyhow::Result<()> {
        // The machine's proxies, which docker, too, passes on without the Dockerfile's saying so.
        let proxies = ["http_proxy", "https_proxy"].map(|name| (name, proxy(name)));
        let proxies: Vec<(&str, &str)> = proxies
            .iter()
            .map(|(name, url)| (*name, url.as_str()))
            .filter(|(_, url)| !url.is_empty())
            .collect();
        let mut command = self.enter("rw", &[]);
        command.args(self.environment_words(&proxies)).args(words);
        let output = command.output().with_context(|| format!("RUN {}", words.join(" ")))?;
        if output.status.success() {
            return Ok(());
        }
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        let lines: Vec<&str> = said.lines().collect();
        bail!(
            "RUN {}: {}\n{}",
            words.join(" "),
            output.status,
            lines[lines.len().saturating_sub(20)..].join("\n")
        )
    }

    /// `unshare … chroot`: what comes after is run in the image.
    fn enter(&self, how: &str, mounts: &[(PathBuf, PathBuf)]) -> Command {
        let mut command = Command::new("unshare");
        command.args([
            "--mount",
            "--pid",
            "--ipc",
            "--uts",
            "--fork",
            "--kill-child",
            "--propagation",
            "private",
        ]);
        command.args(["sh", "-c", ENTER, "enter"]).arg(&self.root).arg(how);
        for (host, inside) in mounts {
            command.arg(host).arg(inside);
        }
        command.arg("--");
        command
    }

    /// `env` with the image's environment and nothing else.
    fn environment_words(&self, more: &[(&str, &str)]) -> Vec<String> {
        let mut words =
            vec!["env".to_owned(), "-i".to_owned(), format!("--chdir={}", self.workdir.display())];
        words.extend(self.environment.iter().map(|(name, value)| format!("{name}={value}")));
        words.extend(more.iter().map(|(name, value)| format!("{name}={value}")));
        words
    }

    /// `setpriv`: the image's user, with nothing that it could become more by, as Kubernetes is told.
    fn user_words(&self) -> Vec<String> {
        let (uid, gid) = self.user;
        let drop =
            ["--clear-groups", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"].map(str::to_owned);
        [vec!["setpriv".to_owned(), format!("--reuid={uid}"), format!("--regid={gid}")], drop.to_vec()]
            .concat()
    }

    /// Starts the entry point as its user, on a read-only root with `/tmp` and its volumes writable.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn start(
        &self,
        fleet: &Fleet,
        name: &str,
        settings: &[(&str, &str)],
    ) -> anyhow::Result<Container> {
        let mut mounts = Vec::new();
        for volume in &self.volumes {
            // A new volume takes over the owner of the directory that it is put over.
            let data = fleet.dir.path().join(format!("{name}-volume{}", mounts.len()));
            fs::create_dir_all(&data)?;
            let owner = fs::metadata(self.inside(volume))?;
            lchown(&data, Some(owner.uid()), Some(owner.gid()))?;
            mounts.push((data, volume.clone()));
        }
        let mut command = self.enter("ro", &mounts);
        command.args(self.user_words()).args(self.environment_words(settings));
        command.args(&self.entrypoint).args(&self.command);
        let process = fleet.site.start(name, command)?;
        let settings =
            settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let volume = mounts.into_iter().next().map(|(host, _)| host);
        let mut container = Container { process, init: Pid::INIT, settings, volume };
        let outer = container.process.pid();
        container.init = wait_for("the first process of the container", SOON, async || {
            // One that ends at once may be gone before it was seen; then nobody enters it either.
            let ended = container.process.ended().map(|_| Pid::INIT);
            let first = children(i32::try_from(outer).ok()?).first().copied();
            first.and_then(Pid::from_raw).or(ended)
        })
        .await;
        Ok(container)
    }

    /// What the health check says: whether it succeeded, and its output.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn health(&self, container: &Container) -> anyhow::Result<(bool, String)> {
        let settings: Vec<(&str, &str)> =
            container.settings.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let mut command = Command::new("nsenter");
        command.arg(format!("--target={}", container.init.as_raw_nonzero()));
        command.args(["--mount", "--pid", "--root", "--wd=/", "--"]).args(self.user_words());
        let output = command.args(self.environment_words(&settings)).args(&self.health_check).output()?;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
    }
}

/// A started image.
pub struct Container {
    process: Process,
    init: Pid,
    settings: Vec<(String, String)>,
    volume: Option<PathBuf>,
}

impl Container {
    /// The host's directory that is its first volume.
    ///
    /// # Panics
    /// When the image has none.
    #[must_use]
    pub fn volume(&self) -> &Path {
        self.volume.as_deref().expect("the image has a volume")
    }

    /// Waits until it answers 200.
    ///
    /// # Errors
    /// When it ends before, or takes too long; with the end of its log.
    pub async fn ready(&mut self, address: SocketAddr, path: &str) -> anyhow::Result<()> {
        self.process.ready(async || get(address, path).await.is_some_and(|(status, _)| status == 200)).await
    }

    /// What `docker stop` does first: the signal, to process 1 alone.
    pub fn stop(&self) {
        let _gone = rustix::process::kill_process(self.init, Signal::TERM);
    }

    /// Its exit code, once it has ended.
    ///
    /// # Errors
    /// When it does not end, or was killed.
    pub async fn exit_code(&mut self, limit: Duration) -> anyhow::Result<i32> {
        self.process.wait(limit).await?.code().context("it was killed")
    }

    /// The end of its log.
    #[must_use]
    pub fn tail(&self) -> String {
        self.process.tail()
    }

    /// The programs that process 1 is the parent of, dead ones that it has not reaped included.
    #[must_use]
    pub fn children_of_init(&self) -> Vec<String> {
        let name = |pid: i32| fs::read_to_string(format!("/proc/{pid}/comm")).ok();
        children(self.init.as_raw_nonzero().get())
            .into_iter()
            .filter_map(name)
            .map(|n| n.trim().to_owned())
            .collect()
    }
}

fn children(pid: i32) -> Vec<i32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Builds a program by the images' own script, on this machine and quickly, and returns the directory with it.
///
/// # Errors
/// When it does not build; with the end of what the script said.
pub fn build(program: &str) -> anyhow::Result<PathBuf> {
    let out = target().join("images");
    let mut script = Command::new(workspace().join("infra/images/build.sh"));
    local_dev::native::servers::without_cargo_variables(&mut script);
    script.current_dir(workspace()).arg("dev").arg(&out).arg(program);
    let output = script.output().context("run infra/images/build.sh")?;
    if !output.status.success() {
        bail!("infra/images/build.sh: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(out)
}

fn command(words: &[&str], paths: &[&Path]) -> anyhow::Result<()> {
    let status = Command::new(words[0]).args(&words[1..]).args(paths).status()?;
    if !status.success() {
        bail!("{}: {status}", words.join(" "));
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "it is the machine's setting and none of the product's")]
fn proxy(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}
