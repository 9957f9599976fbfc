//! Descriptors, places and event structures as numbers.

use proptest::prelude::*;

use super::ring::places;
use crate::packed::{Descriptor, Event, Position};

#[test]
fn descriptor_is_laid_out_as_in_the_specification() {
    let bytes: [u8; 16] = [
        0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, // address
        0xdd, 0xcc, 0xbb, 0xaa, // length
        0x07, 0x01, // id
        0x03, 0x80, // flags: NEXT, WRITE, USED
    ];
    let (words, _) = bytes.as_chunks::<8>();
    let words = [words[0], words[1]].map(u64::from_le_bytes);
    let descriptor = Descriptor::from_words(words);
    let flags = Descriptor::NEXT | Descriptor::WRITE | Descriptor::USED;
    let expected =
        Descriptor { address: 0x1122_3344_5566_7788, length: 0xaabb_ccdd, id: 0x0107, flags };
    assert_eq!(descriptor, expected);
    assert_eq!(descriptor.to_words(), words);
}

#[test]
fn event_structure_is_laid_out_as_in_the_specification() {
    // Offset and wrap counter, flags.
    let word = |bytes: [u8; 4]| Event::from_word(u32::from_le_bytes(bytes));
    assert_eq!(word([0, 0, 0, 0]), Event::Always);
    assert_eq!(word([0xff, 0xff, 1, 0]), Event::Never);
    let place = word([0x34, 0x92, 2, 0]);
    assert_eq!(place, Event::At(Position::from_bits(0x9234)));
    assert_eq!(place.to_word().to_le_bytes(), [0x34, 0x92, 2, 0]);
    assert_eq!(word([0x34, 0x92, 3, 0]), Event::Always, "reserved");
    assert_eq!(word([0, 0, 0xfd, 0xff]), Event::Never, "what is behind the flags is reserved");
    assert_eq!(Event::Always.to_word(), 0);
    assert_eq!(Event::Never.to_word().to_le_bytes(), [0, 0, 1, 0]);
}

#[test]
fn counters_begin_as_one_and_turn_over_at_the_end() {
    let walk: Vec<_> = places(3).map(|place| (place.slot(), place.wrap())).collect();
    let expected = [(0, true), (1, true), (2, true), (0, false), (1, false), (2, false)];
    assert_eq!(walk, expected);
    assert_eq!(places(3).last().unwrap().advance(1, 3), Position::FIRST);
    let last = Position::FIRST.advance(32767, 32768);
    assert_eq!((last.slot(), last.wrap()), (32767, true));
    assert_eq!(last.advance(32768, 32768).bits(), 32767);
}

#[test]
fn marks_are_those_of_the_specification() {
    let (first, second) = (Position::FIRST, Position::from_bits(0));
    assert_eq!(first.available(), Descriptor::AVAIL);
    assert_eq!(first.used(), Descriptor::AVAIL | Descriptor::USED);
    assert_eq!(second.available(), Descriptor::USED);
    assert_eq!(second.used(), 0);
}

/// The arithmetic equals its meaning, which is to go there step by step.
#[test]
fn arithmetic_equals_a_walk() {
    for size in 1..=9 {
        for from in places(size) {
            let mut place = from;
            for count in 0..=size {
                assert_eq!(from.advance(count, size), place);
                assert_eq!(place.retreat(count, size), from);
                assert_eq!(place.since(from, size), count);
                place = place.advance(1, size);
            }
        }
    }
}

/// As above: an event is wanted when one of the descriptors just published is the one asked for.
#[test]
fn event_rule_equals_a_walk() {
    for size in 1..=9 {
        for old in places(size) {
            for count in 1..=size {
                let new = old.advance(count, size);
                for asked in places(size) {
                    let walked = (0..count).any(|step| old.advance(step, size) == asked);
                    let wanted = Event::At(asked).is_wanted(true, new, count, size);
                    assert_eq!(wanted, walked, "{asked:?} in {count} from {old:?} of {size}");
                    assert!(Event::At(asked).is_wanted(false, new, count, size));
                }
                assert!(Event::Always.is_wanted(true, new, count, size));
                assert!(!Event::Never.is_wanted(true, new, count, size));
            }
        }
    }
}

proptest! {
    #[test]
    fn words_round_trip(words: [u64; 2]) {
        prop_assert_eq!(Descriptor::from_words(words).to_words(), words);
    }

    #[test]
    fn event_rule_equals_a_walk_in_large_rings(
        size in 32700u16..=32768,
        start: u16,
        count in 1u16..60,
        asked in 0u16..80,
    ) {
        let old = Position::FIRST.advance(start % size, size);
        let asked_for = old.retreat(10, size).advance(asked, size);
        let new = old.advance(count, size);
        let walked = (0..count).any(|step| old.advance(step, size) == asked_for);
        prop_assert_eq!(Event::At(asked_for).is_wanted(true, new, count, size), walked);
    }

    /// Whatever a peer asks for, even where no slot is.
    #[test]
    fn event_rule_takes_anything(size in 1u16..=32768, word: u32, start: u16, count: u16) {
        let new = Position::FIRST.advance(start % size, size);
        let count = 1 + count % size;
        let _ = Event::from_word(word).is_wanted(true, new, count, size);
    }
}
