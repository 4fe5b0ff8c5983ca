//! Arrays, enums, domains, composites and the types made for them.

use super::{TypeCase, case};

/// Makes the named types that the cases use. The schema `testkit` holds them, so that their names are qualified.
pub(super) fn types_sql(version: u32) -> String {
    // A domain over an array or a composite takes 11.
    let later = if version >= 110_000 {
        "CREATE DOMAIN testkit.pair_domain AS testkit.pair CHECK ((VALUE).a IS NULL OR (VALUE).a > 0);"
    } else {
        ""
    };
    format!(
        r#"CREATE SCHEMA IF NOT EXISTS testkit;
CREATE TYPE testkit."Odd mood" AS ENUM ('', 'sad', 'ok, so', 'it''s', 'back\slash', 'Mäuse 🧀', '"quoted"', 'NULL');
CREATE DOMAIN testkit.positive AS integer CHECK (VALUE > 0);
CREATE DOMAIN testkit.small AS testkit.positive CHECK (VALUE < 100);
CREATE DOMAIN testkit.label AS varchar(20) DEFAULT 'none';
CREATE DOMAIN testkit.labels AS text[];
CREATE TYPE testkit.pair AS (a integer, "B c" text);
CREATE TYPE testkit.nest AS (p testkit.pair, n numeric(10,2)[], m testkit."Odd mood");
CREATE TYPE testkit.textrange AS RANGE (subtype = text, collation = "C");
{later}"#
    )
}

pub(super) fn cases(version: u32) -> Vec<TypeCase> {
    let mut cases = arrays();
    cases.extend([
        case(
            "c_enum",
            r#"testkit."Odd mood""#,
            &["''", "'sad'", "'ok, so'", "'it''s'", r"'back\slash'", "'Mäuse 🧀'", "'\"quoted\"'", "'NULL'"],
        ),
        case(
            "c_enum_array",
            r#"testkit."Odd mood"[]"#,
            &[r#"ARRAY['', 'NULL', 'ok, so', '"quoted"', 'back\slash', NULL]::testkit."Odd mood"[]"#],
        ),
        case("c_domain", "testkit.positive", &["1", "2147483647"]),
        case("c_domain_domain", "testkit.small", &["1", "99"]).note("a domain over a domain"),
        case("c_domain_varchar", "testkit.label", &["''", "'ä'"])
            .note("its default stands where a row names no value"),
        case("c_domain_array", "testkit.labels", &["'{}'", "'{a,NULL}'"]),
        case(
            "c_composite",
            "testkit.pair",
            &["ROW(1, 'x')", "ROW(NULL, NULL)", "ROW(NULL, '')", r#"ROW(-1, 'a,b "c" (d) \ e')"#],
        ),
        case(
            "c_composite_array",
            "testkit.pair[]",
            &["ARRAY[ROW(1, 'x, y')::testkit.pair, NULL, ROW(NULL, NULL)::testkit.pair]"],
        ),
        case(
            "c_composite_nested",
            "testkit.nest",
            &["ROW(ROW(1, 'x \"y\"'), ARRAY[1.10, NULL], 'ok, so')", "ROW(NULL, '{}', NULL)"],
        ),
        case("c_range_custom", "testkit.textrange", &["'empty'", "'[\"a,b\",\"c)d\")'", "'(,\"\"]'"]),
    ]);
    if version >= 110_000 {
        cases.push(case("c_domain_composite", "testkit.pair_domain", &["ROW(1, 'x')", "ROW(NULL, 'y')"]));
    }
    cases
}

fn arrays() -> Vec<TypeCase> {
    vec![
        case(
            "c_int4_array",
            "integer[]",
            &[
                "'{}'",
                "'{1,NULL,-2147483648}'",
                "'{{1,2},{3,4}}'",
                "'{{{1},{2}},{{3},{4}}}'",
                "'[-2:0]={7,8,9}'",
                "'[2:3][0:1]={{1,2},{3,4}}'",
                "'{NULL}'",
                "ARRAY(SELECT generate_series(1, 10000))",
            ],
        ),
        case("c_int4_array_2", "integer[][]", &["'{{1},{2}}'", "'{1}'"])
            .note("declared dimensions bind nobody"),
        case("c_int8_array", "bigint[]", &["'{9223372036854775807,-9223372036854775808,NULL}'"]),
        case(
            "c_text_array",
            "text[]",
            &[
                "'{}'",
                "ARRAY['', 'NULL', NULL, 'null', 'a,b', '{c}', 'd\"e', E'f\\\\g', E'h\\ni', ' j ', 'ä🧀']",
                "'{{a,b},{NULL,\"\"}}'",
            ],
        ),
        case("c_char_array", "char(4)[]", &["'{a,\"b \",NULL}'"]),
        case("c_bool_array", "boolean[]", &["'{t,f,NULL}'"]),
        case("c_float8_array", "double precision[]", &["'{NaN,Infinity,-Infinity,-0,0.1,5e-324}'"]),
        case("c_numeric_array", "numeric[]", &["'{1.10,NaN,NULL,-0.00001}'"]),
        case("c_bytea_array", "bytea[]", &[r"ARRAY['\x00'::bytea, '\x5c22', '', NULL]"]),
        case("c_date_array", "date[]", &["'{infinity,4713-11-24 BC,NULL}'"]),
        case("c_timestamptz_array", "timestamptz[]", &["'{infinity,\"2024-01-01 00:00:00+15:59\",NULL}'"]),
        case("c_interval_array", "interval[]", &["'{\"1 mon -1 days\",NULL}'"]),
        case("c_json_array", "json[]", &[r#"ARRAY['{"a": [1, "b,c"]}'::json, 'null', NULL]"#]),
        case("c_jsonb_array", "jsonb[]", &[r#"ARRAY['{"a": "\"{"}'::jsonb, NULL]"#]),
        case("c_uuid_array", "uuid[]", &["'{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11,NULL}'"]),
        case("c_point_array", "point[]", &["'{\"(1,2)\",NULL}'"]),
        case("c_box_array", "box[]", &["'{(2,2),(1,1);(3,3),(0,0)}'"])
            .note("boxes are separated by semicolons"),
        case("c_inet_array", "inet[]", &["'{10.0.0.1/8,::1,NULL}'"]),
    ]
}
