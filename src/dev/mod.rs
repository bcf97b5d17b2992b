//! `millrace dev`: starts both tiers and the chat page, says where everything is, waits for a
//! signal, and leaves in order: the gateway sends its clients away, then logic closes the store.

mod page;
mod secrets;

use std::{
    error::Error,
    io::Write as _,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use clap::Args;
use millrace_gateway::Gateway;
use millrace_logic::Logic;
use millrace_service::{logging, signal::Termination};
use serde::Serialize;

use secrets::{Secrets, User};

/// The ready-made users.
const USERS: [&str; 2] = ["alice", "bob"];

/// How long both tiers may take to find each other.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// What `dev` is told.
#[derive(Debug, Args)]
pub struct Options {
    /// Print one line of JSON on standard output once everything answers; for scripts.
    #[arg(long)]
    json: bool,
    /// Where the store and the secrets are kept.
    #[arg(long, value_name = "DIR", default_value = "data")]
    data: PathBuf,
    /// Where clients connect by WebSocket; port 0 takes any free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    websocket: SocketAddr,
    /// Where clients connect by TCP.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8081")]
    tcp: SocketAddr,
    /// The HTTP API and the chat page.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8082")]
    http: SocketAddr,
    /// The gateway's health and metrics.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9600")]
    admin: SocketAddr,
    /// What to log, for example `info` or `warn,millrace_gateway=debug`.
    #[arg(long, value_name = "FILTER", default_value = "warn")]
    log: String,
}

/// The line for scripts (PROTOCOL, "For scripts").
#[derive(Serialize)]
struct Ready {
    ready: bool,
    websocket: String,
    tcp: String,
    http: String,
    admin: String,
    jwt_secret: String,
    api_token: String,
    users: Vec<User>,
}

/// Runs until a signal asks to end.
pub fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    logging::init(logging::Format::Auto, &options.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(serve(options))
}

async fn serve(options: &Options) -> Result<(), Box<dyn Error>> {
    let mut termination = Termination::listen()?;
    let secrets = Secrets::open(&options.data)?;
    let settings = Arc::new(OnceLock::new());

    let logic = Logic::start_with_routes(
        logic_config(options, &secrets),
        page::routes(Arc::clone(&settings)),
    )
    .await?;
    let gateway = match start_gateway(options, logic.link_address()).await {
        Ok(gateway) => gateway,
        Err(error) => {
            logic.shutdown().await?;
            return Err(error);
        }
    };

    let ready = ready(&secrets, &gateway, &logic);
    let page = page::Settings { websocket: ready.websocket.clone(), users: ready.users.clone() };
    settings.set(page).unwrap_or_else(|_| unreachable!("the settings are set once"));
    announce(options, &ready)?;

    tokio::select! {
        name = termination.received() => {
            if !options.json {
                eprintln!("{name}: sending clients away, closing the store");
            }
        }
        () = gateway.shard_ended() => eprintln!("millrace: a shard of the gateway ended by itself"),
    }
    termination.or_exit_at_once(leave(gateway, logic)).await
}

/// The gateway first, so that logic hears how each session ended; then the store.
async fn leave(gateway: Gateway, logic: Logic) -> Result<(), Box<dyn Error>> {
    gateway.drain();
    let gateway = tokio::task::spawn_blocking(|| gateway.join()).await?;
    logic.shutdown().await?;
    Ok(gateway?)
}

fn logic_config(options: &Options, secrets: &Secrets) -> millrace_logic::Config {
    let mut config = millrace_logic::Config::default();
    config.link.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    config.http.listen = millrace_logic::config::Listen(Some(options.http));
    config.grpc.listen = millrace_logic::config::Listen(None);
    config.admin.listen = millrace_logic::config::Listen(None);
    config.api.token = secrets.api_token.clone();
    config.login.jwt_secret = secrets.jwt_secret.clone();
    config.store.directory = options.data.join("store");
    config
}

fn gateway_config(options: &Options, link: SocketAddr) -> millrace_gateway::Config {
    let mut config = millrace_gateway::Config::default();
    config.listen.websocket = options.websocket.to_string();
    config.listen.tcp = options.tcp.to_string();
    config.admin.listen = options.admin.to_string();
    config.logic.endpoints = vec![format!("http://{link}")];
    // A person at a terminal waits for this.
    config.drain.shutdown = millrace_service::Duration::from_millis(500);
    config
}

/// Starts the gateway and waits until every shard has its link.
async fn start_gateway(options: &Options, link: SocketAddr) -> Result<Gateway, Box<dyn Error>> {
    let gateway = Gateway::start(gateway_config(options, link))?;
    let ready = async {
        while !gateway.unready_reasons().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    if tokio::time::timeout(READY_WITHIN, ready).await.is_err() {
        let reasons = gateway.unready_reasons().join("; ");
        return Err(format!("the gateway is not ready after {READY_WITHIN:?}: {reasons}").into());
    }
    Ok(gateway)
}

fn ready(secrets: &Secrets, gateway: &Gateway, logic: &Logic) -> Ready {
    let addresses = gateway.addresses();
    let shown = |address: Option<SocketAddr>| {
        address.expect("dev configures every listener, and each has an address").to_string()
    };
    Ready {
        ready: true,
        websocket: format!("ws://{}/ws", shown(addresses.websocket)),
        tcp: shown(addresses.tcp),
        http: format!("http://{}", shown(logic.http_address())),
        admin: format!("http://{}", shown(addresses.admin)),
        jwt_secret: secrets.jwt_secret.clone(),
        api_token: secrets.api_token.clone(),
        users: USERS.map(|user_id| secrets.user(user_id)).to_vec(),
    }
}

/// Says where everything is: a line of JSON for scripts, a page of text for people.
fn announce(options: &Options, ready: &Ready) -> Result<(), Box<dyn Error>> {
    let mut out = std::io::stdout().lock();
    if options.json {
        serde_json::to_writer(&mut out, ready)?;
        writeln!(out)?;
        out.flush()?;
        return Ok(());
    }
    let port = |url: &str| url.trim_start_matches("ws://").trim_end_matches("/ws").to_owned();
    writeln!(
        out,
        "\
Millrace is ready.

  chat page   {http}/?user=alice   and   {http}/?user=bob   (log in or register there as somebody else)
  WebSocket   {websocket}   (subprotocols millrace.v1 and millrace.v1.json)
  TCP         {tcp}
  HTTP API    {http}/v1/…   (Authorization: Bearer {api_token})
  admin       {admin}   (/livez /readyz /metrics /version /connections)
  data        {data}",
        http = ready.http,
        websocket = ready.websocket,
        tcp = ready.tcp,
        api_token = ready.api_token,
        admin = ready.admin,
        data = options.data.display(),
    )?;
    for user in &ready.users {
        writeln!(out, "\n  {} logs in with\n  {}", user.user_id, user.token)?;
    }
    writeln!(
        out,
        "
Try next, in another terminal: 2,000 clients that chat for ten seconds, and a verdict.

  cargo run --release -p millrace-loadgen -- chat \\
      --websocket {websocket} --tcp {tcp} --http {http} \\
      --jwt-secret {jwt_secret} --api-token {api_token} \\
      --connections 2000 --single-rate 1000 --group-rate 50 --duration 10s

ready: listening on {port}; Ctrl-C ends it, the data stays.",
        websocket = ready.websocket,
        tcp = ready.tcp,
        http = ready.http,
        jwt_secret = ready.jwt_secret,
        api_token = ready.api_token,
        port = port(&ready.websocket),
    )?;
    out.flush()?;
    Ok(())
}
