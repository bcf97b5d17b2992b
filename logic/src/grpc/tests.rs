//! The door through a real connection.

use std::sync::Arc;

use millrace_protocol::Code;
use millrace_protocol::api::broadcast_service_client::BroadcastServiceClient;
use millrace_protocol::api::group_service_client::GroupServiceClient;
use millrace_protocol::api::history_service_client::HistoryServiceClient;
use millrace_protocol::api::message_service_client::MessageServiceClient;
use millrace_protocol::api::room_service_client::RoomServiceClient;
use millrace_protocol::api::user_service_client::UserServiceClient;
use millrace_protocol::api::{
    AddMembersRequest, BroadcastRequest, CreateGroupRequest, GetGroupRequest, GetPresenceRequest,
    KickUserRequest, PublishRoomMessageRequest, RemoveGroupRequest, RemoveMembersRequest,
    SendMessageRequest,
};
use millrace_protocol::api::{
    DeleteMessagesRequest, ForwardMessagesRequest, PullMessagesRequest, RevokeMessageRequest,
};
use tokio::net::TcpListener;
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

use super::{routes, serve};
use crate::api::Guard;
use crate::api::testing::{EchoApi, GROUP};

async fn connect() -> Channel {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("bound");
    let guard = Guard::new("token", 8);
    tokio::spawn(serve(listener, routes(Arc::new(EchoApi), guard), std::future::pending()));
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    endpoint.connect().await.expect("connected")
}

fn with_token<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", "Bearer token".parse().expect("a value"));
    request
}

#[tokio::test]
async fn every_call_reaches_its_method() {
    let channel = connect().await;
    let mut groups = GroupServiceClient::new(channel.clone());
    let group_id = GROUP.to_owned();
    let request = CreateGroupRequest { name: "n".to_owned(), ..CreateGroupRequest::default() };
    let created = groups.create_group(with_token(request)).await.expect("created").into_inner();
    assert_eq!(created.conversation_id, "n:");
    let request = GetGroupRequest { group_id: group_id.clone() };
    let found = groups.get_group(with_token(request)).await.expect("found").into_inner();
    assert_eq!(found.group_id, GROUP);
    let request = RemoveGroupRequest { group_id: group_id.clone(), ..Default::default() };
    groups.remove_group(with_token(request)).await.expect("removed");
    let user_ids = vec!["a".to_owned()];
    let request = AddMembersRequest {
        group_id: group_id.clone(),
        user_ids: user_ids.clone(),
        ..Default::default()
    };
    assert_eq!(groups.add_members(with_token(request)).await.expect("added").get_ref().added, 1);
    let request = RemoveMembersRequest { group_id, user_ids, ..Default::default() };
    let removed = groups.remove_members(with_token(request)).await.expect("removed");
    assert_eq!(removed.get_ref().removed, 1);
    let request = SendMessageRequest { sender_id: "a".to_owned(), ..SendMessageRequest::default() };
    let sent = MessageServiceClient::new(channel.clone()).send_message(with_token(request)).await;
    assert_eq!(sent.expect("sent").get_ref().message_id, "a>");
    let mut history = HistoryServiceClient::new(channel.clone());
    let (conversation_id, user_id) = ("g:x".to_owned(), "a".to_owned());
    let request = PullMessagesRequest {
        conversation_id: conversation_id.clone(),
        user_id: user_id.clone(),
        ..PullMessagesRequest::default()
    };
    let page = history.pull_messages(with_token(request)).await.expect("pulled");
    assert_eq!(page.get_ref().messages[0].sender_id, "a");
    let request = RevokeMessageRequest {
        conversation_id: conversation_id.clone(),
        sequence: 3,
        actor_user_id: user_id.clone(),
    };
    let revoked = history.revoke_message(with_token(request)).await.expect("revoked");
    assert_eq!(revoked.get_ref().reason, "g:x 3 a");
    let sequences = vec![1, 2];
    let request = DeleteMessagesRequest {
        conversation_id: conversation_id.clone(),
        user_id: user_id.clone(),
        sequences: sequences.clone(),
    };
    let deleted = history.delete_messages(with_token(request)).await.expect("deleted");
    assert_eq!(deleted.get_ref().deleted, 2);
    let request = ForwardMessagesRequest {
        conversation_id,
        sender_id: user_id,
        sequences,
        ..ForwardMessagesRequest::default()
    };
    let sent = history.forward_messages(with_token(request)).await.expect("forwarded");
    assert_eq!(sent.get_ref().message_id, "g:x a");
    let request = PublishRoomMessageRequest {
        room_id: "r".to_owned(),
        body: "b".to_owned(),
        ..PublishRoomMessageRequest::default()
    };
    let mut rooms = RoomServiceClient::new(channel.clone());
    let published = rooms.publish_room_message(with_token(request)).await.expect("published");
    assert_eq!((&*published.get_ref().reason, published.get_ref().members), ("r: b", 3));
    let request = BroadcastRequest { body: "b".to_owned(), ..BroadcastRequest::default() };
    let mut everybody = BroadcastServiceClient::new(channel.clone());
    let told = everybody.broadcast(with_token(request)).await.expect("told");
    assert_eq!((&*told.get_ref().reason, told.get_ref().sessions), ("b", 4));
    let mut users = UserServiceClient::new(channel);
    let request = KickUserRequest { user_id: "a".to_owned(), reason: "b".to_owned() };
    assert_eq!(
        users.kick_user(with_token(request)).await.expect("kicked").get_ref().reason,
        "a: b"
    );
    let request = GetPresenceRequest { user_id: "a".to_owned() };
    assert!(users.get_presence(with_token(request)).await.expect("known").get_ref().online);
}

#[tokio::test]
async fn without_the_token_nothing_is_done() {
    let mut users = UserServiceClient::new(connect().await);
    let request = || GetPresenceRequest { user_id: "a".to_owned() };
    let mut wrong = Request::new(request());
    wrong.metadata_mut().insert("authorization", "Bearer tokem".parse().expect("a value"));
    for call in [Request::new(request()), wrong] {
        let status = users.get_presence(call).await.expect_err("refused");
        assert_eq!(status.code(), tonic::Code::Unauthenticated);
        assert_eq!(status.metadata().get("millrace-code").expect("our code"), "5");
    }
}

#[tokio::test]
async fn a_refusal_keeps_code_reason_and_delay() {
    let mut messages = MessageServiceClient::new(connect().await);
    for (code, expected) in [
        (Code::NotFound, tonic::Code::NotFound),
        (Code::NotPermitted, tonic::Code::PermissionDenied),
        (Code::BadRequest, tonic::Code::InvalidArgument),
        (Code::AlreadyExists, tonic::Code::AlreadyExists),
        (Code::RateLimited, tonic::Code::ResourceExhausted),
        (Code::LogicUnavailable, tonic::Code::Unavailable),
        (Code::Internal, tonic::Code::Internal),
    ] {
        let client_message_id = code.label().to_owned();
        let request = SendMessageRequest { client_message_id, ..SendMessageRequest::default() };
        let status = messages.send_message(with_token(request)).await.expect_err("refused");
        assert_eq!((status.code(), status.message()), (expected, "as wanted"));
        let metadata = status.metadata();
        let number = code.number().to_string();
        assert_eq!(metadata.get("millrace-code").expect("our code"), number.as_str());
        assert_eq!(metadata.get("retry-after-ms").expect("the delay"), "1500");
    }
}

#[tokio::test]
async fn each_refusal_has_its_own_code_and_sentence() {
    let mut messages = MessageServiceClient::new(connect().await);
    for code in Code::ALL.iter().filter(|code| **code != Code::Ok) {
        let client_message_id = code.label().to_owned();
        let request = SendMessageRequest { client_message_id, ..SendMessageRequest::default() };
        let status = messages.send_message(with_token(request)).await.expect_err("refused");
        assert_eq!(status.message(), "as wanted", "{code}");
        let number = code.number().to_string();
        assert_eq!(status.metadata().get("millrace-code").expect("our code"), number.as_str());
    }
}
