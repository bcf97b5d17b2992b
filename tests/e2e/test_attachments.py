"""Files that messages refer to (row M7 of the mission): uploaded in parts or at once, sent, downloaded by who may, kept
in a directory or in a bucket of a real server that speaks S3 (moto)."""

import hashlib
import http.client
import importlib
import json
import random
import socket
import time
from urllib.parse import urlsplit

import grpc
import pytest

import openapi
from millrace_client import (
    SEND_MESSAGE, JsonConnection, TcpConnection, WebSocketConnection, chat, mint_token, text_message,
)
from processes import API_TOKEN, JWT_SECRET, Tiers

messages = importlib.import_module("millrace.api.v1.attachments_pb2")
services = importlib.import_module("millrace.api.v1.attachments_pb2_grpc")

TOO_LARGE, BAD_TOKEN, NOT_FOUND, BAD_REQUEST, OVER_CAPACITY, ALREADY_EXISTS = 3, 5, 16, 18, 19, 22
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1\x08\6\0\0\0\x1f\x15\xc4\x89"


class Caller:
    """Calls with one token, in bytes."""

    def __init__(self, ready, token, user_id=""):
        self.ready, self.token, self.id = ready, token, user_id
        self.address = urlsplit(ready["http"]).netloc

    def request(self, method, path, body=None, **headers):
        """(status, headers, bytes)."""
        connection = http.client.HTTPConnection(self.address, timeout=20)
        if self.token:
            headers.setdefault("Authorization", f"Bearer {self.token}")
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, content

    def json(self, method, path, body=None, **headers):
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        status, _, content = self.request(method, path, data, **headers)
        answer = json.loads(content)
        openapi.check(self.ready["http"], method, path, status, answer)
        return status, answer

    def upload(self, content, name="file.bin", kind="application/octet-stream", query=""):
        status, info = self.json("POST", f"/v1/upload?name={name}{query}", content, Content_Type=kind)
        assert status == 200 and info["complete"], (status, info)
        return info

    def download(self, info, **headers):
        return self.request("GET", f"/v1/attachments/{info['attachment_id']}/content", **headers)


def person(ready, secret, user_id):
    return Caller(ready, mint_token(secret, user_id), user_id)


@pytest.fixture
def people(dev):
    return [person(dev.ready, dev.ready["jwt_secret"], dev.user()) for _ in range(3)]


def attach(info, **fields):
    return chat.Attachment(attachment_id=info["attachment_id"], **fields)


def random_bytes(count, seed=7):
    return random.Random(seed).randbytes(count)


def test_a_file_is_uploaded_in_parts_sent_and_read_by_who_is_in_the_conversation(dev, people):
    ada, bob, eve = people
    content = PNG + random_bytes(300_000)
    declared = {"name": "kätzchen.png", "type": "image/png", "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    status, info = ada.json("POST", "/v1/attachments", declared)
    assert status == 200 and not info["complete"] and int(info["received"]) == 0, info
    path = f"/v1/attachments/{info['attachment_id']}"
    offset = 0
    for end in (100_000, 100_001, len(content)):
        status, info = ada.json(
            "PUT", f"{path}/content", content[offset:end], Content_Range=f"bytes {offset}-{end - 1}/{len(content)}"
        )
        assert (status, int(info["received"])) == (200, end), info
        offset = end
    assert info["complete"] and info["sha256"] == declared["sha256"]
    # Nobody else sees it before it is sent.
    for other in (bob, eve):
        for call in (("GET", path), ("GET", f"{path}/content"), ("GET", f"{path}/link"), ("DELETE", path)):
            status, answer = other.json(*call)
            assert (status, answer["code"]) == (404, NOT_FOUND), call
    sender, receiver = dev.connect(TcpConnection, ada.id), dev.connect(WebSocketConnection, bob.id)
    message = text_message(to=bob.id, body="look", attachment=attach(info, url="http://evil.example", size=1, type="text/html"))
    message.type = 3
    assert sender.request(SEND_MESSAGE, message).code == 0
    (delivered,) = receiver.messages(1)
    got = delivered.attachment
    # What the message says of the file comes from the file.
    assert (got.attachment_id, got.name, got.type, got.size) == (info["attachment_id"], "kätzchen.png", "image/png", len(content))
    status, headers, body = bob.request("GET", got.url)
    assert status == 200 and body == content
    assert headers["content-type"] == "image/png" and headers["x-content-type-options"] == "nosniff"
    assert headers["content-disposition"] == "inline; filename*=UTF-8''k%C3%A4tzchen.png"
    assert eve.download(info)[0] == 404
    # Bob forwards it to Eve, who may read it from then on.
    bobs = text_message(to=eve.id, attachment=attach(info))
    bobs.type = 3
    assert receiver.request(SEND_MESSAGE, bobs).code == 0
    assert eve.download(info)[2] == content
    assert ada.json("DELETE", path)[0] == 200
    assert bob.download(info)[0] == 404


def test_an_upload_goes_on_where_it_broke_off(dev, people):
    ada = people[0]
    content = random_bytes(400_000)
    _, info = ada.json("POST", "/v1/attachments", {"size": len(content)})
    path = f"/v1/attachments/{info['attachment_id']}"
    host, port = ada.address.split(":")
    broken = socket.create_connection((host, int(port)))
    broken.sendall(
        f"PUT {path}/content HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ada.token}\r\n"
        f"Content-Length: {len(content)}\r\n\r\n".encode() + content[:250_000]
    )
    time.sleep(0.2)
    broken.close()
    deadline = time.monotonic() + 20
    while int(ada.json("GET", path)[1]["received"]) == 0:
        assert time.monotonic() < deadline, "what had arrived was not recorded"
        time.sleep(0.05)
    received = int(ada.json("GET", path)[1]["received"])
    assert 0 < received <= 250_000
    status, answer = ada.json("PUT", f"{path}/content", content)
    assert (status, answer["code"]) == (400, BAD_REQUEST) and str(received) in answer["reason"]
    status, info = ada.json(
        "PUT", f"{path}/content", content[received:], Content_Range=f"bytes {received}-{len(content) - 1}/{len(content)}"
    )
    assert status == 200 and info["complete"], info
    assert ada.download(info)[2] == content
    status, answer = ada.json("PUT", f"{path}/content", content)
    assert (status, answer["code"]) == (409, ALREADY_EXISTS)


def test_ranges_tags_and_head(people):
    ada = people[0]
    content = random_bytes(1000)
    info = ada.upload(content)
    tag = f'"{hashlib.sha256(content).hexdigest()}"'
    status, headers, body = ada.download(info, Range="bytes=100-199")
    assert (status, body, headers["content-range"], headers["etag"]) == (206, content[100:200], "bytes 100-199/1000", tag)
    assert ada.download(info, Range="bytes=-1")[2] == content[-1:]
    assert ada.download(info, Range="bytes=990-5000")[2] == content[990:]
    status, headers, body = ada.download(info, If_None_Match=tag)
    assert (status, body) == (304, b"")
    assert ada.download(info, Range="bytes=0-0", If_Range='"older"')[2] == content
    assert ada.download(info, Range="bytes=1000-")[0] == 416
    status, headers, body = ada.request("HEAD", f"/v1/attachments/{info['attachment_id']}/content")
    assert (status, headers["content-length"], body) == (200, "1000", b"")
    assert headers["content-disposition"].startswith("attachment;")


def test_a_link_is_good_for_its_time_and_its_file_alone(people):
    ada, bob, _ = people
    info, other = ada.upload(b"first"), ada.upload(b"other")
    status, link = ada.json("GET", f"/v1/attachments/{info['attachment_id']}/link")
    assert status == 200 and int(link["expires_at_ms"]) > time.time() * 1000
    nobody = Caller(ada.ready, "")
    assert nobody.request("GET", link["url"])[::2] == (200, b"first")
    assert nobody.request("GET", link["url"], Range="bytes=1-2")[::2] == (206, b"ir")
    for bad in (
        link["url"].replace(info["attachment_id"], other["attachment_id"]), link["url"][:-1],
        link["url"].replace("expires=", "expires=9"), link["url"].split("?")[0],
    ):
        status, answer = nobody.json("GET", bad)
        assert (status, answer["code"]) == (401, BAD_TOKEN), bad
    assert bob.json("GET", f"/v1/attachments/{info['attachment_id']}/link")[0] == 404


def test_public_files_are_for_everybody_with_a_token(people):
    ada, bob, _ = people
    info = ada.upload(PNG, kind="image/png", query="&public=true")
    assert bob.download(info)[2] == PNG
    assert Caller(ada.ready, "").download(info)[0] == 401
    assert bob.json("DELETE", f"/v1/attachments/{info['attachment_id']}")[0] == 404


@pytest.mark.parametrize("declared, content, code", [
    ({"size": 0}, b"", BAD_REQUEST), ({"size": 200 << 20}, b"", TOO_LARGE), ({"size": 3, "type": "image"}, b"abc", BAD_REQUEST),
    ({"size": 3, "name": "a\nb"}, b"abc", BAD_REQUEST), ({"size": 3, "sha256": "00"}, b"abc", BAD_REQUEST),
    ({"size": 3, "sha256": "0" * 64}, b"abc", BAD_REQUEST), ({"size": 3, "type": "image/png"}, b"abc", BAD_REQUEST),
    ({"size": len(PNG), "type": "text/plain"}, PNG, BAD_REQUEST),
])
def test_what_is_not_as_declared_leaves_nothing_behind(people, declared, content, code):
    ada = people[0]
    status, answer = ada.json("POST", "/v1/attachments", declared)
    if status == 200:
        path = f"/v1/attachments/{answer['attachment_id']}"
        status, answer = ada.json("PUT", f"{path}/content", content)
        assert ada.json("GET", path)[0] == 404
    assert answer["code"] == code and len(answer["reason"]) > 10, answer
    usage = ada.json("GET", "/v1/users/me/attachments/usage")[1]
    assert (int(usage["files"]), int(usage["bytes"])) == (0, 0)


def test_a_body_longer_than_its_part_is_refused(people):
    ada = people[0]
    _, info = ada.json("POST", "/v1/attachments", {"size": 10})
    path = f"/v1/attachments/{info['attachment_id']}"
    status, answer = ada.json("PUT", f"{path}/content", b"x" * 11, Content_Range="bytes 0-9/10")
    assert (status, answer["code"]) == (413, TOO_LARGE)
    status, answer = ada.json("PUT", f"{path}/content", b"x", Content_Range="bytes 9-0/10")
    assert (status, answer["code"]) == (400, BAD_REQUEST)


def test_a_message_with_a_file_that_is_not_there_or_not_ones_own_is_refused_by_every_door(dev, people):
    ada, bob, eve = people
    info = ada.upload(b"private")
    _, unfinished = bob.json("POST", "/v1/attachments", {"size": 10})
    cases = [(info, NOT_FOUND), ({"attachment_id": "at_" + "0" * 32}, NOT_FOUND), (unfinished, BAD_REQUEST)]
    for case, code in cases:
        for transport in (TcpConnection, WebSocketConnection):
            connection = dev.connect(transport, bob.id)
            message = text_message(to=eve.id, attachment=attach(case))
            message.type = 6
            assert connection.request(SEND_MESSAGE, message).code == code
            connection.close()
        connection = JsonConnection(dev.ready)
        connection.request("login", {"user_id": bob.id, "token": bob.token, "device_id": "j", "platform": "test"})
        body = {
            "client_message_id": "j" + case["attachment_id"], "user_id": eve.id, "type": 6,
            "attachment": {"attachment_id": case["attachment_id"]},
        }
        assert int(connection.request("send_message", body)["code"]) == code
        connection.close()
        status, answer = dev.api.call("POST", "/v1/messages", {"sender_id": bob.id, **body})
        assert answer["code"] == code, answer
    # Files of somewhere else go through as they are.
    connection = dev.connect(TcpConnection, bob.id)
    message = text_message(to=eve.id, attachment=chat.Attachment(attachment_id="elsewhere-1", url="https://example.org/x"))
    message.type = 6
    assert connection.request(SEND_MESSAGE, message).code == 0


def tiers_with(tmp_path, section):
    tiers = Tiers(tmp_path)
    tiers.logic_settings = f"[attachments]\n{section}\n"
    tiers.start_logic()
    tiers.start_gateway()
    return tiers


def test_quota_types_and_a_full_disk_are_said_clearly(tmp_path):
    tiers = tiers_with(
        tmp_path, 'user_files_max = 2\nuser_bytes_max = "10KiB"\nfile_bytes_max = "8KiB"\ntypes_allowed = ["image/*"]'
    )
    try:
        ada = person(tiers.ready, JWT_SECRET, "ada")
        status, answer = ada.json("POST", "/v1/attachments", {"size": 9000, "type": "image/png"})
        assert (status, answer["code"]) == (413, TOO_LARGE)
        status, answer = ada.json("POST", "/v1/attachments", {"size": 10, "type": "video/mp4"})
        assert (status, answer["code"]) == (400, BAD_REQUEST) and "video/mp4" in answer["reason"]
        first = ada.upload(PNG + bytes(8000 - len(PNG)), kind="image/png")
        status, answer = ada.json("POST", "/v1/attachments", {"size": 8000, "type": "image/png"})
        assert (status, answer["code"]) == (503, OVER_CAPACITY)
        ada.upload(PNG, kind="image/png")
        assert ada.json("POST", "/v1/attachments", {"size": 1, "type": "image/png"})[1]["code"] == OVER_CAPACITY
        ada.json("DELETE", f"/v1/attachments/{first['attachment_id']}")
        usage = ada.json("GET", "/v1/users/ada/attachments/usage")[1]
        assert (int(usage["files"]), int(usage["bytes"])) == (1, len(PNG))
        ada.upload(PNG, kind="image/png")
    finally:
        tiers.stop()
    tiers.logic_settings = '[attachments]\nfree_bytes_min = "4000000000GiB"\n'
    tiers.start_logic()
    try:
        bob = person(tiers.ready, JWT_SECRET, "bob")
        status, answer = bob.json("POST", "/v1/upload?name=x", b"content")
        assert (status, answer["code"]) == (503, OVER_CAPACITY) and "space" in answer["reason"]
        assert int(bob.json("GET", "/v1/users/me/attachments/usage")[1]["files"]) == 0
    finally:
        tiers.logic.terminate()


def test_uploads_and_files_survive_a_killed_logic(tmp_path):
    tiers = tiers_with(tmp_path, "")
    try:
        ada = person(tiers.ready, JWT_SECRET, "ada")
        content = random_bytes(500_000)
        whole = ada.upload(content)
        _, info = ada.json("POST", "/v1/attachments", {"size": len(content)})
        path = f"/v1/attachments/{info['attachment_id']}"
        ada.json("PUT", f"{path}/content", content[:200_000], Content_Range=f"bytes 0-199999/{len(content)}")
        tiers.logic.kill()
        tiers.start_logic()
        assert ada.download(whole)[2] == content
        assert int(ada.json("GET", path)[1]["received"]) == 200_000
        status, info = ada.json(
            "PUT", f"{path}/content", content[200_000:], Content_Range=f"bytes 200000-499999/{len(content)}"
        )
        assert status == 200 and info["complete"]
        assert ada.download(info)[2] == content
        assert [file.name for file in (tmp_path / "attachments" / "uploads").iterdir()] == []
    finally:
        tiers.stop()


def test_what_nothing_refers_to_is_swept_and_what_is_sent_stays(tmp_path):
    tiers = tiers_with(tmp_path, 'upload_lifetime = "8s"\norphan_lifetime = "8s"\nsweep_interval = "200ms"')
    try:
        ada, bob = person(tiers.ready, JWT_SECRET, "ada"), person(tiers.ready, JWT_SECRET, "bob")
        sent, orphan, public = ada.upload(b"sent"), ada.upload(b"orphan"), ada.upload(b"public", query="&public=true")
        connection = tiers.connect(TcpConnection, "ada")
        message = text_message(to="bob", attachment=attach(sent))
        message.type = 6
        assert connection.request(SEND_MESSAGE, message).code == 0
        _, unfinished = ada.json("POST", "/v1/attachments", {"size": 10})
        deadline = time.monotonic() + 80
        while ada.download(orphan)[0] == 200 or ada.json("GET", f"/v1/attachments/{unfinished['attachment_id']}")[0] == 200:
            assert time.monotonic() < deadline, "not swept"
            time.sleep(0.2)
        assert (bob.download(sent)[2], ada.download(public)[2]) == (b"sent", b"public")
        usage = ada.json("GET", "/v1/users/me/attachments/usage")[1]
        assert (int(usage["files"]), int(usage["bytes"])) == (2, 10)
        kept = [file.name for file in (tmp_path / "attachments" / "files").rglob("at_*")]
        assert sorted(kept) == sorted([sent["attachment_id"], public["attachment_id"]])
    finally:
        tiers.stop()


def test_the_same_over_grpc(tiers):
    ada = person(tiers.ready, JWT_SECRET, "ada")
    with grpc.insecure_channel(f"127.0.0.1:{tiers.free_port('grpc')}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        files = services.AttachmentServiceStub(channel)
        mine = [("authorization", f"Bearer {ada.token}")]
        created = files.CreateAttachment(messages.CreateAttachmentRequest(name="x", size=5), metadata=mine, timeout=5)
        ada.json("PUT", f"/v1/attachments/{created.attachment_id}/content", b"12345")
        wanted = messages.AttachmentRequest(attachment_id=created.attachment_id)
        info = files.GetAttachment(wanted, metadata=mine, timeout=5)
        assert info.complete and info.sha256 == hashlib.sha256(b"12345").hexdigest()
        link = files.GetAttachmentLink(wanted, metadata=mine, timeout=5)
        assert Caller(tiers.ready, "").request("GET", link.url)[2] == b"12345"
        service = [("authorization", f"Bearer {API_TOKEN}")]
        usage = files.GetAttachmentUsage(messages.AttachmentUsageRequest(user_id="ada"), metadata=service, timeout=5)
        assert (usage.files, usage.bytes) == (1, 5)
        theirs = [("authorization", f"Bearer {mint_token(JWT_SECRET, 'bob')}")]
        with pytest.raises(grpc.RpcError) as refused:
            files.RemoveAttachment(wanted, metadata=theirs, timeout=5)
        assert refused.value.code() == grpc.StatusCode.NOT_FOUND
        files.RemoveAttachment(wanted, metadata=mine, timeout=5)
        assert ada.download({"attachment_id": created.attachment_id})[0] == 404


@pytest.fixture
def bucket():
    """A server of its own that speaks S3, with a bucket."""
    from moto.server import ThreadedMotoServer

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    endpoint = f"http://127.0.0.1:{port}"
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("PUT", "/files", headers={"Authorization": "AWS4-HMAC-SHA256 Credential=test/x/us-east-1/s3/aws4_request"})
    assert connection.getresponse().status == 200
    yield endpoint
    server.stop()


def test_files_in_a_bucket_are_read_in_parts_and_removed(tmp_path, bucket):
    tiers = tiers_with(
        tmp_path,
        f'store = "s3"\ns3_bucket = "files"\ns3_endpoint = "{bucket}"\ns3_allow_http = true\ns3_prefix = "chat/"\n'
        's3_access_key_id = "test"\ns3_secret_access_key = "test"',
    )
    try:
        ada = person(tiers.ready, JWT_SECRET, "ada")
        # More than one part of a multipart upload.
        content = random_bytes(20_000_000)
        large, small = ada.upload(content), ada.upload(b"small")
        assert not list((tmp_path / "attachments" / "uploads").iterdir()), "uploads are moved on"
        assert ada.download(large)[2] == content
        assert ada.download(large, Range="bytes=8388600-8388615")[2] == content[8388600:8388616]
        tiers.logic.kill()
        tiers.start_logic()
        assert ada.download(small)[2] == b"small"
        ada.json("DELETE", f"/v1/attachments/{large['attachment_id']}")
        assert ada.download(large)[0] == 404
        connection = http.client.HTTPConnection(bucket.removeprefix("http://"))
        connection.request("GET", "/files?list-type=2")
        listed = connection.getresponse().read().decode()
        assert f"chat/{small['attachment_id']}" in listed and large["attachment_id"] not in listed
    finally:
        tiers.stop()


def test_a_bucket_that_fails_is_said_and_the_upload_can_go_on(tmp_path, bucket):
    tiers = tiers_with(
        tmp_path,
        f'store = "s3"\ns3_bucket = "nowhere"\ns3_endpoint = "{bucket}"\ns3_allow_http = true\n'
        's3_access_key_id = "test"\ns3_secret_access_key = "test"',
    )
    try:
        ada = person(tiers.ready, JWT_SECRET, "ada")
        _, info = ada.json("POST", "/v1/attachments", {"size": 5})
        path = f"/v1/attachments/{info['attachment_id']}"
        status, answer = ada.json("PUT", f"{path}/content", b"12345")
        assert (status, answer["code"]) == (500, 20), answer
        assert int(ada.json("GET", path)[1]["received"]) == 5, "what arrived is not lost"
        tiers.logic.terminate()
        tiers.logic_settings = tiers.logic_settings.replace("nowhere", "files")
        tiers.start_logic()
        # Nothing is missing but the end: an empty part brings it.
        status, info = ada.json("PUT", f"{path}/content", b"", Content_Range="bytes */5")
        assert status == 200 and info["complete"], info
        assert ada.download(info)[2] == b"12345"
    finally:
        tiers.stop()
