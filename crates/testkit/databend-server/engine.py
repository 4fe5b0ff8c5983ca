"""Databend's engine in this process, and what its Python binding leaves to be done around it.

A session of the engine is made in half a millisecond and holds the current database, settings and at most one
transaction; it takes one statement at a time. What the binding lacks, and a server has:

- results of COPY have no columns in the plan, only in the printed box; they are read from there
- some plans without columns end in a panic after their work is done; that is an empty result
- errors are texts, with a backtrace behind them
"""

import re

import databend
import pyarrow as pa

PANIC = "PanicException"
BACKTRACE = re.compile(r"\n\s*(\d+: <unknown>@[0-9a-f]+|<Backtrace disabled)[\s\S]*$")
ERROR_TEXT = re.compile(r"\w+\. Code: (\d+), Text = ([\s\S]*?)\.?$")
COPY = re.compile(r"copy\s+(/\*.*?\*/\s*)?into\s+(?!@|')", re.IGNORECASE)

UNKNOWN_DATABASE = 1003
INTERNAL = 1001
PANICKED = 1104
UNKNOWN_SETTING = 2801

COPY_RESULT = pa.schema(
    [
        pa.field("File", pa.string(), nullable=False),
        pa.field("Rows_loaded", pa.int32(), nullable=False),
        pa.field("Errors_seen", pa.int32(), nullable=False),
        pa.field("First_error", pa.string()),
        pa.field("First_error_line", pa.int32()),
    ]
)


class Refused(Exception):
    """What the server answers a statement with that it does not do: a code of Databend's and a text."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code, self.message = code, message


def refusal(error):
    text = BACKTRACE.sub("", str(error)).strip()
    found = ERROR_TEXT.search(text)
    return Refused(int(found[1]), found[2].strip()) if found else Refused(INTERNAL, text)


class EngineSession:
    """One session of the engine, with the client's database and settings put into it."""

    def __init__(self, folder):
        self.context = databend.connect(folder)
        self.database, self.settings = "default", {}
        # Of the open transaction; they count from its commit on.
        self.labels = set()

    def run(self, sql):
        """An arrow table; raises Refused."""
        try:
            relation = self.context.sql(sql)
            return copy_result(relation) if COPY.match(sql) else relation.arrow()
        except RuntimeError as error:
            raise refusal(error) from None
        except BaseException as error:
            # A panic of the engine's, which the binding derives from BaseException.
            if type(error).__name__ != PANIC:
                raise
            if "table_schema_fields: 0" in str(error):
                return pa.table({})
            raise Refused(PANICKED, f"panic: {error}") from None

    def put(self, database, settings):
        """Sets what the client's state says where it differs, and takes out what no engine knows; raises Refused
        for a setting's value."""
        if database != self.database:
            self.database = database
            try:
                self.run(f"USE {quoted_name(database)}")
            except Refused as refused:
                # A server says so of the names that it looks up in it, and lets everything else pass.
                if refused.code != UNKNOWN_DATABASE:
                    raise
        for name in set(self.settings) - set(settings):
            self.run(f"UNSET {name}")
        for name, value in list(settings.items()):
            if self.settings.get(name) != value and not self.put_setting(name, value):
                del settings[name]
        self.settings = dict(settings)

    def put_setting(self, name, value):
        """Whether there is such a setting."""
        try:
            self.run(f"SET {name} = {quoted_text(value)}")
        except Refused as refused:
            # A server warns in its log only.
            if refused.code != UNKNOWN_SETTING and re.fullmatch(r"\w+", name):
                raise
            return False
        return True


def copy_result(relation):
    """Runs a COPY and reads what it did from the box that the engine would print."""
    frame = relation._relation
    for widen in (frame.set_max_display_rows, frame.set_max_width, frame.set_max_col_width):
        widen(1 << 30)
    lines = [line.strip() for line in repr(frame.collect()).splitlines()[4:]]
    rows = []
    for line in lines:
        if not line.startswith("│"):
            continue
        # From the right: a file's name may hold the stroke, too.
        file, loaded, errors, *first = line.strip("│").rsplit("│", 4)
        rows.append([unquoted(file), int(loaded), int(errors), unquoted(first[0]), unquoted(first[1])])
    columns = [list(column) for column in zip(*rows)] or [[] for _ in COPY_RESULT]
    columns[4] = [None if line is None else int(line) for line in columns[4]]
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, COPY_RESULT)], COPY_RESULT)


def unquoted(cell):
    cell = cell.strip()
    if cell == "NULL":
        return None
    return cell[1:-1].replace("\\'", "'") if cell.startswith("'") else cell


def quoted_name(name):
    return '"' + name.replace('"', '""') + '"'


def quoted_text(text):
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"
