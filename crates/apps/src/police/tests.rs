use proptest::prelude::*;
use wire::checksum::PartialChecksum;
use wire::ethernet::MacAddress;
use wire::virtio::{Offload, Segmentation, SegmentationKind};

use super::*;
use crate::testing::{Net, frame, host};

const MILLISECOND: u64 = 1_000_000;

fn bits(rate: u64, burst: u64) -> Limits {
    Limits { bits: Some(BitLimit { rate, burst }), frames: None }
}

fn frames(rate: u64, burst: u64) -> Limits {
    Limits { bits: None, frames: Some(FrameLimit { rate, burst }) }
}

fn net(from_port: Limits, to_port: Limits) -> Net {
    Net::new(Police::new(&Settings { from_port, to_port }).unwrap(), 2)
}

fn many(count: usize, len: usize) -> Vec<Vec<u8>> {
    (0..count).map(|number| frame(host(2), number as u8, len)).collect()
}

/// A frame of TCP that is to be cut.
fn segmented(len: usize, size: u16) -> (Vec<u8>, Offload) {
    let mut bytes = frame(host(2), 0, len);
    bytes[34 + 12] = 5 << 4;
    let segmentation =
        Segmentation { kind: SegmentationKind::Tcp4, ecn: false, size, header_hint: 54 };
    let checksum = PartialChecksum { start: 34, offset: 16 };
    (bytes, Offload { checksum: Some(checksum), segmentation: Some(segmentation) })
}

#[test]
fn without_limits_everything_passes_both_ways() {
    let mut net = net(Limits::default(), Limits::default());
    for (from, to) in [(PORT, NETWORK), (NETWORK, PORT)] {
        net.send(from, many(100, 1500));
        assert_eq!(net.received(to), many(100, 1500));
    }
}

#[test]
fn each_direction_has_its_own_limit() {
    let mut net = net(frames(1000, 3), frames(1000, 5));
    for (from, to, burst) in [(PORT, NETWORK, 3), (NETWORK, PORT, 5)] {
        net.send(from, many(10, 60));
        assert_eq!(net.received(to), many(burst, 60), "the first pass, in order");
    }
    assert_eq!(net.drops(DropReason::Policed), 7 + 5);
    net.now = MILLISECOND;
    net.send(PORT, many(10, 60));
    assert_eq!(net.received(NETWORK).len(), 1);
}

#[test]
fn bytes_count_and_what_is_shorter_may_pass_behind_what_was_too_long() {
    let mut net = net(bits(8_000_000, 1000), Limits::default());
    net.send(PORT, [frame(host(2), 1, 700), frame(host(2), 2, 700), frame(host(2), 3, 300)]);
    let passed = net.received(NETWORK);
    assert_eq!(passed, [frame(host(2), 1, 700), frame(host(2), 3, 300)]);
    // A byte a microsecond.
    net.now = 700_000 - 1;
    net.send(PORT, many(1, 700));
    assert_eq!(net.received(NETWORK).len(), 0);
    net.now += 1;
    net.send(PORT, many(1, 700));
    assert_eq!(net.received(NETWORK).len(), 1);
}

#[test]
fn both_limits_have_to_have_enough_and_neither_pays_for_the_other() {
    let limits = Limits { frames: Some(FrameLimit { rate: 1, burst: 3 }), ..bits(8, 1000) };
    let mut net = net(limits, Limits::default());
    // Too long: it takes no frame's token.
    net.send(PORT, [many(1, 900), many(1, 200), many(5, 50)].concat());
    assert_eq!(net.received(NETWORK), [many(1, 900), many(2, 50)].concat());
    // No frames: they take no bytes.
    assert_eq!(net.drops(DropReason::Policed), 1 + 3);
}

#[test]
fn a_frame_that_is_still_to_be_cut_costs_all_of_its_segments() {
    let (bytes, offload) = segmented(54 + 10 * 1000, 1000);
    let on_wire = 10 * 1054;
    for (burst, passes) in [(on_wire - 1, false), (on_wire, true)] {
        let mut net = net(bits(8, burst + 14), Limits::default());
        // Not full any more: what is larger would pass.
        net.send(PORT, many(1, 14));
        assert_eq!(net.received(NETWORK).len(), 1);
        net.station(PORT).to_send.push_back((bytes.clone(), offload));
        net.breathe();
        assert_eq!(net.received(NETWORK).len(), usize::from(passes));
    }
    let mut net = net(frames(1, 10), Limits::default());
    net.station(PORT).to_send.push_back((bytes, offload));
    net.breathe();
    net.send(PORT, many(1, 14));
    assert_eq!(net.received(NETWORK).len(), 1, "ten frames, and there were ten tokens");
}

#[test]
fn a_frame_larger_than_the_burst_is_not_lost_for_ever() {
    let mut net = net(bits(8_000_000, 1000), Limits::default());
    net.send(PORT, many(1, 5000));
    assert_eq!(net.received(NETWORK).len(), 1);
    net.now = 4 * MILLISECOND + 13_999;
    net.send(PORT, many(1, 14));
    assert_eq!(net.received(NETWORK).len(), 0, "it owes");
    net.now += 1;
    net.send(PORT, many(1, 14));
    assert_eq!(net.received(NETWORK).len(), 1);
}

/// A frame that is held comes again, and would pay again.
#[test]
fn what_is_held_pays_when_it_is_delivered() {
    let mut net = net(Limits::default(), frames(1, 6));
    net.station(PORT).room = Some(2);
    net.send(NETWORK, many(5, 100));
    assert_eq!(net.station(NETWORK).to_send.len(), 3);
    for _ in 0..10 {
        net.breathe();
    }
    net.station(PORT).room = None;
    net.breathe();
    assert_eq!(net.received(PORT), many(5, 100));
    assert_eq!(net.drops(DropReason::Policed), 0);
    // One of six is left.
    net.send(NETWORK, many(3, 100));
    assert_eq!(net.received(PORT).len(), 1);
}

#[test]
fn parts_share_their_buckets() {
    let settings = Settings { from_port: frames(1, 10), to_port: bits(8, 1000) };
    let mut police = Police::new(&settings).unwrap();
    let part = police.part();
    let settings = Settings { from_port: frames(1, 12), ..settings };
    police.set(&settings).unwrap();
    let (mut one, mut two) = (Net::new(police, 2), Net::new(part, 2));
    two.reconfigure(&settings).unwrap();
    one.send(PORT, many(8, 60));
    two.send(PORT, many(8, 60));
    assert_eq!((one.received(NETWORK).len(), two.received(NETWORK).len()), (8, 4));
    let left = |frames, bits| {
        let (frames, bits) = (("left from the port", frames), ("left to the port", bits));
        [frames, bits].map(|(name, left)| (name.to_owned(), left))
    };
    assert_eq!(one.numbers(), left(0, 8000));
    two.now = 3_000_000_000;
    assert_eq!(two.numbers(), left(3, 8000));
    two.now = 0;
    two.send(NETWORK, many(2, 300));
    one.send(NETWORK, many(2, 300));
    assert_eq!((one.received(PORT).len(), two.received(PORT).len()), (1, 2));
    one.now = 100_000_000_000;
    assert_eq!(one.numbers(), left(12, 8000 - 3 * 300 * 8 + 100 * 8));
}

#[test]
fn settings_that_let_nothing_pass_are_refused() {
    for (limits, error) in [
        (bits(0, 1), LimitError::NoRate),
        (bits(1, 0), LimitError::NoBurst),
        (bits(1, MAX_BURST_BYTES + 1), LimitError::BurstTooLarge { most: MAX_BURST_BYTES }),
        (bits(1, u64::MAX), LimitError::BurstTooLarge { most: MAX_BURST_BYTES }),
        (frames(0, 1), LimitError::NoRate),
        (frames(1, 0), LimitError::NoBurst),
        (frames(1, MAX_BURST + 1), LimitError::BurstTooLarge { most: MAX_BURST }),
    ] {
        let good = frames(1, 1);
        for settings in [
            Settings { from_port: limits, to_port: good },
            Settings { from_port: good, to_port: limits },
        ] {
            assert_eq!(Police::new(&settings).err(), Some(error));
            let mut police = Police::new(&Settings::default()).unwrap();
            assert_eq!(police.set(&settings), Err(error));
            let is_limited = police.directions.iter().any(Direction::is_limited);
            assert!(!is_limited, "half of it was set");
        }
    }
}

proptest! {
    /// Whatever comes, in bursts and with receivers that are full: what is delivered is within the limits,
    /// and each frame is delivered, dropped or still to come.
    #[test]
    fn what_is_delivered_is_within_the_limits(
        rate in 1_000u64..10_000_000_000,
        burst in 100u64..20_000,
        frame_rate in 1u64..10_000_000,
        frame_burst in 1u64..100,
        bursts in prop::collection::vec(
            (0u64..1_000_000, prop::collection::vec(14usize..1600, 0..64), prop::option::of(0usize..40)),
            1..12),
    ) {
        let limits =
            Limits { frames: Some(FrameLimit { rate: frame_rate, burst: frame_burst }), ..bits(rate, burst) };
        let mut net = net(limits, Limits::default());
        let (mut sent, mut delivered, mut bytes, mut largest) = (0, 0, 0u128, burst);
        for (gap, lens, room) in bursts {
            net.now += gap;
            net.station(NETWORK).room = room;
            sent += lens.len();
            let frames = lens.iter().map(|len| frame(MacAddress::BROADCAST, 0, *len));
            net.send(PORT, frames);
            for frame in net.received(NETWORK) {
                delivered += 1;
                bytes += frame.len() as u128;
                largest = largest.max(frame.len() as u64);
            }
            let time = u128::from(net.now);
            prop_assert!(bytes * 8 * 1_000_000_000 <= time * u128::from(rate) + u128::from(largest) * 8_000_000_000);
            prop_assert!(delivered as u128 * 1_000_000_000 <= time * u128::from(frame_rate) + u128::from(frame_burst) * 1_000_000_000);
        }
        let waiting = net.station(PORT).to_send.len();
        let dropped = net.drops(DropReason::Policed) as usize;
        prop_assert_eq!(sent, delivered + dropped + waiting);
    }
}
