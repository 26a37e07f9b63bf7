"""A mail server that parses what arrives and appends one JSON object in a line for each mail, before it answers 250.

It ends when its standard input does, so that it cannot outlive whoever started it.
"""

import argparse
import email
import email.policy
import json
import os
import sys
import time

from aiosmtpd.controller import Controller


class Sink:
    """Takes every mail."""

    def __init__(self, path):
        self.mails = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    async def handle_DATA(self, _server, _session, envelope):
        at = time.time_ns()
        mail = email.message_from_bytes(envelope.content, policy=email.policy.default)
        parts = [part for part in mail.walk() if not part.is_multipart()]
        texts = [part.get_content() for part in parts if part.get_content_type() == "text/plain"]
        line = {
            "at": at,
            "messageId": mail["Message-ID"],
            "envelope": envelope.rcpt_tos,
            "to": str(mail["To"]),
            "from": str(mail["From"]),
            "subject": str(mail["Subject"]),
            "parts": [part.get_content_type() for part in parts],
            "text": "\n".join(texts),
            "defects": [type(defect).__name__ for part in mail.walk() for defect in part.defects],
        }
        os.write(self.mails, (json.dumps(line, ensure_ascii=False) + "\n").encode())
        return "250 2.0.0 taken"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--mails", required=True, help="the file that lines are appended to")
    options = parser.parse_args()
    controller = Controller(Sink(options.mails), hostname="127.0.0.1", port=options.port, ready_timeout=30)
    controller.start()
    print("ready", flush=True)
    sys.stdin.read()
    controller.stop()


main()
