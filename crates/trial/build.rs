//! Names the folder of libduckdb.so in the binary, as crates/cli/build.rs does: `cargo xtask` starts it without cargo.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=DUCKDB_LIB_DIR");
    let folder = std::env::var_os("DUCKDB_LIB_DIR").and_then(|folder| std::fs::canonicalize(folder).ok());
    if let Some(folder) = folder {
        println!("cargo::rustc-link-arg-bins=-Wl,-rpath,{}", folder.display());
    }
}
