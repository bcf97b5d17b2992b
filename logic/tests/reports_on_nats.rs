//! The real logic with its topics on a real NATS server: what clients report while the server is
//! killed and comes back is on the topic, once and in order.
#![cfg(feature = "nats")]

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use millrace_logic::{
    Config, Logic,
    bus::{BusError, Start},
    config::{BusKind, Door, Listen},
};
use millrace_logic_sdk::{
    Encoding,
    testing::{FakeGateway, login_request},
};
use millrace_protocol::{chat::Report, command};
use serde_json::json;
use tokio::time::{sleep, timeout};

#[path = "../src/testing/services/nats.rs"]
#[expect(dead_code, reason = "the tests of the bus itself use the rest of it")]
mod nats;

const SECRET: &str = "a secret of the tests, long enough for HS256";

fn config(server: &nats::NatsServer, folder: &std::path::Path) -> Config {
    let mut config = Config::default();
    config.link.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    for door in [&mut config.http, &mut config.admin] {
        *door = Door { listen: Listen(None) };
    }
    config.store.directory = folder.join("data");
    config.login.jwt_secret = SECRET.to_owned();
    config.limits.frames_burst_max = 100_000;
    config.bus.kind = BusKind::Nats;
    config.bus.nats.servers = vec![server.url()];
    config.bus.nats.attempt_timeout = millrace_service::Duration::from_millis(500);
    config.bus.nats.patience = millrace_service::Duration::from_millis(1_000);
    config
}

async fn enter(gateway: &mut FakeGateway, user_id: &str) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
    let claims = json!({ "sub": user_id, "exp": now + 3_600 });
    let token = jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key);
    let token = token.expect("a token");
    let request = login_request(1, user_id, &token, "device", "", Encoding::Protobuf);
    let result = gateway.login(request).await;
    assert_eq!(result.code, 0, "{}", result.reason);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_reported_while_nats_is_killed_and_comes_back_is_there_once_and_in_order() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut server = nats::NatsServer::start();
    let logic = Logic::start(config(&server, folder.path())).await.expect("logic starts");
    let settings = Default::default();
    let mut gateway = FakeGateway::connect(logic.link_address(), settings).await.expect("linked");
    enter(&mut gateway, "alice").await;
    let mut reported: u32 = 0;
    for outage in [Duration::from_millis(100), Duration::from_millis(3_500), Duration::ZERO] {
        for number in 0..200 {
            // In the middle of it.
            if number == 50 {
                server.kill();
            }
            let payload = Bytes::copy_from_slice(&reported.to_be_bytes());
            let report = Report { destination: "clicks".into(), payload };
            gateway.send_message(1, command::REPORT, 0, &report).await;
            reported += 1;
        }
        sleep(outage).await;
        if !outage.is_zero() {
            server.start_again();
        }
    }
    // While it is away, services are refused within the patience that is configured.
    let refused = timeout(Duration::from_secs(60), logic.bus().topics()).await.expect("bounded");
    assert!(matches!(refused, Err(BusError::Unavailable(_))), "{refused:?}");
    server.start_again();
    let read = async || {
        let mut numbers = Vec::new();
        loop {
            let from = Start::Offset(numbers.len() as u64 + 1);
            match logic.bus().read("clicks", from, 1_000, 1 << 20).await {
                Ok(page) if page.records.is_empty() => return numbers,
                Ok(page) => numbers.extend(page.records.into_iter().map(|record| {
                    assert_eq!(record.key, "alice");
                    u32::from_be_bytes(record.payload[..].try_into().expect("four bytes"))
                })),
                Err(BusError::Unavailable(_) | BusError::NotFound) => {}
                Err(error) => panic!("{error}"),
            }
        }
    };
    let arrived = timeout(Duration::from_secs(120), async {
        while (read().await.len() as u32) < reported {
            sleep(Duration::from_millis(100)).await;
        }
    });
    arrived.await.expect("every report arrives");
    // Nothing more comes behind them.
    sleep(Duration::from_millis(500)).await;
    assert_eq!(read().await, (0..reported).collect::<Vec<_>>());
    logic.shutdown().await.expect("logic leaves well");
}
