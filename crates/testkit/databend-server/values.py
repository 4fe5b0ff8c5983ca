"""The text in which a Databend server answers: each column's type name, and each value as its JSON mode shows it.

Drivers read rows as text and turn them back by the type's name; so a value must survive both ways. Outermost values
stand bare, values inside of arrays, maps and tuples are quoted as the server quotes them. Times are in UTC.
"""

import json
import struct
from decimal import Decimal

import pyarrow as pa

MICROSECONDS_PER_DAY = 86_400_000_000

# ---------------------------------------------------------------------------------------------------------------------
# Types

# What arrow alone cannot say: the engine marks such fields.
MARKED = {
    "Variant": "Variant",
    "Interval": "Interval",
    "TimestampTz": "Timestamp_Tz",
    "Geometry": "Geometry",
    "Geography": "Geography",
    "Bitmap": "Bitmap",
    "EmptyArray": "Array(Nothing)",
    "EmptyMap": "Map(Nothing)",
}


def mark(field):
    """The engine's own type of a field, where arrow's is not enough."""
    return ((field.metadata or {}).get(b"Extension") or b"").decode() or None


def type_name(field):
    """`Nullable(Decimal(10, 2))`, as drivers parse it."""
    kind = field.type
    if mark(field) not in MARKED and pa.types.is_null(kind):
        return "Null"
    name = bare_type_name(field)
    return f"Nullable({name})" if field.nullable else name


def bare_type_name(field):
    kind, marked = field.type, mark(field)
    if marked in MARKED:
        return MARKED[marked]
    if marked == "Vector":
        return f"Vector({kind.list_size})"
    if pa.types.is_boolean(kind):
        return "Boolean"
    if pa.types.is_integer(kind):
        return str(kind).replace("uint", "UInt").replace("int", "Int")
    if pa.types.is_floating(kind):
        return "Float32" if pa.types.is_float32(kind) else "Float64"
    if pa.types.is_decimal(kind):
        return f"Decimal({kind.precision}, {kind.scale})"
    if pa.types.is_timestamp(kind):
        return "Timestamp"
    if pa.types.is_date(kind):
        return "Date"
    if pa.types.is_map(kind):
        return f"Map({type_name(kind.key_field)}, {type_name(kind.item_field)})"
    if is_list(kind):
        return f"Array({type_name(kind.value_field)})"
    if pa.types.is_struct(kind):
        return "Tuple(" + ", ".join(type_name(kind.field(at)) for at in range(kind.num_fields)) + ")"
    return "Binary" if is_binary(kind) else "String"


def is_list(kind):
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def is_binary(kind):
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


# ---------------------------------------------------------------------------------------------------------------------
# Rows


def rows_of(table):
    """The rows of an arrow table: lists of text, None for NULL."""
    columns = []
    for at, field in enumerate(table.schema):
        column = table.column(at)
        plain = as_numbers(field.type)
        if plain != field.type:
            column = column.cast(plain)
        text = renderers(field)[0]
        columns.append([None if value is None else text(value) for value in column.to_pylist()])
    return [list(row) for row in zip(*columns)] if columns and table.num_rows else []


def as_numbers(kind):
    """Dates and timestamps as the numbers that they are: Python's own end at the years 1 and 9999."""
    if pa.types.is_timestamp(kind):
        return pa.int64()
    if pa.types.is_date32(kind):
        return pa.int32()
    if pa.types.is_map(kind):
        return pa.map_(field_as_numbers(kind.key_field), field_as_numbers(kind.item_field))
    if pa.types.is_large_list(kind):
        return pa.large_list(field_as_numbers(kind.value_field))
    if pa.types.is_list(kind):
        return pa.list_(field_as_numbers(kind.value_field))
    if pa.types.is_struct(kind):
        return pa.struct([field_as_numbers(kind.field(at)) for at in range(kind.num_fields)])
    return kind


def field_as_numbers(field):
    return field.with_type(as_numbers(field.type))


def renderers(field):
    """Two functions from a value of this field to its text: standing alone, and inside of another value."""
    bare, quoted = renderer(field)

    def inside(value):
        if value is None:
            return "NULL"
        return quote(bare(value)) if quoted else bare(value)

    return bare, inside


def renderer(field):
    """The function for a value standing alone, and whether its text is quoted inside of another value."""
    kind, marked = field.type, mark(field)
    of_mark = {
        "Variant": (variant, True),
        "Interval": (interval, True),
        "TimestampTz": (timestamp_tz, True),
        "Geometry": (geometry, True),
        "Geography": (geometry, True),
        "Bitmap": (lambda value: f"<bitmap binary {len(value)}>", True),
        "EmptyArray": (lambda value: "[]", False),
        "EmptyMap": (lambda value: "{}", False),
    }
    if marked in of_mark:
        return of_mark[marked]
    if pa.types.is_boolean(kind):
        return (lambda value: "1" if value else "0"), False
    if pa.types.is_integer(kind):
        return str, False
    if pa.types.is_decimal(kind):
        return (lambda value: format(value, "f")), False
    if pa.types.is_floating(kind):
        return number, False
    if pa.types.is_timestamp(kind):
        return timestamp, True
    if pa.types.is_date(kind):
        return date, True
    if is_binary(kind):
        return (lambda value: value.hex().upper()), False
    return nested(kind) or (str, True)


def nested(kind):
    """The renderer of maps, arrays and tuples; None for other types."""
    if pa.types.is_map(kind):
        key, item = renderers(kind.key_field)[1], renderers(kind.item_field)[1]

        def of_map(value):
            pairs = value.items() if isinstance(value, dict) else value
            return "{" + ",".join(f"{key(a)}:{item(b)}" for a, b in pairs) + "}"

        return of_map, False
    if is_list(kind):
        element = renderers(kind.value_field)[1]
        return (lambda value: "[" + ",".join(map(element, value)) + "]"), False
    if pa.types.is_struct(kind):
        fields = [(kind.field(at).name, renderers(kind.field(at))[1]) for at in range(kind.num_fields)]
        return (lambda value: "(" + ",".join(text(value[name]) for name, text in fields) + ")"), False
    return None


def quote(text):
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def number(value):
    if value != value:
        return "NaN"
    return repr(value) if abs(value) != float("inf") else "inf" if value > 0 else "-inf"


# ---------------------------------------------------------------------------------------------------------------------
# Times


def date(days):
    """`2024-02-29` from days since 1970, by the Gregorian calendar that has no end (Hinnant, days_from_civil)."""
    days += 719_468
    era = days // 146_097
    of_era = days - era * 146_097
    year_of_era = (of_era - of_era // 1460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    month_from_march = (5 * of_year + 2) // 153
    day = of_year - (153 * month_from_march + 2) // 5 + 1
    month = month_from_march + 3 if month_from_march < 10 else month_from_march - 9
    year = year_of_era + era * 400 + (month <= 2)
    return f"{year:04}-{month:02}-{day:02}"


def clock(microseconds):
    """Hours, minutes, seconds and microseconds of a span that is not negative."""
    seconds, microseconds = divmod(microseconds, 1_000_000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return hours, minutes, seconds, microseconds


def timestamp(microseconds):
    days, rest = divmod(microseconds, MICROSECONDS_PER_DAY)
    hours, minutes, seconds, fraction = clock(rest)
    return f"{date(days)} {hours:02}:{minutes:02}:{seconds:02}.{fraction:06}"


def signed(value, bits):
    return value - (1 << bits) if value >= 1 << (bits - 1) else value


def halves(value):
    """The engine packs some types into one number of 128 bits."""
    return int(value) & ((1 << 128) - 1)


def timestamp_tz(value):
    packed = halves(value)
    microseconds, offset = signed(packed & 0xFFFFFFFFFFFFFFFF, 64), signed((packed >> 64) & 0xFFFFFFFF, 32)
    minutes = abs(offset) // 60
    sign = "-" if offset < 0 else "+"
    return f"{timestamp(microseconds + offset * 1_000_000)} {sign}{minutes // 60:02}{minutes % 60:02}"


def interval(value):
    packed = halves(value)
    all_months, days = signed(packed >> 96, 32), signed((packed >> 64) & 0xFFFFFFFF, 32)
    microseconds = signed(packed & 0xFFFFFFFFFFFFFFFF, 64)
    years = int(all_months / 12)
    parts = []
    for amount, unit in ((years, "year"), (all_months - 12 * years, "month"), (days, "day")):
        if amount:
            parts.append(f"{amount} {unit}" + ("s" if abs(amount) != 1 else ""))
    if microseconds or not parts:
        hours, minutes, seconds, fraction = clock(abs(microseconds))
        text = f"{'-' if microseconds < 0 else ''}{hours}:{minutes:02}:{seconds:02}"
        parts.append(text + (f".{fraction:06}".rstrip("0") if fraction else ""))
    return " ".join(parts)


# ---------------------------------------------------------------------------------------------------------------------
# Variant: the engine's binary form of JSON

LENGTH = 0x0FFFFFFF
ENTRY_KIND = 0x70000000
ARRAY, OBJECT, SCALAR = 0x80000000, 0x40000000, 0x20000000


def variant(data):
    """JSON text; decimals keep their digits, which a float would not."""
    return json_text(container(data))


def container(data):
    header = struct.unpack(">I", data[:4])[0]
    kind, length = header & 0xE0000000, header & 0x1FFFFFFF
    if kind == SCALAR:
        entry = struct.unpack(">I", data[4:8])[0]
        return element(entry, data[8 : 8 + (entry & LENGTH)])
    count = length if kind == ARRAY else 2 * length
    entries = struct.unpack(f">{count}I", data[4 : 4 + 4 * count])
    position, values = 4 + 4 * count, []
    for entry in entries:
        end = position + (entry & LENGTH)
        values.append(element(entry, data[position:end]))
        position = end
    return values if kind == ARRAY else dict(zip(values[:length], values[length:]))


def element(entry, data):
    kind = entry & ENTRY_KIND
    if kind == 0x00000000:
        return None
    if kind == 0x10000000:
        return data.decode()
    if kind == 0x20000000:
        return json_number(data)
    if kind in (0x30000000, 0x40000000):
        return kind == 0x40000000
    return container(data) if kind == 0x50000000 else data.hex()


def json_number(data):
    kind, digits = data[0] & 0xF0, data[1:]
    if kind == 0x00:
        return 0
    if kind in (0x10, 0x20, 0x30):
        return float({0x10: "nan", 0x20: "inf", 0x30: "-inf"}[kind])
    if kind in (0x40, 0x50):
        return int.from_bytes(digits, "big", signed=kind == 0x40)
    if kind == 0x60:
        return struct.unpack(">d", digits)[0]
    if kind == 0x70:
        # Not by scaleb: it rounds to the context's 28 digits.
        unscaled = int.from_bytes(digits[:-1], "big", signed=True)
        sign = 1 if unscaled < 0 else 0
        return Decimal((sign, tuple(map(int, str(abs(unscaled)))), -digits[-1]))
    raise ValueError(f"unknown kind of JSON number: {data[0]:#x}")


def json_text(value):
    if isinstance(value, dict):
        pairs = (json.dumps(key, ensure_ascii=False) + ":" + json_text(item) for key, item in value.items())
        return "{" + ",".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(json_text, value)) + "]"
    return format(value, "f") if isinstance(value, Decimal) else json.dumps(value, ensure_ascii=False)


# ---------------------------------------------------------------------------------------------------------------------
# Geometry: well-known binary to GeoJSON

HAS_SRID = 0x20000000
MULTI = {4: "MultiPoint", 5: "MultiLineString", 6: "MultiPolygon"}


def geometry(data):
    return json.dumps(shape(data, 0)[0])


def shape(data, at):
    """A shape, and where the next one begins."""
    order = "<" if data[at] else ">"
    kind = struct.unpack_from(order + "I", data, at + 1)[0]
    at += 9 if kind & HAS_SRID else 5
    kind &= 0xFF
    if kind == 1:
        return {"type": "Point", "coordinates": list(struct.unpack_from(order + "2d", data, at))}, at + 16
    if kind == 2:
        line, at = points(data, at, order)
        return {"type": "LineString", "coordinates": line}, at
    count = struct.unpack_from(order + "I", data, at)[0]
    at, parts = at + 4, []
    for _ in range(count):
        part, at = points(data, at, order) if kind == 3 else shape(data, at)
        parts.append(part)
    if kind == 3:
        return {"type": "Polygon", "coordinates": parts}, at
    if kind == 7:
        return {"type": "GeometryCollection", "geometries": parts}, at
    return {"type": MULTI[kind], "coordinates": [part["coordinates"] for part in parts]}, at


def points(data, at, order):
    count = struct.unpack_from(order + "I", data, at)[0]
    at += 4
    return [list(struct.unpack_from(order + "2d", data, at + 16 * i)) for i in range(count)], at + 16 * count
