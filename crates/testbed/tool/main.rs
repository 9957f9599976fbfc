//! What the test bed puts into each guest, and also runs on the host: the agent behind the command channel, and the
//! two ends of checked traffic. It uses the standard library alone, so that one call of `rustc` builds it.

mod agent;
mod line;
mod sha256;
mod traffic;

use std::env;
use std::error::Error;
use std::process::ExitCode;

const USAGE: &str = "usage:
  testbed-tool agent PORT                   serve the command channel (in a guest)
  testbed-tool tcp-receive ADDRESS          accept one connection; print its bytes and SHA-256
  testbed-tool tcp-send ADDRESS BYTES SEED  send noise; print its bytes and SHA-256
  testbed-tool udp-echo ADDRESS             send datagrams back, until killed
  testbed-tool udp-sweep ADDRESS MIN MAX    send every payload size; check each echo";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match run(&arguments.iter().map(String::as_str).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("testbed-tool: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[&str]) -> Result<(), Box<dyn Error>> {
    match arguments {
        ["agent", port] => agent::serve(port)?,
        ["tcp-receive", address] => traffic::tcp_receive(address.parse()?)?,
        ["tcp-send", address, bytes, seed] => {
            traffic::tcp_send(address.parse()?, bytes.parse()?, seed.parse()?)?;
        }
        ["udp-echo", address] => traffic::udp_echo(address.parse()?)?,
        ["udp-sweep", address, min, max] => {
            traffic::udp_sweep(address.parse()?, min.parse()?, max.parse()?)?;
        }
        _ => return Err(USAGE.into()),
    }
    Ok(())
}
