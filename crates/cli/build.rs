//! Tells the binary where libduckdb.so is: next to itself (a release archive), then where this build found it.
//!
//! Tests and `cargo run` are served by crates/target-duckdb/build.rs.

fn main() {
    println!("cargo::rerun-if-env-changed=DUCKDB_LIB_DIR");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-link-arg-bins=-Wl,-rpath,$ORIGIN");
    // The real folder, not the link in this repository: the binary outlives the clone that built it.
    if let Some(folder) =
        std::env::var_os("DUCKDB_LIB_DIR").and_then(|folder| std::fs::canonicalize(folder).ok())
    {
        println!("cargo::rustc-link-arg-bins=-Wl,-rpath,{}", folder.display());
        println!("cargo::rerun-if-changed={}", folder.join("libduckdb.so").display());
    }
}
