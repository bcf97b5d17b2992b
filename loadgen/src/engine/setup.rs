//! What a run needs before its first connection: the clients' settings, tokens, threads.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use jsonwebtoken::{Algorithm, EncodingKey, Header};

use super::{Job, Records};
use crate::{
    adapter::{guest::Guest, mqtt::Mqtt, streams::Streams, websocket_echo::WebsocketEcho},
    client::{Client, Context, Settings, Tokens},
    clock::Clock,
    control::Control,
    crew::Crew,
    driver::{self, Options},
    exit::RunError,
    fleet::{ChatFleet, Share},
    log::Names,
    population::Transport,
    preflight,
    room::Board,
    scenario::{LoginSection, Protocol, Scenario, TokenAlgorithm, plan::Plan},
    target::Target,
    user::User,
};

/// Largest key file that is read.
const KEY_BYTES_MAX: u64 = 64 * 1024;

/// The clients' settings, with the listeners that the users need; each is tried once.
///
/// # Errors
/// An address or a key is missing, or a listener cannot be reached.
pub fn settings(job: &Job<'_>, plan: &Plan) -> Result<Settings, RunError> {
    let (scenario, target) = (job.scenario, job.target);
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    // Long enough for the run and every reconnect in it.
    let run_length = Duration::from_nanos(plan.load_ns()) + scenario.connect.hold.as_std();
    let lifetime = scenario.login.lifetime.as_std();
    let expire_at_s = unix.as_secs() + run_length.as_secs() + lifetime.as_secs();
    let mut settings = Settings::new("", expire_at_s);
    settings.websocket_echo = scenario.websocket_echo.clone().unwrap_or_default();
    settings.mqtt = scenario.mqtt.clone().unwrap_or_default();
    settings.has_inboxes = plan.has_single_chat();
    let wants_tokens = match plan.protocol {
        Protocol::Millrace => true,
        Protocol::WebsocketEcho => false,
        Protocol::Mqtt => settings.mqtt.wants_tokens(),
    };
    if wants_tokens {
        settings.tokens = tokens(&scenario.login, target, job.login_key.as_deref())?;
        settings.tokens.sign("nobody", expire_at_s).map_err(|error| {
            RunError::bad_arguments(format!("login.key_file does not fit login.algorithm: {error}"))
        })?;
    }
    settings.message_bytes = scenario.message_bytes;
    settings.expect_faults = scenario.verdict.expect_faults;
    settings.heartbeat_reply_max_ns = scenario.verdict.heartbeat_reply_max.as_millis() * 1_000_000;
    settings.custom = plan.custom.clone();
    if let Some(churn) = &scenario.presence_churn {
        let ns = |duration: millrace_service::Duration| duration.as_millis() * 1_000_000;
        settings.away_ns = (ns(churn.away_min), ns(churn.away_max));
    }
    let websockets = plan.population.websockets();
    if websockets < plan.population.users {
        let endpoint = target.tcp_endpoint()?;
        preflight::reach("--tcp", endpoint.address)?;
        settings.tcp = Some(endpoint);
    }
    if websockets > 0 {
        let endpoint = target.websocket_endpoint()?;
        preflight::reach("--websocket", endpoint.address)?;
        settings.websocket = Some(endpoint);
    }
    Ok(settings)
}

fn tokens(
    login: &LoginSection,
    target: &Target,
    login_key: Option<&[u8]>,
) -> Result<Tokens, RunError> {
    let algorithm = match login.algorithm {
        TokenAlgorithm::HS256 => Algorithm::HS256,
        TokenAlgorithm::RS256 => Algorithm::RS256,
        TokenAlgorithm::ES256 => Algorithm::ES256,
        TokenAlgorithm::EdDSA => Algorithm::EdDSA,
    };
    let read = |path: &Path| login_key.map_or_else(|| key_file(path), |key| Ok(key.to_vec()));
    let key = match (&login.key_file, algorithm) {
        (None, _) => EncodingKey::from_secret(target.secret()?.as_bytes()),
        (Some(path), Algorithm::HS256) => EncodingKey::from_secret(read(path)?.trim_ascii()),
        (Some(path), algorithm) => {
            let pem = read(path)?;
            let key = match algorithm {
                Algorithm::RS256 => EncodingKey::from_rsa_pem(&pem),
                Algorithm::ES256 => EncodingKey::from_ec_pem(&pem),
                _ => EncodingKey::from_ed_pem(&pem),
            };
            key.map_err(|error| {
                RunError::bad_arguments(format!(
                    "login.key_file {}: no private key for {algorithm:?} in PEM: {error}",
                    path.display()
                ))
            })?
        }
    };
    let mut header = Header::new(algorithm);
    header.kid = login.key_id.clone();
    Ok(Tokens::new(header, key, login.issuer.clone(), login.audience.clone()))
}

/// What all threads know of the messages.
#[derive(Clone)]
pub struct Shared {
    /// Numbers for conversations.
    pub names: Names,
    /// The room.
    pub board: Arc<Board>,
    /// The streams at somebody else's server.
    pub streams: Arc<Streams>,
}

/// What a key file holds.
///
/// # Errors
/// It cannot be read, or is none.
pub fn key_file(path: &Path) -> Result<Vec<u8>, RunError> {
    let explain = |what: String| {
        RunError::bad_arguments(format!("login.key_file {}: {what}", path.display()))
    };
    let size = std::fs::metadata(path).map_err(|error| explain(error.to_string()))?.len();
    if size > KEY_BYTES_MAX {
        return Err(explain(format!("{size} bytes are too many for a key")));
    }
    std::fs::read(path).map_err(|error| explain(error.to_string()))
}

/// Starts the threads with their users. With `is_followed` somebody takes what they
/// measure meanwhile.
///
/// # Errors
/// Descriptors, ports or memory do not suffice.
pub fn start(
    job: &Job<'_>,
    clock: Clock,
    settings: Settings,
    plan: &Arc<Plan>,
    shared: &Shared,
    ramp_start_ns: u64,
    is_followed: bool,
) -> Result<Crew<Records>, RunError> {
    let scenario = job.scenario;
    let threads = scenario.generator.threads;
    let population = Arc::new(plan.population.clone());
    preflight::memory(population.users)?;
    let options = preflight::driver_options(population.users.div_ceil(threads), threads)?;
    let websockets = population.websockets();
    let targets: Vec<_> =
        [(Transport::Tcp, population.users - websockets), (Transport::WebSocket, websockets)]
            .into_iter()
            .filter_map(|(transport, count)| Some((settings.endpoint(transport)?.address, count)))
            .collect();
    let sources = preflight::sources(&targets, population.users, &job.target.source_addresses)?;
    let (window_ns, windows_max) = windows(scenario, plan);
    let share = Share {
        thread: 0,
        threads,
        ramp_per_second: scenario.connect.per_second / f64::from(threads),
        plan: plan.clone(),
        ramp_start_ns,
        window_ns,
        windows_max,
        sources,
        place: job.place,
        streams: is_followed,
    };
    let settings = Arc::new(settings);
    let control = Arc::new(Control::new(threads as usize));
    Crew::start(clock, control.clone(), job.aborted.clone(), job.view, |thread| {
        let (control, options) = (control.clone(), options.clone());
        let (share, shared) = (Share { thread, ..share.clone() }, shared.clone());
        let (settings, population) = (settings.clone(), population.clone());
        let seed = scenario.seed ^ (u64::from(thread) << 56) ^ u64::from(population.run);
        move || {
            let Shared { names, board, streams } = shared;
            let unix_ms = clock.unix_ms_at_start();
            let mut cx = Context::new(settings, population, names, board, seed, unix_ms);
            cx.streams = streams;
            match share.plan.protocol {
                Protocol::Millrace => generate::<Client>(clock, options, control, share, cx),
                Protocol::WebsocketEcho => {
                    generate::<Guest<WebsocketEcho>>(clock, options, control, share, cx)
                }
                Protocol::Mqtt => generate::<Guest<Mqtt>>(clock, options, control, share, cx),
            }
        }
    })
}

/// The life of a thread.
fn generate<U: User>(
    clock: Clock,
    options: Options,
    control: Arc<Control>,
    share: Share,
    cx: Context,
) -> Result<Records, RunError> {
    let mut fleet = ChatFleet::<U>::new(control, share, cx, clock.now_ns());
    let stations = fleet.stations();
    driver::run(clock, options, stations, &mut fleet)
        .map_err(|error| RunError::aborted(format!("io_uring: {error}")))?;
    Ok(fleet.into_records())
}

/// Length of a window, and how many a part of the run has: a longer schedule gets longer windows.
pub fn windows(scenario: &Scenario, plan: &Plan) -> (u64, usize) {
    let generator = &scenario.generator;
    let asked_ns = generator.window.as_millis() * 1_000_000;
    let most = u64::from(generator.windows_max);
    let times = plan.load_ns().div_ceil(asked_ns).div_ceil(most).max(1);
    (asked_ns * times, generator.windows_max as usize)
}
