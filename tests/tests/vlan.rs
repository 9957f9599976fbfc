//! VLANs: a station that knows nothing of them, and the guest kernel's own on a trunk.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use guest::{Guest, Options};
use ringway_tests::*;
use testbed::{Image, Shell, traffic};
use wire::virtio::NetHeader;

/// Whatever is waited for happens within this time, on a machine that is busy with other tests.
const LIMIT: Duration = Duration::from_secs(10);
/// Bytes of one stream: some hundred frames, if they are large ones.
const STREAM: u64 = 1_500_000;
/// A type of frame that nobody answers.
const UNKNOWN: [u8; 2] = [0x88, 0xb5];

/// A frame to all, with these bytes behind the addresses and this mark behind those.
fn to_all(from: u8, tag: &[u8], mark: u8) -> Vec<u8> {
    let mut frame = [&[0xff; 6][..], &[0x52, 0x54, 0, 0, 0, from], tag, &UNKNOWN, &[mark]].concat();
    // As long as the shortest, and its tag.
    frame.resize(60 + tag.len(), 0);
    frame
}

/// An embedded guest.
struct Station(Guest);

impl Station {
    fn connect(switch: &Switch, n: u8) -> Result<Station> {
        let path = switch.path(&format!("vm{n}.sock"));
        Ok(Station(Guest::connect(&path, &Options::default())?))
    }

    fn send(&mut self, frame: &[u8]) -> Result<()> {
        let driver = self.0.driver();
        driver.reclaim()?;
        ensure!(driver.send(NetHeader::default(), frame)?, "no room for a frame");
        self.0.flush();
        Ok(())
    }

    /// The next frame that somebody's test has sent: what a guest's kernel says on its own is not meant.
    fn next(&mut self) -> Result<Vec<u8>> {
        let deadline = Instant::now() + LIMIT;
        while Instant::now() < deadline {
            let received = self.0.driver().receive(|received| received.frame.to_vec())?;
            self.0.flush();
            match received {
                Some(frame) if frame.get(12..).is_some_and(is_marked) => {
                    return Ok(frame);
                }
                Some(_) => {}
                None => _ = self.0.wait(deadline.saturating_duration_since(Instant::now()))?,
            }
        }
        anyhow::bail!("no frame came within {LIMIT:?}")
    }
}

/// Behind two tags at most.
fn is_marked(rest: &[u8]) -> bool {
    [0, 4, 8].iter().any(|tags| rest.get(*tags..).is_some_and(|rest| rest.starts_with(&UNKNOWN)))
}

/// The tag of a customer's VLAN, and one of a service's.
fn tag(kind: u16, vlan: u16) -> Vec<u8> {
    [kind.to_be_bytes(), vlan.to_be_bytes()].concat()
}

/// Who is in a VLAN hears what is said there, with the tag that belongs there, and nobody else does.
#[test]
fn each_vlan_is_a_network_of_its_own() -> Result<()> {
    let switch = Switch::start(&[
        "vm1=vhost-user:vm1.sock,vlan=10",
        "vm2=vhost-user:vm2.sock,vlan=20",
        "vm3=vhost-user:vm3.sock,trunk=10+20",
        "vm4=vhost-user:vm4.sock,vlan=10,qinq=on",
    ])?;
    let stations: Result<Vec<_>> = (1..=4).map(|n| Station::connect(&switch, n)).collect();
    let [one, two, trunk, tunnel] = &mut stations?[..] else { unreachable!("four were connected") };
    // Whoever is in one VLAN only gets the frame of that one next, though one of the other was sent before it.
    for round in 0..3u8 {
        let mark = 10 * round;
        one.send(&to_all(1, &[], mark + 1))?;
        expect(trunk, &to_all(1, &tag(0x8100, 10), mark + 1))?;
        expect(tunnel, &to_all(1, &[], mark + 1))?;
        trunk.send(&to_all(3, &tag(0x8100, 20), mark + 2))?;
        trunk.send(&to_all(3, &tag(0x8100, 10), mark + 3))?;
        expect(two, &to_all(3, &[], mark + 2))?;
        expect(one, &to_all(3, &[], mark + 3))?;
        expect(tunnel, &to_all(3, &[], mark + 3))?;
        // A customer's own tag stays inside of its VLAN.
        let inner = to_all(4, &tag(0x8100, 20), mark + 4);
        tunnel.send(&inner)?;
        expect(trunk, &[&inner[..12], &tag(0x8100, 10), &inner[12..]].concat())?;
    }
    let report = switch.stop()?;
    ensure!(report.contains("bridge: dropped: none"), "{report}");
    Ok(())
}

/// The next frame that comes to a station is this one.
fn expect(station: &mut Station, frame: &[u8]) -> Result<()> {
    let came = station.next()?;
    ensure!(came == frame, "{came:02x?} came, and not {frame:02x?}");
    Ok(())
}

/// Two stock guests: one that knows nothing of VLANs, and one whose kernel has two of them on a trunk. What the switch puts
/// in and takes out, large frames that are left to be segmented included, is what the kernel's own VLANs put in and take out.
#[test]
fn a_guests_kernel_and_the_switch_agree() -> Result<()> {
    let switch = Switch::start(&[
        "vm1=vhost-user:vm1.sock,vlan=10",
        "vm2=vhost-user:vm2.sock,trunk=10+20",
        "vm3=vhost-user:vm3.sock,vlan=20",
    ])?;
    let image = Image::with(&["8021q"], &[])?;
    let build = |n: u8| testbed::Guest::builder(&image, &format!("vm{n}")).nic(nic(&switch, n));
    let [one, two] = boot([build(1), build(2)])?;
    plug_in(&one, 1)?;
    let (v4, v6) = (v4(2), v6(2));
    two.run("ip link set eth0 up")?;
    for vlan in [10, 20] {
        let link = format!("eth0.{vlan}");
        two.run(&format!(
            "ip link add link eth0 name {link} type vlan id {vlan} && ip link set {link} up"
        ))?;
    }
    two.run(&format!("ip addr add {v4}/24 dev eth0.10 && ip addr add {v6}/64 dev eth0.10 nodad"))?;
    ping_all(&one, &v4.to_string(), 5)?;
    ping_all(&one, &v6.to_string(), 5)?;
    let there = traffic::tcp_stream(&one, &two, (v4, 9).into(), STREAM);
    there.with_context(|| format!("vm1 to vm2; the switch says:\n{}", switch.log()))?;
    let back = traffic::tcp_stream(&two, &one, (ringway_tests::v6(1), 9).into(), STREAM);
    back.with_context(|| format!("vm2 to vm1; the switch says:\n{}", switch.log()))?;
    // The same address in the other VLAN leads to nobody.
    two.run(&format!("ip addr flush dev eth0.10 && ip addr add {v4}/24 dev eth0.20"))?;
    let ping = traffic::ping(&one, &v4.to_string(), 3)?;
    ensure!(ping.received == 0, "{} of 3 pings got from one VLAN into another", ping.received);
    println!("{}", switch.stop()?);
    Ok(())
}
