"""A mail server that parses what arrives and appends one JSON object in a line for each mail, before it answers 250.

With a file of logins it takes mail only from those who prove that they are one of them. It ends when its standard input does, so that it cannot outlive whoever started it.
"""

import argparse
import email
import email.policy
import json
import os
import sys
import time

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult


class Sink:
    """Takes every mail."""

    def __init__(self, path):
        self.mails = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    async def handle_DATA(self, _server, session, envelope):
        at = time.time_ns()
        mail = email.message_from_bytes(envelope.content, policy=email.policy.default)
        parts = [part for part in mail.walk() if not part.is_multipart()]
        texts = [part.get_content() for part in parts if part.get_content_type() == "text/plain"]
        line = {
            "at": at,
            "messageId": mail["Message-ID"],
            "user": session.auth_data and session.auth_data.login.decode(),
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


class Logins:
    """Who may send: a file with a JSON object of passwords by name, read whenever somebody comes."""

    def __init__(self, path):
        self.path = path

    def __call__(self, _server, _session, _envelope, _mechanism, given):
        with open(self.path, encoding="utf-8") as file:
            logins = json.load(file)
        is_known = logins.get(given.login.decode()) == given.password.decode()
        return AuthResult(success=is_known, handled=False, auth_data=given)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--mails", required=True, help="the file that lines are appended to")
    parser.add_argument("--logins", help="take mail only from these: a JSON object of passwords by name")
    options = parser.parse_args()
    guard = {}
    if options.logins:
        guard = {"authenticator": Logins(options.logins), "auth_required": True, "auth_require_tls": False}
    controller = Controller(Sink(options.mails), hostname=options.host, port=options.port, ready_timeout=30, **guard)
    controller.start()
    print("ready", flush=True)
    sys.stdin.read()
    controller.stop()


main()
