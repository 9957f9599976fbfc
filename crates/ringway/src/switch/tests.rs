mod let_go;

use std::any::Any;
use std::fs;
use std::io::{self, IoSlice, Write};
use std::mem::MaybeUninit;
use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream as Raw;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{self as sync_mpsc, Receiver, Sender};
use std::time::Duration;

use ::vhost_user::FrontEnd;
use apps::anti_spoof::{self, AntiSpoof};
use apps::bridge::Bridge;
use apps::bucket::Limit;
use apps::filter::{self, Filter};
use apps::impair::{self, Impair};
use apps::mirror::{self, Mirror};
use apps::police::{self, Police};
use apps::storm::{self, Storm};
use engine::{App, AppId, Burst, COMMANDS, Counters, Fault, Mode, Outputs, Selection};
use guest::{Guest, Options};
use nix::sched::{CloneFlags, unshare};
use ports::tap::TapPort;
use ports::tun::Subnets;
use ports::vhost_user::VhostUserPort;
use rustix::net::sockopt::{set_socket_linger, set_socket_recv_buffer_size};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::thread::{CpuSet, sched_getaffinity};
use sys::testing::{Call, refuse};
use sys::tun::Kind;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tracing::subscriber::DefaultGuard;
use wire::ethernet::MacAddress;
use wire::virtio::NetHeader;

use super::*;
use crate::config::between::MirrorTo;
use crate::config::{
    Between, ControlSocket, PcapWrite, PortConfig, PortKind, Setup, SocketRole, Tap, Tun, VhostUser,
};
use crate::control::{Answer, Request};
use crate::links::{Link, Links};
use crate::socket::listen_at;

/// More than a thread takes to end, on the slowest machine.
const LIMIT: Duration = Duration::from_secs(20);

/// Two workers, and a port that listens.
fn config(path: &Path, cpus: Vec<usize>) -> Config {
    let kind = PortKind::VhostUser(VhostUser::new(path.to_owned()));
    Config {
        mode: Mode::Interrupt,
        workers: 2,
        cpus,
        control: ControlSocket::Off,
        ports: vec![PortConfig::new("vm", kind)],
        ..Config::default()
    }
}

/// The threads of this process that are workers'.
fn workers() -> Vec<String> {
    let threads = fs::read_dir("/proc/self/task").unwrap();
    // A thread may end while we look.
    let names =
        threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("comm")).ok());
    names.filter(|name| name.starts_with("worker")).collect()
}

#[tokio::test]
async fn a_start_that_fails_leaves_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vm.sock");
    let allowed = sched_getaffinity(None).unwrap();
    let good = (0..CpuSet::MAX_CPU).find(|cpu| allowed.is_set(*cpu)).unwrap();
    let bad = CpuSet::MAX_CPU;

    let Err(error) = Switch::start(&config(&path, vec![good, bad])).await else {
        panic!("there is no processor {bad}");
    };
    assert_eq!(
        format!("{error:#}"),
        format!(
            "cannot start worker1: cannot run on processor {bad}: there is none, or we may not \
             use it"
        )
    );
    assert!(!path.exists(), "the socket is gone");
    // A thread that was waited for is listed for another moment.
    let start = Instant::now();
    while !workers().is_empty() {
        assert!(start.elapsed() < LIMIT, "waited {LIMIT:?} for the end of {:?}", workers());
        std::thread::yield_now();
    }

    let switch = Switch::start(&config(&path, Vec::new())).await.unwrap();
    assert!(path.exists());
    assert_eq!(workers().len(), 2);
    switch.stop().await.unwrap();
    assert!(!path.exists());
}

/// A descriptor whose last close takes two limits; or until the other one is dropped.
fn slow() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // Far less than is sent, so that something is left that the other one has no room for.
    set_socket_recv_buffer_size(&listener, 4096).unwrap();
    let mut slow = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (other, _) = listener.accept().unwrap();
    slow.set_nonblocking(true).unwrap();
    while slow.write(&[0; 65536]).is_ok() {}
    slow.set_nonblocking(false).unwrap();
    set_socket_linger(&slow, Some(2 * LIMIT)).unwrap();
    (slow, other)
}

/// Sends a byte, and a descriptor with it.
fn send(socket: &Raw, descriptor: impl AsFd) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor.as_fd()];
    assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
    sendmsg(socket, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL).unwrap();
}

/// Whether the port is served within this time: the front end asks for features, and gets them.
async fn is_served(path: &Path, limit: Duration) -> bool {
    let path = path.to_owned();
    let served =
        spawn_blocking(move || FrontEnd::connect(&path, limit).unwrap().features().is_ok());
    served.await.unwrap()
}

#[tokio::test]
async fn a_port_whose_last_front_end_holds_us_up_waits_and_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let [one, two] = ["one.sock", "two.sock"].map(|name| directory.path().join(name));
    let mut config = config(&one, Vec::new());
    config.ports.extend(self::config(&two, Vec::new()).ports);
    config.ports[1].name = "other".to_owned();
    let PortKind::VhostUser(VhostUser { penalty, .. }) = &mut config.ports[0].kind else {
        panic!()
    };
    *penalty = false;
    let switch = Switch::start(&config).await.unwrap();
    let start = Instant::now();

    // The first two bytes are read, with their descriptors, of which the second has no place there; the
    // third waits in the socket. The next front end is to be turned away with one in its socket, and
    // another is never accepted.
    let (slows, others): (Vec<_>, Vec<_>) = (0..5).map(|_| slow()).unzip();
    let [hostile, refused, late] = [(); 3].map(|()| Raw::connect(&one).unwrap());
    slows[..3].iter().for_each(|slow| send(&hostile, slow));
    send(&refused, &slows[3]);
    send(&late, &slows[4]);
    drop(slows);
    assert!(is_served(&two, LIMIT).await, "the other port");
    drop((hostile, refused, late));
    assert!(is_served(&two, LIMIT).await, "the other port, afterwards");
    assert!(!is_served(&one, Duration::from_secs(1)).await, "nothing is closed yet");
    assert!(start.elapsed() < LIMIT, "nobody waited for the peer: {:?}", start.elapsed());

    drop(others);
    // What connected meanwhile gets its turn, and has gone.
    let mut served = false;
    while !served {
        assert!(start.elapsed() < 2 * LIMIT, "waited {LIMIT:?} for the port to be served");
        served = is_served(&one, Duration::from_secs(1)).await;
    }
    let stop = Instant::now();
    let (last, _other) = slow();
    let socket = Raw::connect(&one).unwrap();
    send(&socket, &last);
    drop(last);
    switch.stop().await.unwrap();
    assert!(stop.elapsed() < LIMIT, "the end waited for the peer: {:?}", stop.elapsed());
}

/// Sends frames from one guest to all until the other has got one. False when none came within the limit. What an earlier
/// call has sent does not count.
fn reaches(from: &mut Guest, to: &mut Guest, limit: Duration) -> bool {
    let start = Instant::now();
    static CALLS: AtomicU32 = AtomicU32::new(0);
    let mark = [&[0x88, 0xb5][..], &CALLS.fetch_add(1, Relaxed).to_be_bytes()].concat();
    let mut frame = [&[0xff; 6], &[0x52, 0x54, 0, 0, 0, 1], &mark[..]].concat();
    frame.resize(60, 0);
    while start.elapsed() < limit {
        from.driver().reclaim().unwrap();
        if from.driver().send(NetHeader::default(), &frame).unwrap() {
            from.flush();
        }
        let is_ours = |frame: &[u8]| frame.get(12..18) == Some(&mark);
        let came = to.driver().receive(|received| is_ours(received.frame)).unwrap();
        to.flush();
        if came == Some(true) {
            // Those that were sent meanwhile.
            while to.driver().receive(|_| ()).unwrap().is_some() {}
            to.flush();
            return true;
        }
        to.wait(Duration::from_millis(20)).unwrap();
    }
    false
}

/// Two guests at two ports, on one worker.
async fn two_guests(directory: &Path) -> (Switch, [Guest; 2]) {
    two_guests_with(directory, Between::default()).await
}

/// The same, with this between the first port and the bridge.
async fn two_guests_with(directory: &Path, between: Between) -> (Switch, [Guest; 2]) {
    let paths = ["one.sock", "two.sock"].map(|name| directory.join(name));
    let mut config = config(&paths[0], Vec::new());
    config.ports[0].between = between;
    config.ports.extend(self::config(&paths[1], Vec::new()).ports);
    config.ports[1].name = "other".to_owned();
    if let Some(MirrorTo { to, .. }) = &config.ports[0].between.mirror {
        let name = to.clone();
        let port = self::config(&directory.join(&name), Vec::new()).ports.remove(0);
        config.ports.push(PortConfig { name, ..port });
    }
    let switch = Switch::start(&config).await.unwrap();
    let connect = move || paths.map(|path| Guest::connect(&path, &Options::default()).unwrap());
    let guests = spawn_blocking(connect).await.unwrap();
    (switch, guests)
}

/// An app that runs.
fn app(switch: &Switch, name: &str) -> AppId {
    switch.observer.register.list().iter().find(|app| app.name == name).expect("it runs").id
}

/// Whether the first of two guests reaches the second, on a thread of its own.
async fn reach(mut guests: [Guest; 2], limit: Duration) -> (bool, [Guest; 2]) {
    let reach = move || {
        let [one, two] = &mut guests;
        (reaches(one, two, limit), guests)
    };
    spawn_blocking(reach).await.unwrap()
}

#[tokio::test]
async fn a_bridge_that_failed_is_started_again_and_no_guest_loses_its_connection() {
    let directory = tempfile::tempdir().unwrap();
    let (switch, guests) = two_guests(directory.path()).await;
    let (reached, guests) = reach(guests, LIMIT).await;
    assert!(reached);
    let bridge = app(&switch, "bridge");
    let start = Instant::now();
    let fail = move |worker: &mut Worker| {
        worker.with(bridge, |_: &mut Bridge, _| -> () { panic!("deliberate") })
    };
    switch.workers.on_each(fail).await.unwrap();
    // By the connections that they had all the time.
    let (reached, _guests) = reach(guests, LIMIT).await;
    assert!(reached, "not started again within {LIMIT:?}");
    assert!(start.elapsed() >= Duration::from_secs(2), "after {:?}", start.elapsed());
    assert!(dark(&switch, "bridge").await > 0, "what came meanwhile is counted");
    switch.stop().await.unwrap();
}

/// How often frames were dropped because this app had failed.
async fn dark(switch: &Switch, name: &str) -> u64 {
    let report = switch.report().await.unwrap();
    report.app(name).expect("it is there").drops.get("app_failed").copied().unwrap_or(0)
}

/// One of each, with copies for a port that nothing else leads to.
fn one_of_each(copies: &str) -> Between {
    let limit = Limit { rate: 1_000_000, burst: 1_000_000 };
    let frames = police::FrameLimit { rate: limit.rate, burst: limit.burst };
    let limits = police::Limits { frames: Some(frames), ..Default::default() };
    // All that the guest sends.
    let accept = apps::filter::compile("1,6 0 0 1").unwrap();
    let direction = filter::Direction { accept: Some(accept), allow_replies: true };
    let late = impair::Impairment { delay: 1_000_000, ..Default::default() };
    Between {
        impair: Some(impair::Settings { from_port: late, ..Default::default() }),
        anti_spoof: Some(anti_spoof::Settings {
            macs: vec![MacAddress([0x52, 0x54, 0, 0, 0, 1])],
            ..Default::default()
        }),
        storm: Some(storm::Settings { broadcast: Some(limit), multicast: None }),
        police: Some(police::Settings { from_port: limits, to_port: limits }),
        filter: Some(filter::Settings { from_port: direction.clone(), to_port: direction }),
        mirror: Some(MirrorTo {
            settings: mirror::Settings { from_port: true, to_port: true },
            to: copies.to_owned(),
        }),
    }
}

/// Has an app of a worker's panic.
type Fail = fn(&mut Worker, AppId) -> Option<()>;

/// The names of those in [`one_of_each`], and how each fails.
const FAILURES: [(&str, Fail); 6] = [
    ("vm.impair", |worker, app| worker.with(app, |_: &mut Impair, _| panic!("deliberate"))),
    ("vm.anti-spoof", |worker, app| worker.with(app, |_: &mut AntiSpoof, _| panic!("deliberate"))),
    ("vm.storm", |worker, app| worker.with(app, |_: &mut Storm, _| panic!("deliberate"))),
    ("vm.police", |worker, app| worker.with(app, |_: &mut Police, _| panic!("deliberate"))),
    ("vm.filter", |worker, app| worker.with(app, |_: &mut Filter, _| panic!("deliberate"))),
    ("vm.mirror", |worker, app| worker.with(app, |_: &mut Mirror, _| panic!("deliberate"))),
];

/// One of each lies between the first port and the bridge. Each fails once, and then the next.
#[tokio::test]
async fn what_lies_between_a_port_and_the_bridge_is_started_again_and_no_guest_loses_its_connection()
 {
    let directory = tempfile::tempdir().unwrap();
    let (switch, mut guests) = two_guests_with(directory.path(), one_of_each("copies")).await;
    for (name, fail) in FAILURES {
        let mut reached;
        (reached, guests) = reach(guests, LIMIT).await;
        assert!(reached, "before {name} has failed");
        let start = Instant::now();
        let app = app(&switch, name);
        switch.workers.on_each(move |worker| fail(worker, app)).await.unwrap();
        // By the connections that they had all the time.
        (reached, guests) = reach(guests, LIMIT).await;
        assert!(reached, "{name} was not started again within {LIMIT:?}");
        assert!(start.elapsed() >= Duration::from_secs(2), "{name} after {:?}", start.elapsed());
        assert!(dark(&switch, name).await > 0, "what came meanwhile is counted");
    }
    switch.stop().await.unwrap();
}

/// Set in a process that a test has started to run once more in it.
const CHILD: &str = "RINGWAY_TEST_CHILD";
/// More than others wait for an app that fails, beside builds and other tests; far less than looking up where it was takes.
const GAP_LIMIT: Duration = Duration::from_millis(30);

/// Two guests talk while apps of a third one's port fail on the same worker, and what is said of that has its trace.
#[tokio::test]
async fn others_do_not_wait_for_what_is_said_of_a_panic() {
    if std::env::var_os(CHILD).is_none() {
        let name = "switch::tests::others_do_not_wait_for_what_is_said_of_a_panic";
        // Something else may hold it up once.
        for attempts_left in (0..3).rev() {
            let mut child = Command::new(std::env::current_exe().unwrap());
            child.args(["--nocapture", "--exact", name]).env(CHILD, "").env("RUST_BACKTRACE", "1");
            let output = child.output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            print!("{}", String::from_utf8_lossy(&output.stdout));
            assert!(said.contains("stack backtrace:"), "{said}");
            if output.status.success() {
                break;
            }
            assert!(attempts_left > 0, "{said}");
        }
        return;
    }
    let _writer = crate::panics::write_elsewhere().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let paths = ["vm", "one", "two", "copies"].map(|name| directory.path().join(name));
    let mut config = config(&paths[0], Vec::new());
    config.workers = 1;
    config.ports[0].between = one_of_each("copies");
    for (path, name) in paths[1..].iter().zip(["one", "two", "copies"]) {
        let port = self::config(path, Vec::new()).ports.remove(0);
        config.ports.push(PortConfig { name: name.to_owned(), ..port });
    }
    let switch = Switch::start(&config).await.unwrap();

    // A frame goes as soon as the last one has come. Those that came, and the longest wait for one, in nanoseconds.
    let (came, longest, is_over) = (
        Arc::new(AtomicU32::new(0)),
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let talk = {
        let (came, longest, is_over) = (came.clone(), longest.clone(), is_over.clone());
        spawn_blocking(move || {
            let [mut one, mut two] =
                [1, 2].map(|at| Guest::connect(&paths[at], &Options::default()).unwrap());
            while !is_over.load(Relaxed) {
                let start = Instant::now();
                assert!(reaches(&mut one, &mut two, LIMIT));
                longest.fetch_max(start.elapsed().as_nanos() as u64, Relaxed);
                came.fetch_add(1, Relaxed);
            }
        })
    };
    let some_more = async || {
        let (start, before) = (Instant::now(), came.load(Relaxed));
        while came.load(Relaxed).wrapping_sub(before) < 10 {
            assert!(start.elapsed() < LIMIT, "no frames came");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let mut gaps = Vec::new();
    for (name, fail) in FAILURES {
        let app = app(&switch, name);
        some_more().await;
        longest.store(0, Relaxed);
        switch.workers.on_each(move |worker| fail(worker, app)).await.unwrap();
        some_more().await;
        gaps.push(Duration::from_nanos(longest.load(Relaxed)));
    }
    is_over.store(true, Relaxed);
    talk.await.unwrap();
    println!("the longest waits of others: {gaps:?}");
    // The first takes longest to look up: nothing is known of the program then.
    assert!(gaps[0] < GAP_LIMIT, "{gaps:?}");
    switch.stop().await.unwrap();
}

#[tokio::test]
async fn a_port_that_failed_is_started_again_and_its_guest_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    let (switch, guests) = two_guests(directory.path()).await;
    let (reached, [_lost, mut other]) = reach(guests, LIMIT).await;
    assert!(reached);
    let port = app(&switch, "vm");
    let fail = move |worker: &mut Worker| {
        worker.with(port, |_: &mut VhostUserPort, _| -> () { panic!("deliberate") })
    };
    let start = Instant::now();
    // On one worker, which is enough.
    switch.workers.on_first(fail).await.unwrap();
    let path = directory.path().join("one.sock");
    let again = move || {
        while start.elapsed() < LIMIT {
            let Ok(mut guest) = Guest::connect(&path, &Options::default()) else {
                std::thread::sleep(Duration::from_millis(20));
                continue;
            };
            return reaches(&mut guest, &mut other, LIMIT)
                && reaches(&mut other, &mut guest, LIMIT);
        }
        false
    };
    assert!(spawn_blocking(again).await.unwrap(), "not started again within {LIMIT:?}");
    assert!(start.elapsed() >= Duration::from_secs(2), "after {:?}", start.elapsed());
    switch.stop().await.unwrap();
}

#[tokio::test]
async fn a_port_that_fails_while_no_guest_is_there_is_ready_for_the_next() {
    let (log, _logs) = Log::start();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vm.sock");
    let late = directory.path().join("late.sock");
    let mut config = config(&path, Vec::new());
    let connects = VhostUser { socket: SocketRole::Connect, ..VhostUser::new(late) };
    config.ports.push(PortConfig::new("connects", PortKind::VhostUser(connects)));
    let switch = Switch::start(&config).await.unwrap();
    for (name, restarts) in [("vm", 1), ("connects", 2)] {
        let port = app(&switch, name);
        let fail = move |worker: &mut Worker| {
            worker.with(port, |_: &mut VhostUserPort, _| -> () { panic!("deliberate") })
        };
        switch.workers.on_first(fail).await.unwrap();
        log.until(&format!("the port is out of service for 2s port=\"{name}\"")).await;
        log.until(&format!("started again port=\"{name}\"")).await;
        assert_eq!(log.text().matches("started again").count(), restarts);
    }
    let connect = move || Guest::connect(&path, &Options::default()).map(drop);
    spawn_blocking(connect).await.unwrap().unwrap();
    assert!(!log.text().contains("the port has failed"), "{}", log.text());
    switch.stop().await.unwrap();
}

#[tokio::test]
async fn a_port_that_cannot_be_started_again_because_its_worker_has_died_says_so_and_ends() {
    let (log, _logs) = Log::start();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vm.sock");
    let switch = Switch::start(&config(&path, Vec::new())).await.unwrap();
    let port = app(&switch, "vm");
    let fail = move |worker: &mut Worker| {
        worker.with(port, |_: &mut VhostUserPort, _| -> () { panic!("deliberate") })
    };
    switch.workers.on_first(fail).await.unwrap();
    log.until("the port is out of service for 2s").await;
    assert!(switch.workers.on_first(|_| -> () { panic!("deliberate") }).await.is_err());
    log.until("not started again: the worker has stopped").await;
    let error = switch.stop().await.unwrap_err();
    assert_eq!(format!("{error:#}"), "the worker has stopped");
    assert!(!path.exists(), "the socket is gone");
}

#[tokio::test]
async fn a_socket_whose_file_was_removed_is_made_anew() {
    let (log, _logs) = Log::start();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vm.sock");
    let switch = Switch::start(&config(&path, Vec::new())).await.unwrap();
    fs::remove_file(&path).unwrap();
    // What is there now is somebody else's.
    fs::write(&path, "").unwrap();
    log.until("it cannot be made anew: there is a file that is not a socket").await;
    fs::remove_file(&path).unwrap();
    log.until("listening there anew").await;
    assert_eq!(log.text().matches("cannot be made anew").count(), 1, "{}", log.text());
    let again = path.clone();
    let connect = move || Guest::connect(&again, &Options::default()).unwrap();
    // Also while a guest is connected, which keeps its connection.
    let _guest = spawn_blocking(connect).await.unwrap();
    fs::remove_file(&path).unwrap();
    log.until_said("listening there anew", 2).await;
    assert!(path.exists());
    assert!(!log.text().contains("disconnected"), "{}", log.text());
    switch.stop().await.unwrap();
    assert!(!path.exists(), "the socket is gone");
}

/// What an interface of the host counted, if it is there.
fn received_by(interface: &str) -> Option<u64> {
    let path = format!("/sys/class/net/{interface}/statistics/rx_packets");
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[tokio::test]
async fn a_host_port_that_failed_is_started_again_on_its_interface() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vm.sock");
    let interface = format!("rwf{}", std::process::id());
    let mut config = config(&path, Vec::new());
    let tap = PortKind::Tap(crate::config::Tap::new(interface.clone()));
    config.ports.push(PortConfig::new("host", tap));
    let switch = Switch::start(&config).await.unwrap();
    let connect = move || Guest::connect(&path, &Options::default()).unwrap();
    let mut guest = spawn_blocking(connect).await.unwrap();
    let host = app(&switch, "host");
    let mut seen = 0;
    for failures in 0..2 {
        if failures > 0 {
            let fail = move |worker: &mut Worker| {
                worker.with(host, |_: &mut TapPort, _| -> () { panic!("deliberate") })
            };
            switch.workers.on_first(fail).await.unwrap();
            // One that a port has made goes with it.
            let start = Instant::now();
            while received_by(&interface).is_some() {
                assert!(start.elapsed() < LIMIT, "waited {LIMIT:?} for {interface} to go");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            seen = 0;
        }
        // Until a frame arrives at the host.
        let start = Instant::now();
        while received_by(&interface).is_none_or(|count| count <= seen) {
            assert!(start.elapsed() < LIMIT, "waited {LIMIT:?} for a frame, {failures} failures");
            let send = move || {
                let frame = [vec![0xff; 6], vec![0x52; 6], vec![0; 48]].concat();
                guest.driver().reclaim().unwrap();
                guest.driver().send(NetHeader::default(), &frame).unwrap();
                guest.flush();
                guest
            };
            guest = spawn_blocking(send).await.unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        seen = received_by(&interface).unwrap();
    }
    assert!(seen > 0);
    switch.stop().await.unwrap();
    assert_eq!(received_by(&interface), None);
}

/// What was logged on this thread, on which all of control runs.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// Begins, until the guard is dropped.
    fn start() -> (Self, DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone());
        (log, tracing::subscriber::set_default(subscriber.finish()))
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    /// Waits until this was said.
    async fn until(&self, words: &str) {
        self.until_said(words, 1).await;
    }

    /// The same where it is to be said so often.
    async fn until_said(&self, words: &str, times: usize) {
        let start = Instant::now();
        while self.text().matches(words).count() < times {
            assert!(start.elapsed() < LIMIT, "waited {LIMIT:?} for {words:?} in:\n{}", self.text());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Has the first worker do nothing any more until what this returns is dropped.
async fn hold_first(switch: &Switch) -> Sender<()> {
    let (let_go, held) = sync_mpsc::channel();
    let (entered, is_held) = oneshot::channel();
    let hold = switch.workers.on_first(move |_| {
        let _ = entered.send(());
        // Until the other end is gone.
        let _ = held.recv();
    });
    // Begins it, and does not wait for its end.
    tokio::select! {
        _ = hold => panic!("it ended"),
        held = is_held => held.unwrap(),
    }
    let_go
}

#[tokio::test]
async fn a_switch_whose_worker_stands_still_ends_all_the_same_and_so_do_its_captures() {
    let (log, _logs) = Log::start();
    let directory = tempfile::tempdir().unwrap();
    let mut config = config(&directory.path().join("vm.sock"), Vec::new());
    let file = directory.path().join("capture.pcapng");
    let capture = PortKind::PcapWrite(PcapWrite { file: file.clone(), snaplen: 65_535 });
    config.ports.push(PortConfig::new("capture", capture));
    let switch = Switch::start(&config).await.unwrap();
    let let_go = hold_first(&switch).await;
    let start = Instant::now();
    let error = switch.stop().await.unwrap_err();
    assert!(start.elapsed() < LIMIT, "after {:?}", start.elapsed());
    let text = "a worker stands still, and was not waited for: a bug of ours";
    assert_eq!(format!("{error:#}"), text);
    let log = log.text();
    let end = format!(
        "{} has 0 frames: 0 were dropped, and 0 were not written yet when the capture had to end. It lacks its end",
        file.display()
    );
    assert!(log.contains(&end), "{log}");
    drop(let_go);
}

#[tokio::test]
async fn a_worker_that_gets_no_processor_for_a_while_is_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let switch =
        Switch::start(&config(&directory.path().join("vm.sock"), Vec::new())).await.unwrap();
    let let_go = hold_first(&switch).await;
    // Less than a worker has to be gone for to be one that stands still.
    const WHILE: Duration = Duration::from_secs(1);
    let late = std::thread::spawn(move || {
        std::thread::sleep(WHILE);
        drop(let_go);
    });
    let start = Instant::now();
    switch.stop().await.unwrap();
    assert!(start.elapsed() > WHILE / 2, "after {:?}: nobody was waited for", start.elapsed());
    late.join().unwrap();
}

/// Has a switch become what this says.
async fn reload(switch: &Switch, config: &Config) -> anyhow::Result<Vec<String>> {
    let config = config.clone();
    switch.reloader(Arc::new(move || Ok(config.clone()))).reload(false).await
}

/// A vhost-user port whose socket cannot be made, since there is a file.
fn impossible(directory: &Path) -> PortConfig {
    let path = directory.join("no-socket");
    fs::write(&path, "").unwrap();
    PortConfig::new("impossible", PortKind::VhostUser(VhostUser::new(path)))
}

/// A port that keeps its socket but not its settings is in its own way. As long as it is the others that fail, its guest does not
/// notice.
#[tokio::test]
async fn what_is_not_in_the_way_of_a_port_is_opened_before_that_lets_go_of_its_guest() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vm.sock");
    let config = config(&path, Vec::new());
    let switch = Switch::start(&config).await.unwrap();
    let connect = move || Guest::connect(&path, &Options::default()).unwrap();
    let guest = spawn_blocking(connect).await.unwrap();
    let pairs = |config: &mut Config, group: Option<&str>| {
        let PortKind::VhostUser(port) = &mut config.ports[0].kind else { panic!() };
        port.queue_pairs = 2;
        port.socket = SocketRole::Listen { mode: 0o600, group: group.map(str::to_owned) };
    };
    let mut other_fails = config.clone();
    pairs(&mut other_fails, None);
    other_fails.ports.push(impossible(directory.path()));
    let mut no_group = config.clone();
    pairs(&mut no_group, Some("no-such-group"));
    for (config, says) in [(other_fails, "port `impossible`"), (no_group, "there is no group")] {
        let error = format!("{:#}", reload(&switch, &config).await.unwrap_err());
        assert!(error.starts_with("nothing was changed: ") && error.contains(says), "{error}");
        let report = switch.report().await.unwrap();
        assert!(report.ports[0].guest.is_some(), "its guest was let go of");
    }
    let mut good = config;
    pairs(&mut good, None);
    assert_eq!(reload(&switch, &good).await.unwrap(), ["~ port vm (vhost-user): made anew"]);
    drop(guest);
    switch.stop().await.unwrap();
}

#[tokio::test]
async fn a_port_that_is_put_back_has_its_socket_and_its_settings_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vm.sock");
    let config = config(&path, Vec::new());
    let switch = Switch::start(&config).await.unwrap();
    let connect = async || {
        let path = path.clone();
        let connect = move || {
            let mut guest = Guest::connect(&path, &Options::default()).unwrap();
            let pairs = guest.front_end().queue_pairs().unwrap();
            (guest, pairs)
        };
        spawn_blocking(connect).await.unwrap()
    };
    let (mut guest, before) = connect().await;
    // Its new one needs the socket, and so does a second one, which cannot have it then.
    let mut bad = config.clone();
    let mut pairs = VhostUser::new(path.clone());
    pairs.queue_pairs = 2;
    bad.ports[0].kind = PortKind::VhostUser(pairs);
    let second = PortKind::VhostUser(VhostUser::new(path.clone()));
    bad.ports.push(PortConfig::new("second", second));
    let error = format!("{:#}", reload(&switch, &bad).await.unwrap_err());
    assert!(error.starts_with("nothing was changed: port `second`"), "{error}");
    assert!(guest.front_end().is_closed(), "it was put back, so it was let go of");
    let (_guest, after) = connect().await;
    assert_eq!(after, before);
    switch.stop().await.unwrap();
}

#[tokio::test]
async fn a_capture_that_is_put_back_goes_on_with_its_file() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = config(&directory.path().join("vm.sock"), Vec::new());
    let file = directory.path().join("capture.pcapng");
    let capture = |snaplen| {
        let capture = PcapWrite { file: file.clone(), snaplen };
        PortConfig::new("capture", PortKind::PcapWrite(capture))
    };
    config.ports.push(capture(65_535));
    let switch = Switch::start(&config).await.unwrap();
    // Its new one needs the file, and so does a second one, which cannot have it then.
    let mut bad = config.clone();
    bad.ports[1] = capture(100);
    bad.ports.push(PortConfig { name: "second".to_owned(), ..capture(100) });
    let error = format!("{:#}", reload(&switch, &bad).await.unwrap_err());
    assert!(error.starts_with("nothing was changed: port `second`"), "{error}");
    switch.stop().await.unwrap();
    // A section of each.
    let bytes = fs::read(&file).unwrap();
    let section = [0x0a, 0x0d, 0x0d, 0x0a];
    let sections = bytes.windows(4).filter(|bytes| **bytes == section).count();
    assert_eq!(sections, 2, "{} bytes", bytes.len());
}

/// What may be set of an interface, and its addresses.
async fn look_at(links: &Links, interface: &str) -> (Link, Vec<(IpAddr, u8)>) {
    let link = links.find(interface).await.unwrap().expect("it is there");
    let addresses = links.addresses(link.index).await.unwrap();
    // That comes and goes with whoever has it open.
    (Link { has_carrier: false, ..link }, addresses)
}

fn ip(arguments: &str) -> String {
    let result = std::process::Command::new("ip").args(arguments.split(' ')).output();
    let output = result.expect("this test needs iproute2");
    let problem = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {problem}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// An interface that was there before is as it was, when the switch did not start, or a reload has failed, after that was set up.
#[tokio::test]
async fn an_interface_that_was_there_is_set_back_when_its_port_never_runs() {
    unshare(CloneFlags::CLONE_NEWNET).expect("this test needs root, for a network namespace");
    // Nothing but what this asks for, if the kernel knows IPv6 at all.
    let _ = fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    let directory = tempfile::tempdir().unwrap();
    for (name, mode) in [("rwtap", "tap"), ("rwtun", "tun")] {
        ip(&format!("tuntap add dev {name} mode {mode} vnet_hdr"));
    }
    ip("link add rwbr0 type bridge");
    ip("link add rwbr1 type bridge");
    ip("link set rwtap master rwbr0 mtu 1400");
    ip("link set rwtun up");
    ip("address add 10.9.0.1/24 dev rwtun");
    let links = Links::open().unwrap();
    let look = async || (look_at(&links, "rwtap").await, look_at(&links, "rwtun").await);
    let before = look().await;
    let ((tap, _), (tun, addresses)) = &before;
    assert!(tap.mtu == 1400 && !tap.is_up && tap.master.is_some() && tun.is_up, "{before:?}");
    assert_eq!(addresses.len(), 1);

    let setup = Setup {
        mtu: Some(1300),
        mac: Some(MacAddress([0x52, 0x54, 0, 0, 0, 9])),
        up: Some(true),
        bridge: Some("rwbr1".to_owned()),
        addresses: Vec::new(),
    };
    let tap = Tap { setup, ..Tap::new("rwtap".to_owned()) };
    let subnets = Subnets { addresses: vec!["10.9.1.1/24".parse().unwrap()], gateways: Vec::new() };
    let tun = Tun { interface: "rwtun".to_owned(), subnets, mac: None, mtu: Some(1300) };
    let without = config(&directory.path().join("vm.sock"), Vec::new());
    let mut with = without.clone();
    with.ports.push(PortConfig::new("tap", PortKind::Tap(tap.clone())));
    with.ports.push(PortConfig::new("tun", PortKind::Tun(tun)));
    let mut bad = with.clone();
    bad.ports.push(impossible(directory.path()));
    let Err(error) = Switch::start(&bad).await else { panic!("it starts") };
    assert!(format!("{error:#}").starts_with("port `impossible`"), "{error:#}");
    assert_eq!(look().await, before, "after a start that failed");

    let switch = Switch::start(&without).await.unwrap();
    let error = format!("{:#}", reload(&switch, &bad).await.unwrap_err());
    assert!(error.starts_with("nothing was changed: port `impossible`"), "{error}");
    assert_eq!(look().await, before, "after a reload that failed");
    // No station has such an address, but its MTU was set before.
    let setup = Setup { mac: Some(MacAddress([1, 0, 0, 0, 0, 9])), ..tap.setup };
    bad.ports[1].kind = PortKind::Tap(Tap { setup, ..Tap::new("rwtap".to_owned()) });
    let error = format!("{:#}", reload(&switch, &bad).await.unwrap_err());
    assert!(error.contains("ip link set dev rwtap address 01:00:00:00:00:09"), "{error}");
    assert_eq!(look().await, before, "after one that could not be set up");

    // One that runs keeps what was set, also when it goes.
    assert_eq!(reload(&switch, &with).await.unwrap(), ["+ port tap (tap)", "+ port tun (tun)"]);
    reload(&switch, &without).await.unwrap();
    let ((tap, _), (_, addresses)) = look().await;
    assert_eq!((tap.mtu, tap.is_up, addresses.len()), (1300, true, 2));
    switch.stop().await.unwrap();
}

/// Below 1280 bytes of MTU the kernel takes all of them away.
#[tokio::test]
async fn ipv6_addresses_are_back_when_a_small_mtu_is_set_back_and_are_not_had_with_another_prefix()
{
    unshare(CloneFlags::CLONE_NEWNET).expect("this test needs root, for a network namespace");
    let _ = fs::write("/proc/sys/net/ipv6/conf/default/addr_gen_mode", "1");
    let directory = tempfile::tempdir().unwrap();
    for (name, mode) in [("rwtap", "tap"), ("rwtun", "tun")] {
        ip(&format!("tuntap add dev {name} mode {mode} vnet_hdr"));
        ip(&format!("link set {name} up"));
    }
    ip("address add fd00::1/64 dev rwtap nodad");
    ip("address add fd00::fe/128 dev rwtun nodad");
    let links = Links::open().unwrap();
    let before = look_at(&links, "rwtap").await;
    assert!(before.1.contains(&("fd00::1".parse().unwrap(), 64)), "{before:?}");

    let mut config = config(&directory.path().join("vm.sock"), Vec::new());
    let setup = Setup { mtu: Some(1000), ..Setup::default() };
    let tap = Tap { setup, ..Tap::new("rwtap".to_owned()) };
    config.ports.push(PortConfig::new("tap", PortKind::Tap(tap)));
    config.ports.push(impossible(directory.path()));
    let Err(error) = Switch::start(&config).await else { panic!("it starts") };
    assert!(format!("{error:#}").starts_with("port `impossible`"), "{error:#}");
    assert_eq!(look_at(&links, "rwtap").await, before);

    config.ports.truncate(1);
    let subnets = Subnets { addresses: vec!["fd00::fe/64".parse().unwrap()], gateways: Vec::new() };
    let tun = Tun { interface: "rwtun".to_owned(), subnets, mac: None, mtu: None };
    config.ports.push(PortConfig::new("tun", PortKind::Tun(tun)));
    let Err(error) = Switch::start(&config).await else { panic!("it starts") };
    let error = format!("{error:#}");
    assert!(
        error.contains("`ip addr add fd00::fe/64 dev rwtun`: it has this address with"),
        "{error}"
    );
}

/// Where frames begin four bytes later than it is taken for.
#[tokio::test]
async fn a_descriptor_with_packet_information_is_refused() {
    unshare(CloneFlags::CLONE_NEWNET).expect("this test needs root, for a network namespace");
    let directory = tempfile::tempdir().unwrap();
    let mut config = config(&directory.path().join("vm.sock"), Vec::new());
    const TAP: i32 = 0x4002;
    const NO_PI: i32 = 0x1000;
    for (name, flags, is_good) in [("rwpi", TAP, false), ("rwnopi", TAP | NO_PI, true)] {
        let queue = sys::testing::queue(name, flags).unwrap();
        // One that is not closed on exec, as those that a program is started with.
        let given = rustix::io::dup(&queue).unwrap();
        let tap = Tap { descriptors: vec![given.as_raw_fd()], ..Tap::new(String::new()) };
        config.ports.truncate(1);
        config.ports.push(PortConfig::new("host", PortKind::Tap(tap)));
        match Switch::start(&config).await {
            Ok(switch) => {
                assert!(is_good);
                switch.stop().await.unwrap();
            }
            Err(error) => {
                let error = format!("{error:#}");
                assert!(!is_good && error.contains("opened with IFF_NO_PI"), "{error}");
            }
        }
    }
}

/// They are the process's, whichever of its ports has them.
#[tokio::test]
async fn descriptors_that_a_port_was_given_are_anothers_after_a_reload() {
    unshare(CloneFlags::CLONE_NEWNET).expect("this test needs root, for a network namespace");
    let directory = tempfile::tempdir().unwrap();
    let queues = sys::tun::Request::new("rwtap", Kind::Tap, NetHeader::SIZE).open().unwrap();
    // One that is not closed on exec, as those that a program is started with.
    let given = rustix::io::dup(&queues[0]).unwrap();
    drop(queues);
    let tap = |mtu| {
        let setup = Setup { mtu: Some(mtu), ..Setup::default() };
        let descriptors = vec![given.as_raw_fd()];
        PortKind::Tap(Tap { descriptors, setup, ..Tap::new("rwtap".to_owned()) })
    };
    let mut config = config(&directory.path().join("vm.sock"), Vec::new());
    config.workers = 1;
    config.ports.push(PortConfig::new("host", tap(1400)));
    let switch = Switch::start(&config).await.unwrap();
    let links = Links::open().unwrap();
    let mtu = async || look_at(&links, "rwtap").await.0.mtu;
    assert_eq!(mtu().await, 1400);
    config.ports[1].kind = tap(1300);
    let lines = reload(&switch, &config).await.unwrap();
    assert_eq!(lines, ["~ port host (tap): made anew"]);
    assert_eq!(mtu().await, 1300);
    config.ports[1] = PortConfig::new("other", tap(1200));
    let lines = reload(&switch, &config).await.unwrap();
    assert_eq!(lines, ["- port host (tap)", "+ port other (tap)"]);
    assert_eq!(mtu().await, 1200);
    switch.stop().await.unwrap();
}

/// What is wrong with them is found while the port that is to go is still there, and works.
#[tokio::test]
async fn a_reload_that_needs_descriptors_which_are_of_no_use_takes_nothing_out() {
    unshare(CloneFlags::CLONE_NEWNET).expect("this test needs root, for a network namespace");
    let (log, _logs) = Log::start();
    let directory = tempfile::tempdir().unwrap();
    let queues = sys::tun::Request::new("rwtap", Kind::Tap, NetHeader::SIZE).open().unwrap();
    // One that is not closed on exec, as those that a program is started with.
    let given = rustix::io::dup(&queues[0]).unwrap();
    drop(queues);
    let tap = |descriptors: &[i32], mtu| {
        let setup = Setup { mtu: Some(mtu), ..Setup::default() };
        let descriptors = descriptors.to_vec();
        PortKind::Tap(Tap { descriptors, setup, ..Tap::new("rwtap".to_owned()) })
    };
    let given = given.as_raw_fd();
    let mut config = config(&directory.path().join("vm.sock"), Vec::new());
    config.workers = 1;
    config.ports.push(PortConfig::new("host", tap(&[given], 1400)));
    let switch = Switch::start(&config).await.unwrap();
    let port = app(&switch, "host");
    let refused = async |descriptors: &[i32]| {
        let mut bad = config.clone();
        bad.ports[1].kind = tap(descriptors, 1300);
        let error = format!("{:#}", reload(&switch, &bad).await.unwrap_err());
        assert_eq!(app(&switch, "host"), port, "it was made anew: {error}");
        error
    };
    const WHAT: &str = "nothing was changed: port `host`: interface `rwtap`";
    let error = refused(&[given, i32::MAX]).await;
    let why = format!("{WHAT}: descriptor {} was not inherited: ", i32::MAX);
    assert!(error.starts_with(&why), "{error}");

    // Another of its name: the port attaches to that, and the descriptor is dead for good.
    ip("link del rwtap");
    log.until("the interface was deleted").await;
    ip("tuntap add dev rwtap mode tap vnet_hdr");
    log.until("attached to the interface again").await;
    let error = refused(&[given]).await;
    let why = format!("{WHAT}: descriptor {given}: no descriptor of a tap or tun interface: ");
    assert!(error.starts_with(&why), "{error}");
    switch.stop().await.unwrap();
}

/// In the place of an app: does not come back when it is to stop, until it is let go.
struct Stubborn {
    entered: Option<oneshot::Sender<()>>,
    let_go: Receiver<()>,
    counters: Counters,
}

impl App for Stubborn {
    fn push(&mut self, _: usize, _: &mut Burst<'_>, _: &Selection, _: &mut Outputs<'_>) {}

    fn stop(&mut self) {
        if let Some(entered) = self.entered.take() {
            let _ = entered.send(());
            // Until the other end is gone.
            let _ = self.let_go.recv();
        }
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}

/// Puts this in the place of an app, on the first worker.
async fn put_on_first(switch: &Switch, name: &str, part: impl App) {
    let app = app(switch, name);
    let replaced = switch.workers.on_first(move |worker| worker.replace(app, Box::new(part))).await;
    drop(replaced.unwrap().unwrap());
}

/// Has the first worker hang when this app is taken out. Returns what says that it does, and what lets it go when it is
/// dropped.
async fn hang_when_taken_out(switch: &Switch, name: &str) -> (oneshot::Receiver<()>, Sender<()>) {
    let (let_go, held) = sync_mpsc::channel();
    let (entered, is_entered) = oneshot::channel();
    let part = Stubborn { entered: Some(entered), let_go: held, counters: Counters::default() };
    put_on_first(switch, name, part).await;
    (is_entered, let_go)
}

/// A switch with ports of these names, and its control socket, by which it is reloaded without the first of them. The first
/// worker hangs in the middle of that.
async fn hangs_in_reload(directory: &Path, names: &[&str]) -> (Switch, PathBuf, Sender<()>) {
    let port = |name: &&str| {
        let socket = VhostUser::new(directory.join(format!("{name}.sock")));
        PortConfig::new(name, PortKind::VhostUser(socket))
    };
    let mut config = config(directory, Vec::new());
    config.ports = names.iter().map(port).collect();
    let mut switch = Switch::start(&config).await.unwrap();
    let (hangs, let_go) = hang_when_taken_out(&switch, names[0]).await;
    config.ports.drain(..names.len() - 1);
    let reloader = switch.reloader(Arc::new(move || Ok(config.clone())));
    let control = directory.join("control.sock");
    switch.attend(listen_at(&control, 0o600, None).unwrap(), reloader);
    let path = control.clone();
    tokio::spawn(async move { control::ask(Some(&path), RELOAD).await });
    let hangs = tokio::time::timeout(LIMIT, hangs).await;
    hangs.unwrap_or_else(|_| panic!("waited {LIMIT:?} for the reload")).unwrap();
    (switch, control, let_go)
}

const RELOAD: Request = Request::Reload { dry_run: false };

#[tokio::test]
async fn while_a_reload_hangs_others_are_refused_at_once_and_stats_are_answered() {
    let directory = tempfile::tempdir().unwrap();
    let (switch, control, let_go) = hangs_in_reload(directory.path(), &["vm", "other"]).await;
    let ask = async |request| control::ask(Some(&control), request).await;
    // As many as are served at once.
    let others: Vec<_> = (0..8)
        .map(|_| {
            let control = control.clone();
            tokio::spawn(async move { control::ask(Some(&control), RELOAD).await })
        })
        .collect();
    let look = ask(Request::Stats).await.unwrap();
    let Answer::Error(why) = look else { panic!("{look:?}") };
    assert_eq!(why, "worker0 hangs: it has not answered within 2s");
    for other in others {
        let answer = other.await.unwrap().unwrap();
        let Answer::Error(why) = answer else { panic!("{answer:?}") };
        assert!(why.starts_with("the switch is being reloaded just now"), "{why}");
    }
    drop(let_go);
    let start = Instant::now();
    // All that there was to be done is done then.
    while !matches!(ask(RELOAD).await, Ok(Answer::Reloaded(lines)) if lines.is_empty()) {
        assert!(start.elapsed() < LIMIT, "waited {LIMIT:?} for the reload to end");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let Ok(Answer::Stats(report)) = ask(Request::Stats).await else { panic!("no report") };
    let ports: Vec<_> = report.ports.iter().map(|port| &port.name).collect();
    assert_eq!(ports, ["other"]);
    switch.stop().await.unwrap();
}

#[tokio::test]
async fn a_switch_that_is_being_changed_stops_when_that_is_done() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vm.sock");
    let switch = Switch::start(&config(&path, Vec::new())).await.unwrap();
    let changing = switch.state.clone().lock_owned().await;
    let workers = switch.workers.clone();
    let mut stop = pin!(switch.stop());
    // Longer than it would take without that: each answer comes after those it asks for.
    let others = async move {
        for _ in 0..8 {
            workers.on_each(|_| ()).await.unwrap();
        }
    };
    tokio::select! {
        biased;
        stopped = &mut stop => panic!("it did not wait: {stopped:?}"),
        () = others => {}
    }
    drop(changing);
    stop.await.unwrap();
    assert!(!path.exists(), "the socket is gone");
}

#[tokio::test]
async fn a_switch_whose_worker_hangs_when_an_app_is_to_stop_ends_all_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = config(&directory.path().join("vm.sock"), Vec::new());
    let capture = PcapWrite { file: directory.path().join("capture.pcapng"), snaplen: 65_535 };
    config.ports.push(PortConfig::new("capture", PortKind::PcapWrite(capture)));
    let switch = Switch::start(&config).await.unwrap();
    let (_, let_go) = hang_when_taken_out(&switch, "vm").await;
    let (log, _guard) = Log::start();
    let stopped = tokio::time::timeout(LIMIT, switch.stop()).await;
    let error = stopped.unwrap_or_else(|_| panic!("waited {LIMIT:?} for the end")).unwrap_err();
    let text = "a worker stands still, and was not waited for: a bug of ours";
    assert_eq!(format!("{error:#}"), text);
    let log = log.text();
    assert!(log.contains("capture.pcapng"), "nothing is said of what the capture has: {log}");
    drop(let_go);
}

#[tokio::test]
async fn whoever_has_a_command_for_a_worker_that_takes_none_waits_and_nobody_else_does() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vm.sock");
    let switch = Switch::start(&config(&path, Vec::new())).await.unwrap();
    let let_go = hold_first(&switch).await;
    // More than its queue has room for.
    let wait = |workers: Arc<Workers>| async move { workers.on_each(|_| ()).await };
    let waiting: Vec<_> =
        (0..COMMANDS + 8).map(|_| tokio::spawn(wait(switch.workers.clone()))).collect();
    for _ in 0..2 {
        let error = switch.report().await.unwrap_err();
        assert_eq!(error.to_string(), "worker0 hangs: it has not answered within 2s");
    }
    assert!(waiting.iter().all(|waiting| !waiting.is_finished()));
    assert!(is_served(&path, LIMIT).await, "control waits for the worker");
    drop(let_go);
    for waiting in waiting {
        let done = tokio::time::timeout(LIMIT, waiting).await;
        done.unwrap_or_else(|_| panic!("waited {LIMIT:?} for an answer")).unwrap().unwrap();
    }
    switch.report().await.unwrap();
    switch.stop().await.unwrap();
}

/// In the place of an app: takes no settings.
struct Refuses {
    panics: bool,
    counters: Counters,
}

impl App for Refuses {
    fn push(&mut self, _: usize, _: &mut Burst<'_>, _: &Selection, _: &mut Outputs<'_>) {}

    fn reconfigure(&mut self, _: &dyn Any) -> Result<(), Fault> {
        assert!(!self.panics, "deliberate");
        Err("not these".into())
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}

#[tokio::test]
async fn settings_that_a_worker_does_not_take_are_told_of() {
    let (log, _logs) = Log::start();
    let directory = tempfile::tempdir().unwrap();
    let mut config = config(&directory.path().join("vm.sock"), Vec::new());
    let mut limit = |rate| {
        let frames = police::FrameLimit { rate, burst: rate };
        let limits = police::Limits { frames: Some(frames), ..Default::default() };
        let police = police::Settings { from_port: limits, to_port: limits };
        config.ports[0].between.police = Some(police);
        config.clone()
    };
    let switch = Switch::start(&limit(1000)).await.unwrap();
    for (panics, rate, says) in [
        (
            false,
            2000,
            "goes by its old settings on this worker, and refuses the new ones: not these",
        ),
        (true, 3000, "a bug of ours took this down: deliberate"),
    ] {
        put_on_first(&switch, "vm.police", Refuses { panics, counters: Counters::default() }).await;
        let config = limit(rate);
        let reloader = switch.reloader(Arc::new(move || Ok(config.clone())));
        assert_eq!(reloader.reload(false).await.unwrap(), ["~ vm.police"]);
        log.until(says).await;
        let text = log.text();
        let line = text.lines().find(|line| line.contains(says)).unwrap();
        assert!(line.contains("app=\"vm.police\""), "{line}");
        assert!(panics || line.contains("worker=0"), "{line}");
        assert_eq!(
            text.lines().filter(|line| line.contains(" ERROR ")).count(),
            1 + usize::from(panics)
        );
    }
    log.until("started again").await;
    switch.stop().await.unwrap();
}

#[tokio::test]
async fn a_host_port_that_not_all_workers_can_take_is_let_go_of_and_tried_again() {
    let (log, _logs) = Log::start();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vm.sock");
    let interface = format!("rwi{}", std::process::id());
    let mut config = config(&path, Vec::new());
    let tap = crate::config::Tap { queue_pairs: 2, ..crate::config::Tap::new(interface.clone()) };
    config.ports.push(PortConfig::new("host", PortKind::Tap(tap)));
    let switch = Switch::start(&config).await.unwrap();
    assert_eq!(received_by(&interface), Some(0));
    let host = app(&switch, "host");
    let fail = move |worker: &mut Worker| {
        // From now on this worker can watch nothing more; the other one can.
        refuse(Call::Watch).unwrap();
        worker.with(host, |_: &mut TapPort, _| -> () { panic!("deliberate") })
    };
    switch.workers.on_first(fail).await.unwrap();
    log.until("the port is out of service for 2s").await;
    log.until("the port is out of service for 4s: ").await;
    // One that a port has made goes with it, if no worker has kept anything of it.
    let start = Instant::now();
    while received_by(&interface).is_some() {
        assert!(start.elapsed() < LIMIT, "waited {LIMIT:?} for {interface} to go");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    log.until("the port is out of service for 8s: ").await;
    assert!(is_served(&path, LIMIT).await, "the other port");
    switch.stop().await.unwrap();
}

#[tokio::test]
async fn a_switch_whose_worker_has_died_says_so_and_can_be_stopped() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vm.sock");
    let mut switch = Switch::start(&config(&path, Vec::new())).await.unwrap();
    // Outside of any app, where nobody catches it.
    let died = switch.workers.on_first(|_| -> () { panic!("deliberate") }).await;
    assert!(died.is_err());
    let failed = tokio::time::timeout(LIMIT, switch.failed()).await;
    failed.unwrap_or_else(|_| panic!("waited {LIMIT:?} for the switch to notice"));
    let error = switch.stop().await.unwrap_err();
    assert_eq!(format!("{error:#}"), "the worker has stopped");
    assert!(!path.exists(), "the socket is gone");
}
