//! Reload by difference: `ringway reload` and SIGHUP, while guests talk.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use guest::{Guest, Options};
use ringway_tests::*;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use wire::virtio::NetHeader;

/// Whatever is waited for happens within this time, on a machine that is busy with other tests.
const LIMIT: Duration = Duration::from_secs(20);
/// Frames on their way at once: they fit the receiver's ring, so none may be lost.
const WINDOW: u32 = 64;
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

/// A switch with a file that can be changed.
struct Reloadable {
    switch: Switch,
    /// Not in the switch's directory, which is to be empty in the end.
    _directory: TempDir,
    file: PathBuf,
    control: String,
}

impl Reloadable {
    fn start(text: &str) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let file = directory.path().join("ringway.toml");
        fs::write(&file, text)?;
        let path = file.display().to_string();
        let options = ["--config", &path, "--control", "control.sock"];
        let switch = Switch::start_with(&options, &[])?;
        let control = switch.path("control.sock").display().to_string();
        Ok(Self { switch, _directory: directory, file, control })
    }

    /// Changes the file, and runs `ringway reload`. Returns its status and what it printed.
    fn reload(&self, text: &str, options: &[&str]) -> Result<(i32, String)> {
        fs::write(&self.file, text)?;
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

    fn station(&self, n: u8) -> Result<Station> {
        let guest = Guest::connect(&self.switch.path(&format!("vm{n}.sock")), &Options::default())?;
        Ok(Station { guest, address: [0x52, 0x54, 0, 0, 0, n], sent: 0, received: 0 })
    }
}

/// A guest with an address, and what it has sent and received of a numbered stream.
struct Station {
    guest: Guest,
    address: [u8; 6],
    sent: u32,
    received: u32,
}

impl Station {
    fn send(&mut self, to: [u8; 6]) -> Result<bool> {
        let frame = numbered(self.address, to, self.sent);
        let sent = self.guest.driver().send(NetHeader::default(), &frame)?;
        self.sent += u32::from(sent);
        Ok(sent)
    }

    /// Takes what came from `from`, which must be its stream, whole and in order.
    fn receive(&mut self, from: [u8; 6]) -> Result<()> {
        let (address, next) = (self.address, &mut self.received);
        let mut wrong = None;
        while let Some(()) = self.guest.driver().receive(|came| {
            if came.frame.starts_with(&[address, from].concat()) {
                if came.frame == numbered(from, address, *next) {
                    *next += 1;
                } else {
                    wrong = Some(came.frame.get(14..18).map(<[u8]>::to_vec));
                }
            }
        })? {}
        ensure!(wrong.is_none(), "frame {next} was due, and {wrong:?} came");
        Ok(())
    }

    /// Whether anything that this one sends gets to the other one within a time.
    fn reaches(&mut self, other: &mut Station, limit: Duration) -> Result<bool> {
        let deadline = Instant::now() + limit;
        let frame = [&other.address[..], &self.address, &[0x88, 0xb5], &[0xee; 50]].concat();
        while Instant::now() < deadline {
            self.guest.driver().reclaim()?;
            self.guest.driver().send(NetHeader::default(), &frame)?;
            self.guest.flush();
            let mut came = false;
            while let Some(is_it) = other.guest.driver().receive(|came| came.frame == frame)? {
                came |= is_it;
            }
            other.guest.flush();
            if came {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Frame `number` of a stream: its length and every byte follow from the number.
fn numbered(from: [u8; 6], to: [u8; 6], number: u32) -> Vec<u8> {
    let len = 60 + (number as usize * 97) % 1455;
    let mut frame = [&to[..], &from, &[0x88, 0xb5], &number.to_be_bytes()].concat();
    frame.resize(len, number as u8);
    frame
}

/// Has both stations send each other frames until it is enough, and checks every one that arrives: none may be missing.
fn exchange(one: &mut Station, two: &mut Station, enough: &AtomicBool) -> Result<()> {
    let (first, second) = (one.address, two.address);
    let mut last = (Instant::now(), (0, 0));
    let mut is_over = false;
    while !is_over || (two.received, one.received) != (one.sent, two.sent) {
        while !is_over && one.sent - two.received < WINDOW && one.send(second)? {}
        while !is_over && two.sent - one.received < WINDOW && two.send(first)? {}
        is_over |= enough.load(Relaxed);
        one.guest.flush();
        two.guest.flush();
        one.guest.driver().reclaim()?;
        two.guest.driver().reclaim()?;
        one.receive(second)?;
        two.receive(first)?;
        let now = (one.received, two.received);
        if now != last.1 {
            last = (Instant::now(), now);
        }
        ensure!(
            last.0.elapsed() < LIMIT,
            "{} of {} and {} of {} frames came, and for {LIMIT:?} none",
            two.received,
            one.sent,
            one.received,
            two.sent
        );
    }
    Ok(())
}

/// Does something while two stations talk, of whose frames none is lost.
fn under_load<R>(
    one: &mut Station,
    two: &mut Station,
    act: impl FnOnce() -> Result<R>,
) -> Result<R> {
    let enough = AtomicBool::new(false);
    thread::scope(|scope| {
        let load = scope.spawn(|| exchange(one, two, &enough));
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
    let reloadable = Reloadable::start(TWO)?;
    let (mut one, mut two) = (reloadable.station(1)?, reloadable.station(2)?);
    under_load(&mut one, &mut two, || {
        for round in 0..10 {
            reloadable.expect(&[TWO, THIRD].concat(), &["+ port vm3 (vhost-user)"])?;
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
            reloadable.expect(TWO, &["- port vm3 (vhost-user)", "- vm3.police"])?;
            ensure!(!reloadable.switch.path("vm3.sock").exists(), "its socket is still there");
        }
        Ok(())
    })?;
    let Reloadable { switch, .. } = reloadable;
    ensure!(connections(&switch, "vm1") == 1 && connections(&switch, "vm2") == 1);
    ensure!(connections(&switch, "vm3") >= 10);
    println!("{} and {} frames, while vm3 came and went 10 times", one.sent, two.sent);
    drop((one, two));
    switch.stop()?;
    Ok(())
}

#[test]
fn what_lies_between_a_guest_and_the_bridge_changes_and_the_guest_stays() -> Result<()> {
    let reloadable = Reloadable::start(TWO)?;
    let (mut one, mut two) = (reloadable.station(1)?, reloadable.station(2)?);
    ensure!(one.reaches(&mut two, LIMIT)?);
    // What vm2 may get: nothing, everything, and all as before.
    let with = |program: &str| format!("{TWO}filter-to = \"{program}\"\n");
    reloadable.expect(
        &with("1,6 0 0 0"),
        &["+ vm2.filter", "- link vm2.tx -> bridge.vm2", "- link bridge.vm2 -> vm2.rx"],
    )?;
    // What came before.
    while two.guest.driver().receive(|_| ())?.is_some() {}
    ensure!(!one.reaches(&mut two, ENOUGH)?, "the filter lets it pass");
    reloadable.expect(&with("1,6 0 0 1"), &["~ vm2.filter"])?;
    ensure!(one.reaches(&mut two, LIMIT)? && two.reaches(&mut one, LIMIT)?);
    reloadable.expect(
        TWO,
        &["- vm2.filter", "+ link vm2.tx -> bridge.vm2", "+ link bridge.vm2 -> vm2.rx"],
    )?;
    ensure!(one.reaches(&mut two, LIMIT)? && two.reaches(&mut one, LIMIT)?);
    // Into different VLANs, and into the same again.
    let vlans = |first, second| {
        TWO.replace("vm1.sock\"", &format!("vm1.sock\"\nvlan = {first}"))
            .replace("vm2.sock\"", &format!("vm2.sock\"\nvlan = {second}"))
    };
    reloadable.reload(&vlans(10, 20), &[])?;
    while two.guest.driver().receive(|_| ())?.is_some() {}
    ensure!(!one.reaches(&mut two, ENOUGH)?, "they are in different VLANs");
    reloadable.expect(&vlans(20, 20), &["~ bridge: the VLANs of vm1"])?;
    ensure!(one.reaches(&mut two, LIMIT)? && two.reaches(&mut one, LIMIT)?);
    let Reloadable { switch, .. } = reloadable;
    ensure!(connections(&switch, "vm1") == 1 && connections(&switch, "vm2") == 1);
    drop((one, two));
    switch.stop()?;
    Ok(())
}

#[test]
fn what_cannot_be_done_changes_nothing_and_says_why() -> Result<()> {
    let reloadable = Reloadable::start(TWO)?;
    let (mut one, mut two) = (reloadable.station(1)?, reloadable.station(2)?);
    let file = reloadable.file.display().to_string();
    fs::write(reloadable.switch.path("no-socket"), "")?;
    under_load(&mut one, &mut two, || {
        let bad = TWO.replace("path = \"vm2.sock\"", "pth = \"vm2.sock\"\nrate-to = \"fast\"");
        for (text, says) in [
            (bad.as_str(), vec![format!("{file}:7:1"), format!("{file}:8:"), "`path`".to_owned()]),
            ("workers = 2\n", vec!["`workers` cannot be changed".to_owned()]),
            // vm3 could be opened, and the fourth cannot.
            (
                "[port.vm4]\ntype = \"vhost-user\"\npath = \"no-socket\"\n",
                vec!["nothing was changed: port `vm4`".to_owned(), "not a socket".to_owned()],
            ),
        ] {
            let text = match text.starts_with('\n') {
                true => text.to_owned(),
                false if text.starts_with('[') => [TWO, THIRD, text].concat(),
                false => [text, TWO].concat(),
            };
            let (status, printed) = reloadable.reload(&text, &[])?;
            ensure!(status == 1, "status {status}: {printed}");
            for says in says {
                ensure!(printed.contains(&says), "no {says:?} in {printed}");
            }
            ensure!(!reloadable.switch.path("vm3.sock").exists(), "vm3 was opened");
        }
        // A dry run says what there is to do, and does nothing.
        let (status, printed) = reloadable.reload(&[TWO, THIRD].concat(), &["--dry-run"])?;
        ensure!(status == 0 && printed == "+ port vm3 (vhost-user)\n", "{status}: {printed}");
        ensure!(!reloadable.switch.path("vm3.sock").exists(), "vm3 was opened");
        let (status, printed) = reloadable.reload(TWO, &["--dry-run"])?;
        ensure!(status == 0 && printed == "nothing would change\n", "{status}: {printed}");
        reloadable.expect(TWO, &["nothing has changed"])
    })?;
    let Reloadable { switch, .. } = reloadable;
    ensure!(connections(&switch, "vm1") == 1 && connections(&switch, "vm2") == 1);
    drop((one, two));
    fs::remove_file(switch.path("no-socket"))?;
    switch.stop()?;
    Ok(())
}

#[test]
fn a_port_that_is_made_anew_takes_its_socket_over_and_is_put_back_if_that_fails() -> Result<()> {
    let reloadable = Reloadable::start(&[TWO, THIRD].concat())?;
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
        drop(three);
        three = reloadable.station(3)?;
        reloadable.expect(&renamed, &["- port vm3 (vhost-user)", "+ port other (vhost-user)"])?;
        drop(three);
        reloadable.station(3)?;
        Ok(())
    })?;
    let Reloadable { switch, .. } = reloadable;
    ensure!(connections(&switch, "vm1") == 1 && connections(&switch, "vm2") == 1);
    ensure!(connections(&switch, "other") == 1);
    drop((one, two));
    fs::remove_file(switch.path("no-socket"))?;
    switch.stop()?;
    Ok(())
}

#[test]
fn a_signal_reloads_too_and_the_log_says_what_came_of_it() -> Result<()> {
    let Reloadable { switch, file, _directory, .. } = Reloadable::start(TWO)?;
    let process = i32::try_from(switch.pid()).ok().and_then(Pid::from_raw).context("a process")?;
    fs::write(&file, [TWO, THIRD].concat())?;
    kill_process(process, Signal::HUP)?;
    switch.wait_for_log("reloaded: + port vm3 (vhost-user)", LIMIT)?;
    ensure!(switch.path("vm3.sock").exists(), "vm3 is not there");
    fs::write(&file, "nonsense = 1")?;
    kill_process(process, Signal::HUP)?;
    switch.wait_for_log("not reloaded: ", LIMIT)?;
    ensure!(switch.path("vm3.sock").exists(), "vm3 is there no more");
    switch.stop()?;
    Ok(())
}

#[test]
fn a_switch_without_a_file_has_nothing_to_read_again() -> Result<()> {
    let switch = Switch::start_with(&["--control", "control.sock"], &["vm1=vhost-user:vm1.sock"])?;
    let control = switch.path("control.sock").display().to_string();
    let output = ringway(&[], &["reload", "--control", &control])?;
    let printed = String::from_utf8(output.bytes)?;
    ensure!(output.status == 1 && printed.contains("started without a file"), "{printed}");
    switch.stop()?;
    Ok(())
}
