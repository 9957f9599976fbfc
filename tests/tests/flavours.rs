//! Every way in which QEMU can present the card, and every QEMU: a guest of each flavour talks to one of the default.

use anyhow::{Context, Result, ensure};
use ringway_tests::*;
use testbed::{Nic, Qemu, Shell, traffic};

const PORTS: [&str; 2] = ["vm1=vhost-user:vm1.sock", "vm2=vhost-user:vm2.sock"];

/// Boots guest 1 with this flavour of card, under every QEMU there is, and checks traffic with guest 2 both ways.
fn passes(flavour: impl Fn(Nic) -> Nic) -> Result<()> {
    for qemu in Qemu::all()? {
        let switch = Switch::start(&PORTS)?;
        let one = guest(1, flavour(nic(&switch, 1)))?.qemu(&qemu);
        let [one, two] = boot([one, guest(2, nic(&switch, 2))?])?;
        plug_in(&one, 1)?;
        plug_in(&two, 2)?;
        let check = || {
            // Rings of another size would be reset, of which this QEMU would not tell us.
            let resized = one.output("ethtool -G eth0 rx 64 tx 64")?;
            ensure!(!resized.success(), "the guest has reset its rings");
            ping_all(&one, "10.0.0.2", 3)?;
            ping_all(&two, "fd00::1", 3)?;
            traffic::udp_sweep(&one, &two, (v4(2), 7).into(), 1400..=1472)?;
            traffic::tcp_stream(&one, &two, (v4(2), 9).into(), 4_000_000)?;
            traffic::tcp_stream(&two, &one, (v4(1), 9).into(), 4_000_000)
        };
        check().with_context(|| {
            format!("QEMU {:?}; the switch says:\n{}", qemu.version(), switch.log())
        })?;
        println!("QEMU {:?}: {}", qemu.version(), switch.stop()?);
    }
    Ok(())
}

#[test]
fn modern() -> Result<()> {
    passes(|nic| nic.option("disable-legacy=on"))
}

#[test]
fn transitional() -> Result<()> {
    passes(|nic| nic.model("virtio-net-pci-transitional"))
}

/// A driver from before virtio 1: no VERSION_1, and a shorter header where buffers are not merged.
#[test]
fn legacy() -> Result<()> {
    passes(|nic| {
        nic.option("disable-modern=on").option("disable-legacy=off").option("mrg_rxbuf=off")
    })
}

#[test]
fn without_mergeable_buffers() -> Result<()> {
    passes(|nic| nic.option("mrg_rxbuf=off"))
}

#[test]
fn without_event_idx() -> Result<()> {
    passes(|nic| nic.option("event_idx=off"))
}

#[test]
fn without_indirect_descriptors() -> Result<()> {
    passes(|nic| nic.option("indirect_desc=off"))
}

/// The plainest ring there is, and the longest.
#[test]
fn without_any_of_them_and_long_rings() -> Result<()> {
    passes(|nic| {
        let nic = nic.option("mrg_rxbuf=off").option("event_idx=off").option("indirect_desc=off");
        nic.option("rx_queue_size=1024").option("tx_queue_size=1024")
    })
}

#[test]
fn packed() -> Result<()> {
    passes(|nic| nic.option("packed=on"))
}

#[test]
fn packed_without_any_of_them() -> Result<()> {
    passes(|nic| nic.option("packed=on,mrg_rxbuf=off,event_idx=off,indirect_desc=off"))
}

/// A receiver that takes neither partial checksums nor large frames gets complete ones, and segments, from a sender
/// that leaves both to others.
#[test]
fn a_receiver_without_offloads() -> Result<()> {
    let switch = Switch::start(&PORTS)?;
    let plain = "guest_csum=off,guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off";
    let one = guest(1, nic(&switch, 1).option(plain))?;
    let [one, two] = boot([one, guest(2, nic(&switch, 2))?])?;
    plug_in(&one, 1)?;
    plug_in(&two, 2)?;
    // GUEST_CSUM, GUEST_TSO4, GUEST_TSO6 and GUEST_ECN are bits 1, 7, 8 and 9.
    let features = one.run("cat /sys/class/net/eth0/device/features")?;
    for bit in [1, 7, 8, 9] {
        assert_eq!(features.as_bytes().get(bit), Some(&b'0'), "{features}");
    }
    // The sender leaves everything to the switch: checksums, and segments too.
    let offloads = two.run("ethtool -k eth0")?;
    assert!(offloads.contains("tx-checksumming: on"), "{offloads}");
    assert!(offloads.contains("tcp-segmentation-offload: on"), "{offloads}");

    ping_all(&two, "10.0.0.1", 3)?;
    traffic::udp_sweep(&two, &one, (v4(1), 7).into(), 1..=300)?;
    traffic::tcp_stream(&two, &one, (v4(1), 9).into(), 4_000_000)?;
    traffic::tcp_stream(&two, &one, (v6(1), 9).into(), 4_000_000)?;
    traffic::tcp_stream(&one, &two, (v4(2), 9).into(), 4_000_000)?;
    println!("{}", switch.stop()?);
    Ok(())
}

/// A sender that is offered no offload at all.
#[test]
fn a_sender_without_offloads() -> Result<()> {
    passes(|nic| nic.option("csum=off,host_tso4=off,host_tso6=off,host_ecn=off,host_ufo=off"))
}
