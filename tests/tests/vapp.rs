//! `ringway vapp`: the reference pair with each other, with stock QEMU, and with all that is not what it says it is.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use guest::Options;
use ringway_tests::*;
use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::Signal;
use tempfile::TempDir;
use testbed::dpdk::{Testpmd, VirtioUser};
use testbed::process::{bound_command, spawn};
use testbed::{Nic, Output, Program, Shell};
use vhost_user::Connection;
use vhost_user::back_end::{BackEnd, Offer, Pair, Rings, Server};
use wire::virtio::{Features, NetHeader};

/// What takes milliseconds, on a machine that is busy with other tests.
const LIMIT: Duration = Duration::from_secs(10);
/// What the client waits for an answer, and some time to start.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);

/// A running `ringway vapp` with these arguments.
fn vapp(arguments: &[&str]) -> Result<Program> {
    let mut command = bound_command(binary()?);
    command.arg("vapp").args(arguments);
    Program::start("host", &format!("ringway vapp {}", arguments.join(" ")), command)
}

/// Runs the client to its end.
fn client(path: &Path, arguments: &[&str]) -> Result<Output> {
    let path = path.to_str().context("a path of ours")?;
    vapp(&[&["client", path], arguments].concat())?.into_job().wait(ANSWER_LIMIT)
}

/// A `vapp server`, listening in a directory of its own.
struct Listening {
    program: Program,
    directory: TempDir,
}

impl Listening {
    fn new(arguments: &[&str]) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("vapp-").tempdir()?;
        let path = directory.path().join("s");
        let path = path.to_str().context("a path of ours")?;
        let program = vapp(&[&["server", "--socket-path", path], arguments].concat())?;
        program.job().wait_for("listening at", LIMIT)?;
        Ok(Self { program, directory })
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("s")
    }

    /// Ends it as a user does, and returns all that it said.
    fn stop(self) -> Result<String> {
        self.program.signal(Signal::INT)?;
        let output = self.program.into_job().wait(LIMIT)?;
        ensure!(output.success(), "{}", output.text());
        ensure!(!self.directory.path().join("s").exists(), "it left its socket behind");
        Ok(output.text())
    }
}

#[test]
fn the_pair_with_each_other() -> Result<()> {
    let server = Listening::new(&[])?;
    for arguments in [
        &["--count", "20000", "--verify"][..],
        &["--count", "2000", "--size", "1514", "--verify"],
        &["--count", "500", "--size", "16372", "--verify"],
        &["--count", "2000", "--packed", "--size", "9000", "--verify"],
        &["--count", "100", "--rate", "1000", "--verify"],
        &["--count", "100", "--arp", "--verify"],
    ] {
        let output = client(&server.path(), arguments)?;
        let text = output.text();
        ensure!(output.success(), "{arguments:?}: {text}");
        ensure!(text.contains("RING_PACKED") == arguments.contains(&"--packed"), "{text}");
        let count = arguments[1];
        let summary = format!(
            "{count} frames sent, {count} came back, 0 lost, 0 damaged, 0 out of order, 0 surplus"
        );
        ensure!(text.contains(&summary) && text.contains("round trip min/mean/max"), "{text}");
    }
    let text = server.stop()?;
    ensure!(
        text.contains("20000 frames (1280000 bytes) from the guest, 20000 to it, 0 dropped"),
        "{text}"
    );
    Ok(())
}

#[test]
fn the_old_names() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("vhost.sock");
    let path = path.to_str().context("a path of ours")?;
    let server = vapp(&["-s", path])?;
    server.job().wait_for("listening at", LIMIT)?;
    let client = vapp(&["-q", path])?;
    client.job().wait_for_line(&["<-", "frame", "ARP: who has 192.168.0.1?"], LIMIT)?;
    // One frame a second is what it meant.
    client.job().wait_for_line(&["1 frames/s", "round trip p50"], LIMIT)?;
    client.signal(Signal::INT)?;
    let text = client.into_job().wait(LIMIT)?.text();
    ensure!(text.contains("frames sent"), "{text}");
    server.job().wait_for_line(&["<- SET_VRING_KICK: ring 1"], LIMIT)?;

    // A front end that listens, as QEMU does with server=on.
    let path = directory.path().join("listening.sock");
    let listener = UnixListener::bind(&path)?;
    let server = vapp(&["-c", path.to_str().context("a path of ours")?])?;
    guest_over(listener.accept()?.0.into())?;
    let output = server.into_job().wait(LIMIT)?;
    ensure!(output.success(), "{}", output.text());
    ensure!(output.text().contains("1 frames"), "{}", output.text());
    Ok(())
}

/// A guest over a connected socket, which sends one frame, sees it come back, and leaves.
fn guest_over(socket: OwnedFd) -> Result<()> {
    let front_end = vhost_user::FrontEnd::new(socket, LIMIT)?;
    let mut guest = guest::Guest::start(front_end, &Options::default())?;
    let sent = vec![7; 100];
    guest.driver().send(NetHeader::default(), &sent)?;
    guest.flush();
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(frame) = guest.driver().receive(|received| received.frame.to_vec())? {
            ensure!(frame == sent, "{frame:?}");
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "the frame did not come back within {LIMIT:?}");
        guest.wait(LIMIT)?;
    }
}

#[test]
fn an_inherited_descriptor() -> Result<()> {
    let (ours, theirs) = UnixStream::pair()?;
    let mut command = bound_command(binary()?);
    command.args(["vapp", "server", "--fd", "0"]);
    command.stdin(Stdio::from(OwnedFd::from(theirs))).stderr(Stdio::piped());
    let mut server = spawn(command)?;
    guest_over(ours.into())?;
    let mut text = String::new();
    server.stderr.take().context("a pipe")?.read_to_string(&mut text)?;
    ensure!(server.wait()?.success() && text.contains("1 frames"), "{text}");

    for number in ["0", "77"] {
        let output = ringway(&[], &["vapp", "server", "--fd", number])?;
        ensure!(output.status == 1, "{}", output.text());
        ensure!(output.text().contains(&format!("descriptor {number}")), "{}", output.text());
    }
    Ok(())
}

#[test]
fn a_dump_tells_both_directions() -> Result<()> {
    let server = Listening::new(&["--dump"])?;
    let output = client(&server.path(), &["--count", "1", "--dump"])?;
    let text = output.text();
    ensure!(output.success(), "{text}");
    for (mine, its, words) in [
        ("->", "<-", "SET_FEATURES: MRG_RXBUF EVENT_IDX"),
        ("<-", "->", "reply to SET_FEATURES: done"),
        (
            "->",
            "<-",
            "SET_VRING_CALL: ring 1 (asks for an acknowledgement), with anon_inode:[eventfd]",
        ),
        ("->", "<-", "frame: 64 bytes, 52:54:00:76:61:01 > 52:54:00:76:61:02"),
        ("<-", "->", "frame: 64 bytes, 52:54:00:76:61:01 > 52:54:00:76:61:02"),
    ] {
        ensure!(text.contains(&format!("{mine} {words}")), "no {mine} {words}: {text}");
        server.program.job().wait_for(&format!("{its} {words}"), LIMIT)?;
    }
    server.stop()?;
    Ok(())
}

/// Starts `ringway vapp` with these arguments, has somebody read one line of what it prints, and go away.
fn read_one_line(arguments: &[&str]) -> Result<(Child, JoinHandle<Result<String>>)> {
    let mut command = bound_command(binary()?);
    command.arg("vapp").args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = spawn(command)?;
    let output = child.stdout.take().context("a pipe")?;
    let reader = thread::spawn(move || {
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        Ok(line)
    });
    Ok((child, reader))
}

#[test]
fn nobody_reads_the_dump_any_more() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("s");
    let place = path.to_str().context("a path of ours")?;
    let (mut server, reader) = read_one_line(&["server", "--socket-path", place, "--dump"])?;
    let mut says = BufReader::new(server.stderr.take().context("a pipe")?);
    let mut line = String::new();
    says.read_line(&mut line)?;
    ensure!(line.starts_with("listening at"), "{line}");
    // It goes in the middle of their conversation.
    client(&path, &[])?;
    ensure!(reader.join().expect("it reads")?.starts_with("<- GET_FEATURES"));
    ensure!(server.wait()?.success() && !path.exists(), "it left its socket behind");

    let server = Listening::new(&[])?;
    let path = server.path();
    let place = path.to_str().context("a path of ours")?;
    for (arguments, line) in [
        (&["client", place, "--dump"][..], "-> GET_FEATURES"),
        (&["client", place], "connected to"),
    ] {
        let (mut client, reader) = read_one_line(arguments)?;
        ensure!(reader.join().expect("it reads")?.starts_with(line), "{arguments:?}");
        ensure!(client.wait()?.success(), "{arguments:?}");
    }
    server.stop()?;
    Ok(())
}

/// QEMU has a file to hand over, and maps it for itself: no frame would ever come.
#[test]
fn a_guest_that_shares_no_memory() -> Result<()> {
    let server = Listening::new(&[])?;
    let nic = Nic::vhost_user(server.path()).mac(&mac(1));
    let [_guest] = boot([guest(1, nic)?.memory_backend("memory-backend-memfd,share=off")])?;
    server.program.job().wait_for_line(&["front end was disconnected", "share=on"], LIMIT)?;
    server.stop()?;
    Ok(())
}

#[test]
fn a_sink_swallows_and_a_source_makes() -> Result<()> {
    let server = Listening::new(&["--sink"])?;
    let output = client(&server.path(), &["--count", "5", "--verify"])?;
    let text = output.text();
    ensure!(output.status == 1, "{text}");
    ensure!(text.contains("5 frames sent, 0 came back, 5 lost"), "{text}");
    ensure!(text.contains("not every frame came back"), "{text}");
    // Without --verify it is only said.
    let output = client(&server.path(), &["--count", "5"])?;
    ensure!(output.success() && output.text().contains("5 lost"), "{}", output.text());
    let text = server.stop()?;
    ensure!(text.contains("5 frames (320 bytes) from the guest, 0 to it"), "{text}");

    let server = Listening::new(&["--source"])?;
    let mut guest = guest::Guest::connect(&server.path(), &Options::default())?;
    let deadline = Instant::now() + LIMIT;
    let mut received = 0;
    while received < 10_000 {
        let took = guest.driver().receive(|received| received.frame.len())?;
        ensure!(took.is_none_or(|len| len == 64), "{took:?}");
        received += usize::from(took.is_some());
        guest.flush();
        ensure!(Instant::now() < deadline, "{received} frames within {LIMIT:?}");
    }
    drop(guest);
    server.program.job().wait_for("0 frames (0 bytes) from the guest, 1", LIMIT)?;
    server.stop()?;
    Ok(())
}

/// What a faulty back end does to every tenth frame.
#[derive(Clone, Copy, Debug)]
enum Harm {
    Lose,
    Flip,
    Cut,
    Double,
    Swap,
}

struct Faulty {
    harm: Harm,
    frame: Vec<u8>,
    count: u64,
    kept: Option<Vec<u8>>,
}

impl Faulty {
    fn send_back(&mut self, pair: &mut Pair<'_>) -> Result<bool, virtqueue::Violation> {
        let Some(taken) = pair.take(20_000, &mut self.frame)? else { return Ok(false) };
        self.count += 1;
        let mut frames = vec![self.frame.clone()];
        if self.count.is_multiple_of(10) {
            match self.harm {
                Harm::Lose => frames.clear(),
                Harm::Flip => *frames[0].last_mut().expect("a byte") ^= 1,
                Harm::Cut => drop(frames[0].pop()),
                Harm::Double => frames.push(self.frame.clone()),
                Harm::Swap => self.kept = frames.pop(),
            }
        } else {
            frames.extend(self.kept.take());
        }
        for frame in frames {
            pair.deliver(NetHeader::default(), &frame)?;
        }
        pair.complete(taken);
        Ok(true)
    }
}

impl BackEnd for Faulty {
    fn process(&mut self, rings: &mut Rings) -> Result<bool, virtqueue::Violation> {
        let mut is_busy = false;
        for mut pair in rings.pairs() {
            is_busy |= self.send_back(&mut pair)?;
        }
        Ok(is_busy)
    }
}

#[test]
fn verify_finds_every_harm() -> Result<()> {
    for (harm, words) in [
        (Harm::Lose, "10 lost, 0 damaged, 0 out of order, 0 surplus"),
        (Harm::Flip, "0 lost, 10 damaged, 0 out of order, 0 surplus"),
        (Harm::Cut, "0 lost, 10 damaged, 0 out of order, 0 surplus"),
        (Harm::Double, "0 lost, 0 damaged, 0 out of order, 10 surplus"),
        (Harm::Swap, "0 lost, 0 damaged, 10 out of order, 0 surplus"),
    ] {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("s");
        let listener = UnixListener::bind(&path)?;
        let server = thread::spawn(move || -> Result<()> {
            let features = Features::VERSION_1 | Features::MRG_RXBUF;
            let offer =
                Offer { features, protocol: Offer::PROTOCOL, queue_pairs: 1, max_mtu: 1500 };
            let connection = Connection::new(listener.accept()?.0.into())?;
            let mut faulty = Faulty { harm, frame: Vec::new(), count: 0, kept: None };
            let never = eventfd(0, EventfdFlags::CLOEXEC)?;
            Server::new(connection, offer)?.serve(&mut faulty, never.as_fd())?;
            Ok(())
        });
        // One more than a multiple, so that every harm is done before the last one is back.
        let output = client(&path, &["--count", "101", "--rate", "5000", "--verify"])?;
        let text = output.text();
        ensure!(output.status == 1 && text.contains(words), "{harm:?}: {text}");
        server.join().ok().context("the server panicked")??;
    }
    Ok(())
}

/// A listener, and what it does with each who connects. The connections stay open until the end of the test.
fn listener(
    then: impl Fn(UnixStream) -> Option<UnixStream> + Send + 'static,
) -> Result<(TempDir, PathBuf, Receiver<UnixStream>)> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("s");
    let listener = UnixListener::bind(&path)?;
    let (sender, kept) = channel();
    thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            if let Some(socket) = then(socket)
                && sender.send(socket).is_err()
            {
                return;
            }
        }
    });
    Ok((directory, path, kept))
}

/// The client fails, in time, and says why.
fn fails(path: &Path, words: &[&str]) -> Result<()> {
    let output = client(path, &[])?;
    let text = output.text();
    println!("{text}");
    ensure!(output.status == 1, "it ended with {}: {text}", output.status);
    for word in words {
        ensure!(text.contains(word), "no word of `{word}`: {text}");
    }
    ensure!(!text.contains("panicked"), "{text}");
    Ok(())
}

#[test]
fn what_is_no_back_end() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let missing = directory.path().join("missing");
    fails(&missing, &["cannot connect to", "missing", "there is no socket"])?;
    let file = directory.path().join("file");
    fs::write(&file, "text")?;
    fails(&file, &["cannot connect to", "it is not a socket"])?;
    let left = directory.path().join("left");
    drop(UnixListener::bind(&left)?);
    fails(&left, &["cannot connect to", "nobody listens there any more"])?;
    // A socket of another kind.
    let datagram = directory.path().join("datagram");
    let _socket = std::os::unix::net::UnixDatagram::bind(&datagram)?;
    fails(&datagram, &["cannot connect to", "not a stream socket"])?;
    // One that accepts nobody: as many wait as may, and we are one too many.
    let crowded = directory.path().join("crowded");
    let _listener = UnixListener::bind(&crowded)?;
    let mut waiting = Vec::new();
    loop {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        if connect(&socket, &SocketAddrUnix::new(&crowded)?).is_err() {
            break;
        }
        waiting.push(socket);
    }
    fails(&crowded, &["cannot connect to", "nobody accepts the connection within 5s"])?;
    Ok(())
}

#[test]
fn a_back_end_that_speaks_something_else() -> Result<()> {
    let (_directory, path, _kept) = listener(|mut socket| {
        socket.write_all(b"220 mail.example ESMTP ready\r\n").ok()?;
        Some(socket)
    })?;
    fails(&path, &["does not look like a vhost-user back end", "GET_FEATURES"])
}

#[test]
fn a_back_end_that_closes_at_once() -> Result<()> {
    let (_directory, path, _kept) = listener(|_| None)?;
    fails(&path, &["closed the connection", "GET_FEATURES"])
}

#[test]
fn a_back_end_that_never_answers() -> Result<()> {
    let (_directory, path, _kept) = listener(Some)?;
    fails(&path, &["did not answer GET_FEATURES within 5s"])
}

#[test]
fn an_interrupt_while_nobody_answers() -> Result<()> {
    let (_directory, path, kept) = listener(Some)?;
    let client = vapp(&["client", path.to_str().context("a path of ours")?])?;
    let _socket = kept.recv_timeout(LIMIT)?;
    client.signal(Signal::INT)?;
    // Sooner than the answer would be given up.
    client.into_job().wait(Duration::from_secs(3))?;
    Ok(())
}

#[test]
fn a_back_end_that_dies_in_the_middle() -> Result<()> {
    let server = Listening::new(&[])?;
    let path = server.path();
    let client = vapp(&["client", path.to_str().context("a path of ours")?])?;
    client.job().wait_for("frames/s", LIMIT)?;
    server.program.signal(Signal::KILL)?;
    let output = client.into_job().wait(LIMIT)?;
    let text = output.text();
    ensure!(output.status == 1 && text.contains("closed the connection"), "{text}");
    ensure!(text.contains("frames sent"), "{text}");
    Ok(())
}

#[test]
fn an_interrupt_ends_with_the_summary() -> Result<()> {
    let server = Listening::new(&[])?;
    let path = server.path();
    for signal in [Signal::INT, Signal::TERM] {
        let client = vapp(&["client", path.to_str().context("a path of ours")?, "--verify"])?;
        client.job().wait_for_line(&["frames/s", "round trip p50", "lost 0"], LIMIT)?;
        client.signal(signal)?;
        let output = client.into_job().wait(LIMIT)?;
        let text = output.text();
        ensure!(output.success() && text.contains(" frames sent, "), "{text}");
    }
    server.stop()?;
    Ok(())
}

#[test]
fn a_server_and_those_who_are_no_front_end() -> Result<()> {
    let server = Listening::new(&[])?;
    for (bytes, words) in [
        (&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], "version"),
        (b"\x01\0\0\0\x01\0\0\0\xff\xff\xff\xff", "payload"),
        (b"\x01\0\0\0\x01\0", "inside a message"),
    ] {
        let mut socket = UnixStream::connect(server.path())?;
        socket.write_all(bytes)?;
        socket.shutdown(std::net::Shutdown::Write)?;
        server
            .program
            .job()
            .wait_for_line(&["ringway:", "front end was disconnected", words], LIMIT)?;
    }
    // And goes on.
    ensure!(client(&server.path(), &["--count", "10", "--verify"])?.success());
    // A second one finds the place taken.
    let path = server.path();
    let path = path.to_str().context("a path of ours")?;
    let second = ringway(&[], &["vapp", "server", "--socket-path", path])?;
    ensure!(second.status == 1 && second.text().contains("in use by process"), "{}", second.text());
    let third = ringway(&[], &["vapp", "server", "--connect", "/nonexistent/s"])?;
    ensure!(third.status == 1 && third.text().contains("there is no socket"), "{}", third.text());
    server.stop()?;
    Ok(())
}

/// DPDK's driver, whose frames go round and round.
#[test]
fn dpdk_with_split_and_packed_rings() -> Result<()> {
    for options in [
        "packed_vq=0,in_order=0,mrg_rxbuf=1",
        "packed_vq=0,in_order=1,mrg_rxbuf=0",
        "packed_vq=1,in_order=0,mrg_rxbuf=1",
        "packed_vq=1,in_order=1,mrg_rxbuf=0",
    ] {
        let server = Listening::new(&[])?;
        let port = VirtioUser::new(server.path(), "52:54:00:00:00:10").option(options);
        let mut testpmd = Testpmd::builder().port(port).start()?;
        testpmd.forward(Some(2))?;
        let what = format!("100,000 frames with {options}");
        testpmd
            .wait_for_statistics(&what, Duration::from_secs(30), |all| all[0].received > 100_000)?;
        testpmd.halt()?;
        let statistics = testpmd.statistics(0)?;
        ensure!(statistics.errors().is_empty(), "{options}: {statistics:?}");
        testpmd.quit()?;
        let line =
            server.program.job().wait_for_line(&["from the guest", "to it, 0 dropped"], LIMIT)?;
        println!("{options}: {line}");
        let taken: u64 = line.split(' ').next().context("a number")?.parse()?;
        ensure!(taken == statistics.sent, "{options}: {line}, and it sent {}", statistics.sent);
        server.stop()?;
    }
    Ok(())
}

/// Boots a guest on the server, has it send, and waits until it has seen all of that come back.
fn linux_sees_its_frames_again(flavour: impl Fn(Nic) -> Nic, server: &Listening) -> Result<()> {
    let nic = flavour(Nic::vhost_user(server.path()).mac(&mac(1)));
    let [guest] = boot([guest(1, nic)?])?;
    plug_in(&guest, 1)?;
    // Nobody answers, of course.
    guest.output(
        "busybox arping -q -c 20 -w 3 -I eth0 10.0.0.9; busybox ping -q -c 3 -W 1 -s 1400 10.0.0.9",
    )?;
    let counted = guest.run_within(
        "cd /sys/class/net/eth0/statistics; \
         until [ $(cat rx_packets) -ge 5 ] && [ $(cat rx_packets) = $(cat tx_packets) ]; do sleep 0.1; done; \
         cat rx_bytes tx_bytes rx_errors rx_dropped",
        Duration::from_secs(60),
    )?;
    println!("{counted}");
    let numbers: Vec<u64> = counted.lines().filter_map(|line| line.parse().ok()).collect();
    let [received, sent, errors, _] = numbers[..] else { bail!("{counted}") };
    // Linux may have sent between the two.
    ensure!(errors == 0 && received > 0 && received <= sent, "{counted}");
    Ok(())
}

#[test]
fn linux_with_split_rings() -> Result<()> {
    let server = Listening::new(&[])?;
    linux_sees_its_frames_again(|nic| nic, &server)?;
    let text = server.stop()?;
    ensure!(text.contains(", 0 dropped"), "{text}");
    Ok(())
}

#[test]
fn linux_with_packed_rings() -> Result<()> {
    let server = Listening::new(&["--dump"])?;
    linux_sees_its_frames_again(|nic| nic.option("packed=on"), &server)?;
    let text = server.stop()?;
    ensure!(text.contains("RING_PACKED\n") || text.contains("RING_PACKED "), "{text}");
    ensure!(text.contains("ARP: who has 10.0.0.9? tell 10.0.0.1"), "{text}");
    Ok(())
}

#[test]
fn linux_from_before_virtio_1_into_a_sink() -> Result<()> {
    let server = Listening::new(&["--sink"])?;
    let nic = Nic::vhost_user(server.path()).mac(&mac(1));
    let nic = nic.option("disable-modern=on,disable-legacy=off,mrg_rxbuf=off");
    let [mut guest] = boot([guest(1, nic)?])?;
    plug_in(&guest, 1)?;
    guest.output("busybox arping -q -c 5 -w 2 -I eth0 10.0.0.9")?;
    let sent = guest.run("ip link set eth0 down; cat /sys/class/net/eth0/statistics/tx_packets")?;
    guest.kill();
    let sent: u64 = sent.trim().parse()?;
    ensure!(sent >= 2, "{sent}");
    // The guest's firmware may have sent as well.
    let line =
        server.program.job().wait_for_line(&["from the guest, 0 to it, 0 dropped"], LIMIT)?;
    let counted: u64 = line.split(' ').next().context("a number")?.parse()?;
    ensure!(counted >= sent, "{counted} of {sent}");
    server.stop()?;
    Ok(())
}
