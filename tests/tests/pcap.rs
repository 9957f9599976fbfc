//! Capture files in and out, judged by Wireshark's own tools: capinfos and tshark, from Debian's package tshark.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use guest::{Guest, Options};
use ringway_tests::*;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use testbed::process::{bound_command, spawn};
use wire::checksum::Sum;
use wire::pcap::{Reader, Step};
use wire::virtio::{Features, NetHeader};

/// Whatever is waited for happens within this time, on a machine that is busy with other tests.
const LIMIT: Duration = Duration::from_secs(20);

/// Runs a program to its end.
fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output();
    let output = output
        .with_context(|| format!("cannot run {program}: install Debian's tshark and tcpdump"))?;
    let (said, complained) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let what = arguments.join(" ");
    ensure!(output.status.success(), "{program} {what}: {}\n{said}{complained}", output.status);
    Ok(said.into_owned())
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is not UTF-8")
}

/// A directory for files, beside the switch's own, which has to be empty in the end.
struct Files(TempDir);

impl Files {
    fn new() -> Result<Files> {
        Ok(Files(tempfile::tempdir()?))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<PathBuf> {
        let path = self.path(name);
        fs::write(&path, bytes)?;
        Ok(path)
    }
}

/// A pcap file of frames with times in microseconds, as tcpdump has written them for decades.
fn pcap(frames: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let words =
        |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    let mut file = words(&[0xA1B2_C3D4, 2 | 4 << 16, 0, 0, 262_144, 1]);
    for (time, bytes) in frames {
        let len = bytes.len() as u32;
        file.extend(words(&[(time / 1_000_000) as u32, (time % 1_000_000) as u32, len, len]));
        file.extend(bytes);
    }
    file
}

/// Frames with their times in nanoseconds.
type Frames = Vec<(i64, Vec<u8>)>;

/// The frames of a capture file.
fn frames_of(path: &Path) -> Result<Frames> {
    let file = fs::read(path)?;
    let (mut reader, mut rest, mut frames) = (Reader::new(), &file[..], Vec::new());
    loop {
        match reader.step(rest)? {
            Step::Skip(bytes) => rest = rest.get(bytes as usize..).context("it is cut off")?,
            Step::Frame(bytes, frame) => {
                frames.push((frame.time.context("a frame without a time")?, frame.bytes.to_vec()));
                rest = &rest[bytes as usize..];
            }
            Step::More(needed) => {
                reader.end(rest, needed)?;
                return Ok(frames);
            }
        }
    }
}

/// Frame `number` of a stream to everyone: its length and every byte follow from the number.
fn numbered(number: u32) -> Vec<u8> {
    let len = 60 + (number as usize * 97) % 1455;
    let mut frame =
        [&[0xFF; 6][..], &[0x52, 0x54, 0, 0, 0, 9], &[0x88, 0xb5], &number.to_be_bytes()].concat();
    let noise = (0u32..).map(|at| (at.wrapping_add(number).wrapping_mul(0x9e37_79b1) >> 24) as u8);
    frame.extend(noise.take(len - frame.len()));
    frame
}

/// Numbered frames, so many microseconds apart.
fn stream(count: u32, apart: u64) -> Vec<(u64, Vec<u8>)> {
    (0..count)
        .map(|number| (1_700_000_000_000_000 + u64::from(number) * apart, numbered(number)))
        .collect()
}

/// A TCP segment from one host to another, of so many bytes, whose checksum is left to be completed, and which is to
/// be segmented.
fn large_packet(payload: usize) -> (NetHeader, Vec<u8>) {
    const HEADERS: [usize; 3] = [14, 20, 20];
    let mut ip = [0x45, 0, 0, 0, 0, 1, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    let tcp_len = HEADERS[2] + payload;
    ip[2..4].copy_from_slice(&((HEADERS[1] + tcp_len) as u16).to_be_bytes());
    let mut sum = Sum::new();
    sum.add(&ip);
    ip[10..12].copy_from_slice(&sum.finish().to_be_bytes());
    let mut tcp = [0; HEADERS[2]];
    tcp[..4].copy_from_slice(&[0x1F, 0x90, 0x20, 0x00]);
    (tcp[12], tcp[13]) = (5 << 4, 0x10);
    let mut pseudo = Sum::new();
    pseudo.add(&[&ip[12..20], &[0, 6], &(tcp_len as u16).to_be_bytes()].concat());
    tcp[16..18].copy_from_slice(&(!pseudo.finish()).to_be_bytes());
    let ethernet = [&[0x52, 0x54, 0, 0, 0, 0x77][..], &[0x52, 0x54, 0, 0, 0, 1], &[8, 0]].concat();
    let noise = (0..payload as u32).map(|at| (at.wrapping_mul(0x9e37_79b1) >> 24) as u8);
    let frame = [&ethernet[..], &ip, &tcp, &noise.collect::<Vec<u8>>()].concat();
    let header = NetHeader {
        flags: NetHeader::NEEDS_CSUM,
        gso_type: NetHeader::GSO_TCPV4,
        hdr_len: HEADERS.iter().sum::<usize>() as u16,
        gso_size: 1460,
        csum_start: 34,
        csum_offset: 16,
        num_buffers: 0,
    };
    (header, frame)
}

/// Has a guest send frames, all of which the switch takes.
fn send(guest: &mut Guest, frames: &[(NetHeader, Vec<u8>)]) -> Result<()> {
    let start = Instant::now();
    for (header, frame) in frames {
        while !guest.driver().send(*header, frame)? {
            guest.flush();
            guest.driver().reclaim()?;
            ensure!(start.elapsed() < LIMIT, "the switch took no frame within {LIMIT:?}");
        }
    }
    guest.flush();
    while guest.driver().in_flight() > 0 {
        guest.driver().reclaim()?;
        ensure!(start.elapsed() < LIMIT, "the switch kept frames for {LIMIT:?}");
    }
    Ok(())
}

/// Waits until a file that is being written has so many frames.
fn wait_for_frames(file: &Path, count: usize) -> Result<()> {
    let start = Instant::now();
    loop {
        // We may be there in the middle of a write.
        let found = frames_of(file).map_or(0, |frames| frames.len());
        if found >= count {
            return Ok(());
        }
        ensure!(start.elapsed() < LIMIT, "{found} of {count} frames came within {LIMIT:?}");
        thread::yield_now();
    }
}

#[test]
fn what_guests_send_is_captured() -> Result<()> {
    let files = Files::new()?;
    let file = files.path("dump.pcapng");
    let file = text(&file)?;
    let dump = format!("dump=pcap-write:{file}");
    let switch = Switch::start(&["vm1=vhost-user:vm1.sock", "vm2=vhost-user:vm2.sock", &dump])?;
    let mut options = Options::default();
    options.features |= Features::CSUM | Features::HOST_TSO4;
    let [mut one, mut two] =
        ["vm1.sock", "vm2.sock"].map(|path| Guest::connect(&switch.path(path), &options));
    let (one, two) = (one.as_mut().unwrap(), two.as_mut().unwrap());

    // To everyone, so that it comes to the port; and to somebody that nobody knows, as one large packet.
    let plain = |number| (NetHeader::default(), numbered(number));
    let mut sent: Vec<_> = (0..100).map(plain).collect();
    sent.push(large_packet(15_000));
    send(one, &sent)?;
    let more: Vec<_> = (100..150).map(plain).collect();
    send(two, &more)?;
    sent.extend(more);
    // It is a whole file while the switch goes on.
    wait_for_frames(Path::new(file), 151)?;
    ensure!(run("capinfos", &["-M", "-c", file])?.contains("Number of packets:   151"));
    switch.stop()?;

    let info = run("capinfos", &["-M", file])?;
    println!("{info}");
    for said in [
        "pcapng",
        "Ethernet",
        "nanoseconds (9)",
        "Number of packets:   151",
        concat!("ringway ", env!("CARGO_PKG_VERSION")),
        "Name = dump",
        "what was sent to the port dump",
        "Number of stat entries = 1",
        "Strict time order:   True",
    ] {
        ensure!(info.contains(said), "no word of `{said}`");
    }
    let fields = [
        "frame.interface_name",
        "frame.len",
        "frame.cap_len",
        "tcp.checksum.status",
        "ip.checksum.status",
        "eth.dst",
    ];
    let mut arguments = vec![
        "-r",
        file,
        "-o",
        "tcp.check_checksum:TRUE",
        "-o",
        "ip.check_checksum:TRUE",
        "-T",
        "fields",
    ];
    arguments.extend(fields.iter().flat_map(|field| ["-e", field]));
    let dissected = run("tshark", &arguments)?;
    let expected: Vec<String> = sent
        .iter()
        .map(|(header, frame)| {
            let len = frame.len();
            // Good is 1.
            match header.flags {
                0 => format!("dump\t{len}\t{len}\t\t\tff:ff:ff:ff:ff:ff"),
                _ => format!("dump\t{len}\t{len}\t1\t1\t52:54:00:00:00:77"),
            }
        })
        .collect();
    let lines: Vec<&str> = dissected.lines().collect();
    ensure!(lines == expected, "tshark saw\n{dissected}");
    // Byte for byte, but for the checksum.
    for ((header, sent), (_, came)) in sent.iter().zip(frames_of(Path::new(file))?) {
        let mut came = came;
        if header.flags != 0 {
            came[50..52].copy_from_slice(&sent[50..52]);
        }
        ensure!(came == *sent, "a frame of {} bytes was changed", sent.len());
    }
    Ok(())
}

/// Replays a file into another. Returns the frames of that, and what was logged.
fn replay(files: &Files, file: &Path, keys: &str) -> Result<(Frames, String)> {
    let out = files.path("out.pcapng");
    let (source, sink) =
        (format!("in=pcap-read:{}{keys}", text(file)?), format!("out=pcap-write:{}", text(&out)?));
    let switch = Switch::start(&[&source, &sink])?;
    switch.wait_for_log(" frames, skipped: ", LIMIT)?;
    let log = switch.stop()?;
    run("capinfos", &[text(&out)?])?;
    Ok((frames_of(&out)?, log))
}

#[test]
fn what_others_wrote_is_replayed() -> Result<()> {
    let files = Files::new()?;
    let frames = stream(500, 10);
    let base = files.write("base.pcap", &pcap(&frames))?;
    let base = text(&base)?;
    let mut written = vec![PathBuf::from(base)];
    let mut by = |name: &str, program: &str, arguments: &[&str]| -> Result<()> {
        let file = files.path(name);
        run(program, &[arguments, &[text(&file)?]].concat())?;
        written.push(file);
        Ok(())
    };
    by("editcap.pcap", "editcap", &["-F", "pcap", base])?;
    by("editcap.nsecpcap", "editcap", &["-F", "nsecpcap", base])?;
    by("editcap.pcapng", "editcap", &["-F", "pcapng", base])?;
    by("tshark.pcapng", "tshark", &["-r", base, "-w"])?;
    by("tcpdump.pcap", "tcpdump", &["-r", base, "-w"])?;
    by("tcpdump-nano.pcap", "tcpdump", &["--time-stamp-precision=nano", "-r", base, "-w"])?;
    let (ours, _) = replay(&files, Path::new(base), "")?;
    ensure!(ours.len() == 500, "{} frames came of the first file", ours.len());
    fs::rename(files.path("out.pcapng"), files.path("ours.pcapng"))?;
    written.push(files.path("ours.pcapng"));
    for file in written {
        let (came, log) = replay(&files, &file, "")?;
        let came: Vec<_> = came.into_iter().map(|(_, bytes)| bytes).collect();
        let sent: Vec<_> = frames.iter().map(|(_, bytes)| bytes.clone()).collect();
        ensure!(came == sent, "{}: {} frames came\n{log}", file.display(), came.len());
        ensure!(log.contains("was sent once: 500 frames, skipped: none"), "{log}");
    }
    Ok(())
}

#[test]
fn a_file_is_sent_as_often_and_as_slowly_as_it_is_to() -> Result<()> {
    let files = Files::new()?;
    let fast = files.write("fast.pcap", &pcap(&stream(10, 60_000_000)))?;
    let (came, log) = replay(&files, &fast, ",loops=3")?;
    let numbers: Vec<_> = came.iter().map(|(_, bytes)| bytes.clone()).collect();
    let expected: Vec<_> = (0..30).map(|number| numbered(number % 10)).collect();
    ensure!(numbers == expected, "{} frames came", came.len());
    ensure!(log.contains("was sent 3 times: 30 frames, skipped: none"), "{log}");

    let recorded = files.write("recorded.pcap", &pcap(&stream(4, 100_000)))?;
    let (came, _) = replay(&files, &recorded, ",times=recorded,loops=2")?;
    ensure!(came.len() == 8, "{} frames came", came.len());
    // Somebody may set the clock a little meanwhile.
    let took = Duration::from_nanos((came[7].0 - came[0].0).try_into()?);
    println!("8 frames in two rounds of 300 ms took {took:?}");
    ensure!(took >= Duration::from_millis(590), "they took {took:?} only");
    Ok(())
}

#[test]
fn a_guest_gets_what_is_in_a_file() -> Result<()> {
    const COUNT: u32 = 200;
    let files = Files::new()?;
    let file = files.write("in.pcap", &pcap(&stream(COUNT, 100)))?;
    let source = format!("in=pcap-read:{},loops=forever,times=recorded", text(&file)?);
    let switch = Switch::start(&[&source, "vm1=vhost-user:vm1.sock"])?;
    let mut guest = Guest::connect(&switch.path("vm1.sock"), &Options::default())?;
    let start = Instant::now();
    let (mut seen, mut strange) = (BTreeSet::new(), None);
    while seen.len() < COUNT as usize {
        let took = guest.driver().receive(|received| {
            let number = received.frame.get(14..18).and_then(|bytes| bytes.try_into().ok());
            let number = number.map_or(u32::MAX, u32::from_be_bytes);
            if number >= COUNT || received.frame != numbered(number) {
                strange = Some(received.frame.to_vec());
            }
            seen.insert(number);
        })?;
        if took.is_none() {
            guest.flush();
            guest.wait(Duration::from_millis(100))?;
        }
        ensure!(strange.is_none(), "this is not in the file: {strange:02x?}");
        ensure!(start.elapsed() < LIMIT, "{} frames came within {LIMIT:?}", seen.len());
    }
    drop(guest);
    switch.stop()?;
    Ok(())
}

#[test]
fn files_that_are_none() -> Result<()> {
    let files = Files::new()?;
    let mut sll = pcap(&[]);
    sll[20] = 113;
    let (script, cooked) = (files.write("script", b"#!/bin/sh\n")?, files.write("cooked", &sll)?);
    let cases = [
        (
            format!("in=pcap-read:{}", text(&script)?),
            "byte 0, before frame 1: this is no capture file",
        ),
        (
            format!("in=pcap-read:{}", text(&cooked)?),
            "its link type is LINUX_SLL (of Linux's interface `any`), not Ethernet",
        ),
        (format!("in=pcap-read:{}", text(&files.path("none"))?), "No such file or directory"),
        ("in=pcap-read:/dev/null".to_owned(), "it is no regular file"),
        ("in=pcap-write:/dev/null".to_owned(), "it is neither a regular file nor a pipe"),
        (
            "in=pcap-write:/nonexistent/a.pcapng".to_owned(),
            "cannot write it: No such file or directory",
        ),
    ];
    for (port, said) in cases {
        let output = ringway(&[], &["run", "--port", &port])?;
        println!("{}", output.text());
        ensure!(output.status == 1, "{port}: it ended with {}", output.status);
        let (text, (_, file)) = (output.text(), port.split_once(':').context("a port")?);
        for word in ["port `in`", file, said] {
            ensure!(text.contains(word), "{port}: no word of `{word}`: {text}");
        }
    }
    Ok(())
}

#[test]
fn a_file_that_is_cut_off_is_sent_up_to_there() -> Result<()> {
    let files = Files::new()?;
    let mut file = pcap(&stream(3, 1));
    file.truncate(file.len() - 10);
    let file = files.write("cut.pcap", &file)?;
    let out = files.path("out.pcapng");
    let ports =
        [format!("in=pcap-read:{}", text(&file)?), format!("out=pcap-write:{}", text(&out)?)];
    let switch = Switch::start(&ports.each_ref().map(String::as_str))?;
    let line = switch.complaint("in")?;
    println!("{line}");
    // The header, and two frames of 60 and 157 bytes with theirs.
    let at = 24 + 16 + 60 + 16 + 157;
    let said = format!(
        "frame 3 at byte {at}: the file ends after 260 of its 270 bytes (2 frames sent before"
    );
    ensure!(line.contains(&said), "no word of `{said}`");
    switch.stop()?;
    ensure!(frames_of(&out)?.len() == 2);
    Ok(())
}

/// A small disk, mounted until it is dropped.
struct Disk(TempDir);

impl Disk {
    fn new(size: &str) -> Result<Disk> {
        let directory = tempfile::tempdir()?;
        let options = format!("size={size}");
        run("mount", &["-t", "tmpfs", "-o", &options, "tmpfs", text(directory.path())?])?;
        Ok(Disk(directory))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_takes_the_port_down_and_leaves_a_file() -> Result<()> {
    const COUNT: u32 = 10_000;
    let (files, disk) = (Files::new()?, Disk::new("2M")?);
    // The last one comes when the port has long been down.
    let mut frames = stream(COUNT, 1);
    frames[COUNT as usize - 1].0 += 5_000_000;
    let file = files.write("in.pcap", &pcap(&frames))?;
    let out = disk.0.path().join("out.pcapng");
    let ports = [
        format!("in=pcap-read:{},times=recorded", text(&file)?),
        format!("out=pcap-write:{}", text(&out)?),
    ];
    let switch = Switch::start(&ports.each_ref().map(String::as_str))?;
    let line = switch.complaint("out")?;
    println!("{line}");
    ensure!(line.contains("No space left on device") && line.contains(text(&out)?), "{line}");
    switch.wait_for_log(" frames, skipped: none", LIMIT)?;
    let log = switch.stop()?;
    ensure!(log.matches("No space left").count() == 1, "it was said more than once:\n{log}");
    // The file is whole, and what is not in it was counted as dropped.
    run("capinfos", &[text(&out)?])?;
    let written = frames_of(&out)?.len() as u64;
    let line =
        log.lines().find(|line| line.contains(" out: ")).context("no counters of the port")?;
    println!("{line}");
    let count = |word: &str| -> u64 {
        let at =
            line.split_once(word).and_then(|(_, rest)| rest.split([',', ' ']).next()?.parse().ok());
        at.unwrap_or(0)
    };
    let (down, full) = (count("receiver_down "), count("receiver_full "));
    ensure!(written > 0 && down > 0, "{written} written, {down} dropped");
    ensure!(written + down + full == u64::from(COUNT), "{written} + {down} + {full}");
    Ok(())
}

/// A capture that is there is not destroyed by a switch that does not start, and none is made.
#[test]
fn a_switch_that_does_not_start_leaves_files_alone() -> Result<()> {
    let files = Files::new()?;
    let old = files.write("old.pcapng", b"what took a week to capture")?;
    let new = files.path("new.pcapng");
    let ports = [
        format!("old=pcap-write:{}", text(&old)?),
        format!("new=pcap-write:{}", text(&new)?),
        format!("bad=pcap-read:{}", text(&files.path("none"))?),
    ];
    let mut arguments = vec!["run"];
    arguments.extend(ports.iter().flat_map(|port| ["--port", port]));
    let output = ringway(&[], &arguments)?;
    println!("{}", output.text());
    ensure!(output.status == 1 && output.text().contains("port `bad`"), "{}", output.text());
    ensure!(fs::read(&old)? == b"what took a week to capture", "the file was changed");
    ensure!(!new.exists(), "a file was made");
    Ok(())
}

/// As `ringway ... | wireshark -k -i -` does: frames are seen as they come, and who has seen enough may go.
#[test]
fn a_pipe_shows_frames_as_they_come() -> Result<()> {
    const COUNT: usize = 20;
    let files = Files::new()?;
    let file = files.write("in.pcap", &pcap(&stream(COUNT as u32, 20_000)))?;
    let source = format!("in=pcap-read:{},times=recorded,loops=forever", text(&file)?);
    let log = files.path("log");
    let mut command = bound_command(binary()?);
    command.args([
        "run",
        "--log",
        "info",
        "--port",
        &source,
        "--port",
        "out=pcap-write:/dev/stdout",
    ]);
    command.stdout(Stdio::piped()).stderr(fs::File::create(&log)?);
    let mut switch = Child(spawn(command)?);
    let mut tshark = bound_command("tshark");
    let count = (2 * COUNT).to_string();
    tshark.args(["-l", "-i", "-", "-c", &count, "-T", "fields", "-e", "frame.len"]);
    // It ends then, whatever it has seen.
    let limit = format!("duration:{}", LIMIT.as_secs());
    tshark.args(["-e", "frame.interface_name", "-a", &limit]);
    tshark.stdin(switch.0.stdout.take().context("no pipe")?);
    tshark.stdout(Stdio::piped()).stderr(Stdio::null());
    let mut tshark = Child(spawn(tshark)?);
    let mut seen = String::new();
    tshark.0.stdout.take().context("no pipe")?.read_to_string(&mut seen)?;
    ensure!(tshark.0.wait()?.success(), "tshark failed: {seen}");
    let lens: Vec<&str> = seen.lines().collect();
    let expected: Vec<String> =
        (0..2 * COUNT).map(|at| format!("{}\tout", numbered((at % COUNT) as u32).len())).collect();
    ensure!(lens == expected, "tshark saw\n{seen}");
    // Nobody reads any more.
    let start = Instant::now();
    let said = "the port is down: whoever read /dev/stdout has gone";
    while !fs::read_to_string(&log)?.contains(said) {
        ensure!(start.elapsed() < LIMIT, "no word of `{said}`:\n{}", fs::read_to_string(&log)?);
        thread::sleep(Duration::from_millis(10));
    }
    kill_process(Pid::from_child(&switch.0), Signal::TERM)?;
    let status = loop {
        match switch.0.try_wait()? {
            Some(status) => break status,
            None => ensure!(start.elapsed() < LIMIT, "the switch did not end within {LIMIT:?}"),
        }
        thread::sleep(Duration::from_millis(10));
    };
    ensure!(status.success(), "{}", fs::read_to_string(&log)?);
    println!("{}", fs::read_to_string(&log)?);
    Ok(())
}

/// A child that does not outlive its test.
struct Child(std::process::Child);

impl Drop for Child {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// However many there are, the switch ends when it promises to, and says what is lost.
#[test]
fn captures_that_cannot_end_do_not_keep_the_switch_from_ending() -> Result<()> {
    const COUNT: u32 = 500;
    let files = Files::new()?;
    let source = files.write("in.pcap", &pcap(&stream(COUNT, 1)))?;
    let mut ports = vec![format!("in=pcap-read:{}", text(&source)?)];
    let mut pipes = Vec::new();
    for number in 0..4 {
        let pipe = files.path(&format!("pipe{number}"));
        run("mkfifo", &[text(&pipe)?])?;
        ports.push(format!("out{number}=pcap-write:{}", text(&pipe)?));
        pipes.push(pipe);
    }
    let whole = files.path("whole.pcapng");
    ports.push(format!("whole=pcap-write:{}", text(&whole)?));
    let ports: Vec<&str> = ports.iter().map(String::as_str).collect();
    let switch = Switch::start(&ports)?;
    // Of the first, nobody reads anything; the others are read up to their headers.
    let mut readers = Vec::new();
    for pipe in &pipes[1..] {
        let mut reader = fs::File::open(pipe)?;
        reader.read_exact(&mut [0; 4])?;
        readers.push(reader);
    }
    switch.wait_for_log(&format!("was sent once: {COUNT} frames, skipped: none"), LIMIT)?;
    let log = switch.stop()?;
    for number in 0..4 {
        let port = format!("port=\"out{number}\"");
        let line = log.lines().find(|line| line.contains(&port)).context("no word of a pipe")?;
        println!("{line}");
        let (start, said) = line.split_once(&format!("pipe{number} has ")).context("no counts")?;
        let words = [" frames: ", " were dropped, and ", " were not written yet"];
        let numbers = said.split(|byte: char| !byte.is_ascii_digit());
        let numbers = numbers.filter_map(|number| number.parse::<u32>().ok());
        let [written, dropped, lost] = numbers.take(3).collect::<Vec<_>>()[..] else {
            bail!("no three numbers: {line}");
        };
        ensure!(start.contains("WARN") && words.iter().all(|words| said.contains(words)), "{line}");
        // What fits a pipe's 64 KiB is written. That may be some of them: those that came together are written at once.
        let may_hold = if number == 0 { 0 } else { COUNT - 1 };
        ensure!(written <= may_hold && dropped == 0 && written + lost == COUNT, "{line}");
    }
    ensure!(log.contains("whole.pcapng is complete: 500 frames"), "{log}");
    ensure!(frames_of(&whole)?.len() == 500);
    Ok(())
}

/// A sink to which nothing comes, one that nobody reads (and that has got frames one by one, each before a sleep), a source that is done, and
/// one that waits for its next frame for an hour.
#[test]
fn idle_ports_take_no_processor_time() -> Result<()> {
    let files = Files::new()?;
    let (done, slow, waits) = (
        files.write("done.pcap", &pcap(&stream(10, 1)))?,
        files.write("slow.pcap", &pcap(&stream(30, 5_000)))?,
        files.write("waits.pcap", &pcap(&stream(2, 3_600_000_000)))?,
    );
    let ports = [
        format!("done=pcap-read:{}", text(&done)?),
        format!("waits=pcap-read:{},times=recorded", text(&waits)?),
        format!("slow=pcap-read:{},times=recorded", text(&slow)?),
        format!("out=pcap-write:{}", text(&files.path("out.pcapng"))?),
        format!("unread=pcap-write:{}", text(&files.path("pipe"))?),
    ];
    run("mkfifo", &[text(&files.path("pipe"))?])?;
    let switch = Switch::start(&ports.each_ref().map(String::as_str))?;
    switch.wait_for_log("was sent once", LIMIT)?;
    wait_for_frames(&files.path("out.pcapng"), 41)?;
    switch.watch_idle()?;
    switch.stop()?;
    Ok(())
}
