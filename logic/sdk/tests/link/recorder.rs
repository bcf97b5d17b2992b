//! A backend that writes down what it is told, and does what a token or a command asks for.

use std::future::Future;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use millrace_logic_sdk::testing::{FakeGateway, FakeGatewaySettings};
use millrace_logic_sdk::{
    Accepted, Backend, Ended, Gateways, Inbound, Login, Refused, Server, ServerSettings, Session,
    SessionAddress,
};
use millrace_protocol::Code;
use millrace_protocol::frame::Flags;
use tokio::sync::{Notify, Semaphore};

/// Answered with its own body.
pub const ECHO: u16 = 0x1000;
/// Kept until [`Recorder::release`].
pub const HOLD: u16 = 0x1001;
/// Dropped without an answer.
pub const IGNORE: u16 = 0x1002;
/// Makes the backend panic.
pub const PANIC: u16 = 0x1003;
/// Waits for a permit of [`Recorder::gate`] within `frames`.
pub const WAIT: u16 = 0x1004;
/// Pushed by the backend the moment a session starts.
pub const WELCOME: u16 = 0x1100;

/// What the backend was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    Started(SessionAddress, String),
    Frame(SessionAddress, u16, u32, Bytes),
    Ended(SessionAddress, String, Code),
    Returning(Vec<u64>),
    Replayed { started: Vec<u64>, kept: Vec<u64> },
    MovedHere(SessionAddress, String),
    MovedAway(SessionAddress, String),
}

#[derive(Default)]
pub struct Recorder {
    gateways: OnceLock<Gateways>,
    told: Mutex<Vec<Told>>,
    news: Notify,
    held: Mutex<Vec<Inbound>>,
    /// Logins with the token `slow` and frames with the command [`WAIT`] need a permit.
    pub gate: Semaphore0,
}

/// A semaphore that starts closed.
pub struct Semaphore0(pub Semaphore);

impl Default for Semaphore0 {
    fn default() -> Self {
        Self(Semaphore::new(0))
    }
}

impl Recorder {
    pub fn gateways(&self) -> &Gateways {
        self.gateways.get().expect("the server is bound")
    }

    pub fn told(&self) -> Vec<Told> {
        self.told.lock().expect("no panic").clone()
    }

    pub fn held(&self) -> usize {
        self.held.lock().expect("no panic").len()
    }

    /// Lets go of what is held, with its credit.
    pub fn release(&self) {
        let held = std::mem::take(&mut *self.held.lock().expect("no panic"));
        for inbound in held {
            inbound.reply(Bytes::new());
        }
    }

    /// How the sessions of a user ended so far.
    pub fn ends(&self, user: &str) -> Vec<Code> {
        let ends = self.told().into_iter().filter_map(|told| match told {
            Told::Ended(_, user_id, code) if user_id == user => Some(code),
            _ => None,
        });
        ends.collect()
    }

    pub fn started(&self, user: &str) -> Vec<SessionAddress> {
        let started = self.told().into_iter().filter_map(|told| match told {
            Told::Started(address, user_id) if user_id == user => Some(address),
            _ => None,
        });
        started.collect()
    }

    /// Waits until what was told satisfies `enough`.
    pub async fn wait_for(&self, what: &str, enough: impl Fn(&[Told]) -> bool) {
        let waited = tokio::time::timeout(Duration::from_secs(20), async {
            loop {
                let news = self.news.notified();
                if enough(&self.told()) {
                    return;
                }
                // Some conditions are about more than what was told.
                let _ = tokio::time::timeout(Duration::from_millis(20), news).await;
            }
        });
        if waited.await.is_err() {
            panic!("waited for {what} in vain; told: {:#?}", self.told());
        }
    }

    pub async fn wait_for_end(&self, user: &str) -> Code {
        self.wait_for(&format!("the end of {user}"), |_| !self.ends(user).is_empty()).await;
        self.ends(user)[0]
    }

    fn tell(&self, told: Told) {
        self.told.lock().expect("no panic").push(told);
        self.news.notify_waiters();
    }
}

fn ids(sessions: &[Arc<Session>]) -> Vec<u64> {
    let mut ids: Vec<_> = sessions.iter().map(|session| session.address.session_id).collect();
    ids.sort_unstable();
    ids
}

impl Backend for Recorder {
    async fn login(&self, login: Login) -> Result<Accepted, Refused> {
        match login.token.as_str() {
            "slow" => self.gate.0.acquire().await.expect("never closed").forget(),
            "bad" => return Err(Refused::new(Code::BadToken, "a bad token").retry_after(7)),
            _ => {}
        }
        Ok(Accepted {
            user_id: login.user_id,
            expires_at_ms: 5,
            state: Bytes::from_static(b"state"),
            ..Accepted::default()
        })
    }

    fn session_started(&self, session: Arc<Session>) {
        self.gateways().send(&[session.address], WELCOME, Flags::NONE, Bytes::new());
        self.tell(Told::Started(session.address, session.user_id.to_string()));
    }

    async fn refresh(&self, _session: Arc<Session>, token: String) -> Result<i64, Refused> {
        token.parse().map_err(|_| Refused::new(Code::BadToken, "not a number"))
    }

    async fn frames(&self, frames: Vec<Inbound>) {
        for inbound in frames {
            let (address, command) = (inbound.session.address, inbound.command);
            let body = inbound.body.clone();
            self.tell(Told::Frame(address, command, inbound.request_id, body.clone()));
            match command {
                ECHO => inbound.reply(body),
                HOLD => self.held.lock().expect("no panic").push(inbound),
                PANIC => panic!("a backend that fails, on purpose"),
                WAIT => {
                    self.gate.0.acquire().await.expect("never closed").forget();
                    inbound.reply(body);
                }
                _ => drop(inbound),
            }
        }
    }

    fn session_ended(&self, session: Arc<Session>, ended: Ended) {
        self.tell(match ended {
            Ended::Moved => Told::MovedAway(session.address, session.user_id.to_string()),
            _ => Told::Ended(session.address, session.user_id.to_string(), ended.code()),
        });
    }

    fn sessions_moved_here(&self, sessions: Vec<Arc<Session>>) {
        for session in sessions {
            self.tell(Told::MovedHere(session.address, session.user_id.to_string()));
        }
    }

    fn sessions_returning(&self, kept: &[Arc<Session>]) {
        for session in kept {
            // Whatever is sent now must not arrive: it would come before what was lost.
            self.gateways().send(&[session.address], WELCOME, Flags::NONE, Bytes::new());
        }
        self.tell(Told::Returning(ids(kept)));
    }

    fn sessions_replayed(&self, started: Vec<Arc<Session>>, kept: Vec<Arc<Session>>) {
        for session in &started {
            self.tell(Told::Started(session.address, session.user_id.to_string()));
        }
        self.tell(Told::Replayed { started: ids(&started), kept: ids(&kept) });
    }
}

/// A server with a recorder behind it, on any free port.
pub async fn serve(settings: ServerSettings) -> (Server, Arc<Recorder>) {
    let recorder = Arc::new(Recorder::default());
    let backend = Arc::clone(&recorder);
    let address = "127.0.0.1:0".parse().expect("an address");
    let server = Server::bind(address, settings, |gateways| {
        assert!(backend.gateways.set(gateways).is_ok());
        backend
    });
    (server.await.expect("a free port"), recorder)
}

/// Short enough to wait for, long enough for a busy machine to keep.
pub fn short_lease() -> ServerSettings {
    ServerSettings { lease_ms: 600, ..ServerSettings::default() }
}

pub async fn connect(server: &Server, settings: FakeGatewaySettings) -> FakeGateway {
    FakeGateway::connect(server.address(), settings).await.expect("connected")
}

/// Gives up after 20 seconds instead of hanging.
pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("within 20 seconds")
}
