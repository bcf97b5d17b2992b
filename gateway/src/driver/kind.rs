//! The drivers' names, and the choice among them.

use std::{
    fmt,
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use millrace_uring::{Driver, Handler, ListenerId, Options, SocketId};
use serde::{Deserialize, Serialize};

/// How long io_uring may take to show that it can carry a connection.
const PROBE_MAX: Duration = Duration::from_secs(2);

/// A driver, by its name in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Plain io_uring.
    IoUring,
    /// monoio over its own use of io_uring.
    MonoioIoUring,
    /// monoio over epoll.
    Epoll,
    /// glommio.
    Glommio,
}

impl Kind {
    /// All of them, in order of preference.
    pub const ALL: [Self; 4] = [Self::IoUring, Self::MonoioIoUring, Self::Epoll, Self::Glommio];

    /// The name in the configuration, in metrics and in logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::IoUring => "io_uring",
            Self::MonoioIoUring => "monoio_io_uring",
            Self::Epoll => "epoll",
            Self::Glommio => "glommio",
        }
    }

    /// Whether this program was built with it.
    #[must_use]
    pub const fn is_built_in(self) -> bool {
        !matches!(self, Self::Glommio) || cfg!(feature = "glommio")
    }

    /// Whether each socket is a descriptor of the process, so that RLIMIT_NOFILE bounds the sockets
    /// of all shards together. Otherwise it bounds those of one ring.
    #[must_use]
    pub const fn sockets_are_descriptors(self) -> bool {
        !matches!(self, Self::IoUring)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What the configuration asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// io_uring, and epoll where it is refused.
    #[default]
    Auto,
    /// This one and no other.
    Fixed(Kind),
}

/// Why epoll was taken although io_uring was wanted.
#[derive(Debug)]
pub struct Fallback(pub io::Error);

impl fmt::Display for Fallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let fix = match self.0.raw_os_error() {
            Some(code) if code == EPERM || code == EACCES => {
                "; allow io_uring_setup, io_uring_enter and io_uring_register in the container's \
                 seccomp profile (configs/seccomp), and see that kernel.io_uring_disabled is 0"
            }
            Some(code) if code == ENOSYS => {
                "; this kernel has no io_uring, or a seccomp profile hides it: Linux 6.7 or newer \
                 is needed, and a profile that allows it (configs/seccomp)"
            }
            _ => "; Linux 6.7 or newer is needed",
        };
        f.write_str(fix)
    }
}

const EPERM: i32 = rustix::io::Errno::PERM.raw_os_error();
const EACCES: i32 = rustix::io::Errno::ACCESS.raw_os_error();
const ENOSYS: i32 = rustix::io::Errno::NOSYS.raw_os_error();

impl Choice {
    /// Decides. Automatically: io_uring if it can carry a connection here, else epoll, with the
    /// reason.
    #[must_use]
    pub fn decide(self) -> (Kind, Option<Fallback>) {
        match self {
            Self::Fixed(kind) => (kind, None),
            Self::Auto => match probe() {
                Ok(()) => (Kind::IoUring, None),
                Err(error) => (Kind::Epoll, Some(Fallback(error))),
            },
        }
    }
}

impl Serialize for Choice {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Fixed(kind) => serializer.serialize_str(kind.name()),
        }
    }
}

impl<'de> Deserialize<'de> for Choice {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        if name == "auto" {
            return Ok(Self::Auto);
        }
        let kind = Kind::ALL.into_iter().find(|kind| kind.name() == name);
        kind.map(Self::Fixed).ok_or_else(|| {
            let names = Kind::ALL.map(Kind::name).join(", ");
            serde::de::Error::custom(format!("\"{name}\" is no driver; there are auto, {names}"))
        })
    }
}

/// Carries one connection from this process to itself, through every operation a gateway needs. An
/// old kernel refuses some of them only when they are used.
fn probe() -> io::Result<()> {
    let options = Options {
        sockets_max: 8,
        submission_entries: 8,
        completion_entries: 32,
        receive_buffers: 2,
        receive_buffer_bytes: 64,
        accept_spare: 1,
        ..Options::default()
    };
    let mut driver = Driver::new(options)?;
    // A machine where nobody can listen on the loopback address says nothing about io_uring.
    let Ok((_, address)) = driver.listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), 4) else {
        return Ok(());
    };
    let Ok(mut client) = TcpStream::connect_timeout(&address, PROBE_MAX) else { return Ok(()) };
    client.set_read_timeout(Some(PROBE_MAX))?;
    client.write_all(b"?")?;
    let mut seen = Probe::default();
    let deadline = Instant::now() + PROBE_MAX;
    let unsupported = |what: &str| Err(io::Error::new(io::ErrorKind::Unsupported, what.to_owned()));
    loop {
        if let Some(socket) = seen.received.take() {
            driver.send(socket, b"!".to_vec());
        }
        if let Some(result) = seen.sent.take() {
            result?;
            break;
        }
        if let Some(result) = seen.ended.take() {
            result?;
            return unsupported("io_uring ended a healthy connection");
        }
        if driver.statistics().accept_failed > 0 {
            return unsupported("this kernel's io_uring cannot accept as the gateway needs it");
        }
        if Instant::now() > deadline {
            return unsupported("a connection through io_uring made no progress");
        }
        driver.poll(Some(Duration::from_millis(50)), &mut seen)?;
    }
    client.read_exact(&mut [0; 1])
}

/// What has come of the probe so far.
#[derive(Default)]
struct Probe {
    received: Option<SocketId>,
    sent: Option<io::Result<()>>,
    ended: Option<io::Result<()>>,
}

impl Handler for Probe {
    fn accepted(&mut self, _: SocketId, _: ListenerId, _: SocketAddr) -> u64 {
        0
    }
    fn connected(&mut self, _: SocketId, _: u64, _: io::Result<()>) {}
    fn received(&mut self, socket: SocketId, _: u64, _: &mut [u8]) {
        self.received = Some(socket);
    }
    fn receive_ended(&mut self, _: SocketId, _: u64, result: io::Result<()>) {
        self.ended = Some(result);
    }
    fn sent(&mut self, _: SocketId, _: u64, result: io::Result<()>) {
        self.sent = Some(result);
    }
    fn closed(&mut self, _: SocketId, _: u64) {}
    fn woken(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::{Choice, Kind};

    #[test]
    fn every_driver_is_found_by_the_name_it_is_written_with() {
        for choice in Kind::ALL.map(Choice::Fixed).into_iter().chain([Choice::Auto]) {
            let written = serde_json::to_string(&choice).expect("a name");
            assert_eq!(serde_json::from_str::<Choice>(&written).expect("the same"), choice);
        }
        let error = serde_json::from_str::<Choice>("\"kqueue\"").expect_err("none of ours");
        assert!(error.to_string().contains("monoio_io_uring"), "{error}");
    }
}
