//! vhost-net ports, inside of a guest: its kernel has vhost-net, whatever that of the host has.

use std::net::IpAddr;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ringway_tests::*;
use testbed::{Guest, Image, Job, Shell, traffic};

/// What takes a moment, in an emulated guest.
const LIMIT: Duration = Duration::from_secs(60);
/// Bytes of one stream: some hundred frames, if they are large ones.
const STREAM: u64 = 20_000_000;
/// How long each measurement takes, in seconds.
const SECONDS: u32 = 2;
/// How often two ports that are compared take turns.
const TURNS: usize = 3;
/// How long the idle port is watched, and what the guest's kernel may count meanwhile: news of IPv6, and a tick of its
/// clock.
const IDLE_TIME: Duration = Duration::from_secs(4);
const IDLE_LIMIT: Duration = Duration::from_millis(120);

/// A guest with the switch in it, and a kernel with vhost-net. Two processors: one for the switch, and one
/// for the kernel's thread.
fn nested() -> Result<Guest> {
    nested_with(2)
}

/// The same with so many processors.
fn nested_with(processors: u32) -> Result<Guest> {
    let tap_guest = Path::new(env!("CARGO_BIN_EXE_tap-guest"));
    let image = Image::with(&["vhost_net"], &[binary()?, tap_guest])?;
    // Emulated, `rep movsb` takes several times as long as any other way to copy. QEMU says all the same that its
    // processors are good at it, and the kernel and the switch would believe that.
    let guest =
        Guest::builder(&image, "nested").cpu("max,-erms").processors(processors).memory_mib(768);
    let guest = guest.boot()?;
    // A kernel that is slow would segment by itself: two segments are all that it leaves undone then.
    guest.run(
        "set -e
        test -c /dev/vhost-net
        mkdir -p /var && ln -s /run /var/run
        ip netns add far
        ip netns add vm
        for host in '' 'ip netns exec far' 'ip netns exec vm'; do
            $host sh -c 'echo 8 > /proc/sys/net/ipv4/tcp_min_tso_segs'
        done",
    )?;
    Ok(guest)
}

/// A network namespace of the guest's: another host, as far as the first one knows.
struct Namespace<'g> {
    guest: &'g Guest,
    name: &'static str,
}

/// The one behind a tap port.
fn far(guest: &Guest) -> Namespace<'_> {
    Namespace { guest, name: "far" }
}

/// The one of an embedded guest, if it carries frames.
fn vm(guest: &Guest) -> Namespace<'_> {
    Namespace { guest, name: "vm" }
}

impl Shell for Namespace<'_> {
    fn name(&self) -> &str {
        self.name
    }

    fn start(&self, script: &str) -> Result<Job> {
        ensure!(!script.contains('\''), "quotes in {script}");
        self.guest.start(&format!("exec ip netns exec {} sh -c '{script}'", self.name))
    }
}

/// An embedded guest on the switch's socket, whose protocols are the kernel's: host number 3, on `vm0`.
fn embedded(guest: &Guest) -> Result<Job> {
    let job = vm(guest).start("echo $$ > /run/tap-guest.pid; exec tap-guest /run/vm.sock vm0")?;
    job.wait_for("carries vm0", LIMIT)?;
    // What fits one of its transmit buffers.
    guest.run(&format!(
        "ip -n vm link set vm0 gso_max_size 16000 && {}",
        address("ip -n vm", 3, "vm0")
    ))?;
    Ok(job)
}

/// A switch in the guest, between two hosts: the guest itself, on `rw0`, the interface of the port `near`, and
/// [`far`], on that of a tap port. Host number 1 is near, 2 is far. What it logs is what the job prints.
fn two_hosts(guest: &Guest, options: &str, near: &str) -> Result<Job> {
    let job = guest.start(&format!(
        "echo $$ > /run/ringway.pid; exec ringway run --log info {options} --port near={near} \
         --port far=tap:rw1 --port vm=vhost-user:/run/vm.sock"
    ))?;
    job.wait_for("ready", LIMIT)?;
    guest.run(&format!("ip link set rw1 netns far && {}", address("ip", 1, "rw0")))?;
    guest.run(&address("ip -n far", 2, "rw1"))?;
    Ok(job)
}

/// How host number `n` gets its addresses.
fn address(ip: &str, n: u8, interface: &str) -> String {
    let (v4, v6) = (v4(n), v6(n));
    format!(
        "{ip} addr add {v4}/24 dev {interface} && {ip} addr add {v6}/64 dev {interface} nodad && \
         {ip} link set {interface} up"
    )
}

/// Ends it as a service manager does, and returns its log.
fn stop(guest: &Guest, job: Job) -> Result<String> {
    guest.run("kill -TERM $(cat /run/ringway.pid)")?;
    let output = job.wait(LIMIT)?;
    ensure!(output.success(), "the switch ended with {}:\n{}", output.status, output.text());
    let left = guest.run("ip -brief link; ip -n far -brief link")?;
    ensure!(!left.contains("rw"), "it left its interfaces behind: {left}");
    Ok(output.text())
}

/// Waits until the job has said it so often.
fn times(job: &Job, says: &str, number: usize) -> Result<()> {
    let found = |text: &str| (text.matches(says).count() == number).then_some(());
    job.wait_until(&format!("{number} times {says:?}"), LIMIT, found)
}

/// How many threads vhost-net has in the guest's kernel: one for each queue of each port.
fn vhost_threads(guest: &Guest) -> Result<usize> {
    // From Linux 6.4 on they are threads of the switch's.
    let text = guest.run("cat /proc/[0-9]*/task/[0-9]*/comm")?;
    Ok(text.lines().filter(|name| name.starts_with("vhost-")).count())
}

/// Bytes and frames of `rw0`: those that came to the host, and those that it sent.
fn statistics(guest: &Guest) -> Result<[u64; 4]> {
    let files = "rx_bytes rx_packets tx_bytes tx_packets";
    let text = guest.run(&format!("cd /sys/class/net/rw0/statistics && cat {files}"))?;
    let numbers = text.lines().map(str::parse).collect::<Result<Vec<u64>, _>>()?;
    numbers.try_into().ok().context(text)
}

/// The mean frame of a stream from another host to the one that is near, and of one back, in bytes.
fn mean_sizes(guest: &Guest, other: &dyn Shell, addresses: [IpAddr; 2]) -> Result<[u64; 2]> {
    let [near, far] = addresses;
    let start = statistics(guest)?;
    traffic::tcp_stream(other, guest, (near, 9).into(), STREAM)?;
    let middle = statistics(guest)?;
    traffic::tcp_stream(guest, other, (far, 9).into(), STREAM)?;
    let end = statistics(guest)?;
    let [bytes, frames] = [0, 1].map(|index| middle[index] - start[index]);
    let [bytes_back, frames_back] = [2, 3].map(|index| end[index] - middle[index]);
    Ok([bytes / frames.max(1), bytes_back / frames_back.max(1)])
}

#[test]
fn a_kernel_with_vhost_net() -> Result<()> {
    let guest = nested()?;
    let job = two_hosts(&guest, "", "vhost-net:rw0,require=on")?;
    ensure!(vhost_threads(&guest)? == 1, "who moves the frames?");

    // An embedded guest asks for the host, which answers.
    let asked =
        "exec ringway vapp client /run/vm.sock --arp=10.0.0.1 --count 50 --rate 100 --verify";
    let text = guest.run_within(asked, LIMIT)?;
    println!("{text}");
    ensure!(text.contains("50 frames sent, 50 came back, 0 lost, 0 damaged"), "{text}");

    for n in [1, 2] {
        let from: &dyn Shell = if n == 1 { &far(&guest) } else { &guest };
        ping_all(from, &v4(n).to_string(), 5)?;
        ping_all(from, &v6(n).to_string(), 5)?;
    }
    traffic::udp_sweep(&guest, &far(&guest), (v4(2), 7).into(), 1..=1472)?;
    // Both ends leave segmentation to whoever is last: frames far larger than the MTU cross the rings.
    let tap_guest = embedded(&guest)?;
    for (other, n) in [(far(&guest), 2), (vm(&guest), 3)] {
        for addresses in [[v4(1), v4(n)], [v6(1), v6(n)]] {
            let [to, from] = mean_sizes(&guest, &other, addresses)?;
            println!("{}: mean frame: {to} bytes to the host, {from} from it", other.name);
            ensure!(to > 3000 && from > 3000, "offloads do not pass");
        }
    }
    ping_all(&vm(&guest), &v4(1).to_string(), 5)?;
    ping_all(&vm(&guest), &v6(1).to_string(), 5)?;
    guest.run("kill $(cat /run/tap-guest.pid)")?;
    tap_guest.wait(LIMIT)?;

    // Somebody deletes the interface, and makes one of that name again.
    guest.run("ip link delete rw0")?;
    job.wait_for("the interface was deleted", LIMIT)?;
    guest
        .run(&format!("ip tuntap add dev rw0 mode tap vnet_hdr && {}", address("ip", 1, "rw0")))?;
    job.wait_for("attached to the interface again", LIMIT)?;
    ping_all(&guest, &v4(2).to_string(), 5)?;
    ensure!(vhost_threads(&guest)? == 1, "the first one is left behind, or there is none");
    guest.run("ip link delete rw0")?;

    println!("{}", stop(&guest, job)?);
    ensure!(vhost_threads(&guest)? == 0, "it is left behind");
    Ok(())
}

/// Somebody overwrites the descriptors, and the kernel finds them broken.
#[test]
fn a_ring_that_the_kernel_does_not_go_on_with() -> Result<()> {
    let guest = nested()?;
    guest.run("ip tuntap add dev rw0 mode tap vnet_hdr")?;
    let job = two_hosts(&guest, "", "vhost-net:rw0,require=on")?;
    ping_all(&guest, &v4(2).to_string(), 3)?;
    // The first thing in that memory are those of the first receive ring: 256 of 16 bytes. What follows, the rings themselves, stays as it
    // is, or the switch would find it broken before the kernel does.
    let overwrite = "pid=$(cat /run/ringway.pid)
        at=$(grep -m 1 memfd:vhost-net /proc/$pid/maps | cut -d - -f 1)
        head -c 4096 /dev/zero | tr '\\0' '\\377' > /tmp/ones
        busybox dd if=/tmp/ones of=/proc/$pid/mem bs=4096 seek=$((0x$at / 4096)) conv=notrunc";
    for number in 1..=2 {
        guest.run(overwrite)?;
        // Something to be received.
        guest.output(&format!("busybox ping -c 1 -W 1 {}", v4(2)))?;
        let fault = "the port is down: the kernel's vhost-net found an error in receive ring 0";
        times(&job, fault, number)?;
        times(&job, "attached to the interface again", number)?;
        ping_all(&guest, &v4(2).to_string(), 3)?;
        ensure!(vhost_threads(&guest)? == 1, "the first one is left behind, or there is none");
    }
    let text = job.text();
    for says in ["the port is down: ", "attached to the interface again"] {
        ensure!(text.matches(says).count() == 2, "not twice: {says}\n{text}");
    }
    guest.run("ip link delete rw0")?;
    println!("{}", stop(&guest, job)?);
    Ok(())
}

/// A guest is attached, and the interface is up.
#[test]
fn an_idle_port_takes_no_processor_time() -> Result<()> {
    let guest = nested()?;
    let job = two_hosts(&guest, "", "vhost-net:rw0,require=on")?;
    let tap_guest = embedded(&guest)?;
    ping_all(&vm(&guest), &v4(1).to_string(), 3)?;
    let ticks = || -> Result<u32> {
        // Those of the switch, and of the kernel's thread where that is none of the switch's.
        let text = guest.run(
            "cat /proc/$(cat /run/ringway.pid)/stat; grep -l ^vhost- /proc/[0-9]*/comm | \
             sed s/comm/stat/ | xargs -r cat",
        )?;
        let ticks = text.lines().map(|line| -> Result<u32> {
            // Fields are counted after the name, which may hold anything; the next one is the third.
            let (_, fields) = line.rsplit_once(')').context("no name in stat")?;
            let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse);
            Ok(ticks.collect::<Result<Vec<u32>, _>>()?.iter().sum())
        });
        ticks.sum()
    };
    let before = ticks()?;
    thread::sleep(IDLE_TIME);
    // A hundred a second, whatever the kernel's clock does.
    let used = Duration::from_millis(10) * (ticks()? - before);
    println!("idle for {IDLE_TIME:?}: {used:?} of processor time");
    ensure!(used <= IDLE_LIMIT, "the switch and vhost-net used {used:?} in {IDLE_TIME:?}");
    ping_all(&vm(&guest), &v4(1).to_string(), 3)?;
    guest.run("kill $(cat /run/tap-guest.pid)")?;
    tap_guest.wait(LIMIT)?;
    stop(&guest, job)?;
    Ok(())
}

#[test]
fn several_queues_and_workers() -> Result<()> {
    let guest = nested()?;
    // A queue for each worker, a worker without one, and a worker with two.
    for (workers, queues) in [(2, 2), (2, 1), (1, 2)] {
        let near = format!("vhost-net:rw0,require=on,queue-pairs={queues}");
        let job = two_hosts(&guest, &format!("--workers {workers}"), &near)?;
        ensure!(vhost_threads(&guest)? == queues, "a device for each queue");
        ping_all(&guest, &v4(2).to_string(), 3)?;
        mean_sizes(&guest, &far(&guest), [v4(1), v4(2)])?;
        // Several flows at once.
        let run = traffic::iperf(&guest, &far(&guest), v4(2), SECONDS, "--parallel 4")?;
        ensure!(run.bits_per_second > 0.0, "nothing arrived");
        println!("{workers} workers, {queues} queues: {:.0} Mbit/s", run.bits_per_second / 1e6);
        stop(&guest, job)?;
    }
    // There is no memory for the rings of so many, which is found when there is an interface already.
    let output = guest.output_within(
        "ulimit -v 1000000; exec ringway run --log info --port vm=vhost-user:/run/vm.sock \
         --port near=vhost-net:rw0,require=on,queue-pairs=64,persistent=on",
        LIMIT,
    )?;
    let text = output.text();
    println!("{text}");
    ensure!(output.status == 1 && text.contains("cannot make memory for the rings"), "{text}");
    ensure!(text.contains("created the interface"), "too early to leave anything behind: {text}");
    guest.run("! ip link show rw0")?;
    Ok(())
}

#[test]
fn without_the_kernels_device() -> Result<()> {
    let guest = nested()?;
    guest.run("mv /dev/vhost-net /dev/absent")?;
    let job = two_hosts(&guest, "", "vhost-net:rw0")?;
    let text = job.text();
    let line = text.lines().find(|line| line.contains("WARN") && line.contains("port=\"near\""));
    println!("{}", line.context(text.clone())?);
    for word in ["a plain tap port", "/dev/vhost-net", "modprobe vhost_net"] {
        ensure!(line.is_some_and(|line| line.contains(word)), "no word of `{word}`: {text}");
    }
    ensure!(vhost_threads(&guest)? == 0, "there is one after all");
    ping_all(&guest, &v4(2).to_string(), 3)?;
    mean_sizes(&guest, &far(&guest), [v4(1), v4(2)])?;
    stop(&guest, job)?;

    let output = guest.output_within(
        "exec ringway run --port vm=vhost-user:/run/vm.sock --port near=vhost-net:rw0,require=on",
        LIMIT,
    )?;
    let text = output.text();
    println!("{text}");
    ensure!(output.status == 1, "it ended with {}: {text}", output.status);
    for word in ["port `near`", "`rw0`", "modprobe vhost_net", "require=off"] {
        ensure!(text.contains(word), "no word of `{word}`: {text}");
    }
    guest.run("test ! -e /run/vm.sock && ! ip link show rw0")?;

    // What the device has moved goes on as a tap port when the interface comes back and the device is gone, and by the
    // device when that is there again.
    guest.run("mv /dev/absent /dev/vhost-net")?;
    let job = two_hosts(&guest, "", "vhost-net:rw0")?;
    let mut received = 0;
    for (number, [device, moved]) in (1..).zip([["vhost-net", "absent"], ["absent", "vhost-net"]]) {
        mean_sizes(&guest, &far(&guest), [v4(1), v4(2)])?;
        let [.., sent_by_host] = statistics(&guest)?;
        received += sent_by_host;
        guest.run(&format!("mv /dev/{device} /dev/{moved} && ip link delete rw0"))?;
        times(&job, "the interface was deleted", number)?;
        let address = address("ip", 1, "rw0");
        guest.run(&format!("ip tuntap add dev rw0 mode tap vnet_hdr && {address}"))?;
        times(&job, "attached to the interface again", number)?;
        ping_all(&guest, &v4(2).to_string(), 3)?;
        ensure!(vhost_threads(&guest)? == usize::from(moved == "vhost-net"), "who moves them?");
    }
    guest.run("ip link delete rw0")?;
    let text = stop(&guest, job)?;
    println!("{text}");
    ensure!(text.matches("a plain tap port").count() == 1, "it was so once");
    // It has counted on, whatever it was.
    let counted = text.lines().find_map(|line| line.split_once("near: ")?.1.split(' ').next());
    let counted: u64 = counted.context("no counters")?.parse()?;
    ensure!(counted >= received, "{counted} frames of {received} were counted");
    Ok(())
}

/// An embedded guest asks the host for its address, as fast as it answers. Returns how often in a second: small frames,
/// both ways.
fn round_trips(guest: &Guest) -> Result<f64> {
    const COUNT: u32 = 10_000;
    let start = Instant::now();
    let text = guest.run_within(
        &format!("exec ringway vapp client /run/vm.sock --arp=10.0.0.1 --count {COUNT}"),
        LIMIT,
    )?;
    ensure!(text.contains(&format!("{COUNT} came back")), "{text}");
    Ok(f64::from(COUNT) / start.elapsed().as_secs_f64())
}

/// A processor for each that has something to do: both ends of a stream, the switch and the kernel's thread. But they are emulated, each by
/// a thread, and the machine may have fewer; so the figures are only printed. What else the machine does is the same for both if they take turns.
#[test]
fn beside_a_tap_port() -> Result<()> {
    let guest = nested_with(4)?;
    let rates = |port: &str| -> Result<[f64; 3]> {
        let job = two_hosts(&guest, "", port)?;
        let stream = |options: &str| -> Result<f64> {
            let run = traffic::iperf(&far(&guest), &guest, v4(1), SECONDS, options)?;
            Ok(run.bits_per_second / 1e6)
        };
        let rates = [stream("")?, stream("--reverse")?, round_trips(&guest)? / 1e3];
        stop(&guest, job)?;
        Ok(rates)
    };
    let mut turns = [[[0.0; 3]; 2]; TURNS];
    for (number, turn) in turns.iter_mut().enumerate() {
        let mut ports = [(0, "vhost-net:rw0,require=on"), (1, "tap:rw0")];
        ports.rotate_left(number % 2);
        for (at, port) in ports {
            turn[at] = rates(port)?;
        }
    }
    let what = [
        "TCP to the host, Mbit/s",
        "TCP from the host, Mbit/s",
        "small frames there and back, thousands a second",
    ];
    for (index, what) in what.into_iter().enumerate() {
        let median = |mut values: [f64; TURNS]| {
            values.sort_by(f64::total_cmp);
            (values[TURNS / 2], values[0], values[TURNS - 1])
        };
        let [(vhost, ..), (tap, ..)] = [0, 1].map(|at| median(turns.map(|turn| turn[at][index])));
        let (ratio, least, most) = median(turns.map(|[vhost, tap]| vhost[index] / tap[index]));
        println!(
            "{what}: vhost-net {vhost:.1}, tap {tap:.1}, ratio {ratio:.2} ({least:.2}..{most:.2})"
        );
    }
    Ok(())
}
