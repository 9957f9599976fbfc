use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::table::CAPACITY;
use super::*;

const ONE: MacAddress = MacAddress([0x52, 0x54, 0, 0, 0, 1]);
const TWO: MacAddress = MacAddress([0x52, 0x54, 0, 0, 0, 2]);

const ANSWER: Occasion = Occasion::Answer { overrides: true };
const ANNOUNCEMENT: Occasion = Occasion::Announcement { overrides: true };

fn neighbours() -> Neighbours {
    Neighbours::new([0x1234_5678_9abc_def0, 0x0fed_cba9_8765_4321])
}

fn v4(number: u32) -> IpAddr {
    Ipv4Addr::from_bits(0x0a00_0000 + number).into()
}

fn v6(number: u128) -> IpAddr {
    Ipv6Addr::from_bits((0xfd00 << 112) + number).into()
}

fn to_all(address: IpAddr) -> Option<Question> {
    Some(Question { address, station: None })
}

fn to_one(address: IpAddr, station: MacAddress) -> Option<Question> {
    Some(Question { address, station: Some(station) })
}

/// What is asked at this time.
fn asked(neighbours: &mut Neighbours, now: u64) -> Vec<Question> {
    let mut questions = Vec::new();
    neighbours.sweep(now, |question| {
        questions.push(question);
        true
    });
    questions
}

#[test]
fn an_address_is_asked_for_once_a_second_and_given_up_after_three() {
    let mut table = neighbours();
    let start = 5 * SECOND;
    assert_eq!(table.resolve(v4(1), start), (Whereabouts::Asked, to_all(v4(1))));
    assert_eq!(table.resolve(v4(1), start + 1), (Whereabouts::Asked, None), "was asked already");
    assert_eq!(table.due(), Some(start + SECOND));
    assert_eq!(asked(&mut table, start + SECOND - 1), []);
    for second in 1..=2 {
        assert_eq!(asked(&mut table, start + second * SECOND), Vec::from_iter(to_all(v4(1))));
        assert_eq!(table.due(), Some(start + (second + 1) * SECOND));
    }
    assert!(!table.take_changed());
    assert_eq!(asked(&mut table, start + 3 * SECOND), []);
    assert!(table.take_changed(), "whoever waits for it has to know");
    assert_eq!((table.look(v4(1)), table.due()), (Whereabouts::Unknown, None));
    let anew = table.resolve(v4(1), start + 4 * SECOND);
    assert_eq!(anew, (Whereabouts::Asked, to_all(v4(1))));
}

#[test]
fn an_answer_is_good_for_a_while_and_then_checked_in_use() {
    let mut table = neighbours();
    table.resolve(v6(1), 0);
    assert_eq!(table.known(9), 0, "it is asked for");
    table.hear(v6(1), Some(ONE), ANSWER, 10);
    assert_eq!((table.known(10), table.known(10 + AGEING)), (1, 0));
    assert!(table.take_changed());
    assert_eq!(table.resolve(v6(1), 9 + CONFIRMED), (Whereabouts::At(ONE), None));
    assert_eq!(asked(&mut table, 9 + CONFIRMED), []);
    assert_eq!(table.due(), None);
    let now = 10 + CONFIRMED;
    assert_eq!(table.resolve(v6(1), now), (Whereabouts::At(ONE), to_one(v6(1), ONE)));
    assert_eq!(table.resolve(v6(1), now + 1), (Whereabouts::At(ONE), None), "used meanwhile");
    assert_eq!(asked(&mut table, now + SECOND), Vec::from_iter(to_one(v6(1), ONE)));
    // The answer to a probe may leave out what was known.
    table.hear(v6(1), None, ANSWER, now + SECOND + 1);
    assert!(!table.take_changed());
    assert_eq!(asked(&mut table, now + 2 * SECOND), []);
    assert_eq!(table.resolve(v6(1), now + 2 * SECOND), (Whereabouts::At(ONE), None));
    // One that is silent is asked for anew.
    let now = now + SECOND + 1 + CONFIRMED;
    table.resolve(v6(1), now);
    assert_eq!(asked(&mut table, now + SECOND).len(), 1);
    assert_eq!(asked(&mut table, now + 2 * SECOND).len(), 1);
    assert_eq!(asked(&mut table, now + 3 * SECOND), []);
    assert_eq!(table.resolve(v6(1), now + 3 * SECOND), (Whereabouts::Asked, to_all(v6(1))));
}

#[test]
fn who_asks_us_is_known_but_not_yet_believed() {
    let mut table = neighbours();
    table.hear(v4(1), Some(ONE), Occasion::Request, 0);
    assert_eq!(table.resolve(v4(1), 1), (Whereabouts::At(ONE), to_one(v4(1), ONE)));
    // Another question of the same station is no answer to ours.
    table.hear(v4(1), Some(ONE), Occasion::Request, 2);
    assert_eq!(asked(&mut table, 1 + SECOND).len(), 1);
    // It moved.
    table.hear(v4(1), Some(TWO), Occasion::Request, 2 * SECOND);
    assert_eq!(table.resolve(v4(1), 2 * SECOND), (Whereabouts::At(TWO), to_one(v4(1), TWO)));
}

#[test]
fn what_is_said_unasked_changes_entries_and_makes_none() {
    let mut table = neighbours();
    for occasion in [ANSWER, ANNOUNCEMENT] {
        table.hear(v4(1), Some(ONE), occasion, 0);
        assert_eq!(table.look(v4(1)), Whereabouts::Unknown, "{occasion:?}");
    }
    table.resolve(v4(1), 0);
    table.hear(v4(1), Some(ONE), ANNOUNCEMENT, 1);
    assert_eq!(table.resolve(v4(1), 2), (Whereabouts::At(ONE), to_one(v4(1), ONE)));
    table.hear(v4(1), Some(ONE), ANSWER, 3);
    table.hear(v4(1), Some(TWO), ANNOUNCEMENT, 4);
    assert!(table.take_changed());
    assert_eq!(table.resolve(v4(1), 5), (Whereabouts::At(TWO), to_one(v4(1), TWO)));
}

/// RFC 4861, section 7.3.1: an answer to a question of ours, and nothing else.
#[test]
fn nothing_but_an_answer_to_a_question_makes_a_confirmation_last() {
    for occasion in [Occasion::Request, ANNOUNCEMENT, ANSWER] {
        let mut table = neighbours();
        table.resolve(v6(1), 0);
        table.hear(v6(1), Some(ONE), ANSWER, 10);
        for second in 1..40 {
            table.hear(v6(1), Some(ONE), occasion, second * SECOND);
        }
        assert_eq!(table.resolve(v6(1), 9 + CONFIRMED), (Whereabouts::At(ONE), None));
        let asked = (Whereabouts::At(ONE), to_one(v6(1), ONE));
        assert_eq!(table.resolve(v6(1), 10 + CONFIRMED), asked, "{occasion:?}");
        // While it is probed, only the answer ends that.
        let now = 10 + CONFIRMED;
        for second in 1..=3 {
            if occasion != ANSWER {
                table.hear(v6(1), Some(ONE), occasion, now + second * SECOND);
                let questions = self::asked(&mut table, now + second * SECOND);
                assert_eq!(questions.len(), usize::from(second < 3), "{occasion:?}");
            }
        }
    }
}

#[test]
fn an_answer_that_nobody_asked_for_casts_doubt_and_changes_nothing() {
    let mut table = neighbours();
    table.resolve(v4(1), 0);
    table.hear(v4(1), Some(ONE), ANSWER, 1);
    assert!(table.take_changed());
    table.hear(v4(1), Some(TWO), ANSWER, 2);
    assert!(!table.has_changed());
    // Who had it is asked whether that is still so, and keeps it.
    assert_eq!(table.resolve(v4(1), 3), (Whereabouts::At(ONE), to_one(v4(1), ONE)));
    table.hear(v4(1), Some(ONE), ANSWER, 4);
    assert_eq!(table.resolve(v4(1), 5), (Whereabouts::At(ONE), None));
}

#[test]
fn what_does_not_override_only_casts_doubt() {
    for occasion in
        [Occasion::Answer { overrides: false }, Occasion::Announcement { overrides: false }]
    {
        let mut table = neighbours();
        table.resolve(v6(1), 0);
        // The first to answer is believed, whether it overrides or not.
        table.hear(v6(1), Some(ONE), occasion, 1);
        assert_eq!(table.look(v6(1)), Whereabouts::At(ONE));
        table.hear(v6(1), Some(ONE), ANSWER, 2);
        table.hear(v6(1), Some(TWO), occasion, 3);
        assert_eq!(table.resolve(v6(1), 4), (Whereabouts::At(ONE), to_one(v6(1), ONE)));
    }
}

#[test]
fn groups_have_no_address_and_nobody_is_nowhere() {
    let mut table = neighbours();
    table.resolve(v4(1), 0);
    for station in [MacAddress::BROADCAST, MacAddress([1, 0, 0x5e, 0, 0, 1]), MacAddress([0; 6])] {
        table.hear(v4(1), Some(station), ANSWER, 1);
        assert_eq!(table.look(v4(1)), Whereabouts::Asked);
    }
    table.hear(v4(1), None, ANSWER, 1);
    assert_eq!(table.look(v4(1)), Whereabouts::Asked);
}

#[test]
fn what_nobody_uses_is_forgotten() {
    let mut table = neighbours();
    table.hear(v4(1), Some(ONE), Occasion::Request, SECOND);
    assert_eq!(table.resolve(v4(1), SECOND + AGEING), (Whereabouts::Asked, to_all(v4(1))));
    table.hear(v4(1), Some(ONE), ANSWER, SECOND + AGEING);
    assert_eq!(table.look(v4(1)), Whereabouts::At(ONE), "and takes its own place");
}

#[test]
fn a_flood_of_claims_evicts_nobody_that_the_host_talks_to() {
    let mut table = neighbours();
    let mut now = SECOND;
    for number in 0..64 {
        table.resolve(v6(number), now);
        table.hear(v6(number), Some(ONE), ANSWER, now);
    }
    for claim in 0..1_000_000 {
        now += 1000;
        table.hear(v6(1_000 + claim), Some(TWO), Occasion::Request, now);
    }
    for number in 0..64 {
        assert_eq!(table.look(v6(number)), Whereabouts::At(ONE), "{number}");
    }
    // Nor those that it has not talked to for a while.
    now += 60 * SECOND;
    for claim in 0..100_000 {
        table.hear(v6(10_000_000 + claim), Some(TWO), Occasion::Request, now);
    }
    assert_eq!(table.look(v6(0)), Whereabouts::At(ONE));
    // And somebody new finds a place among the claims.
    assert_eq!(table.resolve(v6(99_999_999), now).0, Whereabouts::Asked);
    assert_eq!(table.table.count(Rank::Confirmed), 64);
}

/// A table full of neighbours that the host talks to.
fn full() -> Neighbours {
    let mut table = neighbours();
    for number in 0..CAPACITY as u32 {
        assert_eq!(table.resolve(v4(number), SECOND).0, Whereabouts::Asked, "{number}");
        table.hear(v4(number), Some(ONE), ANSWER, SECOND);
    }
    table
}

#[test]
fn the_table_holds_as_many_neighbours_as_it_says() {
    let mut table = full();
    assert_eq!(table.table.count(Rank::Confirmed), CAPACITY);
    for number in 0..CAPACITY as u32 {
        assert_eq!(table.resolve(v4(number), SECOND), (Whereabouts::At(ONE), None), "{number}");
    }
    // One more takes the place of the one that was not used for the longest time.
    table.resolve(v4(0), SECOND);
    assert_eq!(table.resolve(v4(5000), SECOND).0, Whereabouts::Asked);
    assert_eq!(table.look(v4(1)), Whereabouts::Unknown);
    assert_eq!(table.look(v4(0)), Whereabouts::At(ONE));
    // A claim takes none.
    table.hear(v4(1), Some(ONE), Occasion::Request, SECOND);
    assert_eq!(table.look(v4(1)), Whereabouts::Unknown);
}

#[test]
fn in_a_full_table_what_is_not_confirmed_gives_way_first() {
    let mut table = full();
    // The host used one of them after its station said something new.
    table.hear(v4(7), Some(TWO), ANNOUNCEMENT, SECOND);
    table.resolve(v4(7), SECOND);
    table.resolve(v4(5000), SECOND);
    assert_eq!(table.look(v4(7)), Whereabouts::Unknown);
    assert_eq!(table.look(v4(0)), Whereabouts::At(ONE));
}

/// Otherwise they would all come and go in one place, before anybody could answer.
#[test]
fn in_a_full_table_questions_keep_places_for_their_answers() {
    let mut table = full();
    for number in 0..100 {
        table.resolve(v4(5000 + number), SECOND);
    }
    for number in 0..100 {
        assert_eq!(table.look(v4(5000 + number)), Whereabouts::Asked);
        table.hear(v4(5000 + number), Some(TWO), ANSWER, SECOND);
    }
    // However many nobody answers for: all but a share is for those that were answered.
    for number in 0..10_000 {
        table.resolve(v4(10_000 + number), SECOND);
    }
    let known = (0..20_000).filter(|number| matches!(table.look(v4(*number)), Whereabouts::At(_)));
    assert_eq!(known.count(), CAPACITY - CAPACITY / 8 - 1);
}

#[test]
fn the_host_s_own_flood_evicts_nobody_that_it_talks_to() {
    let mut table = neighbours();
    let mut now = SECOND;
    table.resolve(v4(0), now);
    table.hear(v4(0), Some(ONE), ANSWER, now);
    for number in 1..100_000 {
        now += 100_000;
        // As a sweep through a network does, in which every second address answers.
        let (whereabouts, _) = table.resolve(v4(number), now);
        if number % 2 == 0 && whereabouts == Whereabouts::Asked {
            table.hear(v4(number), Some(TWO), ANSWER, now);
        }
        if number % 1_000 == 0 {
            let (whereabouts, question) = table.resolve(v4(0), now);
            assert_eq!(whereabouts, Whereabouts::At(ONE));
            if question.is_some() {
                table.hear(v4(0), Some(ONE), ANSWER, now);
            }
        }
    }
}

#[test]
fn a_question_without_room_is_asked_in_the_next_sweep() {
    let mut table = neighbours();
    table.resolve(v4(1), 0);
    table.sweep(SECOND, |_| false);
    assert_eq!(table.due(), Some(SECOND + SWEEP));
    assert_eq!(asked(&mut table, SECOND + SWEEP).len(), 1);
    assert_eq!(table.due(), Some(2 * SECOND + SWEEP));
}

proptest! {
    /// Whatever happens, in whatever order: what is asked is asked again or given up in time, the table
    /// knows nobody who did not say so, and claims alone never take a live neighbour's place.
    #[test]
    fn any_history_is_sound(steps in proptest::collection::vec((0u8..5, 0u32..40, 0u64..2), 1..400)) {
        let mut table = neighbours();
        let mut said = std::collections::HashSet::new();
        let mut now = 0;
        for (step, number, seconds) in steps {
            now += seconds * SECOND;
            let address = v4(number);
            let station = MacAddress([2, 0, 0, 0, 0, number as u8]);
            match step {
                0 => {
                    let (whereabouts, question) = table.resolve(address, now);
                    prop_assert_ne!(whereabouts, Whereabouts::Unknown, "40 addresses find room");
                    prop_assert!(question.is_none_or(|question| question.address == address));
                }
                1 => {
                    said.insert(address);
                    table.hear(address, Some(station), Occasion::Request, now);
                    prop_assert_eq!(table.look(address), Whereabouts::At(station));
                }
                2 => {
                    said.insert(address);
                    table.hear(address, Some(station), ANSWER, now);
                }
                3 => {
                    said.insert(address);
                    table.hear(address, Some(station), ANNOUNCEMENT, now);
                }
                _ => table.sweep(now, |_| true),
            }
            match table.look(address) {
                Whereabouts::At(at) => {
                    prop_assert_eq!(at, station);
                    prop_assert!(said.contains(&address));
                }
                Whereabouts::Asked => prop_assert!(table.due().is_some()),
                Whereabouts::Unknown => {}
            }
        }
        // Left alone, it comes to rest.
        for _ in 0..4 {
            now += SECOND + SWEEP;
            table.sweep(now, |_| true);
        }
        prop_assert_eq!(table.due(), None);
        prop_assert!((0..40).all(|number| table.look(v4(number)) != Whereabouts::Asked));
    }
}
