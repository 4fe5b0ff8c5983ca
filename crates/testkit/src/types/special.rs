//! Network addresses, shapes and ranges.

use super::{TypeCase, case};

// tidy: waive function-length: one table of values, read line by line
pub(super) fn cases(version: u32) -> Vec<TypeCase> {
    let mut cases = vec![
        case(
            "c_inet",
            "inet",
            &[
                "'0.0.0.0'",
                "'255.255.255.255'",
                "'192.168.1.5/24'",
                "'192.168.1.5/32'",
                "'::'",
                "'::1/128'",
                "'2001:db8::ff00:42:8329/64'",
                "'::ffff:1.2.3.4'",
            ],
        ),
        case(
            "c_cidr",
            "cidr",
            &["'0.0.0.0/0'", "'192.168.0.0/16'", "'10.1.2.3/32'", "'::/0'", "'2001:db8::/32'"],
        ),
        case("c_macaddr", "macaddr", &["'00:00:00:00:00:00'", "'ff:ff:ff:ff:ff:ff'", "'08-00-2b-01-02-03'"]),
        case(
            "c_macaddr8",
            "macaddr8",
            &["'00:00:00:00:00:00:00:00'", "'ff:ff:ff:ff:ff:ff:ff:ff'", "'08:00:2b:01:02:03:04:05'"],
        ),
        case("c_point", "point", &["'(0,-0)'", "'(1e300,-1e-300)'", "'(Infinity,NaN)'", "'(0.1,0.2)'"]),
        case("c_line", "line", &["'{1,-1,0}'", "'{0.1,2,3}'"]),
        case("c_lseg", "lseg", &["'[(0,0),(1.5,-2.5)]'"]),
        case("c_box", "box", &["'(2,2),(0,0)'", "'(0,0),(2,2)'"]).note("corners are put in order"),
        case("c_path", "path", &["'[(0,0),(1,1),(2,0)]'", "'((0,0),(1,1),(2,0))'"]).note("open and closed"),
        case("c_polygon", "polygon", &["'((0,0),(1,1),(2,0))'", "'((0.1,0.2))'"]),
        case("c_circle", "circle", &["'<(1,2),3.5>'", "'<(0,0),0>'"]),
        case(
            "c_int4range",
            "int4range",
            &["'empty'", "'(,)'", "'[1,10)'", "'(1,10]'", "'[-2147483648,2147483647)'", "'[5,)'"],
        ),
        case("c_int8range", "int8range", &["'empty'", "'(,9223372036854775807)'"]),
        case("c_numrange", "numrange", &["'empty'", "'(,)'", "'[1.10,2.200]'", "'(NaN,)'"]),
        case(
            "c_daterange",
            "daterange",
            &["'empty'", "'[2024-02-29,infinity)'", "'(-infinity,)'", "'[4713-11-24 BC,5874897-12-30)'"],
        ),
        case(
            "c_tsrange",
            "tsrange",
            &["'[2024-01-01 00:00:00,2024-01-01 00:00:00.000001]'", "'(,)'", "'empty'"],
        ),
        case("c_tstzrange", "tstzrange", &["'[\"2024-01-01 00:00:00+15:59\",infinity]'", "'empty'"]),
        case("c_int4range_array", "int4range[]", &["ARRAY['empty'::int4range, '[1,2)', NULL]"]),
    ];
    if version >= 120_000 {
        cases.push(case(
            "c_jsonpath",
            "jsonpath",
            &["'$'", r#"'$.a[*] ? (@ > 1 && @.b == "ä")'"#, "'strict $[last]'"],
        ));
    }
    if version >= 140_000 {
        cases.push(case("c_int4multirange", "int4multirange", &["'{}'", "'{[1,2),[5,)}'", "'{(,)}'"]));
        cases.push(case(
            "c_datemultirange",
            "datemultirange",
            &["'{[2024-01-01,2024-02-01),[2024-03-01,infinity)}'"],
        ));
        cases.push(case("c_nummultirange", "nummultirange", &["'{[1.10,2.20],(3,4)}'"]));
        cases.push(case(
            "c_tstzmultirange",
            "tstzmultirange",
            &["'{[\"2024-01-01 00:00:00+00\",\"2024-01-02 00:00:00+00\")}'"],
        ));
    }
    cases
}
