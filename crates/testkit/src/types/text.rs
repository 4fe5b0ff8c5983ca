//! Text, bytes and documents.

use super::{TypeCase, case};

const ODD: &[&str] = &[
    "''",
    "' '",
    "'NULL'",
    "'null'",
    r"'\N'",
    r"'\.'",
    r#"'quote '' and "double" and \ backslash'"#,
    r"E'tab\tnew\nline\rreturn\bback\fform\x0bvertical\x01\x1f\x7f'",
    "'comma, {brace} (parenthesis) ; semicolon'",
    "'Mäuse & \"Käse\" 🧀 漢字 \u{202e}rtl\u{202c} e\u{301}'",
    "U&'\\+01F600\\FFFD\\+10FFFF'",
    "'\u{feff}byte order mark'",
];

// tidy: waive function-length: one table of values, read line by line
pub(super) fn cases() -> Vec<TypeCase> {
    let mut long = ODD.to_vec();
    long.push("(SELECT string_agg(md5(n::text), '') FROM generate_series(1, 32768) AS n)");
    long.push("repeat('ä', 524288)");
    vec![
        case("c_text", "text", &long).note("two values of 1 MiB, one that compresses and one that does not"),
        case("c_varchar", "varchar", ODD),
        case("c_varchar_10", "varchar(10)", &["''", "'0123456789'", "'ääääääääää'", "'trail   '"]),
        case("c_char", "char", &["'a'", "' '", "''", "'ä'"]).note("one character, padded"),
        case("c_char_8", "char(8)", &["''", "'abc'", "'abc     '", "'ääääääää'", "'  lead'"])
            .note("padded with blanks"),
        case("c_internal_char", r#""char""#, &["'a'", "''", "' '", "'~'"])
            .note("one byte; the empty one is a zero byte"),
        case("c_name", "name", &["''", "'Mäuse'", "repeat('x', 63)::name"]),
        case(
            "c_bytea",
            "bytea",
            &[
                "''",
                r"'\x00'",
                r"'\x0000ff00'",
                r"'\x5c5c27220a0d09'",
                r"'\xdeadbeef'",
                "convert_to('ä', 'UTF8')",
                "decode(repeat('00ff5c', 350000), 'hex')",
            ],
        ),
        case(
            "c_json",
            "json",
            &[
                "'null'",
                "'{}'",
                "'[]'",
                r#"'{"a": 1, "a": 2}'"#,
                r#"'{"n": 123456789012345678901234567890.10}'"#,
                r#"' { "blank" :   [ 1 , 2 ]  } '"#,
                r#"'"\u00e4 \\ \" \/ \n"'"#,
                r#"'"\u0000"'"#,
                "'1e400'",
                "'-0'",
            ],
        )
        .note("kept as written: blanks, order, duplicate keys"),
        case(
            "c_jsonb",
            "jsonb",
            &[
                "'null'",
                "'{}'",
                "'[]'",
                r#"'{"b": 1, "a": {"c": [1, 2.50, null, true, "x"]}}'"#,
                r#"'{"n": 123456789012345678901234567890.10}'"#,
                r#"'"Mäuse \\ \" \n 🧀"'"#,
                "'1e400'",
                "'0.10'",
                "'-0'",
                "(SELECT jsonb_agg(md5(n::text)) FROM generate_series(1, 5000) AS n)",
            ],
        ),
        case(
            "c_xml",
            "xml",
            &[
                "''",
                "'<a/>'",
                "'<a b=\"c\">Mäuse &amp; <![CDATA[<Käse>]]></a>'",
                "'text only'",
                "'<?xml version=\"1.0\"?><a/>'",
                "E'<a>\\n\\t</a>'",
            ],
        ),
        case(
            "c_uuid",
            "uuid",
            &[
                "'00000000-0000-0000-0000-000000000000'",
                "'ffffffff-ffff-ffff-ffff-ffffffffffff'",
                "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'",
            ],
        ),
        case(
            "c_tsvector",
            "tsvector",
            &[
                "''",
                "'a:1 fat:2,4A cat:3B'",
                "to_tsvector('english', 'The quick brown foxes jumped')",
                r"$$'it''s' 'back\\slash' 'with blank':16383$$",
            ],
        ),
        case(
            "c_tsquery",
            "tsquery",
            &["''", "'fat & (rat | !cat)'", "'super:*AB <-> nova <3> x'", "$$'it''s'$$"],
        ),
    ]
}
