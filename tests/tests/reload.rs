//! Reload by difference: `ringway reload` and SIGHUP, while guests talk; with one worker, and with two.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use guest::Options;
use ringway_tests::*;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use testbed::{Network, Shell};
use vhost_user::FrontEnd;
use wire::virtio::{Features, NetHeader};

/// Whatever is waited for happens within this time, on a machine that is busy with other tests.
const LIMIT: Duration = Duration::from_secs(20);
/// That so many frames do not pass is no accident.
const ENOUGH: Duration = Duration::from_millis(300);

const TWO: &str = r#"
[port.vm1]
type = "vhost-user"
path = "vm1.sock"
[port.vm2]
type = "vhost-user"
path = "vm2.sock"
"#;
const THIRD: &str = r#"
[port.vm3]
type = "vhost-user"
path = "vm3.sock"
"#;
/// That [`THIRD`] comes.
const COMES: &str = "+ port vm3 (vhost-user)";
/// That it goes.
const GOES: &str = "- port vm3 (vhost-user)";

/// Runs a test on a switch with one worker, and on one with two.
fn with_workers(test: fn(usize) -> Result<()>) -> Result<()> {
    [1, 2].into_iter().try_for_each(|workers| {
        println!("with {workers} of the workers");
        test(workers).with_context(|| format!("with {workers} of the workers"))
    })
}

/// A switch with a file that can be changed.
struct Reloadable {
    switch: Switch,
    /// Not in the switch's directory, which is to be empty in the end.
    _directory: TempDir,
    file: PathBuf,
    control: String,
    workers: usize,
}

impl Reloadable {
    /// With this in its file, of which the first line is empty, and so many workers.
    fn start(text: &str, workers: usize) -> Result<Self> {
        Self::start_by(text, workers, |options| Switch::start_with(options, &[]))
    }

    fn start_by(
        text: &str,
        workers: usize,
        start: impl FnOnce(&[&str]) -> Result<Switch>,
    ) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let file = directory.path().join("ringway.toml");
        fs::write(&file, with_first_line(text, workers))?;
        let path = file.display().to_string();
        let switch = start(&["--config", &path, "--control", "control.sock"])?;
        let control = switch.path("control.sock").display().to_string();
        Ok(Self { switch, _directory: directory, file, control, workers })
    }

    /// Changes the file.
    fn write(&self, text: &str) -> Result<()> {
        Ok(fs::write(&self.file, with_first_line(text, self.workers))?)
    }

    /// Changes the file, and runs `ringway reload`. Returns its status and what it printed.
    fn reload(&self, text: &str, options: &[&str]) -> Result<(i32, String)> {
        self.write(text)?;
        let arguments = [&["reload", "--control", &self.control], options].concat();
        let output = ringway(&[], &arguments)?;
        Ok((output.status, String::from_utf8(output.bytes)?))
    }

    /// The same where it is to print this.
    fn expect(&self, text: &str, lines: &[&str]) -> Result<()> {
        let (status, printed) = self.reload(text, &[])?;
        let all: Vec<&str> = printed.lines().collect();
        ensure!(status == 0 && all == lines, "status {status}, and not {lines:?}:\n{printed}");
        Ok(())
    }

    /// Has another port come and go, so often.
    fn have_others_come_and_go(&self, text: &str, times: usize) -> Result<()> {
        for _ in 0..times {
            self.expect(&[text, THIRD].concat(), &[COMES])?;
            self.expect(text, &[GOES])?;
        }
        Ok(())
    }

    fn station(&self, n: u8) -> Result<Station> {
        Station::connect(&self.switch, n)
    }

    /// Stops the switch, whose guests on these ports have connected once. Returns its log.
    fn stop(self, untouched: &[&str]) -> Result<String> {
        for port in untouched {
            let count = connections(&self.switch, port);
            ensure!(count == 1, "{port} was connected {count} times:\n{}", self.switch.log());
        }
        self.switch.stop()
    }
}

/// A file whose first line, which is empty, says how many workers there are.
fn with_first_line(text: &str, workers: usize) -> String {
    format!("workers = {workers}{text}")
}

/// Whether anything that one station sends gets to the other one within a time.
fn reaches(one: &mut Station, other: &mut Station, limit: Duration) -> Result<bool> {
    let deadline = Instant::now() + limit;
    let frame = [&other.address[..], &one.address, &[0x88, 0xb5], &[0xee; 50]].concat();
    while Instant::now() < deadline {
        one.guest.driver().reclaim()?;
        one.guest.driver().send(NetHeader::default(), &frame)?;
        one.guest.flush();
        let mut came = false;
        while let Some(is_it) = other.guest.driver().receive(|came| came.frame == frame)? {
            came |= is_it;
        }
        other.guest.flush();
        if came {
            return Ok(true);
        }
        thread::yield_now();
    }
    Ok(false)
}

/// Does something while two stations talk, of whose frames none is lost.
fn under_load<R>(
    one: &mut Station,
    two: &mut Station,
    act: impl FnOnce() -> Result<R>,
) -> Result<R> {
    let enough = AtomicBool::new(false);
    thread::scope(|scope| {
        let load = scope.spawn(|| exchange_until(one, two, || enough.load(Relaxed)));
        let done = act();
        enough.store(true, Relaxed);
        load.join().ok().context("the load panicked")?.context("the load")?;
        done
    })
}

/// How often front ends of a port have connected.
fn connections(switch: &Switch, port: &str) -> usize {
    let port = format!("port=\"{port}\"");
    let log = switch.log();
    log.lines().filter(|line| line.contains("front end connected") && line.contains(&port)).count()
}

#[test]
fn ports_come_and_go_and_those_that_stay_lose_no_frame() -> Result<()> {
    with_workers(|workers| {
        let reloadable = Reloadable::start(TWO, workers)?;
        let (mut one, mut two) = (reloadable.station(1)?, reloadable.station(2)?);
        under_load(&mut one, &mut two, || {
            for round in 0..10 {
                reloadable.expect(&[TWO, THIRD].concat(), &[COMES])?;
                let mut three = reloadable.station(3)?;
                // To all: it is on the bridge.
                let to_all = [&[0xff; 6][..], &three.address, &[0x88, 0xb5], &[round; 50]].concat();
                ensure!(three.guest.driver().send(NetHeader::default(), &to_all)?, "no room");
                three.guest.flush();
                let limited = [TWO, THIRD, "rate-from = \"1Mbit\"\n"].concat();
                reloadable.expect(
                    &limited,
                    &["+ vm3.police", "- link vm3.tx -> bridge.vm3", "- link bridge.vm3 -> vm3.rx"],
                )?;
                reloadable.expect(&limited.replace("1Mbit", "2Mbit"), &["~ vm3.police"])?;
                reloadable.expect(TWO, &[GOES, "- vm3.police"])?;
                ensure!(!reloadable.switch.path("vm3.sock").exists(), "its socket is still there");
            }
            Ok(())
        })?;
        ensure!(connections(&reloadable.switch, "vm3") >= 10);
        println!("{} and {} frames, while vm3 came and went 10 times", one.sent, two.sent);
        drop((one, two));
        reloadable.stop(&["vm1", "vm2"])?;
        Ok(())
    })
}

#[test]
fn what_lies_between_a_guest_and_the_bridge_changes_and_the_guest_stays() -> Result<()> {
    with_workers(|workers| {
        let reloadable = Reloadable::start(TWO, workers)?;
        let (mut one, mut two) = (reloadable.station(1)?, reloadable.station(2)?);
        ensure!(reaches(&mut one, &mut two, LIMIT)?);
        // What vm2 may get: nothing, everything, and all as before.
        let with = |program: &str| format!("{TWO}filter-to = \"{program}\"\n");
        reloadable.expect(
            &with("1,6 0 0 0"),
            &["+ vm2.filter", "- link vm2.tx -> bridge.vm2", "- link bridge.vm2 -> vm2.rx"],
        )?;
        // What came before.
        while two.guest.driver().receive(|_| ())?.is_some() {}
        ensure!(!reaches(&mut one, &mut two, ENOUGH)?, "the filter lets it pass");
        reloadable.expect(&with("1,6 0 0 1"), &["~ vm2.filter"])?;
        let both = |one: &mut Station, two: &mut Station| -> Result<bool> {
            Ok(reaches(one, two, LIMIT)? && reaches(two, one, LIMIT)?)
        };
        ensure!(both(&mut one, &mut two)?);
        reloadable.expect(
            TWO,
            &["- vm2.filter", "+ link vm2.tx -> bridge.vm2", "+ link bridge.vm2 -> vm2.rx"],
        )?;
        ensure!(both(&mut one, &mut two)?);
        // Into different VLANs, and into the same again.
        let vlans = |first, second| {
            TWO.replace("vm1.sock\"", &format!("vm1.sock\"\nvlan = {first}"))
                .replace("vm2.sock\"", &format!("vm2.sock\"\nvlan = {second}"))
        };
        reloadable.expect(&vlans(10, 20), &["~ bridge: the VLANs of vm1, vm2"])?;
        while two.guest.driver().receive(|_| ())?.is_some() {}
        ensure!(!reaches(&mut one, &mut two, ENOUGH)?, "they are in different VLANs");
        reloadable.expect(&vlans(20, 20), &["~ bridge: the VLANs of vm1"])?;
        ensure!(both(&mut one, &mut two)?);
        drop((one, two));
        reloadable.stop(&["vm1", "vm2"])?;
        Ok(())
    })
}

#[test]
fn what_cannot_be_done_changes_nothing_and_says_why() -> Result<()> {
    with_workers(|workers| {
        let reloadable = Reloadable::start(TWO, workers)?;
        let (mut one, mut two) = (reloadable.station(1)?, reloadable.station(2)?);
        let file = reloadable.file.display().to_string();
        fs::write(reloadable.switch.path("no-socket"), "")?;
        let bad = TWO.replace("path = \"vm2.sock\"", "pth = \"vm2.sock\"\nrate-to = \"fast\"");
        // vm3 could be opened, and the fourth cannot.
        let fourth = "[port.vm4]\ntype = \"vhost-user\"\npath = \"no-socket\"\n";
        let idle_spin = format!("\nidle-spin = \"1ms\"{TWO}");
        under_load(&mut one, &mut two, || {
            for (text, says) in [
                (&bad, [&*format!("{file}:7:1"), &*format!("{file}:8:"), "`path`"]),
                (&idle_spin, ["nothing was changed", "`idle-spin` cannot be changed", ""]),
                (
                    &[TWO, THIRD, fourth].concat(),
                    ["nothing was changed: port `vm4`", "not a socket", ""],
                ),
            ] {
                let (status, printed) = reloadable.reload(text, &[])?;
                ensure!(status == 1, "status {status}: {printed}");
                for says in says {
                    ensure!(printed.contains(says), "no {says:?} in {printed}");
                }
                ensure!(!reloadable.switch.path("vm3.sock").exists(), "vm3 was opened");
            }
            // The number of workers, which is in the first line.
            fs::write(&reloadable.file, with_first_line(TWO, workers + 1))?;
            let output = ringway(&[], &["reload", "--control", &reloadable.control])?;
            let printed = output.text();
            ensure!(
                output.status == 1 && printed.contains("`workers` cannot be changed"),
                "{printed}"
            );
            // A dry run says what there is to do, and does nothing.
            let (status, printed) = reloadable.reload(&[TWO, THIRD].concat(), &["--dry-run"])?;
            ensure!(status == 0 && printed == format!("{COMES}\n"), "{status}: {printed}");
            ensure!(!reloadable.switch.path("vm3.sock").exists(), "vm3 was opened");
            let (status, printed) = reloadable.reload(TWO, &["--dry-run"])?;
            ensure!(status == 0 && printed == "nothing would change\n", "{status}: {printed}");
            reloadable.expect(TWO, &["nothing has changed"])
        })?;
        drop((one, two));
        fs::remove_file(reloadable.switch.path("no-socket"))?;
        reloadable.stop(&["vm1", "vm2"])?;
        Ok(())
    })
}

#[test]
fn a_port_that_is_made_anew_takes_its_socket_over_and_keeps_its_guest_if_another_fails()
-> Result<()> {
    with_workers(|workers| {
        let reloadable = Reloadable::start(&[TWO, THIRD].concat(), workers)?;
        let (mut one, mut two) = (reloadable.station(1)?, reloadable.station(2)?);
        let _three = reloadable.station(3)?;
        fs::write(reloadable.switch.path("no-socket"), "")?;
        under_load(&mut one, &mut two, || {
            let pairs = [TWO, THIRD, "queue-pairs = 4\n"].concat();
            reloadable.expect(&pairs, &["~ port vm3 (vhost-user): made anew"])?;
            let mut three = reloadable.station(3)?;
            // By another name on the same socket; but a fourth cannot be opened.
            let renamed = TWO.to_owned() + &THIRD.replace("port.vm3", "port.other");
            let fourth = "[port.vm4]\ntype = \"vhost-user\"\npath = \"no-socket\"\n";
            let (status, printed) = reloadable.reload(&[&renamed, fourth].concat(), &[])?;
            ensure!(status == 1 && printed.contains("port `vm4`"), "status {status}: {printed}");
            ensure!(!three.guest.front_end().is_closed(), "its guest was let go of");
            reloadable.expect(&renamed, &[GOES, "+ port other (vhost-user)"])?;
            drop(three);
            reloadable.station(3)?;
            Ok(())
        })?;
        drop((one, two));
        fs::remove_file(reloadable.switch.path("no-socket"))?;
        reloadable.stop(&["vm1", "vm2", "other"])?;
        Ok(())
    })
}

#[test]
fn a_signal_reloads_too_and_the_log_says_what_came_of_it() -> Result<()> {
    with_workers(|workers| {
        let reloadable = Reloadable::start(TWO, workers)?;
        let switch = &reloadable.switch;
        let process =
            i32::try_from(switch.pid()).ok().and_then(Pid::from_raw).context("a process")?;
        reloadable.write(&[TWO, THIRD].concat())?;
        kill_process(process, Signal::HUP)?;
        switch.wait_for_log("reloaded: + port vm3 (vhost-user)", LIMIT)?;
        ensure!(switch.path("vm3.sock").exists(), "vm3 is not there");
        fs::write(&reloadable.file, "nonsense = 1")?;
        kill_process(process, Signal::HUP)?;
        switch.wait_for_log("not reloaded: ", LIMIT)?;
        ensure!(switch.path("vm3.sock").exists(), "vm3 is there no more");
        reloadable.stop(&[])?;
        Ok(())
    })
}

#[test]
fn a_switch_without_a_file_has_nothing_to_read_again() -> Result<()> {
    let switch = Switch::start_with(&["--control", "control.sock"], &["vm1=vhost-user:vm1.sock"])?;
    let control = switch.path("control.sock").display().to_string();
    let output = ringway(&[], &["reload", "--control", &control])?;
    let printed = output.text();
    ensure!(output.status == 1 && printed.contains("started without a file"), "{printed}");
    switch.stop()?;
    Ok(())
}

/// A station that nobody has: frames to it go to all ports.
const NOBODY_HERE: [u8; 6] = [0x52, 0x54, 0, 0, 0, 0x99];

/// Sends frames to nobody, which a capture has to have, a few at a time and each before the next ones, until it is
/// enough. One that goes meanwhile need not have the last of them.
fn fill(
    one: &mut Station,
    capture: &mut Capture,
    goes: bool,
    is_enough: impl Fn() -> bool,
) -> Result<()> {
    let mut captured = one.sent;
    while !is_enough() {
        while one.sent - captured < 32 && one.send(NOBODY_HERE)? {}
        let mut since = Instant::now();
        while captured < one.sent && !(goes && is_enough()) {
            one.guest.flush();
            one.guest.driver().reclaim()?;
            let came = capture.frames()?;
            for frame in &came {
                let is_next = *frame == numbered(one.address, NOBODY_HERE, captured);
                ensure!(is_next, "not frame {captured}, but {:02x?}", &frame[..18]);
                captured += 1;
            }
            if !came.is_empty() {
                since = Instant::now();
            }
            let sent = one.sent;
            ensure!(since.elapsed() < LIMIT, "{captured} of {sent} frames are in the file");
            thread::yield_now();
        }
    }
    finish(one)
}

/// Waits until the switch has taken all that a station sent.
fn finish(one: &mut Station) -> Result<()> {
    let since = Instant::now();
    one.guest.flush();
    while one.guest.driver().in_flight() > 0 {
        one.guest.driver().reclaim()?;
        ensure!(since.elapsed() < LIMIT, "the switch kept frames for {LIMIT:?}");
        thread::yield_now();
    }
    Ok(())
}

/// Does something while a station fills a capture.
fn while_filling<R>(
    one: &mut Station,
    capture: &mut Capture,
    goes: bool,
    act: impl FnOnce() -> Result<R>,
) -> Result<R> {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let load = scope.spawn(|| fill(one, capture, goes, || is_over.load(Relaxed)));
        let done = act();
        is_over.store(true, Relaxed);
        load.join().ok().context("the load panicked")?.context("the load")?;
        done
    })
}

const ONE: &str = "\n[port.vm1]\ntype = \"vhost-user\"\npath = \"vm1.sock\"\n";

#[test]
fn a_capture_that_stays_goes_on_and_one_that_goes_is_complete() -> Result<()> {
    with_workers(|workers| {
        let files = tempfile::tempdir()?;
        let path = files.path().join("dump.pcapng");
        let file = path.display();
        let with = |keys: &str| {
            format!("{ONE}[port.dump]\ntype = \"pcap-write\"\nfile = \"{file}\"\n{keys}")
        };
        let reloadable = Reloadable::start(&with(""), workers)?;
        let switch = &reloadable.switch;
        let mut one = reloadable.station(1)?;
        let mut capture = Capture::open(&path)?;
        // One that stays: other ports come and go, and something comes between its guest and it.
        while_filling(&mut one, &mut capture, false, || {
            reloadable.have_others_come_and_go(&with(""), 5)?;
            let limited = with("").replace("[port.dump]", "rate-from = \"1Gbit\"\n[port.dump]");
            reloadable.expect(
                &limited,
                &["+ vm1.police", "- link vm1.tx -> bridge.vm1", "- link bridge.vm1 -> vm1.rx"],
            )?;
            reloadable.expect(
                &with(""),
                &["- vm1.police", "+ link vm1.tx -> bridge.vm1", "+ link bridge.vm1 -> vm1.rx"],
            )
        })?;
        let stayed = one.sent;
        // One that goes while frames come: it has all of them up to that moment, and nothing else.
        while_filling(&mut one, &mut capture, true, || {
            reloadable.expect(ONE, &["- port dump (pcap-write)"])
        })?;
        let frames = captured(&path)?;
        for (number, frame) in (0..).zip(&frames) {
            ensure!(*frame == numbered(one.address, NOBODY_HERE, number), "not frame {number}");
        }
        ensure!(frames.len() >= stayed as usize, "{} of {stayed} frames", frames.len());
        switch.wait_for_log(&format!("dump.pcapng is complete: {} frames", frames.len()), LIMIT)?;
        // One that is there again, or is made anew, begins its file anew.
        for (text, line) in [
            (with(""), "+ port dump (pcap-write)"),
            (with("snaplen = 65536\n"), "~ port dump (pcap-write): made anew"),
        ] {
            let before = fs::metadata(&path)?.len();
            reloadable.expect(&text, &[line])?;
            // A thread of its own does that.
            let since = Instant::now();
            while fs::metadata(&path)?.len() >= before {
                ensure!(since.elapsed() < LIMIT, "{line}: the file was not emptied");
                thread::yield_now();
            }
            let mut capture = Capture::open(&path)?;
            while_filling(&mut one, &mut capture, false, || {
                reloadable.have_others_come_and_go(&text, 1)
            })?;
        }
        println!("{} frames, of which {} were in the first file", one.sent, frames.len());
        drop(one);
        let log = reloadable.stop(&["vm1"])?;
        ensure!(!log.contains("were dropped"), "{log}");
        Ok(())
    })
}

/// The host's address on the tap.
const HOST: &str = "10.0.0.254/24";

/// Asks the host for its hardware address, as a station with this IP address, and waits for the answer to that. False when
/// none came within the limit.
fn host_answers(one: &mut Station, number: u8, limit: Duration) -> Result<bool> {
    let deadline = Instant::now() + limit;
    let ethernet = [&[0xff; 6][..], &one.address, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]].concat();
    let ip = [10, 0, 0, number];
    let addresses = [&one.address[..], &ip, &[0; 6], &[10, 0, 0, 254]].concat();
    let mut request = [ethernet, addresses].concat();
    request.resize(60, 0);
    one.guest.driver().reclaim()?;
    ensure!(one.guest.driver().send(NetHeader::default(), &request)?, "no room for a frame");
    one.guest.flush();
    let address = one.address;
    let is_answer = |frame: &[u8]| {
        let [to, kind, target] = [0..6, 20..22, 38..42].map(|range| frame.get(range));
        (to, kind, target) == (Some(&address), Some(&[0, 2]), Some(&ip))
    };
    loop {
        match one.guest.driver().receive(|came| is_answer(came.frame))? {
            Some(true) => return Ok(true),
            Some(false) => continue,
            None => {}
        }
        one.guest.flush();
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        one.guest.wait(left)?;
    }
}

/// Asks the host until it answers: something may not be up yet.
fn reach_host(one: &mut Station) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    while !host_answers(one, 1, Duration::from_millis(100))? {
        ensure!(Instant::now() < deadline, "the host did not answer within {LIMIT:?}");
    }
    Ok(())
}

/// Asks the host again and again until it is enough. Each question is answered: no frame is lost either way.
fn ask_host(one: &mut Station, is_enough: impl Fn() -> bool) -> Result<u32> {
    let mut asked = 0;
    while !is_enough() {
        // Not as the one that asked at first.
        let number = 2 + (asked % 200) as u8;
        ensure!(host_answers(one, number, LIMIT)?, "no answer to question {asked}");
        asked += 1;
    }
    Ok(asked)
}

/// A tap that is not told of keeps its carrier and every frame. One that is made anew on an interface that stays is there
/// again, with the host's address.
#[test]
fn a_tap_that_stays_keeps_its_carrier_and_one_that_is_made_anew_comes_back() -> Result<()> {
    with_workers(|workers| {
        let network = Network::new()?;
        network.tap("rw0")?;
        network.address("rw0", HOST)?;
        let with =
            |keys: &str| format!("{ONE}[port.host]\ntype = \"tap\"\ninterface = \"rw0\"\n{keys}");
        let reloadable = Reloadable::start_by(&with(""), workers, |options| {
            Switch::start_in_with(&network, options, &[])
        })?;
        let interface = |file: &str| network.run(&format!("cat /sys/class/net/rw0/{file}"));
        let mut one = reloadable.station(1)?;
        reach_host(&mut one)?;
        let before = (interface("carrier_changes")?, interface("ifindex")?);
        let is_over = AtomicBool::new(false);
        let asked = thread::scope(|scope| {
            let load = scope.spawn(|| ask_host(&mut one, || is_over.load(Relaxed)));
            let done = reloadable.have_others_come_and_go(&with(""), 5);
            is_over.store(true, Relaxed);
            let asked = load.join().ok().context("the load panicked")?.context("the load")?;
            done.map(|()| asked)
        })?;
        println!("the host answered {asked} times");
        ensure!((interface("carrier_changes")?, interface("ifindex")?) == before);
        ensure!(interface("carrier")?.trim() == "1");

        reloadable.expect(&with("mtu = 1400\n"), &["~ port host (tap): made anew"])?;
        reach_host(&mut one)?;
        ensure!(interface("ifindex")? == before.1 && interface("mtu")?.trim() == "1400");
        drop(one);
        reloadable.stop(&["vm1"])?;
        Ok(())
    })
}

/// What an app holds for a port that is not told of arrives afterwards, and what one holds that goes does not.
#[test]
fn frames_that_wait_in_an_app_wait_on() -> Result<()> {
    const FRAMES: u32 = 100;
    with_workers(|workers| {
        let late = |seconds: u64| format!("{TWO}delay-to = \"{seconds}s\"\n");
        let mut delay = 1;
        let reloadable = Reloadable::start(&late(delay), workers)?;
        let (mut one, mut two) = (reloadable.station(1)?, reloadable.station(2)?);
        let send = |one: &mut Station, to: [u8; 6]| -> Result<()> {
            for _ in 0..FRAMES {
                ensure!(one.send(to)?, "no room for a frame");
            }
            finish(one)
        };
        let receive = |two: &mut Station, from: [u8; 6], up_to: u32| -> Result<()> {
            let since = Instant::now();
            while two.received < up_to {
                two.receive(from)?;
                two.guest.flush();
                ensure!(since.elapsed() < LIMIT, "{} of {up_to} frames came", two.received);
                thread::yield_now();
            }
            Ok(())
        };
        // Until they wait for longer than the reloads take.
        loop {
            let start = Instant::now();
            send(&mut one, two.address)?;
            reloadable.have_others_come_and_go(&late(delay), 1)?;
            let reloaded = start.elapsed();
            receive(&mut two, one.address, one.sent)?;
            let (came, wait) = (start.elapsed(), Duration::from_secs(delay));
            println!("reloaded {reloaded:.1?} after they were sent, and came {came:.1?}");
            ensure!(came >= wait, "they were not late");
            if reloaded < wait {
                break;
            }
            delay *= 2;
            ensure!(Duration::from_secs(delay) < LIMIT, "reloads take {reloaded:?}");
            reloadable.expect(&late(delay), &["~ vm2.impair"])?;
        }

        // What waits goes with what it waits in.
        reloadable.expect(&late(60), &["~ vm2.impair"])?;
        let arrived = one.sent;
        send(&mut one, two.address)?;
        reloadable.expect(
            TWO,
            &["- vm2.impair", "+ link vm2.tx -> bridge.vm2", "+ link bridge.vm2 -> vm2.rx"],
        )?;
        two.received = one.sent;
        send(&mut one, two.address)?;
        receive(&mut two, one.address, one.sent)?;
        drop((one, two));
        let log = reloadable.stop(&["vm1", "vm2"])?;
        let came = Totals::of(&log, "vm2")?.sent;
        ensure!(came == u64::from(arrived + FRAMES), "{came} frames came:\n{log}");
        Ok(())
    })
}

/// A guest takes its frames late, again and again, so that the switch holds some of them at any time. Whatever others do, each
/// arrives, or was counted because the guest took too long: none gets lost in a reload.
#[test]
fn frames_that_wait_for_a_full_guest_wait_on() -> Result<()> {
    /// How late: the switch waits twice as long for a guest.
    const LATE: Duration = Duration::from_millis(10);
    with_workers(|workers| {
        let reloadable = Reloadable::start(TWO, workers)?;
        let (mut one, mut two) = (reloadable.station(1)?, reloadable.station(2)?);
        let is_over = AtomicBool::new(false);
        let mut came = thread::scope(|scope| {
            let load = scope.spawn(|| -> Result<u64> {
                let (mut came, mut took) = (0, Instant::now());
                let (mut last, mut since) = (None, Instant::now());
                let (from, to) = (one.address, two.address);
                while !is_over.load(Relaxed) || one.guest.driver().in_flight() > 0 {
                    one.guest.driver().reclaim()?;
                    let goes_on = !is_over.load(Relaxed);
                    while goes_on && one.send(to)? {}
                    one.guest.flush();
                    if took.elapsed() >= LATE {
                        while two.receive_one(from, two.received..one.sent)?.is_some() {
                            came += 1;
                        }
                        two.guest.flush();
                        took = Instant::now();
                    }
                    let now = Some((one.sent, one.guest.driver().in_flight(), came));
                    if now != last {
                        (last, since) = (now, Instant::now());
                    }
                    ensure!(since.elapsed() < LIMIT, "nothing has moved for {LIMIT:?}: {now:?}");
                    thread::yield_now();
                }
                Ok(came)
            });
            let done = reloadable.have_others_come_and_go(TWO, 5);
            is_over.store(true, Relaxed);
            let came = load.join().ok().context("the load panicked")?.context("the load")?;
            done.map(|()| came)
        })?;
        let sent = u64::from(one.sent);
        let log = reloadable.stop(&["vm1", "vm2"])?;
        // What came last. That vm1 has its buffers back does not say that vm2 can see it yet; that the switch has ended does.
        while two.receive_one(one.address, two.received..one.sent)?.is_some() {
            came += 1;
        }
        let (vm1, vm2) = (Totals::of(&log, "vm1")?, Totals::of(&log, "vm2")?);
        println!("{sent} frames, of which {came} came: {vm1:?}, {vm2:?}");
        ensure!((vm1.received, vm2.sent) == (sent, came), "{sent} and {came}:\n{log}");
        ensure!(vm1.dropped + vm2.dropped == sent - came, "{} are missing:\n{log}", sent - came);
        Ok(())
    })
}

/// Conversations that a filter knows, which let answers pass, go on when something else changes; and when its own settings do,
/// unless those are of the direction by which they began.
#[test]
fn conversations_go_on() -> Result<()> {
    /// Frames of the type of the stations' own: all that vm1 may be sent unasked.
    const OWN: &str = "4,40 0 0 12,21 0 1 34997,6 0 0 262144,6 0 0 0";
    with_workers(|workers| {
        let with = |from: &str, to: &str| {
            let keys = format!("filter-from = \"{from}\"\nfilter-to = \"{to}\"");
            TWO.replace("vm1.sock\"", &format!("vm1.sock\"\n{keys}\nallow-replies = true"))
        };
        let all = "1,6 0 0 262144";
        let text = with(all, OWN);
        let reloadable = Reloadable::start(&text, workers)?;
        let (mut one, mut two) = (reloadable.station(1)?, reloadable.station(2)?);
        let (first, second) = (one.address, two.address);
        let question = udp(1, 2, [1000, 53], 0);
        // Whether what answers to it comes, before a frame that does come.
        let is_answered = |one: &mut Station, two: &mut Station| -> Result<bool> {
            let answer = udp(2, 1, [53, 1000], 0);
            ensure!(two.guest.driver().send(NetHeader::default(), &answer)?, "no room");
            ensure!(two.send(first)?, "no room");
            two.guest.flush();
            let last = numbered(second, first, two.sent - 1);
            let (mut came, since) = (false, Instant::now());
            loop {
                let look = |frame: &[u8]| (frame == answer, frame == last);
                let (is_answer, is_last) =
                    one.guest.driver().receive(|came| look(came.frame))?.unwrap_or_default();
                one.guest.flush();
                came |= is_answer;
                if is_last {
                    two.guest.driver().reclaim()?;
                    return Ok(came);
                }
                ensure!(since.elapsed() < LIMIT, "no frame within {LIMIT:?}");
                thread::yield_now();
            }
        };
        ensure!(!is_answered(&mut one, &mut two)?, "nobody has asked");
        ensure!(one.guest.driver().send(NetHeader::default(), &question)?, "no room");
        one.guest.flush();
        let since = Instant::now();
        while two.guest.driver().receive(|came| came.frame == question)? != Some(true) {
            two.guest.flush();
            ensure!(since.elapsed() < LIMIT, "the question did not come within {LIMIT:?}");
            thread::yield_now();
        }
        ensure!(is_answered(&mut one, &mut two)?, "at first");
        reloadable.have_others_come_and_go(&text, 3)?;
        ensure!(is_answered(&mut one, &mut two)?, "while others came and went");
        let limited = |text: &str| {
            text.replace("allow-replies", "rate-from = \"1Gbit\"\nallow-replies")
                .replace("vm2.sock\"", "vm2.sock\"\nrate-from = \"1Gbit\"")
        };
        let (status, printed) = reloadable.reload(&limited(&text), &[])?;
        ensure!(status == 0 && printed.contains("+ vm1.police"), "{printed}");
        ensure!(is_answered(&mut one, &mut two)?, "beside other apps");
        let (status, printed) = reloadable.reload(&text, &[])?;
        ensure!(status == 0 && printed.contains("- vm1.police"), "{printed}");
        ensure!(is_answered(&mut one, &mut two)?, "without them");

        // Another filter of what comes to the port, and then one of what comes from it.
        let other = format!("5,40 0 0 12{}", OWN.trim_start_matches('4'));
        reloadable.expect(&with(all, &other), &["~ vm1.filter"])?;
        ensure!(is_answered(&mut one, &mut two)?, "their direction's filter is the same");
        reloadable.expect(&with("2,40 0 0 12,6 0 0 262144", &other), &["~ vm1.filter"])?;
        ensure!(!is_answered(&mut one, &mut two)?, "their direction's filter is another");
        drop((one, two));
        reloadable.stop(&["vm1", "vm2"])?;
        Ok(())
    })
}

/// A guest whose port is made anew while it talks connects again with its rings where they were. What it sends arrives as a
/// whole, and of what it is sent nothing comes twice.
#[test]
fn a_guest_whose_port_is_made_anew_goes_on_with_its_rings() -> Result<()> {
    const ROUNDS: u16 = 6;
    /// Frames on their way at once.
    const WINDOW: u32 = 64;
    with_workers(|workers| {
        let split = Options::default().features;
        let packed = split | Features::RING_PACKED;
        for features in [split, packed, packed | Features::IN_ORDER] {
            let options = Options { features, ..Options::default() };
            let with = |pairs: u16| format!("{ONE}{THIRD}queue-pairs = {pairs}\n");
            let reloadable = Reloadable::start(&with(1), workers)?;
            let path = reloadable.switch.path("vm3.sock");
            let mut one = reloadable.station(1)?;
            let mut three = Station::connect_with(&reloadable.switch, 3, &options)?;
            ensure!(three.guest.driver().features() == features, "not all of {features}");
            let (first, third) = (one.address, three.address);
            let mut came = 0;
            let mut talk = |one: &mut Station, three: &mut Station, goes_on: bool| -> Result<()> {
                while goes_on && three.sent - one.received < WINDOW && three.send(first)? {}
                while goes_on && one.guest.driver().in_flight() < 32 && one.send(third)? {}
                one.guest.flush();
                three.guest.flush();
                one.guest.driver().reclaim()?;
                three.guest.driver().reclaim()?;
                one.receive(third)?;
                while three.receive_one(first, three.received..one.sent)?.is_some() {
                    came += 1;
                }
                thread::yield_now();
                Ok(())
            };
            for round in 1..=ROUNDS {
                let text = with(1 + round % 2);
                let since = Instant::now();
                thread::scope(|scope| {
                    let line = "~ port vm3 (vhost-user): made anew";
                    let reload = scope.spawn(|| reloadable.expect(&text, &[line]));
                    while !three.guest.front_end().is_closed() {
                        talk(&mut one, &mut three, true)?;
                        ensure!(since.elapsed() < LIMIT, "still connected after {LIMIT:?}");
                    }
                    // With what was in its rings then, and what it put there meanwhile.
                    while let Err(error) = FrontEnd::connect(&path, LIMIT)
                        .map_err(Into::into)
                        .and_then(|front_end| three.guest.resume(front_end))
                    {
                        talk(&mut one, &mut three, true)?;
                        ensure!(since.elapsed() < LIMIT, "cannot connect again: {error}");
                    }
                    reload.join().ok().context("it panicked")?
                })?;
                let before = three.received;
                while three.received == before || one.received < three.sent / 2 {
                    talk(&mut one, &mut three, true)?;
                    ensure!(since.elapsed() < 2 * LIMIT, "nothing comes after round {round}");
                }
            }
            // What is sent from now on arrives, and so does all that the guest has sent.
            ensure!(one.send(third)?, "no room for a frame");
            let since = Instant::now();
            while (one.received, three.received) != (three.sent, one.sent) {
                talk(&mut one, &mut three, false)?;
                ensure!(
                    since.elapsed() < LIMIT,
                    "{} of {} frames came, and to the other one {} of {}",
                    one.received,
                    three.sent,
                    three.received,
                    one.sent
                );
            }
            println!("{features}: {} frames; and {came} of {} back", three.sent, one.sent);
            drop((one, three));
            let log = reloadable.stop(&["vm1"])?;
            ensure!(!log.contains("ERROR"), "{log}");
        }
        Ok(())
    })
}
