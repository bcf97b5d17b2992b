//! Starts what is measured, puts it on a core, and reads what it uses. Whatever was started is
//! ended when its handle is dropped, by its id.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use millrace_service::cpu_time;
use rustix::thread::{CpuSet, sched_setaffinity};

const START_MAX: Duration = Duration::from_secs(20);

/// A running program.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

/// Puts the calling thread, and whatever it starts from now on, on one core.
///
/// # Errors
/// There is no such core for us.
pub fn stay_on_core(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).with_context(|| format!("this thread cannot run on core {core}"))
}

impl Process {
    /// Starts a program on one core, or on any. Its output goes to `log`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(mut command: Command, core: Option<usize>, log: &Path) -> Result<Self> {
        let output = fs::File::options().create(true).append(true).open(log)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let program = command.get_program().to_string_lossy().into_owned();
        // A child inherits the affinity of the thread that starts it.
        let start = move || {
            if let Some(core) = core {
                stay_on_core(core)?;
            }
            Ok::<_, anyhow::Error>(command.spawn()?)
        };
        let child = std::thread::spawn(start).join();
        let child = child.map_err(|_| anyhow::anyhow!("the starting thread panicked"))?;
        Ok(Self { child: child.with_context(|| format!("{program} cannot be started"))? })
    }

    /// Waits until somebody accepts connections at an address.
    ///
    /// # Errors
    /// The process ends, or twenty seconds pass.
    pub fn wait_for_port(&mut self, address: SocketAddr) -> Result<()> {
        self.wait_until(&address.to_string(), || TcpStream::connect(address).is_ok())
    }

    /// Waits until `/readyz` at an address answers 200.
    ///
    /// # Errors
    /// The process ends, or twenty seconds pass.
    pub fn wait_until_ready(&mut self, admin: SocketAddr) -> Result<()> {
        self.wait_until("/readyz", || {
            get(admin, "/readyz").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
        })
    }

    fn wait_until(&mut self, what: &str, check: impl Fn() -> bool) -> Result<()> {
        let begin = Instant::now();
        while !check() {
            if let Some(status) = self.child.try_wait()? {
                bail!("the process ended before {what} was there: {status}");
            }
            ensure!(begin.elapsed() < START_MAX, "{what} was not there within {START_MAX:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// User and kernel time it has used so far.
    pub fn cpu(&self) -> Duration {
        cpu_time::of_process(Some(self.id())).unwrap_or_default()
    }

    /// Resident memory in bytes.
    pub fn resident_bytes(&self) -> u64 {
        resident_bytes(self.id()).unwrap_or_default()
    }

    /// Whether it has ended, and how.
    ///
    /// # Errors
    /// The system will not say.
    pub fn ended(&mut self) -> Result<Option<std::process::ExitStatus>> {
        Ok(self.child.try_wait()?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only if it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Resident memory of a process in bytes; `None` if it is gone.
pub fn resident_bytes(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

/// One plain HTTP request; the whole answer as it came.
///
/// # Errors
/// No connection, or no answer within two seconds.
pub fn get(address: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// The sum of a metric over its labels, from `/metrics` at an address.
///
/// # Errors
/// No answer, or no such metric.
pub fn metric(admin: SocketAddr, name: &str) -> Result<f64> {
    let page = get(admin, "/metrics")?;
    let values = page.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        rest.starts_with(['{', ' ']).then(|| rest.rsplit(' ').next()?.parse::<f64>().ok())?
    });
    values.reduce(|sum, value| sum + value).with_context(|| format!("no metric {name}"))
}

/// An address on this machine that nobody listens on.
///
/// # Errors
/// There is none.
pub fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
