#!/usr/bin/env python3
"""A business service that consumes what clients REPORT: reads a topic over HTTP, prints each record, commits.

    examples/topic_consumer.py http://127.0.0.1:9710 <api token> <topic> <consumer> [--once]

It commits after it has dealt with a page. Whoever kills it in between is given that page again: at least once, in order.
Nothing but Python's standard library is needed.
"""

import argparse
import base64
import json
import time
import urllib.error
import urllib.request


class Topics:
    """The calls that a consumer needs."""

    def __init__(self, base, token):
        self.base, self.token = base.rstrip("/"), token
        # A proxy of the environment is not for a service inside.
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def call(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data=data, method=method)
        request.add_header("Authorization", f"Bearer {self.token}")
        with self.opener.open(request, timeout=60) as response:
            return json.loads(response.read())

    def committed(self, topic, consumer):
        """The offset up to which this consumer is done; 0 for a new one. 64-bit numbers travel as text in JSON."""
        for known in self.call("GET", "/v1/topics")["topics"]:
            if known["topic"] == topic:
                for one in known["consumers"]:
                    if one["consumer"] == consumer:
                        return int(one["committed_offset"])
        return 0

    def read(self, topic, offset, wait_ms):
        return self.call("GET", f"/v1/topics/{topic}?offset={offset}&limit=100&wait_ms={wait_ms}")

    def commit(self, topic, consumer, offset):
        self.call("POST", f"/v1/topics/{topic}/consumers/{consumer}", {"offset": str(offset)})


def deal_with(record):
    """What your service does. Do it so that twice is the same as once."""
    payload = base64.b64decode(record["payload"])
    print(f"{record['offset']} {record['key']} {payload!r}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base"), parser.add_argument("token"), parser.add_argument("topic"), parser.add_argument("consumer")
    parser.add_argument("--once", action="store_true", help="end when everything is read, instead of waiting for more")
    arguments = parser.parse_args()
    topics = Topics(arguments.base, arguments.token)
    offset = None
    while True:
        try:
            if offset is None:
                offset = topics.committed(arguments.topic, arguments.consumer) + 1
            page = topics.read(arguments.topic, offset, 0 if arguments.once else 20_000)
        except urllib.error.HTTPError as error:
            # 404: nothing was reported there yet. 503: the server is busy, or restarts.
            if arguments.once or error.code not in (404, 503):
                raise SystemExit(f"{error.code}: {error.read().decode(errors='replace')}")
            time.sleep(1)
            continue
        except urllib.error.URLError:
            if arguments.once:
                raise
            offset = None
            time.sleep(1)
            continue
        if int(page["first_offset"]) > offset:
            print(f"# the records {offset} to {int(page['first_offset']) - 1} are not kept any more", flush=True)
        for record in page["records"]:
            deal_with(record)
        offset = int(page["next_offset"])
        if page["records"]:
            topics.commit(arguments.topic, arguments.consumer, offset - 1)
        elif arguments.once:
            return


if __name__ == "__main__":
    main()
