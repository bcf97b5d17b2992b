//! A NATS server with JetStream.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// How long a start may take, on a machine that does much else.
const START_MAX: Duration = Duration::from_secs(60);

/// Of its log, when a test fails.
const LOG_LINES_SHOWN: usize = 60;

/// See the module. Dropping it ends the server and removes its data.
pub(crate) struct NatsServer {
    port: u16,
    folder: tempfile::TempDir,
    running: Option<Child>,
}

impl NatsServer {
    /// Starts one.
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut server = Self { port: free_port(), folder, running: None };
        server.start_again();
        server
    }

    /// Where it listens.
    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Starts it with the data it has.
    pub(crate) fn start_again(&mut self) {
        assert!(self.running.is_none(), "it runs");
        let log = std::fs::File::create(self.folder.path().join("log")).expect("a log");
        let child = Command::new(program())
            .args(["--jetstream", "--addr", "127.0.0.1", "--port", &self.port.to_string()])
            .arg("--store_dir")
            .arg(self.folder.path().join("data"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn();
        self.running = Some(child.expect("nats-server starts"));
        let began = Instant::now();
        while !self.answers() {
            let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            assert!(began.elapsed() < START_MAX, "nats-server does not answer: {log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends it as a power switch does.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.running.take() {
            // It may have ended by itself.
            let _ended = child.kill();
            let _reaped = child.wait();
        }
    }

    /// Lets it stand still: its connections stay, and nothing is answered.
    pub(crate) fn pause(&self) {
        self.signal("-STOP");
        let began = Instant::now();
        while !self.stands_still() {
            assert!(began.elapsed() < START_MAX, "nats-server does not stand still");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether each of its threads does; a signal reaches them one by one.
    fn stands_still(&self) -> bool {
        let pid = self.running.as_ref().expect("it runs").id();
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it has threads");
        threads.flatten().all(|thread| {
            let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            // The state follows the name, which is in brackets.
            stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
        })
    }

    /// Lets it go on.
    pub(crate) fn go_on(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let pid = self.running.as_ref().expect("it runs").id().to_string();
        let sent = Command::new("kill").args([signal, &pid]).status().expect("kill is there");
        assert!(sent.success(), "kill {signal} {pid}");
    }

    /// Whether it greets with JetStream on, and serves it.
    fn answers(&self) -> bool {
        let asked = || -> std::io::Result<bool> {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
            stream.set_read_timeout(Some(Duration::from_millis(500)))?;
            stream.write_all(
                b"CONNECT {\"verbose\":false}\r\nSUB answer 1\r\nPUB $JS.API.INFO answer 0\r\n\r\n",
            )?;
            let mut heard = Vec::new();
            let mut buffer = [0; 4096];
            loop {
                let count = stream.read(&mut buffer)?;
                heard.extend_from_slice(&buffer[..count]);
                let text = String::from_utf8_lossy(&heard);
                if count == 0 || text.contains("account_info_response") {
                    return Ok(count > 0);
                }
            }
        };
        asked().unwrap_or(false)
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let ended = self.running.as_mut().map(Child::try_wait);
            let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n");
            eprintln!("nats-server, ended by itself: {ended:?}; its log ends with\n{tail}");
        }
        self.kill();
    }
}

fn program() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Debian keeps it where only the administrator's path leads.
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    let found = folders.map(|folder| folder.join("nats-server")).find(|file| Path::is_file(file));
    found.expect("nats-server is missing; install Debian's package nats-server")
}

/// A port below those that the system gives to others meanwhile.
fn free_port() -> u16 {
    for _ in 0..1_000 {
        let port = fastrand::u16(20_000..32_000);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no port between 20000 and 32000 is free")
}
