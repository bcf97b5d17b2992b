//! A gateway configured for a measurement, and the smallest logic behind it: every login is good,
//! everybody is in one room, and no frame means anything.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result};
use millrace_logic_sdk::{
    Accepted, Backend, Ended, Gateways, Inbound, Login, Refused, Server, ServerSettings, Session,
};
use millrace_protocol::chat::RoomMessage;

use crate::processes::{self, Process};

/// The room that everybody joins.
pub const ROOM: &str = "everybody";

struct Measured {
    gateways: Gateways,
    joins: bool,
    members: Arc<AtomicU64>,
}

impl Backend for Measured {
    async fn login(&self, login: Login) -> Result<Accepted, Refused> {
        Ok(Accepted { user_id: login.user_id, ..Accepted::default() })
    }

    fn session_started(&self, session: Arc<Session>) {
        if self.joins && self.gateways.join_room(ROOM, session.address).is_ok() {
            self.members.fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn refresh(&self, _: Arc<Session>, _: String) -> Result<i64, Refused> {
        Ok(0)
    }

    async fn frames(&self, _: Vec<Inbound>) {}

    fn session_ended(&self, _: Arc<Session>, _: Ended) {}

    fn sessions_replayed(&self, _: Vec<Arc<Session>>, _: Vec<Arc<Session>>) {}
}

/// Logic in this process, on a thread of its own that lives as long as the process.
#[derive(Clone)]
pub struct Logic {
    /// Where gateways connect.
    pub address: SocketAddr,
    /// The way to the sessions.
    pub gateways: Gateways,
    members: Arc<AtomicU64>,
}

impl std::fmt::Debug for Logic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Logic").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Logic {
    /// Starts it on a core. `joins`: every session joins [`ROOM`].
    ///
    /// # Errors
    /// It cannot listen.
    pub fn start(core: usize, joins: bool) -> Result<Self> {
        let members = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&members);
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        std::thread::Builder::new().name("logic".to_owned()).spawn(move || -> Result<()> {
            processes::stay_on_core(core)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let backend = |gateways| Arc::new(Measured { gateways, joins, members: counted });
                let address = SocketAddr::from(([127, 0, 0, 1], 0));
                let server = Server::bind(address, ServerSettings::default(), backend).await?;
                tell.send((server.address(), server.gateways()))?;
                std::future::pending::<()>().await;
                Ok(())
            })
        })?;
        let (address, gateways) = told.recv().context("logic could not start")?;
        Ok(Self { address, gateways, members })
    }

    /// How many sessions have joined [`ROOM`] so far.
    pub fn members(&self) -> u64 {
        self.members.load(Ordering::Relaxed)
    }

    /// Messages to everybody in [`ROOM`], one publication each, handed over together.
    pub fn publish(&self, command: u16, messages: &[RoomMessage]) {
        for message in messages {
            self.gateways.publish_room(ROOM, command, message, None);
        }
    }
}

/// A gateway with one shard.
#[derive(Debug)]
pub struct Gateway {
    /// It.
    pub process: Process,
    /// For clients.
    pub websocket: SocketAddr,
    /// For `/readyz` and `/metrics`.
    pub admin: SocketAddr,
}

impl Gateway {
    /// Starts the real gateway on a core: one shard, and its link's thread on the same core. Rates
    /// are kept but never reached, and silence is allowed for ten minutes: a closed loop has no
    /// schedule. Nothing else differs from the defaults.
    ///
    /// # Errors
    /// It does not start, or does not reach its logic.
    pub fn start(
        binary: &Path,
        core: usize,
        logic: SocketAddr,
        folder: &Path,
        driver: Option<&str>,
    ) -> Result<Self> {
        let (websocket, admin) = (processes::free_address()?, processes::free_address()?);
        let path = folder.join("gateway.toml");
        let driver = driver.map_or_else(String::new, |driver| format!("driver = \"{driver}\"\n"));
        fs::write(
            &path,
            format!(
                "[gateway]\nid = \"bench\"\nshards = 1\npin_shards = false\n{driver}\
                 [listen]\nwebsocket = \"{websocket}\"\ntcp = \"\"\n\
                 [connections]\nidle_timeout = \"10m\"\nheartbeat_interval = \"5m\"\n\
                 frames_per_second_max = 10000000\nframes_burst_max = 10000000\n\
                 [logic]\nendpoints = [\"http://{logic}\"]\n\
                 [admin]\nlisten = \"{admin}\"\n\
                 [log]\nlevel = \"warn\"\n"
            ),
        )?;
        let mut command = Command::new(binary);
        command.arg("run").arg("--config").arg(&path);
        let mut process = Process::start(command, Some(core), &folder.join("gateway.log"))?;
        process
            .wait_until_ready(admin)
            .with_context(|| fs::read_to_string(folder.join("gateway.log")).unwrap_or_default())?;
        Ok(Self { process, websocket, admin })
    }
}
