//! Several queue pairs, and several workers: conversations stay in order and on the pair that they use, whatever
//! happens to the pairs.

use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use guest::{Guest, Options};
use ringway_tests::*;
use testbed::{Nic, Qemu, Shell, traffic};
use wire::checksum::{Sum, field_value};
use wire::virtio::{Features, NetHeader};

const PORTS: [&str; 2] = ["vm1=vhost-user:vm1.sock", "vm2=vhost-user:vm2.sock"];

/// Frames cross the switch within this time, on a machine that is busy with other tests.
const LIMIT: Duration = Duration::from_secs(20);

/// Frames of one conversation that are on their way at once. Those of 16 need half a ring of 128, and the other half may
/// be buffers that are not posted again yet: so no receiver is ever short of them, and nothing may be lost.
const WINDOW: u32 = 4;

/// Two guests and the conversations between them. Conversation `n` is a pair of UDP ports, numbered frames both ways.
struct Dialogue {
    guests: [Guest; 2],
    conversations: Vec<Conversation>,
    /// Frames that came by each pair of each guest.
    by_pair: [Vec<u64>; 2],
}

#[derive(Clone, Debug, Default)]
struct Conversation {
    /// Of each guest's frames.
    sent: [u32; 2],
    received: [u32; 2],
    /// The pair by which each guest sends.
    pairs: [usize; 2],
    /// The pair by which each guest received the last frame.
    came_by: [Option<usize>; 2],
}

impl Dialogue {
    fn connect(switch: &Switch, options: &Options, conversations: usize) -> Result<Dialogue> {
        let connect = |n: u8| Guest::connect(&switch.path(&format!("vm{n}.sock")), options);
        let guests = [connect(1)?, connect(2)?];
        let pairs = usize::from(options.queue_pairs);
        let conversation =
            |n: usize| Conversation { pairs: [n % pairs, (n + 1) % pairs], ..Default::default() };
        let conversations = (0..conversations).map(conversation).collect();
        Ok(Dialogue { guests, conversations, by_pair: [vec![0; pairs], vec![0; pairs]] })
    }

    /// Sends what the windows allow, up to frame `target` of each conversation, and takes what came.
    fn step(&mut self, target: u32) -> Result<()> {
        self.step_of(0..self.conversations.len(), target)
    }

    /// The same for some of the conversations.
    fn step_of(&mut self, which: Range<usize>, target: u32) -> Result<()> {
        for (guest, other) in [(0, 1), (1, 0)] {
            let numbered = self.conversations.iter_mut().enumerate();
            for (number, conversation) in numbered.skip(which.start).take(which.len()) {
                let driver = &mut self.guests[guest].drivers()[conversation.pairs[guest]];
                let sent = &mut conversation.sent[guest];
                while *sent < target && *sent - conversation.received[other] < WINDOW {
                    if !driver.send(NetHeader::default(), &datagram(guest, number as u16, *sent))? {
                        break;
                    }
                    *sent += 1;
                }
            }
            self.guests[guest].flush();
        }
        for guest in 0..2 {
            for pair in 0..self.by_pair[guest].len() {
                self.receive(guest, pair)?;
            }
        }
        Ok(())
    }

    /// Takes what came by one pair, which must be the next frame of its conversation.
    fn receive(&mut self, guest: usize, pair: usize) -> Result<()> {
        let other = 1 - guest;
        let driver = &mut self.guests[guest].drivers()[pair];
        driver.reclaim()?;
        let mut broken = Ok(());
        let conversations = &mut self.conversations;
        let mut count = 0;
        while let Some(()) = driver.receive(|received| {
            let Some(number) = conversation_of(received.frame) else { return };
            let Some(conversation) = conversations.get_mut(usize::from(number)) else { return };
            let due = conversation.received[guest];
            if received.frame != datagram(other, number, due) {
                let found = received.frame.get(42..46).map(<[u8]>::to_vec);
                broken =
                    Err(anyhow::anyhow!("conversation {number}: {due} was due, {found:?} came"));
            }
            conversation.received[guest] += 1;
            conversation.came_by[guest] = Some(pair);
            count += 1;
        })? {}
        // As a driver does that has taken everything: a conversation may be moved then. If there is more
        // already, it is taken in the next step.
        let _ = driver.enable_calls();
        self.by_pair[guest][pair] += count;
        broken
    }

    /// Has one conversation after the other go on for one frame each way, so that every ring is taken
    /// empty before the next.
    fn exchange_one_by_one(&mut self) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        for number in 0..self.conversations.len() {
            let target = self.conversations[number].sent[0] + 1;
            while self.conversations[number].received != [target; 2] {
                self.step_of(number..number + 1, target)?;
                ensure!(Instant::now() < deadline, "conversation {number} took over {LIMIT:?}");
            }
        }
        Ok(())
    }

    /// Has every conversation go on for `count` frames each way.
    fn exchange(&mut self, count: u32) -> Result<()> {
        let target = self.conversations[0].sent[0] + count;
        self.exchange_until(target, |_, _| Ok(()))
    }

    /// The same, with something done to the guests after each step.
    fn exchange_until(
        &mut self,
        target: u32,
        mut meanwhile: impl FnMut(&mut Self, u32) -> Result<()>,
    ) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        let is_done = |c: &Conversation| c.received == [target; 2];
        let mut steps = 0;
        while !self.conversations.iter().all(is_done) {
            self.step(target)?;
            meanwhile(self, steps)?;
            steps += 1;
            if Instant::now() > deadline {
                let behind = self.conversations.iter().enumerate().find(|(_, c)| !is_done(c));
                let (number, c) = behind.context("some were not done")?;
                anyhow::bail!(
                    "conversation {number}: {:?} of {target} came within {LIMIT:?}",
                    c.received
                );
            }
        }
        Ok(())
    }
}

/// Frame `count` of a conversation, as guest `from` sends it: UDP in IPv4, of a length that follows from the number.
fn datagram(from: usize, conversation: u16, count: u32) -> Vec<u8> {
    let to = 1 - from;
    let address = |guest: usize| [10, 0, 0, guest as u8 + 1];
    let port = |guest: usize| (1000 * (guest as u16 + 1) + conversation).to_be_bytes();
    let len = 4 + (count % 1400) as u16;
    let mut ip = vec![0x45, 0];
    ip.extend((28 + len).to_be_bytes());
    ip.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    ip.extend(address(from));
    ip.extend(address(to));
    let mut sum = Sum::new();
    sum.add(&ip);
    let checksum = field_value(&sum).to_be_bytes();
    ip.splice(10..12, checksum);
    let mac = |guest: usize| [0x52, 0x54, 0, 0, 0, guest as u8 + 1];
    let mut frame = [&mac(to)[..], &mac(from), &[8, 0], &ip].concat();
    frame.extend([port(from), port(to), (8 + len).to_be_bytes(), [0, 0]].concat());
    frame.extend(count.to_be_bytes());
    frame.extend((4..len).map(|at| (u32::from(at) ^ count) as u8));
    frame
}

/// Which conversation a frame belongs to, if any.
fn conversation_of(frame: &[u8]) -> Option<u16> {
    let &[high, low] = frame.get(34..36)? else { return None };
    (frame.get(12..14)? == [8, 0]).then_some(u16::from_be_bytes([high, low]) % 1000)
}

fn options(queue_pairs: u16) -> Options {
    Options { queue_pairs, ..Options::default() }
}

/// Each guest gets a conversation on the pair by which it sends its own side of it, whichever worker brings it.
#[test]
fn conversations_stay_where_each_guest_has_them() -> Result<()> {
    for workers in ["1", "2", "3"] {
        let switch = Switch::start_with(&["--workers", workers], &PORTS)?;
        let mut dialogue = Dialogue::connect(&switch, &options(4), 16)?;
        dialogue.exchange(200)?;
        for round in 0..4 {
            // Once to hear where each guest has its side, and once to follow.
            dialogue.exchange_one_by_one()?;
            dialogue.exchange_one_by_one()?;
            for (number, c) in dialogue.conversations.iter().enumerate() {
                ensure!(c.came_by == c.pairs.map(Some), "conversation {number}: {c:?}");
            }
            // And follow, when a guest has a conversation elsewhere.
            for (number, c) in dialogue.conversations.iter_mut().enumerate() {
                c.pairs[round % 2] = (c.pairs[round % 2] + 1 + number % 3) % 4;
            }
            dialogue.exchange(200)?;
        }
        let log = switch.stop()?;
        for port in ["vm1: ", "vm2: "] {
            let line = log.lines().find(|line| line.contains(port)).context("no totals")?;
            ensure!(line.contains("dropped: none"), "{line}");
        }
    }
    Ok(())
}

/// Pairs are disabled and enabled, rings stop and start again, one by one and in no order; nothing is lost or
/// overtaken on the way.
#[test]
fn pairs_come_and_go_under_traffic() -> Result<()> {
    for features in [Features::NONE, Features::RING_PACKED] {
        let options = Options { features: Options::default().features | features, ..options(4) };
        let switch = Switch::start_with(&["--workers", "2"], &PORTS)?;
        let mut dialogue = Dialogue::connect(&switch, &options, 16)?;
        dialogue.exchange(100)?;
        let mut enabled = [[true; 4]; 2];
        let done = dialogue.exchange_until(3000, |dialogue, step| {
            if step % 7 != 0 {
                return Ok(());
            }
            let (guest, pair) = ((step / 7 % 2) as usize, (step / 14 % 4) as usize);
            let is_last = enabled[guest].iter().filter(|enabled| **enabled).count() == 1;
            let enable = !enabled[guest][pair];
            if !enable && is_last {
                return Ok(());
            }
            enabled[guest][pair] = enable;
            let usable = |n: usize| (0..4).map(|i| (n + i) % 4).find(|pair| enabled[guest][*pair]);
            for (number, c) in dialogue.conversations.iter_mut().enumerate() {
                // As a driver does: first it lets go of the pair, then it says so.
                c.pairs[guest] = usable(number).context("a pair")?;
            }
            while !enable && dialogue.guests[guest].drivers()[pair].in_flight() > 0 {
                dialogue.step(0)?;
            }
            dialogue.guests[guest].enable_pair(pair as u16, enable)?;
            if !enable {
                // What the switch had delivered by then is taken, and nothing comes any more.
                dialogue.receive(guest, pair)?;
                for ring in [2 * pair as u16, 2 * pair as u16 + 1] {
                    dialogue.guests[guest].stop_ring(ring)?;
                }
                dialogue.receive(guest, pair)?;
                for ring in [2 * pair as u16 + 1, 2 * pair as u16] {
                    dialogue.guests[guest].restart_ring(ring, 128)?;
                }
            }
            Ok(())
        });
        println!("frames by pair: {:?}", dialogue.by_pair);
        let log = switch.stop()?;
        done.with_context(|| log.clone())?;
        for port in ["vm1: ", "vm2: "] {
            let line = log.lines().find(|line| line.contains(port)).context("no totals")?;
            ensure!(line.contains("dropped: none"), "{line}");
        }
    }
    Ok(())
}

/// As many pairs as there can be.
#[test]
fn all_128_pairs() -> Result<()> {
    // Several conversations may come by one pair before they are moved, and each has a window: a ring that is full for 20 ms loses what comes,
    // and to step through all pairs may take us longer, on a busy machine.
    let options = Options { ring_size: 64, ..options(128) };
    let switch = Switch::start_with(&["--workers", "2"], &PORTS)?;
    let mut dialogue = Dialogue::connect(&switch, &options, 128)?;
    dialogue.exchange(1)?;
    dialogue.exchange(100)?;
    for (number, c) in dialogue.conversations.iter().enumerate() {
        ensure!(c.came_by.iter().all(Option::is_some), "conversation {number}: {c:?}");
    }
    println!("{}", switch.stop()?);
    Ok(())
}

/// A port that is limited says so to whoever asks for more.
#[test]
fn a_port_with_fewer_pairs() -> Result<()> {
    let switch = Switch::start(&["vm1=vhost-user:vm1.sock,queue-pairs=2"])?;
    let path = switch.path("vm1.sock");
    let error = Guest::connect(&path, &options(5)).err().context("five pairs")?;
    ensure!(error.to_string().contains('4'), "{error}");
    drop(Guest::connect(&path, &options(2))?);
    switch.stop()?;
    Ok(())
}

/// A Linux guest with two processors and four pairs, under every QEMU: it uses more pairs and fewer while iperf3 runs.
#[test]
fn linux_changes_its_pairs_under_load() -> Result<()> {
    for qemu in Qemu::all()? {
        let switch = Switch::start_with(&["--workers", "2"], &PORTS)?;
        let card = |n: u8| -> Nic { nic(&switch, n).netdev("queues=4").option("mq=on") };
        let one = guest(1, card(1))?.qemu(&qemu).processors(2);
        let two = guest(2, card(2).option("packed=on"))?.qemu(&qemu).processors(2);
        let guests = boot([one, two])?;
        for (guest, n) in guests.iter().zip(1..) {
            plug_in(guest, n)?;
            guest.run("ethtool -L eth0 combined 4")?;
        }
        let [one, two] = guests;
        let check = || -> Result<()> {
            ping_all(&one, "10.0.0.2", 3)?;
            for (from, to, address) in [(&one, &two, v4(2)), (&two, &one, v4(1))] {
                let changes = from.start(
                    "for pairs in 1 4 2 3 4 1 3 2 4; do ethtool -L eth0 combined $pairs && busybox sleep 0.5 || exit; done",
                )?;
                let measured = traffic::iperf(from, to, address, 5, "--parallel 4")?;
                println!("QEMU {:?}: {measured:?}", qemu.version());
                ensure!(measured.bits_per_second > 1e6, "{measured:?}");
                let changed = changes.wait(LIMIT)?;
                ensure!(changed.success(), "{}", changed.text());
            }
            for guest in [&one, &two] {
                let text = guest.run("ethtool -S eth0")?;
                let used = |kind: &str| {
                    let is_used = |line: &&str| {
                        let line = line.trim();
                        let named = line.starts_with(kind) && line.contains("_packets: ");
                        named && !line.ends_with(": 0")
                    };
                    text.lines().filter(is_used).count()
                };
                ensure!(used("rx") >= 2 && used("tx") >= 2, "one pair does it all:\n{text}");
            }
            traffic::tcp_stream(&one, &two, (v4(2), 9).into(), 4_000_000)?;
            traffic::tcp_stream(&two, &one, (v4(1), 9).into(), 4_000_000)?;
            Ok(())
        };
        check().with_context(|| {
            format!("QEMU {:?}; the switch says:\n{}", qemu.version(), switch.log())
        })?;
        let log = switch.stop()?;
        ensure!(!log.contains("ERROR"), "{log}");
        println!("QEMU {:?}: {log}", qemu.version());
    }
    Ok(())
}
