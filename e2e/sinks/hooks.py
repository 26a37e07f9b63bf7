"""A webhook receiver that trusts nothing: it takes an event only if the reference implementation of Standard Webhooks
verifies its signature, and appends one line for each event it took, before it answers.

A line: `ok <webhook-id> <nanoseconds since 1970>`; `refused …` for one answered 503, `forged …` for a wrong signature.
It ends when its standard input does, so that it cannot outlive whoever started it.
"""

import argparse
import asyncio
import os
import sys
import time
import zlib

from standardwebhooks.webhooks import Webhook, WebhookVerificationError

TAKEN = b"HTTP/1.1 204 No Content\r\n\r\n"
REFUSED = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"
FORGED = b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n"


class Receiver:
    """What is known about the events that came."""

    def __init__(self, options):
        self.webhook = Webhook(options.secret)
        self.events = os.open(options.events, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self.options = options
        self.seen = 0
        self.refused = set()
        self.outage_until = None

    def note(self, what, event):
        os.write(self.events, f"{what} {event} {time.time_ns()}\n".encode())

    def refuses(self, event):
        """Each event is refused at most once: one in `--refuse-one-in`, and all while the outage lasts."""
        self.seen += 1
        if self.seen == self.options.outage_after:
            self.outage_until = time.monotonic() + self.options.outage_seconds
        if event in self.refused:
            return False
        out = self.outage_until is not None and time.monotonic() < self.outage_until
        if out or zlib.crc32(event.encode()) % self.options.refuse_one_in == 0:
            self.refused.add(event)
            return True
        return False

    def take(self, headers, body):
        event = headers.get("webhook-id", "-")
        try:
            self.webhook.verify(body, headers)
        except WebhookVerificationError:
            self.note("forged", event)
            return FORGED
        if self.refuses(event):
            self.note("refused", event)
            return REFUSED
        self.note("ok", event)
        return TAKEN

    async def serve(self, reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                lines = head.decode("latin-1").split("\r\n")
                fields = (line.split(":", 1) for line in lines[1:] if line)
                headers = {name.strip().lower(): value.strip() for name, value in fields}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                writer.write(self.take(headers, body))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


async def run(options):
    receiver = Receiver(options)
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", options.port, backlog=1024)
    async with server:
        print("ready", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--secret", required=True, help="whsec_…")
    parser.add_argument("--events", required=True, help="the file that lines are appended to")
    parser.add_argument("--refuse-one-in", type=int, default=50)
    parser.add_argument("--outage-after", type=int, default=0, help="after so many requests; 0: no outage")
    parser.add_argument("--outage-seconds", type=float, default=1.5)
    asyncio.run(run(parser.parse_args()))


main()
