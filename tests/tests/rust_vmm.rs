//! rust-vmm's front end, as Cloud Hypervisor has it, on the real back ends.

#[path = "../../crates/guest/tests/monitored/mod.rs"]
mod monitored;

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use guest::{MemoryLayout, NetDriver};
use monitored::{FRAMES, HEADER, Monitored, frame};
use ringway_tests::binary;
use rust_vmm_vhost::VhostBackend;
use rust_vmm_vhost::vhost_user::VhostUserFrontend;
use rustix::process::Signal;
use testbed::Program;
use testbed::process::bound_command;

const LIMIT: Duration = Duration::from_secs(10);
/// Frames that wait for the next back end.
const WAITING: u32 = 16;

/// `ringway vapp server`, and a connection to it.
fn server(path: &Path) -> Result<(Program, UnixStream)> {
    let mut command = bound_command(binary()?);
    command.args(["vapp", "server", "--socket-path"]).arg(path);
    let server = Program::start("host", "ringway vapp server", command)?;
    server.job().wait_for("listening at", LIMIT)?;
    Ok((server, UnixStream::connect(path)?))
}

#[test]
fn it_drives_the_reference_back_end() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("vapp.sock");
    let (server, socket) = server(&path)?;
    let mut guest = Monitored::new(socket);
    let region = guest.region();
    guest.front_end.set_mem_table(&[region])?;
    guest.start([0; 2]);
    guest.exchange(0);
    // It stands where both rings are, and goes on there, with memory that comes by the region now.
    ensure!(guest.stop() == [FRAMES; 2], "it stands elsewhere");
    guest.front_end.remove_mem_region(&region)?;
    guest.front_end.add_mem_region(&region)?;
    guest.start([FRAMES; 2]);
    guest.exchange(0);

    // The monitor is started anew, and finds the same back end.
    ensure!(guest.stop() == [2 * FRAMES; 2], "it stands elsewhere");
    let mut guest = guest.reconnect(|| UnixStream::connect(&path).expect("it listens"));
    guest.front_end.set_mem_table(&[region])?;
    guest.start([2 * FRAMES; 2]);
    guest.exchange(0);

    // The back end is killed. What is sent meanwhile is for the next one.
    server.signal(Signal::KILL)?;
    let output = server.into_job().wait(LIMIT)?;
    ensure!(!output.success(), "{}", output.text());
    for number in 0..WAITING {
        ensure!(guest.driver.send(HEADER, &frame(number))?, "the ring is full");
    }
    let (server, socket) = self::server(&path)?;
    let mut guest = guest.reconnect(|| socket);
    guest.front_end.set_mem_table(&[region])?;
    let positions = guest.driver.recover()?;
    guest.start(positions);
    guest.exchange(WAITING);

    ensure!(guest.stop() == [4 * FRAMES; 2], "it stands elsewhere");
    guest.front_end.reset_device()?;
    drop(guest);
    server.signal(Signal::INT)?;
    let output = server.into_job().wait(LIMIT)?;
    ensure!(output.success(), "{}", output.text());
    let says = format!("{FRAMES} frames (");
    ensure!(output.text().contains(&says), "{}", output.text());
    output.text().find(", 0 dropped").context("something was dropped")?;
    Ok(())
}
