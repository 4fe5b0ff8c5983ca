"""Stages' files, where the engine looks for them, and addresses under which a client may put one there by itself.

A file is written aside and moved into place: what breaks off is never seen.
"""

import json
import os
import re
import secrets
import sys
import time
import uuid
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa

from engine import Refused, quoted_text

ILLEGAL_PATH = 1006
UNKNOWN_STAGE = 2501
CHUNK = 1 << 20
PRESIGN = re.compile(r"^presign\s+upload\s+(?:'@([^/']+)/([^']+)'|@([^/\s]+)/(\S+))", re.IGNORECASE)
SIGNED = pa.schema([pa.field(name, pa.string(), nullable=False) for name in ("method", "headers", "url")])


class Stages:
    def __init__(self, data):
        self.folder = Path(data) / "data" / "stage"
        self.aside = Path(data) / "uploads"
        self.aside.mkdir(parents=True, exist_ok=True)
        # Where signed addresses lead to, and the files that they are for.
        self.origin, self.signed = None, {}

    def place(self, stage, path):
        """The file of a stage; raises Refused for one outside of it."""
        below = self.folder / "user" / "root" if stage == "~" else self.folder / "internal" / stage
        path = path.strip("/")
        if not path or ".." in path.split("/") or "/" in stage or stage.startswith("."):
            raise Refused(ILLEGAL_PATH, f"illegal path in a stage: @{stage}/{path}")
        return below / path

    async def write(self, read, place):
        """Writes what `read` gives, piece by piece until it is empty, as one file. Its size in bytes."""
        aside, size, outcome = self.aside / uuid.uuid4().hex, 0, "broke off"
        name = place.relative_to(self.folder)
        log(f"upload {name}: begins")
        try:
            with aside.open("wb") as file:
                while piece := await read(CHUNK):
                    size += file.write(piece)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(aside, place)
            outcome = "ok"
        finally:
            aside.unlink(missing_ok=True)
            log(f"upload {name}: {outcome}, {size} bytes")
        return size

    def presign(self, engine, sql):
        """Columns and the row of a PRESIGN UPLOAD, None for every other statement."""
        found = PRESIGN.match(sql)
        if not found:
            return None
        stage, path = found[1] or found[3], found[2] or found[4]
        check(engine.run, stage)
        ticket = secrets.token_urlsafe(24)
        self.signed[ticket] = self.place(stage, path)
        url = f"{self.origin}/_presigned/{ticket}/{quote(path)}"
        return list(SIGNED), [["PUT", json.dumps({"host": self.origin.partition("//")[2]}), url]]


def log(line):
    """Begins with the moment, in seconds since 1970."""
    print(f"{time.time():.3f} {line}", file=sys.stderr, flush=True)


def check(run, stage):
    """Raises Refused where there is no such stage."""
    if stage != "~" and run(f"SELECT name FROM system.stages WHERE name = {quoted_text(stage)}").num_rows == 0:
        raise Refused(UNKNOWN_STAGE, f"Stage '{stage}' does not exist")
