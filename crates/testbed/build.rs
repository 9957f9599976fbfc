//! Compiles the guest's tool as one static file, which the library then carries inside itself: a test never has to look
//! for it, and the guest needs no shared libraries to start it.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=tool");
    let variable = |name: &str| env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"));
    let tool = PathBuf::from(variable("OUT_DIR")).join("testbed-tool");
    let status = Command::new(variable("RUSTC"))
        .args(["--edition=2024", "--crate-name=testbed_tool", "--crate-type=bin"])
        .args(["-Copt-level=3", "-Cpanic=abort", "-Cstrip=symbols"])
        .args(["-Ctarget-feature=+crt-static", "--target", &variable("TARGET")])
        .arg("-o")
        .arg(&tool)
        .arg("tool/main.rs")
        .status()
        .expect("rustc starts");
    assert!(status.success(), "the guest's tool did not compile: a static link needs libc6-dev");
    println!("cargo::rustc-env=TESTBED_TOOL={}", tool.display());
}
