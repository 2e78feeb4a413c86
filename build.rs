//! Builds the guest, a static program, and hands its path to the host program, which carries it inside.
//!
//! musl where its target is there, else the host's own libc linked statically (larger, otherwise the same). Compiles the seccomp filter
//! too.

#[path = "build/seccomp.rs"]
mod seccomp;

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    compile_filter();
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets it")).join("guest");
    for path in ["images/guest/src", "images/guest/Cargo.toml", "Cargo.lock", "build.rs"] {
        println!("cargo:rerun-if-changed={}", root.join(path).display());
    }
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets it");
    let musl = format!("{arch}-unknown-linux-musl");
    let (target, flags) = if is_installed(&musl) {
        (musl, "")
    } else {
        (format!("{arch}-unknown-linux-gnu"), "-C target-feature=+crt-static")
    };
    let mut cargo = Command::new(env::var_os("CARGO").expect("cargo sets it"));
    cargo
        .current_dir(&root)
        .args([
            "build",
            "--package",
            "belljar-guest",
            "--bin",
            "belljar-guest",
            "--profile",
            "guest",
            "--quiet",
        ])
        .args(["--target", &target])
        .arg("--target-dir")
        .arg(&out)
        .env("RUSTFLAGS", flags)
        // What a lint or coverage run asks of this build must not change the guest.
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("CARGO_BUILD_TARGET");
    let status = cargo.status().expect("cargo runs");
    assert!(status.success(), "the guest does not build for {target}: {status}");
    let program = out.join(&target).join("guest/belljar-guest");
    println!("cargo:rustc-env=BELLJAR_GUEST={}", program.display());
    println!("cargo:rustc-env=BELLJAR_GUEST_TARGET={target}");
}

fn compile_filter() {
    println!("cargo:rerun-if-changed=config/seccomp.json");
    println!("cargo:rerun-if-changed=build/seccomp.rs");
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets it");
    let arch = arch
        .as_str()
        .try_into()
        .expect("belljar builds for architectures that the compiler of filters knows");
    let list = std::fs::read_to_string("config/seccomp.json").expect("config/seccomp.json is there");
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets it")).join("seccomp.bpf");
    std::fs::write(&out, seccomp::compile_bytes(&list, arch)).expect("cargo's folder can be written");
    println!("cargo:rustc-env=BELLJAR_SECCOMP={}", out.display());
}

fn is_installed(target: &str) -> bool {
    let rustc = env::var_os("RUSTC").expect("cargo sets it");
    let output = Command::new(rustc)
        .args(["--print", "target-libdir", "--target", target])
        .output();
    let Ok(output) = output else { return false };
    let folder = String::from_utf8_lossy(&output.stdout);
    Path::new(folder.trim()).is_dir()
}
