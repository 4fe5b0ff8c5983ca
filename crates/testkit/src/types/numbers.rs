//! Numbers, money, bits, booleans and object identifiers.

use super::{TypeCase, case};

// tidy: waive function-length: one table of values, read line by line
pub(super) fn cases(version: u32) -> Vec<TypeCase> {
    let mut cases = vec![
        case("c_bool", "boolean", &["true", "false"]),
        case("c_int2", "smallint", &["-32768", "-1", "0", "32767"]),
        case("c_int4", "integer", &["-2147483648", "-1", "0", "2147483647"]),
        case(
            "c_int8",
            "bigint",
            &["-9223372036854775808", "-1", "0", "9223372036854775807", "9007199254740993"],
        ),
        case(
            "c_float4",
            "real",
            &[
                "0",
                "'-0'",
                "'NaN'",
                "'Infinity'",
                "'-Infinity'",
                "3.4028235e38",
                "-3.4028235e38",
                "1.17549435e-38",
                "1.4e-45",
                "0.1",
                "16777217",
                "1.1754942e-38",
            ],
        ),
        case(
            "c_float8",
            "double precision",
            &[
                "0",
                "'-0'",
                "'NaN'",
                "'Infinity'",
                "'-Infinity'",
                "1.7976931348623157e308",
                "-1.7976931348623157e308",
                "2.2250738585072014e-308",
                "'5e-324'",
                "0.1",
                "0.30000000000000004",
                "9007199254740993",
                "1e15",
                "1e16",
            ],
        ),
        case(
            "c_numeric",
            "numeric",
            &[
                "0",
                "'NaN'",
                "0.1",
                "-0.00000000000000000000000000000000000001",
                "1.10",
                "1.100",
                "1e131071",
                "-1e131071",
                "('0.' || repeat('0', 16382) || '1')::numeric",
                "(repeat('9', 131072) || '.' || repeat('9', 16383))::numeric",
                "99999999999999999999999999999999999999",
                "170141183460469231731687303715884105728",
                "10000",
                "0.0001",
                "1e-16383",
            ],
        ),
        case(
            "c_numeric_38_10",
            "numeric(38,10)",
            &[
                "9999999999999999999999999999.9999999999",
                "-9999999999999999999999999999.9999999999",
                "0.0000000001",
                "0",
                "'NaN'",
            ],
        ),
        case(
            "c_numeric_38_0",
            "numeric(38,0)",
            &["99999999999999999999999999999999999999", "-99999999999999999999999999999999999999"],
        ),
        // The widest of 32 bytes; one that fills their lower half only, at both ends; as many digits behind the point.
        case(
            "c_numeric_76_0",
            "numeric(76,0)",
            &[
                "repeat('9', 76)::numeric",
                "('-' || repeat('9', 76))::numeric",
                "0",
                "-1",
                "170141183460469231731687303715884105727",
                "170141183460469231731687303715884105728",
                "-170141183460469231731687303715884105729",
                "340282366920938463463374607431768211456",
            ],
        ),
        case(
            "c_numeric_76_38",
            "numeric(76,38)",
            &[
                "(repeat('9', 38) || '.' || repeat('9', 38))::numeric",
                "('-' || repeat('9', 38) || '.' || repeat('9', 38))::numeric",
                "('-0.' || repeat('0', 37) || '1')::numeric",
                "1.10",
            ],
        ),
        case(
            "c_numeric_76_76",
            "numeric(76,76)",
            &["('0.' || repeat('9', 76))::numeric", "('-0.' || repeat('0', 75) || '1')::numeric", "0"],
        ),
        case("c_numeric_50_2", "numeric(50,2)", &["0.01", "-123456789012345678901234567890.12", "'NaN'"]),
        case("c_numeric_18_4", "numeric(18,4)", &["99999999999999.9999", "-0.0001", "'NaN'", "0"]),
        case("c_numeric_9_2", "numeric(9,2)", &["9999999.99", "-9999999.99", "0.01"]),
        case(
            "c_numeric_1000_500",
            "numeric(1000,500)",
            &[
                "(repeat('9', 500) || '.' || repeat('9', 500))::numeric",
                "('-0.' || repeat('0', 499) || '1')::numeric",
                "'NaN'",
            ],
        ),
        case(
            "c_money",
            "money",
            &["'-92233720368547758.08'", "'92233720368547758.07'", "'0'", "'-0.01'", "'1234.56'"],
        )
        .note("its text follows lc_monetary of the server"),
        case("c_bit", "bit(1)", &["B'0'", "B'1'"]),
        case("c_bit_9", "bit(9)", &["B'101010101'", "B'000000000'"]),
        case(
            "c_varbit",
            "bit varying",
            &["B''", "B'1'", "B'10000000'", "B'100000001'", "repeat('10', 5000)::varbit"],
        ),
        case("c_varbit_5", "bit varying(5)", &["B''", "B'10101'"]),
        case("c_oid", "oid", &["0", "1", "4294967295"]),
        case("c_xid", "xid", &["'0'", "'4294967295'"]),
        case("c_cid", "cid", &["'0'", "'4294967295'"]),
        case("c_tid", "tid", &["'(0,0)'", "'(4294967295,65535)'"]),
        case("c_pg_lsn", "pg_lsn", &["'0/0'", "'FFFFFFFF/FFFFFFFF'", "'16/B374D848'"]),
        case("c_regclass", "regclass", &["'pg_class'", "0", "4294967295"])
            .note("text is a name while the object exists, else its number"),
        case("c_regtype", "regtype", &["'integer'", "'double precision[]'", "0"]),
        case("c_regproc", "regproc", &["'now'", "0"]),
        case("c_regprocedure", "regprocedure", &["'sum(integer)'", "0"]),
        case("c_regoper", "regoper", &["'||/'", "0"]),
        case("c_regoperator", "regoperator", &["'+(integer,integer)'", "0"]),
        case("c_regconfig", "regconfig", &["'english'", "0"]),
        case("c_regdictionary", "regdictionary", &["'simple'", "0"]),
        case("c_regnamespace", "regnamespace", &["'pg_catalog'", "0"]),
        case("c_regrole", "regrole", &["'postgres'", "0"]),
        case("c_txid_snapshot", "txid_snapshot", &["'10:20:10,14,15'", "'1:1:'"]),
    ];
    if version >= 130_000 {
        cases.push(case("c_xid8", "xid8", &["'0'", "'18446744073709551615'"]));
        cases.push(case("c_pg_snapshot", "pg_snapshot", &["'10:20:10,14,15'"]));
        cases.push(case("c_regcollation", "regcollation", &["'\"C\"'", "0"]));
    }
    if version >= 140_000 {
        cases.push(case("c_numeric_infinite", "numeric", &["'Infinity'", "'-Infinity'"]));
        cases.push(case("c_numeric_infinite_array", "numeric[]", &["'{Infinity,-Infinity,NaN,NULL,0}'"]));
    }
    if version >= 150_000 {
        cases.push(
            case("c_numeric_negative_scale", "numeric(5,-3)", &["99999000", "-99999000", "0", "1499"])
                .note("rounded to thousands"),
        );
        cases.push(
            case("c_numeric_scale_over", "numeric(3,5)", &["0.00999", "-0.00001"])
                .note("scale above precision"),
        );
    }
    cases
}
