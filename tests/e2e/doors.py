"""The five doors through which somebody sends and revokes, so that a test can ask the same of each: TCP, WebSocket, the
JSON text form, HTTP and gRPC. Over the last two a business service acts in the user's name.

Each answer is an [`Answer`], whatever the door made of it: a reply, an ERROR frame, a status.
"""

import json
from dataclasses import dataclass
from urllib import request as http_request
from urllib.error import HTTPError

import grpc
from google.protobuf import json_format

from device import REPLIES
from millrace_client import (
    JsonConnection, Refused, TcpConnection, WebSocketConnection, api_messages, api_services, chat, mint_token,
)
from processes import API_TOKEN, JWT_SECRET

SEND_MESSAGE, REVOKE, FORWARD = 0x0201, 0x0206, 0x0208
AUTHORIZED = [("authorization", f"Bearer {API_TOKEN}")]


@dataclass
class Answer:
    code: int
    reason: str = ""
    # How long to wait before asking again, in milliseconds; 0: nothing was said.
    retry_after_ms: int = 0
    # The HTTP status or the name of the gRPC status.
    status: object = None
    message: object = None


class ClientDoor:
    """A logged-in connection of the user."""

    def __init__(self, tiers):
        self.tiers, self.connections = tiers, {}

    def ask(self, user_id, command, message):
        connection = self.connections.get(user_id) or self.open(user_id)
        self.connections[user_id] = connection
        try:
            reply = self.request(connection, command, message)
        except Refused as refused:
            return Answer(refused.code, refused.reason, refused.retry_after_ms)
        return Answer(reply.code, reply.reason, message=reply)

    def send(self, user_id, message):
        return self.ask(user_id, SEND_MESSAGE, message)

    def forward(self, user_id, message):
        return self.ask(user_id, FORWARD, message)

    def revoke(self, user_id, conversation_id, sequence):
        return self.ask(user_id, REVOKE, chat.Revoke(conversation_id=conversation_id, sequence=sequence))

    def close(self):
        for connection in self.connections.values():
            connection.close()


class BinaryDoor(ClientDoor):
    transport = None

    def open(self, user_id):
        # A device of its own: the same one at another door would take this one's place.
        return self.tiers.connect(self.transport, user_id, self.name)

    @staticmethod
    def request(connection, command, message):
        reply = connection.request(command, message, timeout=30)
        # The plain client parses what it knows.
        return reply.parse(REPLIES[command]) if hasattr(reply, "parse") else reply


class TcpDoor(BinaryDoor):
    name, transport = "tcp", TcpConnection


class WebSocketDoor(BinaryDoor):
    name, transport = "websocket", WebSocketConnection


class JsonDoor(ClientDoor):
    name = "json"
    commands = {SEND_MESSAGE: "send_message", REVOKE: "revoke", FORWARD: "forward"}

    def open(self, user_id):
        connection = JsonConnection(self.tiers.ready)
        body = {"user_id": user_id, "token": mint_token(JWT_SECRET, user_id), "device_id": "browser"}
        assert connection.request("login", body).get("code", 0) == 0
        return connection

    def request(self, connection, command, message):
        body = json_format.MessageToDict(message, preserving_proto_field_name=True)
        return json_format.ParseDict(connection.request(self.commands[command], body, timeout=30), REPLIES[command]())


class HttpDoor:
    name = "http"

    def __init__(self, tiers):
        self.base = tiers.ready["http"]

    def call(self, path, body):
        request = http_request.Request(self.base + path, data=json.dumps(body).encode(), method="POST")
        request.add_header("Authorization", f"Bearer {API_TOKEN}")
        request.add_header("Content-Type", "application/json")
        opener = http_request.build_opener(http_request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=30) as response:
                return Answer(0, status=response.status, message=json.loads(response.read()))
        except HTTPError as error:
            body = json.loads(error.read())
            assert set(body) == {"code", "reason"}, body
            return Answer(body["code"], body["reason"], int(error.headers.get("Retry-After", 0)) * 1000, error.code)

    def send(self, user_id, message):
        body = json_format.MessageToDict(message, preserving_proto_field_name=True)
        return self.call("/v1/messages", {"sender_id": user_id, **body})

    def forward(self, user_id, message):
        body = json_format.MessageToDict(message, preserving_proto_field_name=True)
        conversation_id = body.pop("conversation_id")
        return self.call(f"/v1/conversations/{conversation_id}/messages/forward", {"sender_id": user_id, **body})

    def revoke(self, user_id, conversation_id, sequence):
        return self.call(f"/v1/conversations/{conversation_id}/messages/{sequence}/revoke", {"actor_user_id": user_id})

    def close(self):
        pass


class GrpcDoor:
    name = "grpc"

    def __init__(self, tiers):
        address = f"127.0.0.1:{tiers.free_port('grpc')}"
        self.channel = grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)])
        self.messages = api_services.MessageServiceStub(self.channel)
        self.history = api_services.HistoryServiceStub(self.channel)

    @staticmethod
    def call(method, request):
        try:
            return Answer(0, message=method(request, metadata=AUTHORIZED, timeout=30))
        except grpc.RpcError as error:
            said = dict(error.trailing_metadata())
            code, wait = int(said["millrace-code"]), int(said.get("retry-after-ms", 0))
            return Answer(code, error.details(), wait, error.code().name)

    @staticmethod
    def same_fields(message, kind, **more):
        request = kind(**more)
        for field, value in message.ListFields():
            target = getattr(request, field.name)
            if hasattr(target, "CopyFrom"):
                target.CopyFrom(value)
            elif hasattr(target, "extend"):
                target.extend(value)
            else:
                setattr(request, field.name, value)
        return request

    def send(self, user_id, message):
        request = self.same_fields(message, api_messages.SendMessageRequest, sender_id=user_id)
        return self.call(self.messages.SendMessage, request)

    def forward(self, user_id, message):
        request = self.same_fields(message, api_messages.ForwardMessagesRequest, sender_id=user_id)
        return self.call(self.history.ForwardMessages, request)

    def revoke(self, user_id, conversation_id, sequence):
        request = api_messages.RevokeMessageRequest(
            conversation_id=conversation_id, sequence=sequence, actor_user_id=user_id)
        return self.call(self.history.RevokeMessage, request)

    def close(self):
        self.channel.close()


DOORS = [TcpDoor, WebSocketDoor, JsonDoor, HttpDoor, GrpcDoor]
