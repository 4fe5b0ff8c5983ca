"""Faults that a test asks for: at the n-th request that matches, the connection drops or an error is answered.

    {"on": "sql" | "path", "match": REGEX, "kind": "503" | "drop_before" | "drop_after" | "error",
     "times": 1, "skip": 0, "code": 1001, "message": "injected", "status": HTTP}

`drop_after`: the server has done it, and the answer is lost. `error` on a statement is its failure, in the way in
which the server tells one (status 200), unless a status is named; elsewhere it is an answer with status 500.
"""

import re
import threading
from dataclasses import dataclass, field

KINDS = ("503", "drop_before", "drop_after", "error")
PLACES = ("sql", "path")


@dataclass
class Fault:
    match: re.Pattern
    kind: str
    on: str = "path"
    times: int = 1
    skip: int = 0
    code: int = 1001
    message: str = "injected"
    status: int | None = None
    fired: int = field(default=0)

    @classmethod
    def of(cls, asked):
        """Raises ValueError for what is not a fault."""
        asked = dict(asked)
        if asked.get("kind") not in KINDS or asked.get("on", "path") not in PLACES:
            raise ValueError(f"kind is one of {KINDS}, on one of {PLACES}")
        try:
            asked["match"] = re.compile(asked["match"], re.IGNORECASE)
            return cls(**asked)
        except (KeyError, TypeError, re.error) as error:
            raise ValueError(f"not a fault: {error!r}") from None

    def told(self):
        return {**self.__dict__, "match": self.match.pattern}


class Faults:
    def __init__(self):
        self.lock = threading.Lock()
        self.faults = []

    def add(self, asked):
        fault = Fault.of(asked)
        with self.lock:
            self.faults.append(fault)

    def clear(self):
        with self.lock:
            self.faults = []

    def told(self):
        with self.lock:
            return [fault.told() for fault in self.faults]

    def hit(self, path, sql):
        """The fault that fires at this request, None most of the time; each request fires one at most."""
        with self.lock:
            for fault in self.faults:
                text = sql if fault.on == "sql" else path
                if text is None or fault.fired >= fault.times or not fault.match.search(text):
                    continue
                if fault.skip > 0:
                    fault.skip -= 1
                    continue
                fault.fired += 1
                return fault
        return None
