//! The ringway program.

mod cli;
mod config;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match cli::Cli::parse().command {
        cli::Command::Run(run) => match run.config() {
            Ok(config) => println!("{config:#?}"),
            Err(faults) => {
                eprintln!("{faults}");
                return ExitCode::FAILURE;
            }
        },
        cli::Command::Demo(demo) => println!("{} s", demo.seconds),
    }
    ExitCode::SUCCESS
}
