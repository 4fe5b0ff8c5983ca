"""What a server does around a statement: the client's state, transactions, labels, and what it says of the result.

    client's state ──> engine session ──> statement ──> client's new state
                          ▲      │
      the transaction of  │      │ still open: kept under this query's id
      its last query      └──────┘

As on a server, the state is the client's: it sends database, settings and the transaction's state with each query
and takes them back from the answer. Only an open transaction is the server's, found by the id of the last query in
it; so a client that did not take the last answer cannot go on, and a transaction whose client is gone waits for
nothing but the timeout.
"""

import json
import re
import threading
from dataclasses import dataclass, field

from engine import EngineSession, Refused, quoted_name, quoted_text
from values import rows_of

NODE = "test-node-1"

SYNTAX = 1005
TRANSACTION_ABORTED = 4002
TRANSACTION_TIMEOUT = 4003

AUTO, ACTIVE, FAILED = "AutoCommit", "Active", "Fail"
FLAGS = re.IGNORECASE | re.DOTALL
LEADING_COMMENT = re.compile(r"^\s*(--[^\n]*(\n|$)|/\*.*?\*/)", re.DOTALL)
# What a server does not do inside of a transaction: it commits first.
OUTSIDE = re.compile(r"^(create|drop|alter|truncate|rename|undrop|grant|revoke|attach|use\s+warehouse)\b", FLAGS)
TRANSACTION = re.compile(r"^(begin|start\s+transaction|commit|rollback|abort)\b", FLAGS)
USE = re.compile(r"^use\s+(?!role\b|catalog\b|warehouse\b)(?:database\s+)?(?:\"(.+)\"|`(.+)`|([^\s\"`]+))\s*$", FLAGS)
SET = re.compile(r"^set\s+(?:session\s+)?(\w+)\s*=\s*(.+)$", FLAGS)
UNSET = re.compile(r"^unset\s+(?:session\s+)?(\w+)\s*$", FLAGS)
LABEL = re.compile(r"deduplicate_label\s*=\s*'([^']+)'", FLAGS)
FROM_STAGE = re.compile(r"^insert\s+into\s+([^']*?)\s+(?:values\s+)?from\s+(@\S+)\s+(file_format.*)$", FLAGS)
ATTACHED = re.compile(r"^(?:insert|replace)\s+into\s+(.+?)(\s*\([^)]*\))?\s*(?:values)?\s*$", FLAGS)
WRITTEN = re.compile(r"number of rows (inserted|updated|deleted)")


def without_comments(sql):
    while (shorter := LEADING_COMMENT.sub("", sql, count=1)) != sql:
        sql = shorter
    return sql.strip().rstrip(";").rstrip()


def keyword(sql):
    """`select` of a SELECT."""
    found = re.match(r"\w+", without_comments(sql))
    return found[0].lower() if found else ""


@dataclass
class State:
    """What the protocol calls the session: it travels with each query and each answer."""

    database: str = "default"
    settings: dict = field(default_factory=dict)
    role: str = "account_admin"
    transaction: str = AUTO
    last_query: str = ""

    @classmethod
    def of(cls, session):
        session = session or {}
        internal = json.loads(session.get("internal") or "{}")
        return cls(
            database=session.get("database") or "default",
            settings=dict(session.get("settings") or {}),
            role=session.get("role") or "account_admin",
            transaction=session.get("txn_state") or AUTO,
            last_query=next(iter(internal.get("last_query_ids") or []), ""),
        )

    def told(self, query_id):
        """As the answer to a query has it."""
        active = self.transaction == ACTIVE
        return {
            "catalog": "default",
            "database": self.database,
            "role": self.role,
            "settings": self.settings,
            "txn_state": self.transaction,
            "need_sticky": active,
            "need_keep_alive": active,
            "internal": json.dumps({"last_node_id": NODE, "last_query_ids": [query_id]}),
        }


@dataclass
class Statement:
    """One statement of a client's."""

    sql: str
    query_id: str
    state: State
    # Whose it is, so that a logout finds its transaction.
    session_id: str = ""
    # A file that it writes into its table, as older clients say it.
    attachment: dict | None = None
    label: str | None = None
    # What the test wants it to fail with.
    injected: Refused | None = None
    # A server loses the transaction over a streamed load.
    loses_transaction: bool = False


@dataclass
class Result:
    fields: list = field(default_factory=list)
    rows: list = field(default_factory=list)
    written: int = 0


class Statements:
    """Runs statements, each in the thread that calls."""

    def __init__(self, folder, presign=None):
        self.folder, self.presign = folder, presign
        self.lock = threading.Condition()
        # By the id of the last query: the engine's session, and the client's.
        self.open = {}
        # Query ids of statements that run in a transaction now.
        self.running = set()
        self.labels, self.counts = set(), {}

    def run(self, statement, counted=True):
        """The result; raises Refused. In both cases the statement's state is what the client has from now on."""
        state, query, engine = statement.state, statement.query_id, None
        try:
            engine = self.begin_statement(state, query, keyword(statement.sql) if counted else None)
            return self.run_in(engine, statement)
        finally:
            still_open = engine is not None and state.transaction == ACTIVE
            with self.lock:
                self.running.discard(query)
                if still_open and not statement.loses_transaction:
                    self.open[query] = (engine, statement.session_id)
                self.lock.notify_all()
            if still_open and statement.loses_transaction:
                roll_back(engine)

    def begin_statement(self, state, query, counted_as):
        """The engine's session for it; who sees it counted finds it running, too."""
        engine = None
        with self.lock:
            if counted_as is not None:
                self.counts[counted_as] = self.counts.get(counted_as, 0) + 1
            if state.transaction == ACTIVE:
                engine, _ = self.open.pop(state.last_query, (None, None))
                if engine is None:
                    state.transaction = FAILED
                    text = f"Transaction timeout: last_query_id {state.last_query} not found on this server"
                    raise Refused(TRANSACTION_TIMEOUT, text)
            self.running.add(query)
        return engine or EngineSession(self.folder)

    def run_in(self, engine, statement):
        state, sql = statement.state, without_comments(statement.sql)
        try:
            engine.put(state.database, state.settings)
            if TRANSACTION.match(sql):
                self.transaction_command(engine, sql.lower(), statement)
                return Result()
            if OUTSIDE.match(sql) and state.transaction != AUTO:
                self.commit(engine, state)
            if state.transaction == FAILED:
                text = "Current transaction is aborted, commands ignored until end of transaction block"
                raise Refused(TRANSACTION_ABORTED, text)
            if statement.injected:
                raise statement.injected
            if self.presign and (signed := self.presign(engine, sql)):
                return Result(*signed)
            return self.run_plain(engine, sql, statement)
        except Refused:
            if state.transaction == ACTIVE:
                roll_back(engine)
                state.transaction = FAILED
            raise

    def transaction_command(self, engine, sql, statement):
        state = statement.state
        if sql.startswith(("begin", "start")):
            if statement.injected:
                raise statement.injected
            if state.transaction == AUTO:
                engine.run("BEGIN")
                state.transaction = ACTIVE
        elif sql.startswith("commit"):
            self.commit(engine, state, statement.injected)
        else:
            if state.transaction == ACTIVE:
                roll_back(engine)
            state.transaction = AUTO

    def commit(self, engine, state, injected=None):
        """However it ends, the transaction is over; that of a failed one does nothing."""
        before, state.transaction = state.transaction, AUTO
        labels, engine.labels = engine.labels, set()
        if injected:
            if before == ACTIVE:
                roll_back(engine)
            raise injected
        if before == ACTIVE:
            engine.run("COMMIT")
            with self.lock:
                self.labels |= labels

    def run_plain(self, engine, sql, statement):
        state = statement.state
        found = LABEL.search(sql[:300])
        label = found[1] if found else statement.label
        # The embedded engine keeps none: each of its parts has a metadata store of its own.
        if label and (label in self.labels or label in engine.labels):
            return Result()
        table = engine.run(as_copy(sql, statement.attachment))
        if label:
            (engine.labels if state.transaction == ACTIVE else self.labels).add(label)
        if found := USE.match(sql):
            state.database = engine.database = found[1] or found[2] or found[3]
        elif found := SET.match(sql):
            state.settings[found[1]] = found[2].strip().strip("'")
        elif found := UNSET.match(sql):
            state.settings.pop(found[1], None)
        engine.settings = dict(state.settings)
        return Result(list(table.schema), rows_of(table), rows_written(table))

    def roll_back_all(self, within_seconds=30):
        """Rolls back every transaction that is open now, as a server does when they time out. How many there were."""
        with self.lock:
            # One that runs right now ends first; what others begin meanwhile is theirs.
            begun = set(self.running)
            self.lock.wait_for(lambda: not begun & self.running, within_seconds)
            taken, self.open = list(self.open.values()), {}
        for engine, _ in taken:
            roll_back(engine)
        return len(taken)

    def log_out(self, session_id):
        with self.lock:
            ids = [query for query, (_, owner) in self.open.items() if session_id and owner == session_id]
            taken = [self.open.pop(query) for query in ids]
        for engine, _ in taken:
            roll_back(engine)

    def check_login(self, database, settings):
        """Raises Refused where a login with them is refused: unlike a query's, they are looked up."""
        engine = EngineSession(self.folder)
        for name, value in settings.items():
            engine.run(f"SET {name} = {quoted_text(value)}")
        if database:
            engine.run(f"USE {quoted_name(database)}")


def roll_back(engine):
    engine.labels = set()
    try:
        engine.run("ROLLBACK")
    except Refused:
        # The engine has done it itself.
        pass


def rows_written(table):
    names = table.schema.names
    if table.num_rows and names and WRITTEN.match(names[0]):
        return sum(int(table.column(at)[0].as_py() or 0) for at in range(table.num_columns))
    if "Rows_loaded" in names:
        return sum(rows or 0 for rows in table.column("Rows_loaded").to_pylist())
    return 0


def as_copy(sql, attachment):
    """An INSERT from a file as the COPY that does the same, for which the binding has a result."""
    if attachment:
        return attached_copy(sql, attachment)
    found = FROM_STAGE.match(sql)
    if found and "select" not in found[1].lower():
        return f"COPY INTO {found[1]} FROM {found[2]} {found[3]} PURGE=true FORCE=true"
    return sql


def attached_copy(sql, attachment):
    found = ATTACHED.match(sql)
    if not found:
        raise Refused(SYNTAX, "this test server knows no other statement with a file attached")
    options = attachment.get("file_format_options") or {"type": "CSV"}
    told = " ".join(f"{name}={format_option(name, value)}" for name, value in options.items())
    purge = " PURGE=true" if (attachment.get("copy_options") or {}).get("purge") == "true" else ""
    return f"COPY INTO {found[1]}{found[2] or ''} FROM {attachment['location']} FILE_FORMAT=({told}){purge}"


def format_option(name, value):
    if name.lower() in ("type", "skip_header") or value.isdigit():
        return value
    for raw, escaped in (("\\", "\\\\"), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t"), ("'", "''")):
        value = value.replace(raw, escaped)
    return f"'{value}'"
