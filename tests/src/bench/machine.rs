//! What was measured on, and what a process has used of it.

use std::fs;
use std::process::Command;

use anyhow::Context;

/// Ticks of `/proc/PID/stat` in a second: what Linux shows to programs, whatever it counts in itself.
const TICKS: f64 = 100.0;

/// The machine, its load, and the versions of what is measured, in lines for people.
///
/// # Errors
/// The worker's version cannot be asked.
pub(super) fn describe(etcd: &str, mongo: &str) -> anyhow::Result<String> {
    let model = first_after("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown processor".to_owned());
    let memory = first_after("/proc/meminfo", "MemTotal").unwrap_or_default();
    let cores = std::thread::available_parallelism().context("count the cores")?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let worker = Command::new(super::fleet::worker_program()).arg("--version").output();
    let worker =
        String::from_utf8_lossy(&worker.context("ask the worker's version")?.stdout).trim().to_owned();
    Ok(format!(
        "{cores} cores ({model}), {memory} of memory, Linux {}; load before: {}\n{worker}, release build; etcd: {etcd}, one member; \
         records: {mongo}. All of it, and what measures, on this machine.",
        kernel.trim(),
        load(),
    ))
}

/// The load of the last minute.
pub(crate) fn load() -> String {
    let all = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    all.split(' ').next().unwrap_or_default().to_owned()
}

fn first_after(file: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// CPU time, in seconds.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Cpu {
    /// Of the process itself, all its threads.
    pub(super) own: f64,
    /// Of its children that have ended and were waited for.
    pub(super) children: f64,
}

/// What a process has used so far.
///
/// # Errors
/// It is gone.
pub(super) fn cpu(pid: u32) -> anyhow::Result<Cpu> {
    let stat =
        fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("look at process {pid}"))?;
    parse_stat(&stat).with_context(|| format!("the kernel's words about process {pid}: {stat:?}"))
}

fn parse_stat(stat: &str) -> Option<Cpu> {
    // The program's name stands in parentheses and may contain anything. Behind it: state is field 3, utime 14, then stime, cutime, cstime.
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let seconds = |field: usize| Some(fields.get(field - 3)?.parse::<f64>().ok()? / TICKS);
    Some(Cpu { own: seconds(14)? + seconds(15)?, children: seconds(16)? + seconds(17)? })
}

/// Memory of a process, in MB (10⁶ bytes).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    /// Resident now.
    pub(crate) now: f64,
    /// Resident at most so far.
    pub(crate) peak: f64,
}

/// What a process holds.
///
/// # Errors
/// It is gone.
pub(crate) fn memory(pid: u32) -> anyhow::Result<Memory> {
    let file = format!("/proc/{pid}/status");
    let mb = |name: &str| -> anyhow::Result<f64> {
        let value = first_after(&file, name).with_context(|| format!("{name} of process {pid}"))?;
        let kib: f64 = value.trim_end_matches(" kB").parse().with_context(|| format!("{name} {value:?}"))?;
        Ok(kib * 1024.0 / 1e6)
    };
    Ok(Memory { now: mb("VmRSS")?, peak: mb("VmHWM")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_programs_name_may_contain_anything() {
        let stat = "77 (a) b (c) S 1 77 77 0 -1 4194560 9 8 7 6 150 50 300 25 20 0 1 0 5 6 7 8";
        let cpu = parse_stat(stat).unwrap();
        assert_eq!((cpu.own, cpu.children), (2.0, 3.25));
    }

    #[test]
    fn this_process_has_used_memory() {
        let memory = memory(std::process::id()).unwrap();
        assert!(memory.now > 0.0 && memory.peak >= memory.now, "{memory:?}");
    }
}
