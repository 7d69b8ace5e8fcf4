//! The native stack: the services of `local-dev/docker-compose.yml` as plain processes, without docker.

pub mod compose;
pub mod guard;
pub mod plan;
pub mod ports;
pub mod process;
pub mod provision;
pub mod servers;
pub mod stack;

use std::path::{Path, PathBuf};

/// The root of the workspace that this program was built from.
#[must_use]
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a member lies below its workspace")
}

/// Where everything goes that is fetched or built outside of Cargo: the workspace's `target`.
#[must_use]
pub fn target() -> PathBuf {
    workspace().join("target")
}

/// Where Cargo put this program, and so the others of the same profile (`worker`, `local-dev`, …).
///
/// # Errors
/// When the system does not tell which program this is.
pub fn programs() -> std::io::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let dir = own.parent().unwrap_or(Path::new("."));
    // Test programs lie one directory deeper.
    Ok(if dir.ends_with("deps") { dir.parent().unwrap_or(dir).to_path_buf() } else { dir.to_path_buf() })
}
