#!/usr/bin/env python3
"""Databend's HTTP protocol over Databend's own engine, for tests where no server's binary is to be had.

    driver ──HTTP──> routes.py ──> statements.py ──> engine.py ──> the engine (the wheel `databend`)
                       ├─ login.py, faults.py   └─ values.py: rows as text
                       └─ stages.py: files, where the engine looks for them

Real: parser, planner, executor, Fuse storage, COPY, MERGE, REPLACE, transactions and their conflicts (4001), COPY's
memory of the files that it has loaded, PURGE, codes and texts of errors.
Ours: the HTTP protocol, logins, the text of results, pages, uploads and signed addresses, streamed loads (a file,
then COPY), transactions that are aborted (4002) or lost (4003), the commit before DDL, labels against duplicates, the
answer to a query that is asked again. The embedded engine goes around the layer of a server that does these.
Missing: see README.md.

Prints `door PORT` and `listening PORT` when it is ready, and serves until it is ended. The door is a second port for
the test itself: always plain, without login, faults and counts.
"""

import argparse
import asyncio
import os
import ssl
import sys
from pathlib import Path

from aiohttp import web

from engine import EngineSession
from faults import Faults
from login import Logins
from routes import Server
from stages import Stages
from statements import Statements


def arguments():
    parser = argparse.ArgumentParser(description="Databend's HTTP protocol over its embedded engine, for tests")
    parser.add_argument("--data", type=Path, default=Path("databend-data"), help="folder of the engine's data")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8124, help="0: a free one")
    parser.add_argument("--user", help="who may come in; without it and --token everybody may")
    parser.add_argument("--password", help="the user's; without it and --public-key an empty one")
    parser.add_argument("--token", help="a token that is admitted")
    parser.add_argument("--public-key", type=Path, help="the user's public key (PEM), to log in with the private one")
    parser.add_argument("--tls-cert", type=Path, help="certificate (PEM); with it the port speaks TLS only")
    parser.add_argument("--tls-key", type=Path, help="its key (PEM)")
    parser.add_argument("--presign", action="store_true", help="answer PRESIGN UPLOAD with an address of this server's")
    given = parser.parse_args()
    if (given.password or given.public_key) and not given.user:
        parser.error("--password and --public-key need --user")
    if bool(given.tls_cert) != bool(given.tls_key):
        parser.error("--tls-cert and --tls-key go together")
    return given


async def listen(application, host, port, tls=None):
    """The port that it listens on."""
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host, port, ssl_context=tls).start()
    return runner.addresses[0][1]


async def serve(given):
    data = given.data.resolve()
    # Waits until the engine has begun, and says here, not at the first query, that it cannot.
    EngineSession(str(data)).run("SELECT 1")
    stages = Stages(data)
    statements = Statements(str(data), stages.presign if given.presign else None)
    logins = Logins.of(given.user, given.password, given.token, given.public_key)
    server = Server(statements, stages, logins, Faults())
    tls = None
    if given.tls_cert:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(given.tls_cert, given.tls_key)
    door = await listen(server.application(front=False), given.host, 0)
    front = await listen(server.application(front=True), given.host, given.port, tls)
    # Clients follow a signed address without the certificates of the server that gave it.
    stages.origin = f"http://{given.host}:{door if tls else front}"
    print(f"door {door}\nlistening {front}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    try:
        asyncio.run(serve(arguments()))
    except KeyboardInterrupt:
        pass
    sys.stdout.flush()
    # The engine's own threads would keep the process for a while.
    os._exit(0)
