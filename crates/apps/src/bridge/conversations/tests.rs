use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;

const KEY: [u64; 2] = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];

/// The addresses with which a frame from one station to another begins.
fn between(to: u16, from: u16) -> [u8; ADDRESSES] {
    let [[a, b], [c, d]] = [to, from].map(u16::to_be_bytes);
    [2, 0, 0, 0, a, b, 2, 0, 0, 1, c, d]
}

fn addresses(number: u64) -> [u8; ADDRESSES] {
    between(number as u16 % 100, number as u16 / 100)
}

#[test]
fn what_was_noted_is_there_in_its_era() {
    let mut conversations = Conversations::new(KEY);
    let (era, one) = (conversations.era(3, 7, 9), conversations.at(&addresses(1)));
    assert_eq!(conversations.port(one, era), None);
    conversations.note(one, era, 5);
    assert_eq!(conversations.port(one, era), Some(5));
    for (input, now, changes) in [(4, 7, 9), (3, 8, 9), (3, 7, 10), (7, 3, 9), (0, 0, 0)] {
        let other = conversations.era(input, now, changes);
        assert_eq!(conversations.port(one, other), None, "{input}, {now}, {changes}");
    }
    assert_eq!(conversations.port(one, conversations.era(3, 7, 9)), Some(5), "it is worked out");
}

#[test]
fn all_ports_and_addresses_are_alike() {
    for port in [0, 1, 255, 256, PortNumber::MAX - 1] {
        let mut conversations = Conversations::new(KEY);
        let era = conversations.era(0, 0, 0);
        for frame in [[0; ADDRESSES], [0xff; ADDRESSES], addresses(1)] {
            let conversation = conversations.at(&frame);
            assert_eq!(conversation.addresses(), frame);
            assert_eq!(conversations.port(conversation, era), None);
            conversations.note(conversation, era, port);
            assert_eq!(conversations.port(conversation, era), Some(port));
        }
    }
}

/// Of two that are in one line, each bit of an address tells which it is.
#[test]
fn each_bit_of_the_addresses_counts() {
    let mut conversations = Conversations::new(KEY);
    let (era, one) = (conversations.era(0, 0, 0), conversations.at(&addresses(1)));
    conversations.note(one, era, 5);
    for bit in 0..8 * ADDRESSES {
        let mut other = addresses(1);
        other[bit / 8] ^= 1 << (bit % 8);
        let other = Conversation { line: one.line, ..conversations.at(&other) };
        assert_eq!(conversations.port(other, era), None, "bit {bit}");
    }
}

#[test]
fn the_oldest_of_a_line_makes_way() {
    let mut conversations = Conversations::new(KEY);
    let era = conversations.era(0, 0, 0);
    let wanted = conversations.at(&addresses(0)).line;
    let of_line: Vec<_> = (0..)
        .map(|number| conversations.at(&addresses(number)))
        .filter(|conversation| conversation.line == wanted)
        .take(WAYS + 1)
        .collect();
    for (port, conversation) in (0..).zip(&of_line[..WAYS]) {
        conversations.note(*conversation, era, port);
    }
    let ports = |conversations: &Conversations| {
        of_line.iter().map(|of| conversations.port(*of, era)).collect::<Vec<_>>()
    };
    assert_eq!(ports(&conversations), [Some(0), Some(1), Some(2), Some(3), None]);
    conversations.note(of_line[WAYS], era, 4);
    assert_eq!(ports(&conversations), [None, Some(1), Some(2), Some(3), Some(4)]);
}

#[test]
fn of_10000_conversations_hardly_any_makes_way() {
    type Stations = fn(u16) -> (u16, u16);
    let kinds: [(&str, Stations); 4] = [
        ("each of two others", |number| (number, number)),
        ("all of one sender", |number| (number, 0)),
        ("all to one receiver", |number| (0, number)),
        ("of a hundred with a hundred", |number| (number % 100, number / 100)),
    ];
    for (kind, stations) in kinds {
        let addresses = |number| between(stations(number).0, stations(number).1);
        let mut conversations = Conversations::new(KEY);
        let era = conversations.era(0, 0, 0);
        let all: Vec<_> = (0..10_000).map(|number| conversations.at(&addresses(number))).collect();
        let ask_all = |conversations: &mut Conversations| {
            let mut found = 0;
            for of in &all {
                match conversations.port(*of, era) {
                    Some(_) => found += 1,
                    None => conversations.note(*of, era, 1),
                }
            }
            found
        };
        // Again and again, as frames come.
        let found: [u32; 4] = std::array::from_fn(|_| ask_all(&mut conversations));
        assert!(found[0] == 0 && found[3] > 9_800, "{kind}: {found:?}");
    }
}

#[test]
fn nobody_can_aim_at_a_line() {
    let mut lines = HashSet::new();
    for key in 0..100 {
        let [first, second] = KEY;
        lines.insert(Conversations::new([first ^ key, second]).at(&addresses(1)).line);
        lines.insert(Conversations::new([first, second ^ key << 40]).at(&addresses(1)).line);
    }
    assert!(lines.len() > 180, "{lines:?}");
}

proptest! {
    /// Whatever is said is what was noted last in this era.
    #[test]
    fn nothing_is_made_up(
        steps in prop::collection::vec((0u64..40, 0usize..3, 0u32..2, 0u64..2, any::<u16>()), 0..200),
    ) {
        let mut conversations = Conversations::new(KEY);
        let mut noted = HashMap::new();
        for (number, input, now, changes, port) in steps {
            // All of them in four lines.
            let conversation = conversations.at(&addresses(number));
            let conversation = Conversation { line: conversation.line % 4, ..conversation };
            let era = conversations.era(input, now, changes);
            let key = (number, input, now, changes);
            match conversations.port(conversation, era) {
                Some(port) => prop_assert_eq!(Some(&port), noted.get(&key)),
                None => {
                    conversations.note(conversation, era, port);
                    noted.insert(key, port);
                    prop_assert_eq!(conversations.port(conversation, era), Some(port));
                }
            }
        }
    }
}
