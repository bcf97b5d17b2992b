"""What the served OpenAPI description says, held against real answers.

`Api.call` of the client passes every answer of every test through `check`, so that the whole suite shows that the
description is true: an operation that it does not have, a status or a code that it does not name, a field that it does
not know or says to be another type, all fail the test that saw them.
"""

from __future__ import annotations

import json
import re
from functools import cache
from urllib import request as http_request

from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

DESCRIPTION = "/v1/openapi.json"


def fetch(base):
    """The description as the process at `base` serves it."""
    opener = http_request.build_opener(http_request.ProxyHandler({}))
    with opener.open(base + DESCRIPTION, timeout=10) as response:
        return json.loads(response.read())


@cache
def of(base):
    """The description at `base`, ready to be checked against; fetched once."""
    return Description(fetch(base))


def check(base, method, path, status, body):
    """Fails if the description does not allow this answer to this call."""
    of(base).check(method, path, status, body)


def strict(schema):
    """The schema without room for fields that it does not name; clients must leave that room, a check must not."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {name: strict(value) for name, value in schema.items()}
    if schema.get("type") == "object" and isinstance(schema.get("properties"), dict):
        schema.setdefault("unevaluatedProperties", False)
    return schema


class Description:
    """A description, with its paths as patterns."""

    def __init__(self, document):
        self.document = document
        self.paths = []
        for path in document["paths"]:
            pattern = "/".join("[^/]+" if part.startswith("{") else re.escape(part) for part in path.split("/"))
            self.paths.append((path.count("{"), re.compile(pattern), path))
        # Of two that fit, the one with less that varies, as the server does.
        self.paths.sort(key=lambda one: one[0])
        tightened = {"$id": "urn:description", **strict({"components": document["components"]})}
        resource = Resource(contents=tightened, specification=DRAFT202012)
        self.registry = Registry().with_resource("urn:description", resource)

    def operation(self, method, path):
        """(the path as it is described, the operation), or (None, None)."""
        path = path.split("?")[0]
        for _, pattern, described in self.paths:
            if pattern.fullmatch(path):
                methods = self.document["paths"][described]
                if method.lower() in methods:
                    return described, methods[method.lower()]
        return None, None

    def check(self, method, path, status, body):
        described, operation = self.operation(method, path)
        if operation is None:
            assert status in (404, 405), f"{method} {path} is not described, and was answered with {status}: {body}"
            return
        call = f"{method} {described}"
        responses = operation["responses"]
        assert str(status) in responses, f"{call}: {status} is not described, only {sorted(responses)}: {body}"
        content = responses[str(status)].get("content", {})
        if "application/json" not in content:
            return
        self.validate(content["application/json"]["schema"], body, f"{call}: {status}")

    def validate(self, schema, body, where):
        """Fails if `body` is not as a schema of the description says."""
        # A reference is to the description, wherever this schema is looked at.
        absolute = json.loads(json.dumps(schema).replace('"#/', '"urn:description#/'))
        errors = list(Draft202012Validator(absolute, registry=self.registry).iter_errors(body))
        assert not errors, f"{where} {body}: " + "; ".join(f"{e.json_path}: {e.message}" for e in errors)
