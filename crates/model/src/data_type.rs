//! A column's type as the source's catalog tells it, reduced to what a target's mapping needs.
//!
//! Why not the OID alone: enums, domains, composites and extension types have OIDs of their own per database; only the
//! catalog knows what is behind them. `kind` is resolved once, when the catalog is read; the hot path compares nothing.

use std::sync::Arc;

/// How many array dimensions a column declares (`pg_attribute.attndims`); PostgreSQL does not enforce it.
pub type Dimensions = u16;

/// A column's type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataType {
    /// The type's OID in the source's catalog.
    pub oid: u32,
    /// As the source writes it, with its modifier: `numeric(10,2)`, `character varying(20)[]`, `public.mood`.
    pub name: Arc<str>,
    /// What is behind the name; a domain is resolved to its base type.
    pub kind: TypeKind,
    /// Whether the type has a binary send function that COPY and pgoutput can use (`pg_type.typsend`).
    pub sends_binary: bool,
    /// The type's output function, schema-qualified and quoted, such as `pg_catalog.int4out`; with it a snapshot reads a
    /// type's own text form (a cast to text can differ from it: `inet`, `character(n)`, `boolean`).
    pub output_function: Arc<str>,
}

/// What a type is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TypeKind {
    /// `boolean`: text `t`/`f`, binary one byte.
    Bool,
    /// `smallint`.
    Int2,
    /// `integer`.
    Int4,
    /// `bigint`.
    Int8,
    /// `real`.
    Float4,
    /// `double precision`.
    Float8,
    /// `numeric`; `None` without a declared precision. The scale may be negative (15+) or larger than the precision.
    Numeric {
        /// Declared precision (total digits) and scale.
        precision_and_scale: Option<(u16, i16)>,
    },
    /// `text`, `character varying`, `name`: binary and text forms are the same bytes.
    Text,
    /// `character(n)`, padded with blanks.
    FixedText,
    /// `"char"`: one byte.
    SingleByte,
    /// `bytea`: text form is `\x` and hexadecimal digits (the session pins it).
    Bytes,
    /// `date`.
    Date,
    /// `time without time zone`, 00:00:00 to 24:00:00.
    Time,
    /// `time with time zone`.
    TimeTz,
    /// `timestamp without time zone`, in microseconds, with infinities.
    Timestamp,
    /// `timestamp with time zone`, in microseconds, with infinities; text form in UTC (the session pins it).
    TimestampTz,
    /// `interval`: months, days, microseconds.
    Interval,
    /// `uuid`.
    Uuid,
    /// `json`.
    Json,
    /// `jsonb`: the binary form is a version byte (1) and the text form.
    Jsonb,
    /// `xml`.
    Xml,
    /// `bit(n)` and `bit varying`.
    Bits,
    /// `oid`.
    Oid,
    /// `money`.
    Money,
    /// `inet`, `cidr`, `macaddr`, `macaddr8`.
    Network,
    /// An enum; its labels are text in both forms.
    Enum,
    /// An array; the element's type, and the declared dimensions (0 where not declared).
    Array(Box<DataType>, Dimensions),
    /// A composite type, as text.
    Composite,
    /// A range or multirange, as text.
    Range,
    /// Everything else, known by its text form only: geometry, tsvector, hstore, vector, reg types, unknown types.
    Other,
}
