use std::cell::Cell;
use std::collections::{HashMap, HashSet};

use proptest::prelude::*;
use wire::conversation::{Endpoint, Protocol, TcpFlags};

use super::*;
use crate::sides::{NETWORK, opposite};

/// One like others.
const ERA: Era = Era(7);

const FIN: Step = Step::Tcp(TcpFlags(0x11));
const SYN: Step = Step::Tcp(TcpFlags(0x02));
const RST: Step = Step::Tcp(TcpFlags(0x14));
const ACK: Step = Step::Tcp(TcpFlags(0x10));

/// A message from the port; `conversation` is all that tells one from the other.
impl Conversations {
    /// Conversations that are remembered, by a look at all.
    pub(in crate::filter) fn len(&self, now: u32) -> usize {
        let is_fresh = |bucket: &Bucket, way| {
            let state = State(bucket.state(way).load(Relaxed));
            bucket.tag(way).load(Relaxed) != Tag::EMPTY.0 && !state.is_aged(now)
        };
        let fresh = |bucket| (0..WAYS).filter(|way| is_fresh(bucket, *way)).count();
        self.buckets.iter().map(fresh).sum()
    }

    /// Sweeps all of it, and says how many are left.
    fn swept(&self, now: u32) -> u64 {
        self.swept_in([ERA; 2], now)
    }

    /// The same, when these are the eras of both sides.
    pub(in crate::filter) fn swept_in(&self, eras: [Era; 2], now: u32) -> u64 {
        (0..crate::occupancy::SLICES).for_each(|_| self.sweep(|| eras, now));
        self.known()
    }
}

fn message(conversation: u64, step: Step) -> Message {
    let number = match step {
        Step::Tcp(_) => 6,
        Step::Datagram => 17,
        Step::EchoRequest | Step::EchoReply => 1,
    };
    Message {
        source: Endpoint { address: 0x0a00_0001, port: conversation as u16 },
        destination: Endpoint { address: 0x0b00_0000 + u128::from(conversation >> 16), port: 80 },
        protocol: Protocol { ip_version: 4, number },
        vlan: 0,
        step,
    }
}

fn reversed(message: Message) -> Message {
    let Message { source, destination, .. } = message;
    Message { source: destination, destination: source, ..message }
}

/// A table, and messages of one conversation, which the port begins.
struct Talk(Conversations);

impl Talk {
    fn new() -> Self {
        Self(Conversations::new([1, 2]))
    }

    fn begin(&self, conversation: u64, step: Step, now: u32) {
        self.0.begin(self.0.place(&message(conversation, step), PORT), PORT, ERA, now);
    }

    fn answer(&self, conversation: u64, step: Step, now: u32) -> bool {
        let message = reversed(message(conversation, step));
        self.0.answer(self.0.place(&message, NETWORK), PORT, ERA, now)
    }
}

#[test]
fn only_answers_to_what_was_begun_are_known() {
    let talk = Talk::new();
    assert!(!talk.answer(1, ACK, 0));
    talk.begin(1, SYN, 0);
    assert!(talk.answer(1, ACK, 0));
    assert!(!talk.answer(2, ACK, 0), "another conversation");
    assert!(!talk.answer(1, Step::Datagram, 0), "another protocol");
    assert_eq!(talk.0.len(0), 1);
    // Each of these is another conversation.
    let answer = reversed(message(1, ACK));
    let is_known = |message: Message| talk.0.answer(talk.0.place(&message, NETWORK), PORT, ERA, 0);
    assert!(is_known(answer));
    let Message { source, destination, protocol, .. } = answer;
    let ipv6 = Protocol { ip_version: 6, ..protocol };
    for other in [
        Message { vlan: 1, ..answer },
        Message { protocol: ipv6, ..answer },
        Message { source: Endpoint { port: 81, ..source }, ..answer },
        Message { source: Endpoint { address: source.address + 1, ..source }, ..answer },
        Message { source: Endpoint { address: source.address + (1 << 64), ..source }, ..answer },
        Message { destination: Endpoint { port: 2, ..destination }, ..answer },
        Message { destination: Endpoint { address: 7, ..destination }, ..answer },
        reversed(answer),
    ] {
        assert!(!is_known(other), "{other:?}");
    }
    // The answer is none to what the network began, nor did it begin anything.
    assert!(!talk.0.answer(talk.0.place(&answer, NETWORK), NETWORK, ERA, 0));
    assert!(!talk.0.answer(talk.0.place(&message(1, ACK), PORT), NETWORK, ERA, 0));
}

#[test]
fn echoes_are_answered_and_not_asked_back() {
    let talk = Talk::new();
    talk.begin(1, Step::EchoReply, 0);
    assert!(!talk.answer(1, Step::EchoReply, 0), "a reply begins nothing");
    talk.begin(1, Step::EchoRequest, 0);
    assert!(talk.answer(1, Step::EchoReply, 0));
    assert!(!talk.answer(1, Step::EchoRequest, 0));
}

#[test]
fn each_protocol_has_its_time() {
    for (steps, answer, lifetime) in [
        (vec![Step::Datagram], Step::Datagram, DATAGRAM_SECONDS),
        (vec![Step::EchoRequest], Step::EchoReply, ECHO_SECONDS),
        (vec![SYN], ACK, TRANSITORY_SECONDS),
        (vec![ACK], ACK, TRANSITORY_SECONDS),
        (vec![SYN, ACK, FIN], ACK, TRANSITORY_SECONDS),
    ] {
        for (age, is_known) in [(lifetime - 1, true), (lifetime, false), (lifetime + 1, false)] {
            let talk = Talk::new();
            steps.iter().for_each(|step| talk.begin(1, *step, 1000));
            assert_eq!(talk.answer(1, answer, 1000 + age), is_known, "{steps:?} after {age} s");
            assert_eq!(talk.0.len(1000 + age), usize::from(is_known));
        }
    }
}

#[test]
fn what_is_heard_of_does_not_age() {
    let talk = Talk::new();
    talk.begin(1, Step::Datagram, 0);
    assert!(talk.answer(1, Step::Datagram, 299));
    assert!(talk.answer(1, Step::Datagram, 598));
    talk.begin(1, Step::Datagram, 897);
    assert!(talk.answer(1, Step::Datagram, 1196));
    assert!(!talk.answer(1, Step::Datagram, 1496));
}

/// A connection that was answered at 0 has, after these steps of port and network, so many seconds.
#[track_caller]
fn lives(steps: &[(usize, Step)], lifetime: u32) {
    for (age, is_known) in [(lifetime - 1, true), (lifetime, false)] {
        let talk = Talk::new();
        talk.begin(1, SYN, 0);
        assert!(talk.answer(1, ACK, 0));
        for (side, step) in steps {
            if *side == PORT {
                talk.begin(1, *step, 0);
            } else {
                talk.answer(1, *step, 0);
            }
        }
        assert_eq!(talk.answer(1, ACK, age), is_known, "after {age} s");
    }
}

#[test]
fn tcp_is_remembered_until_it_is_closed() {
    lives(&[], OPEN_SECONDS);
    lives(&[(PORT, ACK), (NETWORK, ACK)], OPEN_SECONDS);
    lives(&[(PORT, FIN), (NETWORK, ACK)], TRANSITORY_SECONDS);
    lives(&[(NETWORK, FIN), (PORT, ACK), (PORT, ACK)], TRANSITORY_SECONDS);
    lives(&[(NETWORK, FIN), (PORT, FIN), (NETWORK, ACK)], CLOSED_SECONDS);
    lives(&[(PORT, FIN), (NETWORK, FIN), (PORT, ACK)], CLOSED_SECONDS);
    lives(&[(PORT, RST)], RESET_SECONDS);
    lives(&[(NETWORK, RST)], RESET_SECONDS);
    lives(&[(NETWORK, RST), (PORT, ACK), (NETWORK, ACK), (PORT, FIN)], RESET_SECONDS);
    // Anew, with the same ports.
    lives(&[(PORT, FIN), (NETWORK, FIN), (PORT, SYN)], TRANSITORY_SECONDS);
    lives(&[(PORT, FIN), (NETWORK, FIN), (PORT, SYN), (NETWORK, ACK)], OPEN_SECONDS);
    lives(&[(PORT, RST), (PORT, SYN), (NETWORK, ACK)], OPEN_SECONDS);
}

#[test]
fn a_reset_begins_nothing() {
    let talk = Talk::new();
    talk.begin(1, RST, 0);
    assert!(!talk.answer(1, ACK, 0));
    assert_eq!(talk.0.len(0), 0);
    // One that is an answer passes, and once more if it was held.
    talk.begin(1, SYN, 0);
    assert!(talk.answer(1, RST, 0));
    assert!(talk.answer(1, RST, 0));
    assert!(!talk.answer(1, ACK, 2));
}

#[test]
fn the_conversations_of_one_side_are_forgotten_in_another_era() {
    let talk = Talk::new();
    for side in [PORT, NETWORK] {
        for number in 0..100 {
            let place = talk.0.place(&message(number, SYN), side);
            talk.0.begin(place, side, ERA, 0);
        }
    }
    assert_eq!((talk.0.len(0), talk.0.known()), (200, 200));
    let next = Era(8);
    let is_known = |number, side, era| {
        let answer = reversed(message(number, ACK));
        talk.0.answer(talk.0.place(&answer, opposite(side)), side, era, 0)
    };
    assert!(is_known(7, PORT, ERA) && !is_known(7, PORT, next) && is_known(7, NETWORK, ERA));
    // What begins anew.
    talk.0.begin(talk.0.place(&message(7, SYN), PORT), PORT, next, 0);
    assert!(is_known(7, PORT, next) && !is_known(8, PORT, next));
    // Those of before are swept away.
    assert_eq!(talk.0.known(), 201);
    assert_eq!(talk.0.swept_in([next, ERA], 0), 101);
    assert!(is_known(7, PORT, next) && is_known(7, NETWORK, ERA) && !is_known(7, PORT, ERA));
    assert_eq!((talk.0.len(0), talk.0.swept_in([next; 2], 0)), (101, 1));
}

#[test]
fn what_begins_in_an_era_that_begins_during_a_sweep_stays() {
    let talk = Talk::new();
    let next = Era(8);
    for number in 0..100 {
        talk.0.begin(talk.0.place(&message(number, SYN), PORT), PORT, ERA, 0);
        talk.0.begin(talk.0.place(&message(1000 + number, SYN), PORT), PORT, next, 0);
    }
    let is_known = |number, era| {
        talk.0.answer(talk.0.place(&reversed(message(number, ACK)), NETWORK), PORT, era, 0)
    };
    for _ in 0..crate::occupancy::SLICES {
        let is_begun = Cell::new(false);
        talk.0.sweep(|| if is_begun.replace(true) { [next; 2] } else { [ERA; 2] }, 0);
    }
    for number in 0..100 {
        assert!(is_known(1000 + number, next), "{number} was swept away");
    }
    assert!(talk.0.known() < 200, "nothing is swept");
}

#[test]
fn each_era_is_another_one() {
    let numbers = [0, 1, 2, 3, 4, 0xfff, 0x1000, u32::MAX];
    let eras = || numbers.iter().flat_map(|one| numbers.iter().map(|two| Era::new(*one, *two)));
    let masks: HashSet<u64> = eras().map(Era::mask).collect();
    assert_eq!(masks.len(), numbers.len() * numbers.len());
    let talk = Talk::new();
    let answer = reversed(message(1, ACK));
    for era in eras() {
        let is_known = |era| talk.0.answer(talk.0.place(&answer, NETWORK), PORT, era, 0);
        assert!(!is_known(era), "{era:?}");
        talk.0.begin(talk.0.place(&message(1, SYN), PORT), PORT, era, 0);
        assert!(is_known(era), "{era:?}");
        assert_eq!(talk.0.swept_in([era; 2], 0), 1, "{era:?}");
    }
}

#[test]
fn a_table_holds_what_it_can_and_no_more() {
    let talk = Talk::new();
    for conversation in 0..CAPACITY as u64 / 4 {
        talk.begin(conversation, SYN, 0);
    }
    let known = talk.0.len(0);
    assert!(known * 1000 > CAPACITY / 4 * 998, "only {known} of {} fit", CAPACITY / 4);
    for conversation in 0..4 * CAPACITY as u64 {
        talk.begin(conversation, SYN, 1);
    }
    assert_eq!(talk.0.len(1), CAPACITY);
    // Of what came within one second none is older; but the last one is there.
    assert!(talk.answer(4 * CAPACITY as u64 - 1, ACK, 1));
}

#[test]
fn a_flood_from_one_side_leaves_the_other_side_its_half() {
    for flooded_first in [false, true] {
        let talk = Talk::new();
        let honest = |number: u64| reversed(message(number, SYN));
        let table = &talk.0;
        let flood = |now| {
            (0..8 * CAPACITY as u64).for_each(|number| talk.begin(1 << 40 | number, SYN, now));
        };
        if flooded_first {
            flood(0);
        }
        // One bucket in four has one: hardly any has more than its half.
        for number in 0..1000 {
            table.begin(table.place(&honest(number), NETWORK), NETWORK, ERA, 1);
        }
        flood(2);
        let is_answered = |number: &u64| {
            let answer = reversed(Message { step: ACK, ..honest(*number) });
            table.answer(table.place(&answer, PORT), NETWORK, ERA, 3)
        };
        assert_eq!((0..1000).filter(is_answered).count(), 1000, "flooded first: {flooded_first}");
    }
}

#[test]
fn who_knows_not_the_key_knows_no_bucket() {
    let buckets = |key| {
        let table = Conversations::new(key);
        (0..100).map(|at| table.place(&message(at, SYN), PORT).bucket).collect::<Vec<_>>()
    };
    let keys = [[1, 2], [1, 3], [2, 2], [0, 0]];
    for (at, key) in keys.iter().enumerate() {
        for other in &keys[at + 1..] {
            let pairs = buckets(*key).into_iter().zip(buckets(*other));
            assert!(pairs.filter(|(one, two)| one == two).count() < 5, "{key:?}, {other:?}");
        }
    }
}

#[test]
fn workers_share_a_table_without_mixing_it_up() {
    let table = Conversations::new([1, 2]);
    std::thread::scope(|scope| {
        for worker in 0..3u64 {
            let table = &table;
            scope.spawn(move || {
                for round in 0..200u32 {
                    for number in 0..200u64 {
                        let mine = message(number << 2 | worker, SYN);
                        table.begin(table.place(&mine, PORT), PORT, ERA, round);
                        let answer = reversed(Message { step: ACK, ..mine });
                        // Nobody else has so many that it would be pushed out.
                        assert!(table.answer(table.place(&answer, NETWORK), PORT, ERA, round));
                        // What nobody began.
                        assert!(!table.answer(table.place(&answer, NETWORK), NETWORK, ERA, round));
                        let never = reversed(message(number << 2 | 3, ACK));
                        assert!(!table.answer(table.place(&never, NETWORK), PORT, ERA, round));
                    }
                }
            });
        }
    });
    assert_eq!(table.len(200), 600);
    // However the workers have counted, and they may have counted wrong.
    assert_eq!((table.swept(200), table.len(200)), (600, 600));
    assert_eq!((table.swept(200 + TRANSITORY_SECONDS), table.swept(200 + OPEN_SECONDS)), (600, 0));
}

/// What is to happen, and the seconds before it.
fn steps() -> impl Strategy<Value = Vec<(bool, u64, Step, u32)>> {
    let step = prop_oneof![
        3 => Just(ACK), 3 => Just(SYN), 2 => Just(FIN), 1 => Just(RST), 2 => Just(Step::Datagram),
        1 => Just(Step::EchoRequest), 1 => Just(Step::EchoReply),
    ];
    let seconds =
        prop_oneof![Just(0u32), Just(1), Just(9), Just(10), Just(61), Just(250), Just(8000)];
    prop::collection::vec((any::<bool>(), 0u64..3, step, seconds), 0..60)
}

/// A conversation as the rules have it.
#[derive(Default)]
struct Model {
    seen: u32,
    is_answered: bool,
    is_reset: bool,
    fins: [bool; 2],
}

proptest! {
    #[test]
    fn a_table_behaves_as_its_model(steps in steps()) {
        let talk = Talk::new();
        let mut model: HashMap<(u64, u8), Model> = HashMap::new();
        let mut now = 0;
        for (is_answer, conversation, step, seconds) in steps {
            now += seconds;
            let number = message(conversation, step).protocol.number;
            let key = (conversation, number);
            model.retain(|(_, number), known| {
                let lifetime = match (number, known.fins) {
                    (1, _) => 60,
                    (17, _) => 300,
                    _ if known.is_reset => 2,
                    (_, [true, true]) => 10,
                    (_, [false, false]) if known.is_answered => 7440,
                    _ => 240,
                };
                now - known.seen < lifetime
            });
            let is_fin = step == FIN;
            if is_answer {
                let known = model.get_mut(&key).filter(|_| step != Step::EchoRequest);
                prop_assert_eq!(talk.answer(conversation, step, now), known.is_some());
                if let Some(known) = known {
                    (known.seen, known.is_answered) = (now, true);
                    known.fins[1] |= is_fin;
                    known.is_reset |= step == RST;
                }
            } else {
                talk.begin(conversation, step, now);
                if step == SYN {
                    model.remove(&key);
                }
                let begins = step != RST && step != Step::EchoReply;
                if begins || step == RST && model.contains_key(&key) {
                    let known = model.entry(key).or_default();
                    known.seen = now;
                    known.fins[0] |= is_fin;
                    known.is_reset |= step == RST;
                }
            }
        }
    }
}
