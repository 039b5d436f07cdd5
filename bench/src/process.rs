//! What the kernel says of a process: CPU time and memory.

use std::fs;

use anyhow::Context as _;

/// Ticks a second in `/proc`, the same on every Linux.
const TICKS: f64 = 100.0;
/// The state of a listening socket in `/proc/net/tcp`.
const LISTENING: &str = "0A";

/// A process of this machine.
#[derive(Debug, Clone, Copy)]
pub struct Process {
    pid: u32,
}

impl Process {
    /// The process with this id.
    pub fn new(pid: u32) -> Self {
        Self { pid }
    }

    /// This program: the load, and whatever bare engine runs inside of it.
    pub fn own() -> Self {
        Self::new(std::process::id())
    }

    /// The process that listens on a port of this machine: a server that somebody else has started.
    pub fn listening_on(address: &str) -> anyhow::Result<Self> {
        let port = address.rsplit_once(':').context("an address without a port")?.1;
        let port: u16 = port.trim_end_matches('/').parse().with_context(|| address.to_owned())?;
        let socket = inode_of(port).with_context(|| format!("nobody listens on port {port} here"))?;
        let socket = format!("socket:[{socket}]");
        let pids =
            fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.map(Self::new)
            .find(|process| process.holds(&socket))
            .with_context(|| format!("cannot see who listens on port {port}"))
    }

    /// User and system CPU seconds so far.
    pub fn cpu_seconds(self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        // Fields 14 and 15, counted after the command's closing parenthesis.
        let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let ticks: f64 = rest.split_whitespace().skip(11).take(2).filter_map(|t| t.parse::<f64>().ok()).sum();
        ticks / TICKS
    }

    /// Largest resident memory so far, in MiB.
    pub fn peak_mib(self) -> f64 {
        self.status_kib("VmHWM:") / 1024.0
    }

    /// Resident memory now, in MiB.
    pub fn resident_mib(self) -> f64 {
        self.status_kib("VmRSS:") / 1024.0
    }

    fn status_kib(self, name: &str) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.split_whitespace().next().and_then(|kib| kib.parse().ok()).unwrap_or(0.0)
    }

    fn holds(self, socket: &str) -> bool {
        let Ok(files) = fs::read_dir(format!("/proc/{}/fd", self.pid)) else { return false };
        files.flatten().any(|file| fs::read_link(file.path()).is_ok_and(|to| to.as_os_str() == socket))
    }
}

fn inode_of(port: u16) -> Option<String> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|file| fs::read_to_string(file).unwrap_or_default());
    tables.iter().flat_map(|table| table.lines().skip(1)).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let local = fields.get(1)?.rsplit_once(':')?.1;
        let found = fields.get(3) == Some(&LISTENING) && u16::from_str_radix(local, 16) == Ok(port);
        found.then(|| fields.get(9).map(|inode| (*inode).to_owned())).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_behind_a_port_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let found = Process::listening_on(&listener.local_addr().unwrap().to_string()).unwrap();
        assert_eq!(found.pid, std::process::id());
    }

    #[test]
    fn cpu_time_that_was_spent_is_seen() {
        let before = Process::own().cpu_seconds();
        let until = std::time::Instant::now() + std::time::Duration::from_millis(200);
        while std::time::Instant::now() < until {
            std::hint::spin_loop();
        }
        assert!(Process::own().cpu_seconds() - before > 0.0);
    }
}
