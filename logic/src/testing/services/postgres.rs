//! PostgreSQL, and PgBouncer before it, for tests: on private ports, with their data in temporary
//! folders. Tests that only need a database share a server as long as one of them runs.

use std::{
    io::ErrorKind,
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::{
        fs::{MetadataExt as _, chown},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use tokio_postgres::NoTls;

/// How long a start may take, on a machine that does much else.
const START_MAX: Duration = Duration::from_secs(60);

/// A running server. Ends when it is dropped.
pub(crate) struct PostgresServer {
    port: u16,
    folder: tempfile::TempDir,
    child: Option<Child>,
    databases: AtomicU32,
}

static SHARED: Mutex<Weak<PostgresServer>> = Mutex::new(Weak::new());

impl PostgresServer {
    /// The server of all tests that leave it as it is.
    pub(crate) fn shared() -> Arc<Self> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let server = Arc::new(Self::start());
            *shared = Arc::downgrade(&server);
            server
        })
    }

    /// A server of one's own.
    pub(crate) fn start() -> Self {
        let folder = folder();
        let data = folder.path().join("data");
        let mut initdb = as_servant(&program("initdb"));
        initdb.args(["--auth=trust", "--username=postgres", "--no-sync", "--encoding=UTF8"]);
        let made = initdb.arg("-D").arg(&data).output().expect("initdb starts");
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let mut server =
            Self { port: free_port(), folder, child: None, databases: AtomicU32::new(0) };
        server.start_again();
        server
    }

    /// Starts it with the data it has.
    pub(crate) fn start_again(&mut self) {
        assert!(self.child.is_none(), "it runs");
        let log = std::fs::File::create(self.folder.path().join("log")).expect("a log");
        let child = as_servant(&program("postgres"))
            .arg("-D")
            .arg(self.folder.path().join("data"))
            .args(["-p", &self.port.to_string(), "-h", "127.0.0.1", "-c", "max_connections=300"])
            // The kernel keeps what a killed server has written; only the machine must not fail.
            .args([
                "-c",
                "fsync=off",
                "-c",
                "unix_socket_directories=",
                "-c",
                "shared_buffers=64MB",
            ])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn();
        self.child = Some(child.expect("postgres starts"));
        let began = Instant::now();
        while !self.answers() {
            let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            assert!(began.elapsed() < START_MAX, "postgres does not answer: {log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn answers(&self) -> bool {
        let mut ready = Command::new(program("pg_isready"));
        ready.args(["-q", "-h", "127.0.0.1", "-p", &self.port.to_string()]);
        ready.status().is_ok_and(|status| status.success())
    }

    /// A new, empty database; its name.
    pub(crate) async fn database(&self) -> String {
        let name = format!("test_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.run("postgres", &format!("CREATE DATABASE {name}")).await;
        name
    }

    /// Runs statements in a database.
    pub(crate) async fn run(&self, database: &str, sql: &str) {
        let (client, connection) =
            tokio_postgres::connect(&self.url(database), NoTls).await.expect("connected");
        let connection = tokio::spawn(connection);
        client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        drop(client);
        // Nobody asks how it ended.
        let _ended = connection.await;
    }

    /// Where a database is.
    pub(crate) fn url(&self, database: &str) -> String {
        url(self.port, database)
    }

    /// The port it listens at.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Ends it as a failing machine would: nothing is finished, and nobody is told.
    pub(crate) fn kill(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        // `postgres` in its quickest way of ending; it takes its own children with it.
        signal(&child, "-QUIT");
        let began = Instant::now();
        while child.try_wait().expect("a child of ours").is_none() {
            if began.elapsed() > Duration::from_secs(20) {
                // Both fail only when it has ended already.
                let _killed = child.kill();
                let _ended = child.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// PgBouncer before a server, in transaction mode, with fewer connections to the server than its
/// clients have to it. Ends when it is dropped.
pub(crate) struct PgBouncer {
    port: u16,
    child: Child,
    _folder: tempfile::TempDir,
}

impl PgBouncer {
    /// Starts one before this server.
    pub(crate) fn start(server: &PostgresServer) -> Self {
        let folder = folder();
        let (port, server_port) = (free_port(), server.port());
        let settings = folder.path().join("pgbouncer.ini");
        let users = folder.path().join("users.txt");
        std::fs::write(&users, "\"postgres\" \"\"\n").expect("written");
        std::fs::write(
            &settings,
            format!(
                "[databases]\n* = host=127.0.0.1 port={server_port}\n\
                 [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
                 unix_socket_dir =\nauth_type = trust\nauth_file = {}\n\
                 pool_mode = transaction\ndefault_pool_size = 3\nmax_client_conn = 500\n",
                users.display()
            ),
        )
        .expect("written");
        let child = as_servant(Path::new("/usr/sbin/pgbouncer"))
            .arg(&settings)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let child = match child {
            Ok(child) => child,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                panic!("this test needs PgBouncer: apt-get install pgbouncer")
            }
            Err(error) => panic!("pgbouncer: {error}"),
        };
        let mut bouncer = Self { port, child, _folder: folder };
        let began = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            assert!(bouncer.child.try_wait().expect("a child of ours").is_none(), "it ended");
            assert!(began.elapsed() < START_MAX, "pgbouncer does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        bouncer
    }

    /// Where a database is, through it.
    pub(crate) fn url(&self, database: &str) -> String {
        url(self.port, database)
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _killed = self.child.kill();
        let _ended = self.child.wait();
    }
}

/// Where a database is that listens at a port here.
pub(crate) fn url(port: u16, database: &str) -> String {
    format!("postgresql://postgres@127.0.0.1:{port}/{database}")
}

fn signal(child: &Child, signal: &str) {
    let id = child.id().to_string();
    let sent = Command::new("kill").args([signal, &id]).status().expect("kill is there");
    assert!(sent.success(), "kill {signal} {id}");
}

/// A program of the newest PostgreSQL that is installed.
fn program(name: &str) -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = versions
        .map(|version| version.path().join("bin").join(name))
        .filter(|path| path.is_file())
        .collect();
    found.sort();
    found.pop().expect("this test needs PostgreSQL: apt-get install postgresql")
}

/// PostgreSQL refuses to run as root, and then runs as the user of its package.
fn servant() -> Option<(u32, u32)> {
    let own = std::fs::metadata("/proc/self").expect("a process has its folder").uid();
    if own != 0 {
        return None;
    }
    let users = std::fs::read_to_string("/etc/passwd").expect("users");
    let line = users.lines().find(|line| line.starts_with("postgres:"));
    let line = line.expect("this test needs PostgreSQL's user: apt-get install postgresql");
    let mut ids = line.split(':').skip(2).map(|id| id.parse().expect("a number"));
    Some((ids.next().expect("a user"), ids.next().expect("a group")))
}

fn as_servant(program: &Path) -> Command {
    let mut command = Command::new(program);
    if let Some((user, group)) = servant() {
        command.uid(user).gid(group);
    }
    command.current_dir("/");
    command
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    if let Some((user, group)) = servant() {
        chown(folder.path(), Some(user), Some(group)).expect("given away");
    }
    folder
}

/// A port below those that the system gives to others meanwhile.
fn free_port() -> u16 {
    for _ in 0..1_000 {
        let port = fastrand::u16(22_000..32_000);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no port between 22000 and 32000 is free")
}
