//! The shell of a command: which one, and with what environment, directory, user and limits it is started.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use common::config;
use common::domain::execution::{Environment, Execution, Limits};
use common::domain::run::OpenRun;
use common::domain::trace;
use rustix::process::{Resource, Rlimit, getrlimit, getuid, setrlimit};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use tokio::process::Command;

use super::account::Account;
use super::secrets::Resolved;
use super::supplies::Supplies;
use super::work::Work;
use crate::guardian::Guard;
use crate::traces;

/// A process that has used up its `cpuSeconds` is told so by SIGXCPU, and killed when it goes on for so many seconds more.
const CPU_SECONDS_BEYOND: u64 = 1;
/// Variables that say how bash itself begins, beside those that begin with `BASH`: with one of them it might not wait at a gate, but begin
/// with the command at once.
const SHELLS_OWN: [&str; 6] =
    ["POSIXLY_CORRECT", "POSIX_PEDANTIC", "SHELLOPTS", "SHLVL", "SSH_CLIENT", "SSH2_CLIENT"];

/// Goes with [`trace::VARIABLE`] where somebody has set it.
const TRACE_STATE: &str = "TRACESTATE";

/// The shell of a worker.
#[derive(Debug)]
pub struct Shell {
    path: PathBuf,
    /// The users that jobs may name.
    users: BTreeSet<String>,
    /// Variables of the worker's environment that no job gets.
    private: Vec<OsString>,
    /// Of the guardian that kills what the worker cannot.
    guard: Guard,
    supplies: Supplies,
}

impl Shell {
    /// The shell at this path, for the worker's own user and these.
    #[must_use]
    pub fn new(path: &Path, users: &BTreeSet<String>) -> Self {
        Self {
            path: path.to_owned(),
            users: users.clone(),
            private: config::private_variables().collect(),
            guard: Guard::none(),
            supplies: Supplies::default(),
        }
    }

    /// What it starts is under this guard.
    #[must_use]
    pub fn guarded_by(self, guard: Guard) -> Self {
        Self { guard, ..self }
    }

    /// What it starts is supplied with these.
    #[must_use]
    pub fn with(self, supplies: Supplies) -> Self {
        Self { supplies, ..self }
    }

    /// What runs are supplied with.
    pub(crate) fn supplies(&self) -> &Supplies {
        &self.supplies
    }

    /// What guards what it starts.
    pub(crate) fn guard(&self) -> &Guard {
        &self.guard
    }

    /// Whether it waits where `BASH_ENV` says.
    pub(crate) fn is_bash(&self) -> bool {
        self.path.file_name().is_some_and(|name| name == "bash")
    }

    /// Whether it waits for this command, too. A request needs none. Other users may not read the gate's file, and then would not wait.
    pub(super) fn can_wait_for(&self, work: &Work) -> bool {
        let execution = work.execution();
        let is_usual =
            |name: &str| !name.starts_with("BASH") && !name.starts_with("LD_") && !SHELLS_OWN.contains(&name);
        let env = execution.env.iter().flat_map(Environment::iter);
        work.request().is_none()
            && execution.user.is_none()
            && execution.limits.is_none()
            && env.map(|(name, _)| name).all(is_usual)
    }

    /// For this command, in a process group of its own and without what is the worker's alone.
    pub(super) fn of(&self, command: &str) -> Command {
        let mut shell = Command::new(&self.path);
        shell.arg("-c").arg(command).stdin(Stdio::null()).process_group(0);
        for private in &self.private {
            shell.env_remove(private);
        }
        shell
    }

    /// For this run, with its secrets.
    ///
    /// # Errors
    /// What its record says instead of how it ended.
    pub(super) fn of_run(&self, open: &OpenRun, work: &Work, secrets: &Resolved) -> Result<Command, String> {
        let Execution { env, working_dir, user, limits, .. } = work.execution();
        let mut shell = self.of(&work.command);
        let account = user.as_deref().map(|user| self.account(user)).transpose()?;
        if let (Some(user), Some(account)) = (user, &account) {
            shell.env("HOME", &account.home).env("USER", user).env("LOGNAME", user);
        }
        // The worker's own, if whoever started it was in a trace, is none of the run's.
        shell.env_remove(trace::VARIABLE).env_remove(TRACE_STATE);
        if let Some(trace) = traces::handed(&self.supplies.tracer, open) {
            shell.env(trace::VARIABLE, trace.to_string()); // the job's own, below, wins
        }
        let variables = env.iter().flat_map(Environment::iter);
        shell.envs(variables.map(|(name, value)| (name, secrets.in_value(value))));
        shell.envs(open.env.iter().flat_map(|env| env.iter())); // of this run alone: they win
        shell
            .env("CRON_JOB_NAME", open.job.as_str())
            .env("CRON_RUN_ID", open.run_id.as_str())
            .env("CRON_PLAN_TIME", open.plan_time.ms().to_string())
            .env("CRON_ATTEMPT", open.attempt.to_string());
        if let Some(dir) = working_dir {
            shell.current_dir(dir);
        }
        // Whoever runs the command already need not become it, and may have no right to.
        let other = account.filter(|account| account.uid != getuid());
        let limits = limits.as_ref().map(resources).unwrap_or_default();
        if other.is_some() || !limits.is_empty() {
            prepare(&mut shell, other, limits);
        }
        Ok(shell)
    }

    fn account(&self, user: &str) -> Result<Account, String> {
        if !self.users.contains(user) {
            return Err(format!("user {user} is not allowed on this worker: see CRON_USERS"));
        }
        match Account::find(user) {
            Ok(Some(account)) => Ok(account),
            Ok(None) => Err(format!("user: unknown user {user}")),
            Err(why) => Err(format!("user: lookup of {user}: {why}")),
        }
    }

    /// What the record of a run says whose shell could not be started: in Go's words, and which of the things that it needs is at fault.
    pub(super) fn not_started(&self, work: &Work, why: &io::Error) -> String {
        let Execution { working_dir, user, .. } = work.execution();
        if let Some(dir) = working_dir {
            match fs::metadata(dir) {
                Ok(found) if found.is_dir() => {}
                Ok(_) => return format!("chdir {dir}: not a directory"),
                Err(why) => return format!("chdir {dir}: {why}"),
            }
        }
        let as_whom = user.as_deref().map(|user| format!(" as user {user}")).unwrap_or_default();
        format!("fork/exec {}{as_whom}: {why}", self.path.display())
    }
}

impl Default for Shell {
    /// The seed's, for the worker's own user.
    fn default() -> Self {
        Self::new(Path::new(config::SHELL_DEFAULT), &BTreeSet::new())
    }
}

/// The limits as the kernel takes them. More than the worker may give is no limit: what it has itself is one already.
fn resources(limits: &Limits) -> Vec<(Resource, Rlimit)> {
    let given = [
        (Resource::Cpu, limits.cpu_seconds, CPU_SECONDS_BEYOND),
        (Resource::As, limits.memory_bytes, 0),
        (Resource::Nofile, limits.open_files, 0),
        (Resource::Fsize, limits.file_bytes, 0),
        (Resource::Nproc, limits.processes, 0),
    ];
    let rlimit = |(resource, limit, beyond): (Resource, Option<u64>, u64)| {
        let (limit, most) = (limit?, getrlimit(resource).maximum.unwrap_or(u64::MAX));
        let (current, maximum) = (Some(limit.min(most)), Some((limit + beyond).min(most)));
        Some((resource, Rlimit { current, maximum }))
    };
    given.into_iter().filter_map(rlimit).collect()
}

/// Has the process that becomes the shell change its user and limits first. Such a shell is forked and not spawned, which takes longer the
/// more memory the worker has; only runs that need it pay for it.
#[expect(
    unsafe_code,
    reason = "nothing else sets supplementary groups and limits of a child before it begins"
)]
fn prepare(shell: &mut Command, account: Option<Account>, limits: Vec<(Resource, Rlimit)>) {
    let in_the_child = move || {
        for (resource, limit) in &limits {
            setrlimit(*resource, *limit)?;
        }
        if let Some(account) = &account {
            set_thread_groups(&account.groups)?;
            set_thread_res_gid(account.gid, account.gid, account.gid)?;
            set_thread_res_uid(account.uid, account.uid, account.uid)?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec it makes system calls, directly, and nothing else: it takes no lock and no memory, and the errors that
    // it returns are numbers.
    unsafe { shell.pre_exec(in_the_child) };
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustix::process::{Gid, Uid};

    use super::*;

    #[tokio::test]
    async fn a_process_has_the_groups_of_its_user_and_no_others() {
        if !getuid().is_root() {
            return; // nobody else may take groups
        }
        let groups = [65534, 50, 60].map(Gid::from_raw).to_vec();
        let (uid, gid, home) = (Uid::from_raw(65534), groups[0], String::new());
        let mut shell = Shell::default().of("id -G; id -u");
        prepare(&mut shell, Some(Account { uid, gid, groups, home }), Vec::new());
        let output = shell.output().await.unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "65534 50 60\n65534\n");
    }

    #[test]
    fn a_command_goes_on_with_the_trace_of_its_run_unless_its_job_says_another() {
        use crate::exec::process::tests as runs;
        let asked = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let env = |value: &str| -> Option<Arc<Environment>> {
            Some(Arc::new(Environment::parse(&serde_json::json!({"TRACEPARENT": value})).unwrap()))
        };
        let of_job = runs::work_with("true", serde_json::json!({"env": {"TRACEPARENT": "of the job"}}));
        for (work, env, trace, expected) in [
            (runs::work("true"), None, true, Some(asked)),
            // That of the worker itself.
            (runs::work("true"), None, false, None),
            (of_job.clone(), None, true, Some("of the job")),
            (of_job, env("of the run"), true, Some("of the run")),
        ] {
            let trace = trace::TraceContext::parse(asked).filter(|_| trace);
            let open = OpenRun { trace, env, ..runs::open() };
            let shell = Shell::default().of_run(&open, &work, &Resolved::default()).unwrap();
            let told = shell.as_std().get_envs().find(|(name, _)| *name == "TRACEPARENT").unwrap();
            assert_eq!(told.1.map(|value| value.to_str().unwrap()), expected);
        }
    }

    #[test]
    fn what_is_the_workers_alone_is_not_inherited() {
        let private = vec!["PATH".into()];
        let shell = Shell { private, ..Shell::default() }.of("true");
        let variables: Vec<_> = shell.as_std().get_envs().collect();
        assert_eq!(variables, [("PATH".as_ref(), None)]);
    }
}
