use proptest::prelude::*;
use wire::checksum::PartialChecksum;
use wire::virtio::{Offload, Segmentation, SegmentationKind};

use super::store::BLOCK;
use super::*;
use crate::testing::{Net, frame, host};

const MILLISECOND: u64 = 1_000_000;

fn only(impairment: Impairment) -> Settings {
    Settings { from_port: impairment, ..Settings::default() }
}

fn net(impairment: Impairment) -> Net {
    Net::new(Impair::new(only(impairment)).unwrap(), 2)
}

fn delayed(delay: u64) -> Impairment {
    Impairment { delay, ..Impairment::default() }
}

/// Frames with their numbers in them.
fn numbered(count: usize, len: usize) -> Vec<Vec<u8>> {
    let numbered = |number: usize| {
        let mut frame = frame(host(2), 0, len);
        frame[14..16].copy_from_slice(&(number as u16).to_be_bytes());
        frame
    };
    (0..count).map(numbered).collect()
}

fn number(frame: &[u8]) -> usize {
    u16::from_be_bytes([frame[14], frame[15]]).into()
}

/// Sends frames from the port, and returns what comes out at once.
fn at_once(impairment: Impairment, frames: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let mut net = net(impairment);
    let breaths = 2 * frames.len().div_ceil(BURST) + 2;
    net.station(PORT).to_send.extend(frames.into_iter().map(|frame| (frame, Offload::NONE)));
    (0..breaths).for_each(|_| net.breathe());
    net.received(NETWORK)
}

/// The numbers of what is left of 10000 frames, from a seed.
fn survivors(seed: u64, percent: f64) -> Vec<usize> {
    let impairment = Impairment { loss: percent, ..Impairment::default() };
    let mut net = Net::new(Impair::new(Settings { seed, ..only(impairment) }).unwrap(), 2);
    net.send(PORT, numbered(10_000, 60));
    net.breathe();
    let left: Vec<usize> = net.received(NETWORK).iter().map(|frame| number(frame)).collect();
    assert_eq!(net.drops(DropReason::Impaired), 10_000 - left.len() as u64);
    left
}

#[test]
fn without_an_impairment_frames_pass_and_are_held_as_ever() {
    let to_port = delayed(MILLISECOND);
    let mut net = Net::new(Impair::new(Settings { to_port, ..Settings::default() }).unwrap(), 2);
    net.station(NETWORK).room = Some(10);
    net.send(PORT, numbered(64, 300));
    assert_eq!(net.received(NETWORK), numbered(64, 300)[..10], "in the same breath");
    assert_eq!(net.station(PORT).to_send.len(), 54);
}

#[test]
fn a_frame_comes_out_whole_when_it_is_due() {
    for len in [14, 60, 128, 129, BLOCK, BLOCK + 1, 9000, 65535 + 14] {
        let mut net = net(delayed(MILLISECOND));
        net.now = 77;
        net.send(PORT, [frame(host(2), 9, len)]);
        for now in [77, 77 + MILLISECOND - 1] {
            net.now = now;
            net.breathe();
            let app: &mut Impair = net.app();
            assert_eq!(app.deadline(now), Some(77 + MILLISECOND));
            assert!(!app.arm());
            assert!(net.received(NETWORK).is_empty());
        }
        net.now = 77 + MILLISECOND;
        net.breathe();
        assert_eq!(net.received(NETWORK), [frame(host(2), 9, len)]);
        let app: &mut Impair = net.app();
        assert_eq!(app.deadline(77), None);
    }
}

#[test]
fn each_direction_has_its_own_delay_and_its_own_output() {
    let settings = Settings {
        from_port: delayed(2 * MILLISECOND),
        to_port: delayed(3 * MILLISECOND),
        ..Settings::default()
    };
    let mut net = Net::new(Impair::new(settings).unwrap(), 2);
    net.station(PORT).to_send.extend(numbered(100, 60).into_iter().map(|it| (it, Offload::NONE)));
    net.station(NETWORK).to_send.extend(numbered(70, 90).into_iter().map(|it| (it, Offload::NONE)));
    (0..2).for_each(|_| net.breathe());
    net.now = 2 * MILLISECOND;
    (0..3).for_each(|_| net.breathe());
    assert_eq!(net.received(NETWORK), numbered(100, 60), "in order");
    assert!(net.received(PORT).is_empty());
    net.now = 3 * MILLISECOND;
    (0..3).for_each(|_| net.breathe());
    assert_eq!(net.received(PORT), numbered(70, 90));
    assert!(net.received(NETWORK).is_empty());
}

#[test]
fn both_directions_at_once_come_in_turn() {
    let both = delayed(MILLISECOND);
    let settings = Settings { from_port: both, to_port: both, ..Settings::default() };
    let mut net = Net::new(Impair::new(settings).unwrap(), 2);
    net.station(NETWORK).room = Some(0);
    for side in [PORT, NETWORK] {
        net.send(side, numbered(BURST * 2, 60));
    }
    net.now = MILLISECOND;
    (0..6).for_each(|_| net.breathe());
    assert_eq!(net.received(PORT), numbered(BURST * 2, 60), "the other one is full");
}

#[test]
fn what_is_left_to_do_to_a_frame_is_left() {
    let mut net = net(delayed(1));
    let partial = PartialChecksum { start: 34, offset: 16 };
    let offload = Offload { checksum: Some(partial), ..Offload::NONE };
    net.station(PORT).to_send.push_back((frame(host(2), 1, 100), offload));
    net.breathe();
    let app: &mut Impair = net.app();
    let Reverse(waiting) = app.directions[PORT].waiting.peek().unwrap();
    assert_eq!(waiting.frame.offload, offload);
}

#[test]
fn frames_are_lost_by_chance_and_the_same_for_the_same_seed() {
    assert_eq!(survivors(1, 0.0).len(), 10_000);
    assert_eq!(survivors(1, 100.0).len(), 0);
    let left = survivors(1, 10.0);
    assert!((8_850..9_150).contains(&left.len()), "{}", left.len());
    assert!(left.is_sorted());
    assert_eq!(survivors(1, 10.0), left);
    assert_ne!(survivors(2, 10.0), left);
}

#[test]
fn parts_have_chances_of_their_own_that_are_the_same_each_time() {
    let run = || {
        let loss = Impairment { loss: 50.0, ..Impairment::default() };
        let first = Impair::new(only(loss)).unwrap();
        let parts = [first.part(), first.part(), first];
        parts.map(|part| {
            let mut net = Net::new(part, 2);
            net.send(PORT, numbered(500, 60));
            net.breathe();
            net.received(NETWORK).iter().map(|frame| number(frame)).collect::<Vec<_>>()
        })
    };
    let [one, two, three] = run();
    assert!(one != two && two != three && one != three);
    assert_eq!(run(), [one, two, three]);
}

#[test]
fn a_frame_comes_twice() {
    let twice = Impairment { duplication: 100.0, ..Impairment::default() };
    let frames = numbered(100, 200);
    let expected: Vec<Vec<u8>> = frames.iter().flat_map(|it| [it.clone(), it.clone()]).collect();
    assert_eq!(at_once(twice, frames.clone()), expected);
    // One of the two is lost.
    assert_eq!(at_once(Impairment { loss: 100.0, ..twice }, frames.clone()), frames);
    let some = Impairment { duplication: 25.0, ..Impairment::default() };
    let count = at_once(some, numbered(900, 60)).len();
    assert!((1050..1200).contains(&count), "{count}");
}

/// The bits in which two frames differ.
fn differing(one: &[u8], two: &[u8]) -> Vec<usize> {
    assert_eq!(one.len(), two.len());
    let bit = |at: &usize| one[at / 8] >> (at % 8) & 1 != two[at / 8] >> (at % 8) & 1;
    (0..one.len() * 8).filter(bit).collect()
}

#[test]
fn one_bit_is_turned_around_anywhere_in_a_frame() {
    const LEN: usize = 3000;
    let corrupt = Impairment { corruption: 100.0, ..Impairment::default() };
    let frames = numbered(500, LEN);
    let mut places = [0; 3];
    let came = at_once(corrupt, frames.clone());
    assert_eq!(came.len(), frames.len());
    for (sent, came) in frames.iter().zip(&came) {
        let bits = differing(sent, came);
        assert_eq!(bits.len(), 1);
        places[bits[0] / 8 / 1000] += 1;
    }
    assert!(places.iter().all(|count| (120..220).contains(count)), "{places:?}");
    let seldom = Impairment { corruption: 10.0, ..Impairment::default() };
    let came = at_once(seldom, numbered(900, 60));
    let count = came.iter().zip(numbered(900, 60)).filter(|(came, sent)| *came != sent).count();
    assert!((50..140).contains(&count), "{count}");
}

/// Otherwise whoever completes it would sum what is wrong, and nobody would know.
#[test]
fn a_checksum_is_completed_before_a_bit_is_turned_around() {
    for (start, len) in [(34, 101), (34, 5000), (BLOCK as u16 - 17, 5001), (3000, 5000)] {
        let mut net = net(Impairment { corruption: 100.0, ..Impairment::default() });
        let partial = PartialChecksum { start, offset: 16 };
        let offload = Offload { checksum: Some(partial), ..Offload::NONE };
        let sent = frame(host(2), 1, len);
        net.station(PORT).to_send.push_back((sent.clone(), offload));
        net.breathe();
        let app: &mut Impair = net.app();
        let Reverse(waiting) = app.directions[PORT].waiting.peek().unwrap();
        assert_eq!(waiting.frame.offload, Offload::NONE);
        net.breathe();
        let [came] = net.received(NETWORK).try_into().unwrap();
        let mut completed = sent;
        assert!(wire::checksum::complete(&mut completed, partial));
        assert_eq!(differing(&completed, &came).len(), 1, "from {start} of {len}");
    }
}

#[test]
fn a_frame_that_is_to_be_segmented_is_lost_instead() {
    let mut net = net(Impairment { corruption: 100.0, ..Impairment::default() });
    let segmentation =
        Segmentation { kind: SegmentationKind::Tcp4, ecn: false, size: 1448, header_hint: 54 };
    let checksum = PartialChecksum { start: 34, offset: 16 };
    let offload = Offload { checksum: Some(checksum), segmentation: Some(segmentation) };
    net.station(PORT).to_send.push_back((frame(host(2), 1, 9000), offload));
    (0..3).for_each(|_| net.breathe());
    assert!(net.received(NETWORK).is_empty());
    assert_eq!(net.drops(DropReason::Impaired), 1);
    // Each of two has its own fate.
    let some = Impairment { corruption: 50.0, duplication: 100.0, ..Impairment::default() };
    let mut net = self::net(some);
    net.station(PORT).to_send.extend((0..50).map(|mark| (frame(host(2), mark, 9000), offload)));
    (0..5).for_each(|_| net.breathe());
    let left = net.received(NETWORK).len();
    assert!((30..70).contains(&left), "{left}");
    assert_eq!(net.drops(DropReason::Impaired), 100 - left as u64);
}

#[test]
fn some_overtake_those_that_are_kept_back() {
    let some = Impairment { reordering: 30.0, ..delayed(MILLISECOND) };
    let mut net = net(some);
    net.send(PORT, numbered(200, 60));
    (0..5).for_each(|_| net.breathe());
    let first: Vec<usize> = net.received(NETWORK).iter().map(|it| number(it)).collect();
    net.now = MILLISECOND;
    (0..5).for_each(|_| net.breathe());
    let second: Vec<usize> = net.received(NETWORK).iter().map(|it| number(it)).collect();
    assert!((30..90).contains(&first.len()), "{}", first.len());
    assert!(first.is_sorted() && second.is_sorted());
    let mut all = [first, second].concat();
    all.sort_unstable();
    assert!(all.into_iter().eq(0..200));
}

#[test]
fn jitter_is_around_the_delay() {
    const DELAY: u64 = 1000;
    const JITTER: u64 = 100;
    let mut net = net(Impairment { jitter: JITTER, ..delayed(DELAY) });
    net.send(PORT, numbered(900, 60));
    let mut came = Vec::new();
    for now in 0..=DELAY + JITTER {
        net.now = now;
        // More than a burst are not due at one time.
        net.breathe();
        let numbers = net.received(NETWORK);
        came.extend(numbers.iter().map(|frame| (now, number(frame))));
    }
    assert_eq!(came.len(), 900);
    let (first, last) = (came[0].0, came[899].0);
    assert!((DELAY - JITTER..DELAY - JITTER + 5).contains(&first), "{first}");
    assert!((DELAY + JITTER - 5..=DELAY + JITTER).contains(&last), "{last}");
    let early = came.iter().filter(|(at, _)| *at < DELAY).count();
    assert!((380..520).contains(&early), "{early}");
    assert!(!came.is_sorted_by_key(|(_, number)| *number), "none overtook another");
    // More than the delay: none comes before it was sent.
    let mut net = self::net(Impairment { jitter: 5000, ..delayed(1000) });
    net.now = 10_000;
    net.send(PORT, numbered(100, 60));
    net.now = 16_000;
    (0..3).for_each(|_| net.breathe());
    assert_eq!(net.received(NETWORK).len(), 100);
}

#[test]
fn there_is_room_for_so_many_frames_and_bytes() {
    for (room, len, expected) in [
        (Room { frames: 10, bytes: 1 << 20 }, 60, 10),
        (Room { frames: 1000, bytes: 10 * BLOCK + 5 }, 60, 10),
        (Room { frames: 1000, bytes: 10 * BLOCK }, BLOCK + 1, 5),
        (Room { frames: 0, bytes: 1 << 20 }, 60, 0),
        (Room { frames: 1000, bytes: 0 }, 60, 0),
    ] {
        let settings = Settings { room, ..only(delayed(MILLISECOND)) };
        let mut net = Net::new(Impair::new(settings).unwrap(), 2);
        // All of it comes free again.
        for round in 1..=3 {
            net.send(PORT, numbered(64, len));
            assert_eq!(net.drops(DropReason::DelayFull), round * (64 - expected) as u64);
            net.now += MILLISECOND;
            (0..2).for_each(|_| net.breathe());
            assert_eq!(net.received(NETWORK), numbered(expected, len));
        }
    }
}

#[test]
fn what_a_receiver_holds_waits_in_order_and_counts_as_waiting() {
    let room = Room { frames: 80, bytes: 1 << 20 };
    let mut net =
        Net::new(Impair::new(Settings { room, ..only(delayed(MILLISECOND)) }).unwrap(), 2);
    net.station(NETWORK).room = Some(5);
    net.send(PORT, numbered(80, 300));
    net.now = MILLISECOND;
    (0..10).for_each(|_| net.breathe());
    assert_eq!(net.received(NETWORK), numbered(5, 300));
    net.send(PORT, numbered(10, 300));
    assert_eq!(net.drops(DropReason::DelayFull), 5);
    net.station(NETWORK).room = None;
    net.now = 2 * MILLISECOND;
    (0..5).for_each(|_| net.breathe());
    assert_eq!(net.received(NETWORK), [&numbered(80, 300)[5..], &numbered(5, 300)].concat());
    assert_eq!(net.app::<Impair>().directions[PORT].len(), 0);
}

/// A worker that went to sleep with these would leave them until something else wakes it.
#[test]
fn the_worker_does_not_sleep_over_what_is_due() {
    let mut net = net(Impairment { loss: 0.0, duplication: 1.0, ..Impairment::default() });
    net.send(PORT, numbered(1, 60));
    assert!(net.app::<Impair>().arm(), "it came behind our turn");
    net.breathe();
    assert_eq!(net.received(NETWORK).len(), 1);
    // Once more because one made way; then there is nothing.
    net.breathe();
    assert!(!net.app::<Impair>().arm());
}

/// Who took one may take another: that is something to do, and the worker stays awake for it. It is nothing to do if none made way.
#[test]
fn frames_that_made_way_keep_the_worker_awake_and_those_that_wait_do_not() {
    let mut net = net(delayed(1));
    net.send(PORT, numbered(4, 60));
    net.now = 1;
    let mut breathe = |room| {
        net.station(NETWORK).room = room;
        let was_busy = net.graph.breathe(net.now, |_| panic!("an app failed"));
        (was_busy, net.app::<Impair>().arm(), net.received(NETWORK).len())
    };
    assert_eq!(breathe(Some(1)), (true, true, 1), "they were due, and one made way");
    assert_eq!(breathe(Some(0)), (true, false, 0), "one had made way");
    assert_eq!(breathe(Some(0)), (false, false, 0), "nothing since");
    assert_eq!(breathe(Some(2)), (false, true, 2));
    assert_eq!(breathe(None), (true, true, 1));
    assert_eq!(breathe(None), (true, false, 0), "the last had made way");
    assert_eq!(breathe(None), (false, false, 0));
}

#[test]
fn what_cannot_be_done_is_refused() {
    let percent = |what, percent| ImpairError::Percent { what, percent };
    let none = Impairment::default();
    for (wrong, error) in [
        (Impairment { loss: 100.5, ..none }, percent("loss", 100.5)),
        (Impairment { corruption: -1.0, ..none }, percent("corruption", -1.0)),
        (Impairment { duplication: 1e9, ..none }, percent("duplication", 1e9)),
        (Impairment { reordering: 101.0, ..delayed(1) }, percent("reordering", 101.0)),
        (Impairment { reordering: 1.0, ..none }, ImpairError::NothingToOvertake),
        (Impairment { jitter: 1, ..none }, ImpairError::JitterAlone),
    ] {
        for settings in [only(wrong), Settings { to_port: wrong, ..Settings::default() }] {
            assert_eq!(Impair::new(settings.clone()).err(), Some(error));
            let mut app = Impair::new(only(delayed(5))).unwrap();
            assert_eq!(app.set(settings), Err(error));
            assert_eq!(app.settings, only(delayed(5)));
            assert_eq!(app.directions[PORT].fate.delay, 5);
        }
    }
    assert!(Impair::new(only(Impairment { loss: f64::NAN, ..none })).is_err());
    for (frames, bytes) in [(MAX_FRAMES + 1, BLOCK), (usize::MAX, BLOCK), (1, MAX_BYTES + 1)] {
        let settings = Settings { room: Room { frames, bytes }, ..only(delayed(5)) };
        assert_eq!(Impair::new(settings).err(), Some(ImpairError::Room { frames, bytes }));
    }
    let said = percent("loss", 100.5).to_string();
    assert_eq!(said, "loss of 100.5 %: give 0 to 100");
}

#[test]
fn what_waits_is_said_and_counted_when_the_app_is_stopped() {
    let mut net =
        Net::new(Impair::new(Settings { to_port: delayed(9), ..only(delayed(5)) }).unwrap(), 2);
    net.send(PORT, numbered(3, 60));
    net.send(NETWORK, numbered(2, 60));
    let waiting = |from, to| {
        let all = [("waiting from the port", from), ("waiting to the port", to)];
        all.map(|(name, count)| (name.to_owned(), count))
    };
    assert_eq!(net.numbers(), waiting(3, 2));
    net.now = 5;
    net.breathe();
    assert_eq!(net.numbers(), waiting(0, 2));
    net.graph.stop_all();
    assert_eq!(net.drops(DropReason::Stopped), 2);
}

#[test]
fn settings_can_be_changed_while_frames_wait() {
    let mut net = net(delayed(MILLISECOND));
    net.send(PORT, numbered(3, 60));
    net.reconfigure(&only(delayed(5 * MILLISECOND))).unwrap();
    net.send(PORT, numbered(2, 90));
    net.now = MILLISECOND;
    net.breathe();
    assert_eq!(net.received(NETWORK), numbered(3, 60), "as they were to");
    // Other room: what waits is lost, and counted.
    let room = Room { frames: 1, bytes: BLOCK };
    net.reconfigure(&Settings { room, ..only(delayed(MILLISECOND)) }).unwrap();
    assert_eq!(net.drops(DropReason::DelayFull), 2);
    net.send(PORT, numbered(2, 60));
    assert_eq!(net.drops(DropReason::DelayFull), 3);
    // Nothing is done any more.
    net.reconfigure(&Settings { room, ..Settings::default() }).unwrap();
    net.send(PORT, numbered(2, 70));
    assert_eq!(net.received(NETWORK), numbered(2, 70));
    net.now += MILLISECOND;
    net.breathe();
    assert_eq!(net.received(NETWORK), numbered(1, 60));
}

proptest! {
    /// Whatever comes, of whatever length, with receivers that are full at times: each frame comes out once and
    /// whole, or is counted; and in the end all memory is free.
    #[test]
    fn every_frame_comes_out_once_or_is_counted(
        rounds in prop::collection::vec(
            (prop::collection::vec(16usize..5000, 0..20), prop::option::of(0usize..30), 0u64..2000),
            1..8),
        jitter in 0u64..1000,
        reordering in prop_oneof![Just(0.0), 0.0..100.0],
        frames in 1usize..100,
        blocks in 1usize..100,
    ) {
        let room = Room { frames, bytes: blocks * BLOCK };
        let impairment = Impairment { jitter, reordering, ..delayed(1000) };
        let mut net = Net::new(Impair::new(Settings { room, ..only(impairment) }).unwrap(), 2);
        let (mut sent, mut came) = (Vec::new(), Vec::new());
        let mut expected = Vec::new();
        for (lens, full, gap) in rounds {
            net.now += gap;
            net.station(NETWORK).room = full;
            for len in lens {
                let mut frame = frame(host(2), 0, len);
                frame[14..16].copy_from_slice(&(sent.len() as u16).to_be_bytes());
                sent.push(frame.clone());
                expected.push(frame);
            }
            net.send(PORT, expected.drain(..));
            net.breathe();
            came.extend(net.received(NETWORK));
        }
        net.station(NETWORK).room = None;
        net.now += 10_000;
        for _ in 0..10 {
            net.breathe();
        }
        came.extend(net.received(NETWORK));
        let dropped = net.drops(DropReason::DelayFull) as usize;
        prop_assert_eq!(came.len() + dropped, sent.len());
        let mut seen = std::collections::HashSet::new();
        for frame in &came {
            prop_assert!(seen.insert(number(frame)), "it came twice");
            prop_assert_eq!(frame, &sent[number(frame)]);
        }
        // Everything fits again.
        let most = frames.min(blocks).min(BURST);
        net.send(PORT, numbered(most, 60));
        net.now += 10_000;
        (0..3).for_each(|_| net.breathe());
        prop_assert_eq!(net.received(NETWORK).len(), most);
        prop_assert_eq!(net.drops(DropReason::DelayFull) as usize, dropped);
    }
}
