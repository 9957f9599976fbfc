//! The virtio-net header.

use wire::checksum::{PartialChecksum, complete};
use wire::virtio::{Features as F, NetHeader};

use crate::bench::{ATTEMPTS, Bench, FAR, NEAR, PLAIN, Rig};
use crate::case::{Rule, case, hostile};
use crate::device::{BUFFER, Device, Setup, TX};
use crate::peer::QUIET;
use crate::verdict::{Check, Stop, ensure, equal, skip};

const OUTGOING: &str = "virtio 1.3, 5.1.6.2.2";
const INCOMING: &str = "virtio 1.3, 5.1.6.4.1";
const COMPLETE: &str = "virtio 1.3, 5.1.6.4.1, SHOULD";
const WRONG: &str = "virtio 1.3, 5.1.6.2.1";
const HEADER: &str = "virtio 1.3, 5.1.6";

/// What is seen of a back end whose header has another length than the driver's.
const SHIFTED: &str = "a frame came that does not begin where it should";

/// Where IPv4 begins, where TCP or UDP does, and where their payload does.
const IP: usize = 14;
const L4: usize = 34;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// An IPv4 frame whose checksum is left to the device: only that of the pseudo header is there.
fn ip_frame(protocol: u8, payload: usize) -> Vec<u8> {
    let header = if protocol == TCP { 20 } else { 8 };
    let mut frame = [&FAR.0[..], &NEAR.0, &[0x08, 0x00]].concat();
    let total = (20 + header + payload) as u16;
    frame.extend([0x45, 0]);
    frame.extend(total.to_be_bytes());
    frame.extend([0x12, 0x34, 0x40, 0, 64, protocol, 0, 0]);
    // Addresses for benchmarks (RFC 2544).
    frame.extend([198, 18, 0, 1, 198, 18, 0, 2]);
    let sum = !checksum(&frame[IP..L4], 0);
    frame[IP + 10..IP + 12].copy_from_slice(&(!sum).to_be_bytes());
    frame.extend([0x30, 0x39, 0x30, 0x3a]);
    let len = (header + payload) as u16;
    if protocol == TCP {
        frame.extend(1000u32.to_be_bytes());
        frame.extend(2000u32.to_be_bytes());
        frame.extend([0x50, 0x10, 0x20, 0, 0, 0, 0, 0]);
    } else {
        frame.extend(len.to_be_bytes());
        frame.extend([0, 0]);
    }
    let pseudo = !checksum(&frame[IP + 12..L4], u32::from(protocol) + u32::from(len));
    let at = L4 + checksum_offset(protocol);
    frame[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
    frame.extend((0..payload).map(|at| (at * 7 + at / 251) as u8));
    frame
}

fn checksum_offset(protocol: u8) -> usize {
    if protocol == TCP { 16 } else { 6 }
}

/// The Internet checksum (RFC 1071) of some bytes and what comes before.
fn checksum(bytes: &[u8], before: u32) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)));
    let mut sum = words.fold(before, |sum, word| sum + word);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Whether a TCP or UDP checksum is right.
fn is_complete(frame: &[u8]) -> bool {
    let total = usize::from(u16::from_be_bytes([frame[IP + 2], frame[IP + 3]]));
    let Some(l4) = frame.get(L4..IP + total) else { return false };
    let before = u32::from(frame[IP + 9]) + l4.len() as u32;
    checksum(&[&frame[IP + 12..L4], l4].concat(), before) == 0
}

/// The header that has a frame's checksum completed.
fn needs_checksum(protocol: u8) -> NetHeader {
    NetHeader {
        flags: NetHeader::NEEDS_CSUM,
        csum_start: L4 as u16,
        csum_offset: checksum_offset(protocol) as u16,
        ..NetHeader::default()
    }
}

/// Whether a frame is one of ours, by its addresses.
fn is_ours(frame: &[u8]) -> bool {
    frame.get(IP + 12..L4) == Some(&[198, 18, 0, 1, 198, 18, 0, 2])
}

/// A rig whose other end has these features too, as far as they are offered.
fn pair(bench: &Bench<'_>, near: F, far: F) -> Check<Rig> {
    bench.need_traffic()?;
    let mut rig = bench.rig_to(bench.device(near)?, far)?;
    rig.warm_up()?;
    rig.listen()?;
    Ok(rig)
}

fn completes(bench: &Bench<'_>, protocol: u8) -> Check {
    let mut rig = pair(bench, F::CSUM, F::NONE)?;
    let frame = ip_frame(protocol, 301);
    rig.device.transmit(0, needs_checksum(protocol).to_bytes(), &frame)?;
    let received = rig.far().expect(is_ours)?;
    equal("the flags of the received header", received.header[0], 0)?;
    ensure(is_complete(&received.frame), "the checksum was not completed")
}

/// What arrives must be whole: finished here as its header asks.
fn arrives_complete(rig: &mut Rig) -> Check {
    let mut received = rig.far().expect(is_ours)?;
    let header = NetHeader::from_bytes(&received.header);
    if header.flags & NetHeader::NEEDS_CSUM != 0 {
        let partial = PartialChecksum { start: header.csum_start, offset: header.csum_offset };
        ensure(complete(&mut received.frame, partial), "csum_start is outside of the frame")?;
    }
    ensure(is_complete(&received.frame), "the checksum is wrong")
}

/// Sends 10000 bytes of TCP to be segmented into 1000 each.
fn send_tcp(rig: &mut Rig) -> Check<Vec<u8>> {
    let frame = ip_frame(TCP, 10_000);
    let header = NetHeader {
        gso_type: NetHeader::GSO_TCPV4,
        gso_size: 1000,
        hdr_len: 54,
        ..needs_checksum(TCP)
    };
    rig.device.transmit(0, header.to_bytes(), &frame)?;
    Ok(frame[54..].to_vec())
}

/// Sends a frame on a legacy device, or to it, until it comes: whole, or not where it should begin. What is
/// sent several times may be lost until then, and only its end tells it from others.
fn legacy(rig: &mut Rig, back: bool) -> Check {
    let mut ends: Vec<Vec<u8>> = Vec::new();
    loop {
        let frame = if back { rig.frame_back(200) } else { rig.frame(200) };
        ends.push(frame[14..].to_vec());
        let is_ours = |found: &[u8]| ends.iter().any(|end| found.ends_with(end));
        let found = if back {
            rig.device.post(0, 1, BUFFER)?;
            rig.inject(PLAIN, &frame)?;
            rig.device.expect_within(is_ours, QUIET)
        } else {
            rig.listen()?;
            rig.device.transmit(0, PLAIN, &frame)?;
            rig.far().expect_within(is_ours, QUIET)
        };
        match found {
            Ok(received) => {
                // An echo may swap the addresses, which begin alike.
                let is_whole = received.frame.len() == 200 && received.frame[..2] == frame[..2];
                return ensure(is_whole, SHIFTED);
            }
            Err(_) if ends.len() < 8 => {}
            Err(stop) => return Err(stop),
        }
    }
}

/// Sends with a header that is wrong. Whether the frame is passed is the back end's choice.
fn bad_header(bench: &Bench<'_>, features: F, header: NetHeader) -> Check {
    let mut rig = pair(bench, features, F::NONE)?;
    rig.device.transmit(0, header.to_bytes(), &ip_frame(TCP, 3000))?;
    rig.device.look(TX);
    Ok(())
}

/// Sends frames of these lengths, header apart.
fn bad_frame(bench: &Bench<'_>, bytes: &[u8]) -> Check {
    let mut device = bench.device(F::NONE)?;
    let buffer = device.readable(bytes);
    device.offer(TX, &[buffer])?;
    device.look(TX);
    Ok(())
}

pub(crate) const CASES: &[Rule] = &[
    case("sets flags and gso_type to 0 when no offload is negotiated.", INCOMING, |bench| {
        let mut rig = bench.rig(F::NONE)?;
        rig.device.post(0, ATTEMPTS, BUFFER)?;
        let header = rig.delivers(200)?.header;
        equal("flags and gso_type", [header[0], header[1]], [0, 0])
    }),
    case(
        "has a header of 10 bytes without VERSION_1 and MRG_RXBUF, if it works without them.",
        "virtio 1.3, 5.1.6.1 and 6.2",
        |bench| {
            bench.need_traffic()?;
            let run = || {
                let setup = Setup { features: F::NONE, ..Setup::default() };
                let device = Device::bring_up(bench.connect()?, &setup, bench.target.limit)?;
                let mut rig = bench.rig_of(device)?;
                legacy(&mut rig, false)?;
                legacy(&mut rig, true)
            };
            match run() {
                Err(Stop::Fail(seen)) if seen != SHIFTED => {
                    Err(skip(format!("it does not work without VERSION_1: {seen}")))
                }
                other => other,
            }
        },
    ),
    case("completes a TCP checksum for a receiver without GUEST_CSUM.", COMPLETE, |bench| {
        completes(bench, TCP)
    }),
    case("completes a UDP checksum for a receiver without GUEST_CSUM.", COMPLETE, |bench| {
        completes(bench, UDP)
    }),
    case("delivers a partial checksum only in a way that can be completed.", INCOMING, |bench| {
        let mut rig = pair(bench, F::CSUM | F::GUEST_CSUM, F::GUEST_CSUM)?;
        rig.device.transmit(0, needs_checksum(UDP).to_bytes(), &ip_frame(UDP, 300))?;
        arrives_complete(&mut rig)
    }),
    case("does not use csum_start and csum_offset without NEEDS_CSUM.", OUTGOING, |bench| {
        let mut rig = bench.rig(F::CSUM)?;
        rig.listen()?;
        let frame = rig.frame(300);
        let header = NetHeader { csum_start: 34, csum_offset: 16, ..NetHeader::default() };
        rig.device.transmit(0, header.to_bytes(), &frame)?;
        rig.arrives(&frame).map(drop)
    }),
    case("ignores flags that it does not know.", OUTGOING, |bench| {
        let mut rig = bench.rig(F::NONE)?;
        rig.listen()?;
        let frame = rig.frame(300);
        let header = NetHeader { flags: 0x80, ..NetHeader::default() };
        rig.device.transmit(0, header.to_bytes(), &frame)?;
        rig.arrives(&frame).map(drop)
    }),
    case("cuts TCP into segments for a receiver without GUEST_TSO4.", INCOMING, |bench| {
        let mut rig = pair(bench, F::CSUM | F::HOST_TSO4, F::NONE)?;
        let payload = send_tcp(&mut rig)?;
        let mut found: Vec<u8> = Vec::new();
        while found.len() < payload.len() {
            let received = rig.far().expect(is_ours)?;
            equal("gso_type", received.header[1], NetHeader::GSO_NONE)?;
            ensure(received.frame.len() <= 54 + 1000, "a segment is larger than gso_size")?;
            ensure(is_complete(&received.frame), "a segment has a wrong checksum")?;
            let total = usize::from(u16::from_be_bytes([received.frame[16], received.frame[17]]));
            found.extend(received.frame.get(54..IP + total).unwrap_or_default());
        }
        ensure(found == payload, "the segments are not what was sent")
    }),
    case(
        "delivers TCP that is to be segmented, or the segments, to a receiver with GUEST_TSO4.",
        INCOMING,
        |bench| {
            let all = F::CSUM | F::HOST_TSO4 | F::GUEST_CSUM | F::GUEST_TSO4 | F::MRG_RXBUF;
            let mut rig = pair(bench, all, F::GUEST_CSUM | F::GUEST_TSO4 | F::MRG_RXBUF)?;
            let payload = send_tcp(&mut rig)?;
            let mut found: Vec<u8> = Vec::new();
            while found.len() < payload.len() {
                let received = rig.far().expect(is_ours)?;
                found.extend(received.frame.get(54..).unwrap_or_default());
            }
            ensure(found == payload, "other bytes came than were sent")
        },
    ),
    case("takes hdr_len for a hint.", OUTGOING, |bench| {
        for hdr_len in [0, 14, 0xffff] {
            let mut rig = bench.rig(F::CSUM)?;
            rig.listen()?;
            let header = NetHeader { hdr_len, ..needs_checksum(TCP) };
            rig.device.transmit(0, header.to_bytes(), &ip_frame(TCP, 300))?;
            rig.far().expect(is_ours)?;
        }
        Ok(())
    }),
    case("passes a frame on with exactly the bytes that it has.", HEADER, |bench| {
        let mut rig = bench.rig(F::NONE)?;
        rig.listen()?;
        let frame = rig.frame(777);
        rig.device.transmit(0, PLAIN, &frame)?;
        let found = rig.arrives(&frame)?.frame;
        equal("the length", found.len(), 777)?;
        ensure(found[12..] == frame[12..], "other bytes came than were sent")
    }),
    case("passes each frame once.", HEADER, |bench| {
        let mut rig = bench.rig(F::NONE)?;
        rig.listen()?;
        let frame = rig.frame(777);
        rig.device.transmit(0, PLAIN, &frame)?;
        rig.arrives(&frame)?;
        rig.far().expect_none(|found| crate::bench::same(found, &frame), QUIET)
    }),
    hostile("survives a checksum that lies outside of the frame.", WRONG, |bench| {
        for (csum_start, csum_offset) in
            [(3054, 0), (0xffff, 0xffff), (34, 0xffff), (3053, 0), (0, 0)]
        {
            let flags = NetHeader::NEEDS_CSUM;
            let header = NetHeader { flags, csum_start, csum_offset, ..NetHeader::default() };
            bad_header(bench, F::CSUM, header)?;
        }
        Ok(())
    }),
    hostile("survives every gso_type, with sizes of 0, 1 and 65535.", WRONG, |bench| {
        let features = F::CSUM | F::HOST_TSO4;
        for gso_type in [1, 2, 3, 4, 5, 6, 0x20, 0x7f, 0x81, 0x85, 0xff] {
            for gso_size in [0, 1, 0xffff] {
                bad_header(
                    bench,
                    features,
                    NetHeader { gso_type, gso_size, ..needs_checksum(TCP) },
                )?;
            }
        }
        Ok(())
    }),
    hostile("survives segmentation and checksums that were not negotiated.", WRONG, |bench| {
        let gso = NetHeader { gso_type: 1, gso_size: 1000, ..needs_checksum(TCP) };
        bad_header(bench, F::NONE, gso)?;
        bad_header(bench, F::NONE, NetHeader { flags: 0, ..gso })
    }),
    hostile(
        "survives headers alone, parts of headers, and frames of 1 and 13 bytes.",
        HEADER,
        |bench| {
            for len in [1, 11, 12, 13, 25] {
                bad_frame(bench, &vec![0; len])?;
            }
            Ok(())
        },
    ),
    hostile("survives frames of 64 KiB and more.", HEADER, |bench| {
        for len in [65535 + 12, 65536 + 12, 65550 + 13, 200_000] {
            bad_frame(bench, &vec![0; len])?;
        }
        Ok(())
    }),
    hostile("survives IPv4 and TCP headers whose lengths are wrong.", WRONG, |bench| {
        let gso = NetHeader { gso_type: 1, gso_size: 100, hdr_len: 54, ..needs_checksum(TCP) };
        for (at, value) in
            [(IP, 0x40), (IP, 0x4f), (IP + 2, 0), (IP + 2, 0xff), (L4 + 12, 0), (L4 + 12, 0xf0)]
        {
            let mut rig = pair(bench, F::CSUM | F::HOST_TSO4, F::NONE)?;
            let mut frame = ip_frame(TCP, 400);
            frame[at] = value;
            rig.device.transmit(0, gso.to_bytes(), &frame)?;
            rig.device.look(TX);
        }
        Ok(())
    }),
];
