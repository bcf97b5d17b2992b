//! The description of the HTTP door, as a real process serves it: what it says is there, what is
//! there is in it, and gRPC has the same.

use std::collections::{BTreeMap, BTreeSet};

use http::uri::PathAndQuery;
use millrace_logic::config::{Door, Listen};
use prost_reflect::{DescriptorPool, ServiceDescriptor};
use reqwest::{Client, Method, StatusCode, header};
use serde_json::Value;
use tonic::{Request, client::Grpc, transport::Endpoint};
use tonic_prost::ProstCodec;

use crate::world::World;

/// Calls that gRPC alone has: streams that go on, with flow control.
const GRPC_ALONE: [&str; 2] =
    ["/millrace.api.v1.PushService/WatchPush", "/millrace.api.v1.TopicService/Consume"];

/// Operations that HTTP alone has: the bytes of files, and what HTTP needs of itself.
const HTTP_ALONE: [&str; 6] = [
    "GET /livez",
    "GET /readyz",
    "GET /v1/attachments/{attachment_id}/content",
    "GET /v1/openapi.json",
    "POST /v1/upload",
    "PUT /v1/attachments/{attachment_id}/content",
];

async fn start() -> World {
    World::start_with(|config| {
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        config.grpc = Door { listen: Listen(Some(address)) };
    })
    .await
}

fn client() -> Client {
    Client::builder().no_proxy().build().expect("a client")
}

async fn description(world: &World) -> Value {
    let address = world.logic().http_address().expect("open");
    let url = format!("http://{address}/v1/openapi.json");
    let text = client().get(url).send().await.expect("an answer").text().await.expect("text");
    serde_json::from_str(&text).expect("JSON")
}

/// `METHOD /path`, and what is said of it.
fn operations(description: &Value) -> BTreeMap<String, Value> {
    let mut operations = BTreeMap::new();
    for (path, methods) in description["paths"].as_object().expect("paths") {
        for (method, operation) in methods.as_object().expect("methods") {
            operations.insert(format!("{} {path}", method.to_uppercase()), operation.clone());
        }
    }
    operations
}

fn pool() -> DescriptorPool {
    DescriptorPool::decode(millrace_protocol::DESCRIPTORS).expect("descriptors")
}

fn services(pool: &DescriptorPool) -> Vec<ServiceDescriptor> {
    pool.services().filter(|service| service.package_name() == "millrace.api.v1").collect()
}

#[tokio::test]
async fn every_described_operation_is_served_and_asks_for_the_token_that_it_says() {
    let world = start().await;
    let address = world.logic().http_address().expect("open");
    let (client, mut seen) = (client(), 0);
    for (line, operation) in operations(&description(&world).await) {
        let (method, path) = line.split_once(' ').expect("two words");
        let path = path.replace("{sequence}", "1").replace(['{', '}'], "");
        let method: Method = method.parse().expect("a method");
        let url = format!("http://{address}{path}");
        let answer = client.request(method, url).send().await.expect("an answer");
        let (status, text) = (answer.status(), answer.text().await.expect("text"));
        assert!(status != 405 && !text.contains("no such path"), "{line}: {status} {text}");
        let security = operation["security"].as_array().expect("a list");
        let is_open =
            security.is_empty() || security.iter().any(|one| one == &serde_json::json!({}));
        // A file's bytes are had with a link, too.
        if !is_open || line.ends_with("/content") {
            assert_eq!(status, StatusCode::UNAUTHORIZED, "{line}: {text}");
        }
        assert!(operation["responses"][status.as_str()].is_object(), "{line}: {status} {text}");
        seen += 1;
    }
    assert!(seen > 60, "{seen}");
}

#[tokio::test]
async fn http_and_grpc_offer_the_same_calls_but_for_those_that_are_named() {
    let world = start().await;
    let operations = operations(&description(&world).await);
    let (mut by_http, mut alone) = (BTreeSet::new(), BTreeSet::new());
    for (line, operation) in &operations {
        if let Some(call) = operation["x-grpc-method"].as_str() {
            by_http.insert(call.to_owned());
        } else {
            alone.insert(line.as_str());
        }
    }
    let pool = pool();
    let mut by_grpc = BTreeSet::new();
    for service in services(&pool) {
        let name = |call: &str| format!("/{}/{call}", service.full_name());
        by_grpc.extend(service.methods().map(|call| name(call.name())));
    }
    assert!(by_grpc.len() > 60, "{by_grpc:?}");
    let by_grpc_alone: Vec<_> = by_grpc.difference(&by_http).map(String::as_str).collect();
    assert_eq!(by_grpc_alone, GRPC_ALONE);
    assert_eq!(Vec::from_iter(alone), HTTP_ALONE);
    assert!(by_http.is_subset(&by_grpc));
}

#[tokio::test]
async fn every_call_of_grpc_is_served() {
    let world = start().await;
    let address = world.logic().addresses().grpc.expect("open");
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    let channel = endpoint.connect().await.expect("connected");
    let pool = pool();
    for service in services(&pool) {
        for method in service.methods() {
            let path = format!("/{}/{}", service.full_name(), method.name());
            let mut grpc = Grpc::new(channel.clone());
            grpc.ready().await.expect("ready");
            // An empty message is every message, and no token lets in nobody but where it is open.
            let path_and_query: PathAndQuery = path.parse().expect("a path");
            let codec = ProstCodec::<(), ()>::default();
            let answer = grpc.server_streaming(Request::new(()), path_and_query, codec).await;
            // RevokeToken has nothing to do and says so; all others refuse, and with a code of ours.
            let Err(refused) = answer else { continue };
            assert_ne!(refused.code(), tonic::Code::Unimplemented, "{path}: {refused}");
            assert!(refused.metadata().contains_key("millrace-code"), "{path}: {refused}");
        }
    }
}

#[tokio::test]
async fn the_comments_of_the_services_name_the_paths_that_are_served() {
    let world = start().await;
    let operations = operations(&description(&world).await);
    let pool = pool();
    let mut left: BTreeSet<String> = operations
        .iter()
        .filter(|(_, operation)| operation["x-grpc-method"].is_string())
        .map(|(line, _)| line.clone())
        .collect();
    for service in services(&pool) {
        let file = service.parent_file();
        let info = file.file_descriptor_proto().source_code_info.clone().expect("comments");
        for method in service.methods() {
            let location = info.location.iter().find(|location| location.path == method.path());
            let comment = location.and_then(|one| one.leading_comments.clone()).unwrap_or_default();
            let last = comment.trim().lines().last().unwrap_or_default().trim().to_owned();
            let call = format!("/{}/{}", service.full_name(), method.name());
            if GRPC_ALONE.contains(&&*call) {
                continue;
            }
            let served: Vec<&str> = operations
                .iter()
                .filter(|(_, operation)| operation["x-grpc-method"] == call)
                .map(|(line, _)| line.as_str())
                .collect();
            let is_act = last == "POST /v1/groups/{group_id}/{act}";
            assert!(is_act || served.contains(&&*last), "{call}: {last:?} is not in {served:?}");
            for line in served {
                left.remove(line);
                assert!(!operations[line]["summary"].as_str().unwrap_or_default().is_empty());
            }
        }
    }
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn the_description_is_open_and_kept_until_it_changes() {
    let world = start().await;
    let address = world.logic().http_address().expect("open");
    let (client, url) = (client(), format!("http://{address}/v1/openapi.json"));
    let first = client.get(&url).send().await.expect("an answer");
    assert_eq!(first.status(), StatusCode::OK);
    let headers = first.headers();
    assert_eq!(headers[header::CONTENT_TYPE], "application/json");
    assert!(headers[header::CACHE_CONTROL].to_str().expect("text").contains("max-age"));
    let tag = headers[header::ETAG].clone();
    let again = client.get(&url).header(header::IF_NONE_MATCH, tag).send().await.expect("again");
    assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
    assert_eq!(again.text().await.expect("text"), "");
    let other =
        client.get(&url).header(header::IF_NONE_MATCH, "\"x\"").send().await.expect("again");
    assert_eq!(other.status(), StatusCode::OK);
}
