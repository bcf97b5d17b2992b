//! The real gateway as a process of its own.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::Duration,
};

use millrace_service::cpu_time;

use super::{PATIENCE, eventually};

pub const SHARDS: u32 = 2;

pub struct GatewayProcess {
    process: Child,
    pub tcp: SocketAddr,
    admin: SocketAddr,
    _folder: tempfile::TempDir,
}

impl GatewayProcess {
    /// Starts it with its defaults, but for the rate at which one client may send, and for how
    /// long a frame waits for credit.
    pub fn start(logic: SocketAddr, credit_wait_max: &str) -> Self {
        let endpoint = format!("http://{logic}");
        Self::start_with(&[endpoint], &format!("credit_wait_max = \"{credit_wait_max}\""))
    }

    /// With these endpoints and further lines of `[logic]`.
    pub fn start_with(endpoints: &[String], logic: &str) -> Self {
        Self::start_through(&[], endpoints, logic)
    }

    /// The same, with something before its command line that becomes the gateway in the end.
    pub fn start_through(wrapper: &[String], endpoints: &[String], logic: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (tcp, admin) = (free_address(), free_address());
        let config = format!(
            "[gateway]\nid = \"tested\"\nshards = {SHARDS}\npin_shards = false\n\
             [listen]\nwebsocket = \"\"\ntcp = \"{tcp}\"\n[admin]\nlisten = \"{admin}\"\n\
             [connections]\nframes_per_second_max = 1000000\nframes_burst_max = 1000000\n\
             [logic]\nendpoints = {endpoints:?}\n{logic}\n"
        );
        let file = folder.path().join("gateway.toml");
        std::fs::write(&file, config).expect("written");
        let program = [env!("CARGO_BIN_EXE_millrace-gateway").to_owned()];
        let mut command = wrapper.iter().chain(&program);
        let process = Command::new(command.next().expect("the program at least"))
            .args(command)
            .args(["run", "--config"])
            .arg(&file)
            .stderr(Stdio::from(
                std::fs::File::create(folder.path().join("log")).expect("a log file"),
            ))
            .spawn()
            .expect("it starts");
        let gateway = Self { process, tcp, admin, _folder: folder };
        eventually("the gateway is ready", || {
            gateway.get("/readyz").is_some_and(|answer| answer.starts_with("HTTP/1.1 200"))
        });
        gateway
    }

    fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(self.admin).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    /// The sum of a metric over its labels.
    #[track_caller]
    pub fn metric(&self, name: &str) -> u64 {
        self.metric_of(name, "")
    }

    /// The sum of a metric over its labels, of the samples whose line has this text.
    #[track_caller]
    pub fn metric_of(&self, name: &str, text: &str) -> u64 {
        self.values(name, text).iter().sum()
    }

    /// How many samples a metric has whose line has this text.
    #[track_caller]
    pub fn samples_of(&self, name: &str, text: &str) -> usize {
        self.values(name, text).len()
    }

    #[track_caller]
    fn values(&self, name: &str, text: &str) -> Vec<u64> {
        let page = self.get("/metrics").expect("metrics");
        let values = page.lines().filter(|line| line.contains(text)).filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let is_sample = rest.starts_with(' ') || rest.starts_with('{');
            is_sample.then(|| rest.rsplit(' ').next()?.parse::<u64>().ok())?
        });
        values.collect()
    }

    #[track_caller]
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()));
        let status = status.expect("the gateway runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        1024 * line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).expect("KiB")
    }

    pub fn cpu_time(&self) -> Duration {
        cpu_time::of_process(Some(self.process.id())).unwrap_or_default()
    }

    /// The process stops where it stands.
    pub fn pause(&self) {
        self.signal("-STOP");
    }

    pub fn resume(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let pid = self.process.id().to_string();
        let status = Command::new("kill").args([signal, &pid]).status().expect("kill runs");
        assert!(status.success());
    }
}

impl Drop for GatewayProcess {
    fn drop(&mut self) {
        // Whatever the test came to, the process must not outlive it.
        let _gone = self.process.kill();
        let _reaped = self.process.wait();
    }
}

fn free_address() -> SocketAddr {
    let probe = TcpListener::bind("127.0.0.1:0").expect("a free port");
    probe.local_addr().expect("its address")
}
