"""A server of the app with small limits and a token, for hostile requests. It prints its port.

It can't write a byte to any file, and says so on stderr if it opens one for writing.
"""

import os
import resource
import sys

from showface.app.guard import Hosts, Limits
from showface.app.launch import bind, make_server
from showface.app.protocol import Protocol
from showface.app.server import create_app
from showface.app.work import load_models

from support.app import with_size

TOKEN = "a-token-for-tests"
LIMITS = Limits(body=3 * 2**20, body_seconds=1.0, pixels=1_000_000, waiting=4, job_seconds=20.0)


def report_writes(event: str, arguments: tuple) -> None:
    """An audit hook that reports files that are opened for writing."""
    if event == "open" and isinstance(arguments[0], str | bytes):
        flags = arguments[2] or 0
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            print("opened for writing:", arguments[0], file=sys.stderr, flush=True)


def main() -> None:
    """Serve until a signal comes."""
    sys.dont_write_bytecode = True
    Protocol.header_seconds = Protocol.stuck_seconds = 1.0
    models = with_size(load_models(["default"]), 64)
    listener = bind("127.0.0.1", 0, print)
    port = listener.getsockname()[1]
    app = create_app(models, Hosts.of("127.0.0.1", port), token=TOKEN, limits=LIMITS)
    sys.addaudithook(report_writes)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    print(port, flush=True)
    make_server(app).run(sockets=[listener])


if __name__ == "__main__":
    main()
