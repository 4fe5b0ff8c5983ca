//! Lets everything that cargo starts (tests, `cargo run`) find libduckdb.so, in this crate and in all that depend on it.
//!
//! Cargo puts a build script's link search folders on the library path of what it starts, but only those inside the
//! target folder: so the library is linked into `OUT_DIR` and that folder is named. An rpath would not do: it is not
//! passed on to dependent crates. The binary, which users start without cargo, gets its rpath from crates/cli/build.rs.

use std::path::Path;

fn main() {
    println!("cargo::rerun-if-env-changed=DUCKDB_LIB_DIR");
    println!("cargo::rerun-if-changed=build.rs");
    let (Ok(folder), Ok(out)) = (std::env::var("DUCKDB_LIB_DIR"), std::env::var("OUT_DIR")) else {
        return; // No prebuilt library was asked for: libduckdb-sys finds or builds its own.
    };
    let library = Path::new(&folder).join("libduckdb.so");
    println!("cargo::rerun-if-changed={}", library.display());
    if !library.exists() {
        println!("cargo::error={} is missing; run scripts/setup, it installs it", library.display());
        return;
    }
    let link = Path::new(&out).join("libduckdb.so");
    // A link of an earlier build may point elsewhere.
    let _ = std::fs::remove_file(&link);
    match std::os::unix::fs::symlink(&library, &link) {
        Ok(()) => println!("cargo::rustc-link-search=native={out}"),
        Err(e) => println!("cargo::error={} cannot be linked to {}: {e}", link.display(), library.display()),
    }
}
