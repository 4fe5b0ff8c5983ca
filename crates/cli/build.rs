//! Two things of the binary: where libduckdb.so is (next to itself, as in a release archive, then where this build found it), and
//! the error pages of `docs/errors/`, so that `pgferry explain` needs no network and fits the version.
//!
//! Tests and `cargo run` find libduckdb.so by crates/target-duckdb/build.rs.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    name_library_folders();
    embed_error_pages()
}

fn name_library_folders() {
    println!("cargo::rerun-if-env-changed=DUCKDB_LIB_DIR");
    println!("cargo::rustc-link-arg-bins=-Wl,-rpath,$ORIGIN");
    // The real folder, not the link in this repository: the binary outlives the clone that built it.
    if let Some(folder) = env::var_os("DUCKDB_LIB_DIR").and_then(|folder| fs::canonicalize(folder).ok()) {
        println!("cargo::rustc-link-arg-bins=-Wl,-rpath,{}", folder.display());
        println!("cargo::rerun-if-changed={}", folder.join("libduckdb.so").display());
    }
}

fn embed_error_pages() -> io::Result<()> {
    let folder = Path::new(&env::var("CARGO_MANIFEST_DIR").unwrap_or_default()).join("../../docs/errors");
    println!("cargo::rerun-if-changed={}", folder.display());
    let mut pages: Vec<PathBuf> = match fs::read_dir(&folder) {
        Ok(entries) => entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect(),
        Err(failure) if failure.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(failure) => return Err(failure),
    };
    pages.retain(|page| page.extension().is_some_and(|extension| extension == "md"));
    pages.sort();
    let mut text = String::from("&[\n");
    for page in &pages {
        println!("cargo::rerun-if-changed={}", page.display());
        let code = page.file_stem().unwrap_or_default().to_string_lossy();
        let _ = writeln!(text, "    ({code:?}, {:?}),", fs::read_to_string(page)?);
    }
    text.push_str("]\n");
    let out = env::var_os("OUT_DIR").map(PathBuf::from).unwrap_or_default();
    fs::write(out.join("error_pages.rs"), text)
}
