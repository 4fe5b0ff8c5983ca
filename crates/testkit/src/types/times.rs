//! Dates, times and intervals.

use super::{TypeCase, case};

// tidy: waive function-length: one table of values, read line by line
pub(super) fn cases() -> Vec<TypeCase> {
    let stamps: &[&str] = &[
        "'infinity'",
        "'-infinity'",
        "'4713-11-24 00:00:00 BC'",
        "'294276-12-31 23:59:59.999999'",
        "'0001-01-01 00:00:00'",
        "'0001-12-31 23:59:59.999999 BC'",
        "'1970-01-01 00:00:00'",
        "'1969-12-31 23:59:59.999999'",
        "'2000-01-01 00:00:00'",
        "'12345-06-07 08:09:10.1'",
        "'2024-02-29 23:59:59.000001'",
        "'1582-10-10 12:00:00'",
    ];
    let zoned: &[&str] = &[
        "'infinity'",
        "'-infinity'",
        "'4713-11-24 00:00:00+00 BC'",
        "'294276-12-31 23:59:59.999999+00'",
        "'0001-01-01 00:00:00+00'",
        "'0001-12-31 23:59:59.999999+00 BC'",
        "'1970-01-01 00:00:00+00'",
        "'2024-03-31 02:30:00+15:59'",
        "'2024-03-31 02:30:00-15:59'",
        "'12345-06-07 08:09:10.1+00'",
        "'2024-03-31 01:30:00 Europe/Berlin'",
        "'1890-01-01 00:00:00 Europe/Amsterdam'",
    ];
    vec![
        case(
            "c_date",
            "date",
            &[
                "'infinity'",
                "'-infinity'",
                "'4713-11-24 BC'",
                "'5874897-12-31'",
                "'0001-01-01'",
                "'0001-12-31 BC'",
                "'1970-01-01'",
                "'10000-01-01'",
                "'2024-02-29'",
                "'1582-10-10'",
            ],
        ),
        case("c_time", "time", &["'00:00:00'", "'24:00:00'", "'23:59:59.999999'", "'12:34:56.1'"]),
        case("c_time_0", "time(0)", &["'00:00:00'", "'23:59:59'", "'23:59:59.5'"]),
        case(
            "c_timetz",
            "time with time zone",
            &[
                "'00:00:00+15:59'",
                "'24:00:00-15:59'",
                "'23:59:59.999999+00'",
                "'12:00:00+05:30'",
                "'12:00:00+01:02:03'",
            ],
        ),
        case("c_timestamp", "timestamp", stamps),
        case(
            "c_timestamp_3",
            "timestamp(3)",
            &["'2024-02-29 23:59:59.9996'", "'infinity'", "'1969-12-31 23:59:59.999'"],
        ),
        case("c_timestamptz", "timestamp with time zone", zoned),
        case("c_timestamptz_0", "timestamptz(0)", &["'2024-02-29 23:59:59+00'", "'-infinity'"]),
        case(
            "c_interval",
            "interval",
            &[
                "'0'",
                "'1 year 2 mons 3 days 04:05:06.789'",
                "'-1 year -2 mons +3 days -04:05:06.000001'",
                "'178000000 years'",
                "'-178000000 years'",
                "'2147483647 days'",
                "'-2147483648 days'",
                "'1 mon -1 days'",
                "'2147483647:59:59.999999'",
                "'-2147483647:59:59.999999'",
                "'00:00:00.000001'",
                "'30 days'",
                "'1 mon'",
            ],
        )
        .note("months, days and microseconds are three numbers, none converts to another"),
        case("c_interval_ym", "interval year to month", &["'1-2'", "'-1-2'"]),
        case("c_interval_ds_2", "interval day to second(2)", &["'1 02:03:04.567'"]),
    ]
}
