//! The `belljar` program: reads the command line, runs it, and turns what comes of it into an exit code.

#![forbid(unsafe_code)]

use belljar::cli::{Cli, error_code, exit, shown_error};
use belljar::sandbox::{launcher, probe};
use belljar::telemetry;
use clap::Parser as _;

fn main() {
    // This same file is started again under other names: to launch sandboxes, and to try what this machine's kernel can.
    if probe::is_probe(std::env::args_os().next().as_deref()) {
        std::process::exit(i32::from(probe::run()));
    }
    if launcher::is_launcher(std::env::args_os().next().as_deref()) {
        let code = launcher::run();
        std::process::exit(i32::from(code));
    }
    let code = run().unwrap_or_else(|error| {
        eprintln!("{}", shown_error(&error));
        error_code(&error)
    });
    // Not a return: a thread may still be blocked in reading stdin.
    std::process::exit(i32::from(code));
}

fn run() -> anyhow::Result<u8> {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers, on stdout; anything else is a fault of ours to report, never the command's 2.
            let code = if error.use_stderr() { exit::FAILED } else { 0 };
            let _ = error.print();
            return Ok(code);
        }
    };
    telemetry::start()?;
    cli.run()
}
