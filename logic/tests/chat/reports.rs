//! Reports: what clients send to business services reaches its topic, in order.

use bytes::Bytes;
use millrace_logic::bus::DEAD_LETTERS_TOPIC;
use millrace_protocol::{Code, chat::Report, command};

use crate::world::{Clients, World, request_id};

#[tokio::test]
async fn reports_reach_their_topic_in_order_under_the_users_name() {
    let world = World::start().await;
    let mut gateway = world.gateway("a").await;
    gateway.enter(1, "alice").await;
    let bus = world.logic().bus();
    let mut clicks = bus.subscribe("clicks", "counting").await.expect("subscribed");
    for n in 0_u8..50 {
        let payload = Bytes::copy_from_slice(&[n, 0xff]);
        // The gateway has acknowledged them already, so they come without a request id.
        let report = Report { destination: "clicks".into(), payload };
        gateway.send_message(1, command::REPORT, 0, &report).await;
        let elsewhere = Report { destination: "scrolls".into(), payload: Bytes::new() };
        gateway.send_message(1, command::REPORT, 0, &elsewhere).await;
    }
    for n in 0_u8..50 {
        let record = clicks.next().await.expect("a record");
        assert_eq!((record.offset, &*record.key), (u64::from(n) + 1, "alice"));
        assert_eq!(&record.payload[..], [n, 0xff]);
        clicks.acknowledge(record.offset).await.expect("acknowledged");
    }
    let nowhere = Report { destination: "no such/topic".into(), payload: Bytes::new() };
    let reply = gateway.request(1, command::REPORT, request_id(), &nowhere).await;
    assert_eq!(reply.error(), Some(Code::BadRequest));
}

#[tokio::test]
async fn nobody_forges_a_dead_letter() {
    let world = World::start().await;
    let mut gateway = world.gateway("a").await;
    gateway.enter(1, "alice").await;
    let forged = Report { destination: DEAD_LETTERS_TOPIC.into(), payload: Bytes::new() };
    let reply = gateway.request(1, command::REPORT, request_id(), &forged).await;
    assert_eq!(reply.error(), Some(Code::NotPermitted));
}
