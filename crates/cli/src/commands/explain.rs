//! `pgferry explain`: the page of an error code, from `docs/errors/`, in the program itself.

use pgferry_model::{Cure, Error};
use serde_json::json;

use super::Ended;
use crate::errors::UNKNOWN_NAME;
use crate::exit_code::ExitCode;
use crate::figures::plural;
use crate::output::Output;

/// Code and page.
const PAGES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/error_pages.rs"));

pub(super) fn run(code: Option<&str>, output: &Output) -> Ended {
    let Some(code) = code else {
        let codes: Vec<&str> = PAGES.iter().map(|(code, _)| *code).collect();
        output.data(&codes.join("\n"));
        output.result(true, &plural(codes.len() as u64, "code"), &json!({ "codes": codes }));
        return Ok(ExitCode::Success);
    };
    let page = PAGES.iter().find(|(known, _)| *known == code).map(|(_, page)| *page);
    let page = page.ok_or_else(|| {
        let cure = Cure::advice("list all codes").line("pgferry explain");
        Error::task_broken(UNKNOWN_NAME, format!("there is no error code `{code}`"))
            .with_cause("it is mistyped, or of another version of pgferry")
            .with_cure(cure)
    })?;
    output.data(page);
    output.result(true, code, &json!({ "code": code, "page": page }));
    Ok(ExitCode::Success)
}
