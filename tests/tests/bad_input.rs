//! What goes wrong is said in one line that helps, costs the one who did it his port, and nobody else anything.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ringway_tests::*;
use rustix::process::Signal;
use testbed::{Network, Shell, traffic};

/// The switch says what is wrong within this time.
const SAY_LIMIT: Duration = Duration::from_secs(10);

/// Messages that nobody may send, and what is said about them.
const MALFORMED: [(&str, &[u8], &str); 4] = [
    ("noise", b"GET / HTTP/1.1\r\nHost: vm3\r\n\r\n", "version"),
    // GET_FEATURES, version 1, 4 GiB of payload.
    ("an endless message", b"\x01\0\0\0\x01\0\0\0\xff\xff\xff\xff", "payload"),
    // SET_MEM_TABLE of two regions, without their files.
    ("memory without files", &MEMORY_WITHOUT_FILES, "share=on"),
    ("half a header", b"\x01\0\0\0\x01\0", "inside a message"),
];

const MEMORY_WITHOUT_FILES: [u8; 12 + 8 + 32] = {
    let mut bytes = [0; 12 + 8 + 32];
    bytes[0] = 5;
    bytes[4] = 1;
    bytes[8] = 8 + 32;
    bytes[12] = 1;
    // One region of 4 KiB at address 0.
    bytes[12 + 8 + 9] = 0x10;
    bytes
};

#[test]
fn malformed_messages_beside_two_guests() -> Result<()> {
    let mut ports =
        vec!["vm1=vhost-user:vm1.sock".to_owned(), "vm2=vhost-user:vm2.sock".to_owned()];
    ports.extend((0..MALFORMED.len()).map(|n| format!("bad{n}=vhost-user:bad{n}.sock")));
    let switch = Switch::start(&ports.iter().map(String::as_str).collect::<Vec<_>>())?;
    let [one, two] = two_guests(&switch)?;

    let pings = one.start("busybox ping -i 0.01 -c 500 -W 5 10.0.0.2")?;
    pings.wait_for("bytes from", SAY_LIMIT)?;
    for (n, (what, bytes, said)) in MALFORMED.into_iter().enumerate() {
        let mut socket = UnixStream::connect(switch.path(&format!("bad{n}.sock")))?;
        socket.write_all(bytes)?;
        socket.shutdown(std::net::Shutdown::Write)?;
        // The switch hangs up.
        socket.set_read_timeout(Some(SAY_LIMIT))?;
        let mut answer = Vec::new();
        // Hanging up with our bytes unread is a reset.
        let _ = socket.read_to_end(&mut answer);
        let line = switch.complaint(&format!("bad{n}"))?;
        println!("{what}: {line}");
        ensure!(line.contains(said), "{what}: no word of `{said}`: {line}");
    }
    traffic::tcp_stream(&one, &two, (v4(2), 9).into(), 10_000_000)?;
    let pings = pings.wait(Duration::from_secs(60))?.text();
    ensure!(pings.contains("500 packets transmitted, 500 packets received"), "{pings}");
    switch.stop()?;
    Ok(())
}

#[test]
fn a_guest_that_shares_no_memory() -> Result<()> {
    let ports = ["vm1", "vm2", "vm3", "vm4"].map(|name| format!("{name}=vhost-user:{name}.sock"));
    let switch = Switch::start(&ports.each_ref().map(String::as_str))?;
    let [one, two] = two_guests(&switch)?;
    let pings = one.start("busybox ping -i 0.2 -c 60 -W 5 10.0.0.2")?;
    // Memory without a file, and a file of which the guest has a private copy.
    let backends = [("vm3", "memory-backend-ram"), ("vm4", "memory-backend-memfd,share=off")];
    for (n, (port, backend)) in (3..).zip(backends) {
        let [_guest] = boot([guest(n, nic(&switch, n))?.memory_backend(backend)])?;
        let line = switch.complaint(port)?;
        println!("{backend}: {line}");
        ensure!(line.contains("share=on"), "{line}");
    }
    let pings = pings.wait(Duration::from_secs(60))?.text();
    ensure!(pings.contains("60 packets transmitted, 60 packets received"), "{pings}");
    traffic::tcp_stream(&two, &one, (v4(1), 9).into(), 10_000_000)?;
    switch.stop()?;
    Ok(())
}

#[test]
fn a_second_switch_on_a_live_socket() -> Result<()> {
    let switch = Switch::start(&["vm1=vhost-user:vm1.sock"])?;
    let (taken, free) = (switch.path("vm1.sock"), switch.path("vm2.sock"));
    // The free one comes first, so there is something to leave behind.
    let free_port = format!("vm2=vhost-user:{}", free.display());
    let taken_port = format!("vm1=vhost-user:{}", taken.display());
    let second = ringway(&[], &["run", "--port", &free_port, "--port", &taken_port])?;
    let text = second.text();
    println!("{text}");
    ensure!(second.status == 1, "it ended with {}: {text}", second.status);
    let holder = format!("in use by process {} (ringway)", switch.pid());
    ensure!(text.contains(&holder) && text.contains("vm1.sock"), "{text}");
    ensure!(!free.exists(), "it left {} behind", free.display());
    // The first one is none the worse.
    UnixStream::connect(&taken)?;
    switch.stop()?;
    Ok(())
}

#[test]
fn a_tap_without_permission() -> Result<()> {
    // A place that everybody can reach, which the sources may not be in.
    let directory = tempfile::tempdir()?;
    fs::set_permissions(directory.path(), Permissions::from_mode(0o777))?;
    let program = directory.path().join("ringway");
    fs::copy(binary()?, &program)?;
    let network = Network::new()?;
    let run = format!(
        "cd {} && setpriv --reuid=65534 --regid=65534 --clear-groups ./ringway run \
         --port vm1=vhost-user:vm1.sock --port host=tap:rw0",
        directory.path().display()
    );
    let output = network.output(&run)?;
    let text = output.text();
    println!("{text}");
    ensure!(output.status == 1, "it ended with {}: {text}", output.status);
    ensure!(text.contains("rw0") && text.contains("CAP_NET_ADMIN"), "{text}");
    ensure!(!directory.path().join("vm1.sock").exists(), "it left its socket behind");
    ensure!(!network.run("ip -brief link")?.contains("rw0"), "it left its tap behind");
    Ok(())
}

#[test]
fn words_that_it_does_not_know() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("vm1.sock");
    let port = format!("vm1=vhost-user:{},socket-grop=kvm", path.display());
    let file = directory.path().join("ringway.toml");
    fs::write(&file, "mode = \"adaptive\"\n\n[port.host]\ntype = \"tap\"\ninterfase = \"rw0\"\n")?;
    let file = file.to_str().context("a path that is not UTF-8")?;
    let cases: [(&[&str], &[&str]); 3] = [
        (&["run", "--port", &port], &["socket-grop", "did you mean", "socket-group"]),
        (&["run", "--config", file], &["ringway.toml:5", "interfase", "interface"]),
        (&["run", "--mode", "adaptve", "--port", "host=tap:rw0"], &["adaptve", "adaptive"]),
    ];
    for (arguments, words) in cases {
        let output = ringway(&[], arguments)?;
        let text = output.text();
        println!("{text}");
        ensure!(output.status == 1, "it ended with {}: {text}", output.status);
        for word in words {
            ensure!(text.contains(word), "no word of `{word}`: {text}");
        }
    }
    ensure!(!path.exists(), "it left its socket behind");
    Ok(())
}

#[test]
fn signals_end_it() -> Result<()> {
    for signal in [Signal::TERM, Signal::INT] {
        let network = Network::new()?;
        let switch = Switch::start_in(&network, &["vm1=vhost-user:vm1.sock", "host=tap:rw0"])?;
        let _front_end = UnixStream::connect(switch.path("vm1.sock"))?;
        // Checks the time, the status, and that no socket is left.
        switch.stop_by(signal)?;
        ensure!(!network.run("ip -brief link")?.contains("rw0"), "it left its tap behind");
    }
    Ok(())
}
