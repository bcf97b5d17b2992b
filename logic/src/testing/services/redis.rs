//! A `redis-server` of a test's own: on a private port, in a temporary folder, without persistence
//! unless asked for.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// How long a server may take to answer.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A running server. Ends when it is dropped.
pub(crate) struct RedisServer {
    port: u16,
    extra: Vec<String>,
    file: Option<PathBuf>,
    folder: tempfile::TempDir,
    child: Option<Child>,
}

impl RedisServer {
    /// A server that keeps nothing on the disk.
    pub(crate) fn start() -> Self {
        Self::start_with(&["--save", "", "--appendonly", "no"])
    }

    /// A server with these arguments beside those that make it private.
    pub(crate) fn start_with(extra: &[&str]) -> Self {
        Self::start_from(None, extra)
    }

    /// A server with a file of configuration, which it may write to.
    pub(crate) fn start_configured(file: &Path, extra: &[&str]) -> Self {
        Self::start_from(Some(file), extra)
    }

    fn start_from(file: Option<&Path>, extra: &[&str]) -> Self {
        let extra: Vec<String> = extra.iter().map(|argument| (*argument).to_owned()).collect();
        for _ in 0..20 {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let mut server = Self {
                port: free_port(),
                extra: extra.clone(),
                folder,
                file: file.map(Path::to_owned),
                child: None,
            };
            server.launch();
            // If not, somebody else took the port meanwhile.
            if server.wait_until_up() {
                return server;
            }
        }
        panic!("redis-server did not start on any of twenty ports");
    }

    fn launch(&mut self) {
        let port = self.port.to_string();
        let mut command = Command::new("redis-server");
        command.args(&self.file);
        command.args(["--port", &port, "--bind", "127.0.0.1", "--daemonize", "no"]);
        command.arg("--dir").arg(self.folder.path()).args(&self.extra);
        command.stdout(Stdio::null()).stderr(Stdio::null()).stdin(Stdio::null());
        match command.spawn() {
            Ok(child) => self.child = Some(child),
            Err(error) => {
                panic!("this test needs redis-server: apt-get install redis-server ({error})")
            }
        }
    }

    /// False if it ended instead.
    fn wait_until_up(&mut self) -> bool {
        let began = Instant::now();
        while began.elapsed() < START_TIMEOUT {
            // Without the password it is up all the same.
            let reply = self.say("PING");
            if reply.starts_with("+PONG") || reply.starts_with("-NOAUTH") {
                return true;
            }
            let child = self.child.as_mut().expect("it was launched");
            if child.try_wait().expect("a child of ours").is_some() {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("redis-server on port {} did not answer in {START_TIMEOUT:?}", self.port);
    }

    /// Where it is.
    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Its process, while it runs.
    pub(crate) fn pid(&self) -> String {
        self.child.as_ref().expect("it runs").id().to_string()
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Runs one command, given as a line; the start of the raw reply, empty if there is none.
    pub(crate) fn say(&self, command: &str) -> String {
        use std::io::{Read as _, Write as _};
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], self.port));
        let talk = || -> std::io::Result<String> {
            let mut stream =
                std::net::TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            stream.write_all(format!("{command}\r\n").as_bytes())?;
            let mut reply = vec![0; 65_536];
            let length = stream.read(&mut reply)?;
            Ok(String::from_utf8_lossy(&reply[..length]).into_owned())
        };
        talk().unwrap_or_default()
    }

    /// Ends it at once, as `kill -9`.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Both fail only when it has ended already.
            let _killed = child.kill();
            let _ended = child.wait();
        }
    }

    /// Starts it again, with what it had written to the disk.
    pub(crate) fn restart(&mut self) {
        self.kill();
        self.launch();
        assert!(self.wait_until_up(), "redis-server did not start again");
    }

    /// Stops it where it stands; it keeps its connections and answers nothing.
    pub(crate) fn pause(&self) {
        self.signal("-STOP");
    }

    /// Lets it go on.
    pub(crate) fn go_on(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let id = self.pid();
        let sent = Command::new("kill").args([signal, &id]).status().expect("kill is there");
        assert!(sent.success(), "kill {signal} {id}");
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A port below 32768, where the system takes none for outgoing connections.
pub(crate) fn free_port() -> u16 {
    loop {
        // Below 22768, so that a node of a Cluster has its bus port 10,000 above.
        let port = fastrand::u16(16_000..22_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok()
            && TcpListener::bind(("127.0.0.1", port + 10_000)).is_ok()
        {
            return port;
        }
    }
}
