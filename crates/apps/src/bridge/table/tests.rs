use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;

/// Entries that a flood has of a bucket, when others need the rest.
const SHARE: usize = WAYS / 2;

const KEY: [u64; 2] = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];

fn mac(number: u64) -> MacAddress {
    let [a, b, c, d, e, f, _, _] = number.to_le_bytes();
    MacAddress([a, b, c, d, e, f])
}

fn learn(table: &Table, address: MacAddress, port: PortNumber, now: u32) {
    table.learn(table.place(address, Domain::NONE), port, now);
}

fn find(table: &Table, address: MacAddress, now: u32) -> Option<PortNumber> {
    table.find(table.place(address, Domain::NONE), now)
}

impl Table {
    /// Addresses that are known and not aged, by a look at all.
    fn len(&self, now: u32) -> usize {
        let fresh = |bucket: &Bucket| bucket.ways().filter(|way| !way.is_aged(now)).count();
        self.buckets.iter().map(fresh).sum()
    }

    /// Enters an address in a way of its bucket, as seen at 0, wherever else it may be, and without counting it.
    pub(crate) fn enter(&self, place: Place, way: usize, port: PortNumber) {
        let way = self.at(place).way(way);
        way.set(Entry::new(place.station(), port));
        way.seen.store(0, Relaxed);
    }

    fn forget_port(&self, port: PortNumber) {
        let mut ports = Ports::default();
        ports.insert(port);
        self.forget(&ports);
    }

    /// Sweeps all of it.
    fn sweep_all(&self, now: u32) {
        (0..crate::occupancy::SLICES).for_each(|_| self.sweep(now));
    }
}

fn bucket(table: &Table, number: u64) -> usize {
    table.place(mac(number), Domain::NONE).bucket()
}

/// The first `count` addresses, from `from` on, that share a bucket with `from`.
fn sharing(table: &Table, from: u64, count: usize) -> Vec<u64> {
    let wanted = bucket(table, from);
    (from..).filter(|number| bucket(table, *number) == wanted).take(count).collect()
}

#[test]
fn an_address_is_found_where_it_was_seen_last() {
    let table = Table::new(KEY);
    assert_eq!(find(&table, mac(1), 0), None);
    learn(&table, mac(1), 7, 0);
    assert_eq!(find(&table, mac(1), 0), Some(7));
    assert_eq!(find(&table, mac(2), 0), None);
    learn(&table, mac(1), 8, 0);
    assert_eq!(find(&table, mac(1), 0), Some(8));
    assert_eq!(table.len(0), 1);
}

#[test]
fn all_addresses_and_ports_are_alike() {
    let table = Table::new(KEY);
    let addresses = [0, 1, 0x5254_0012_3456, 0xffff_ffff_ffff];
    let ports = [0, 1, 255, 256, PortNumber::MAX - 1];
    for (address, port) in addresses.into_iter().zip(ports) {
        assert_eq!(find(&table, mac(address), 0), None);
        learn(&table, mac(address), port, 0);
        assert_eq!(find(&table, mac(address), 0), Some(port));
    }
    for port in ports {
        learn(&table, mac(0), port, 0);
        assert_eq!(find(&table, mac(0), 0), Some(port));
    }
    assert_eq!(table.len(0), 4);
}

/// Who keeps an answer is told of what makes it wrong, and not of stations that are new, or make way to others.
#[test]
fn what_changes_is_counted() {
    let table = Table::new(KEY);
    let mut seen = table.changes();
    let mut has_changed =
        |table: &Table| std::mem::replace(&mut seen, table.changes()) != table.changes();
    let full = sharing(&table, 1, WAYS + 1);
    for address in &full[..WAYS] {
        learn(&table, mac(*address), 7, 0);
    }
    learn(&table, mac(1), 7, 1);
    assert!(!has_changed(&table), "new, and heard of again");
    learn(&table, mac(1), 8, 1);
    assert!(has_changed(&table), "moved");
    table.forget_port(8);
    learn(&table, mac(1), 7, 1);
    assert!(has_changed(&table), "a port is forgotten");
    learn(&table, mac(full[WAYS]), 7, 1);
    assert!(!has_changed(&table), "pushed another out that is where it was");
    sharing(&table, 1, 4 * WAYS)[WAYS + 1..]
        .iter()
        .for_each(|other| learn(&table, mac(*other), 9, 1));
    assert!(has_changed(&table), "pushed another port's out");
    table.forget(&Ports::default());
    assert!(!has_changed(&table), "no port is forgotten");
    table.forget_port(7);
    assert!(has_changed(&table), "a port is forgotten");
}

#[test]
fn an_address_is_forgotten_after_300_seconds() {
    let table = Table::new(KEY);
    learn(&table, mac(1), 7, 1000);
    assert_eq!(find(&table, mac(1), 1299), Some(7));
    assert_eq!(find(&table, mac(1), 1300), None);
    assert_eq!((table.len(1299), table.len(1300), table.known()), (1, 0, 1));
    // A slice at a time.
    table.sweep_all(1299);
    assert_eq!(table.known(), 1);
    table.sweep_all(1300);
    assert_eq!(table.known(), 0);
    // Seen again, by the entry that is still there.
    learn(&table, mac(1), 7, 1300);
    assert_eq!(find(&table, mac(1), 1599), Some(7));
    assert_eq!(find(&table, mac(1), 1600), None);
}

#[test]
fn another_workers_clock_may_be_ahead() {
    let table = Table::new(KEY);
    let address = MacAddress([2, 0, 0, 0, 0, 1]);
    learn(&table, address, 7, 1000);
    assert_eq!(find(&table, address, 999), Some(7));
    learn(&table, address, 7, 999);
    assert_eq!(find(&table, address, 1000 + AGEING_SECONDS - 1), Some(7));
    assert_eq!(find(&table, address, 1000 + AGEING_SECONDS), None);
}

#[test]
fn forgetting_a_port_leaves_the_others() {
    let table = Table::new(KEY);
    for number in 0..1000 {
        learn(&table, mac(number), (number % 3) as PortNumber, 0);
    }
    table.forget_port(1);
    for number in 0..1000 {
        let expected = Some((number % 3) as PortNumber).filter(|port| *port != 1);
        assert_eq!(find(&table, mac(number), 0), expected);
    }
}

#[test]
fn many_ports_are_forgotten_by_one_walk() {
    let table = Table::new(KEY);
    for number in 0..1000 {
        learn(&table, mac(number), number as PortNumber, 0);
    }
    let mut ports = Ports::default();
    table.forget(&ports);
    assert_eq!((table.known(), table.visited.load(Relaxed)), (1000, 0), "of none");
    (0..1000).filter(|port| port % 3 != 1).for_each(|port| ports.insert(port));
    table.forget(&ports);
    for number in 0..1000 {
        let expected = Some(number as PortNumber).filter(|port| port % 3 == 1);
        assert_eq!(find(&table, mac(number), 0), expected);
    }
    assert_eq!((table.known(), table.visited.load(Relaxed)), (333, CAPACITY as u64));
    // None of before are in it any more.
    ports.clear();
    assert!(ports.is_empty());
    ports.insert(998);
    table.forget(&ports);
    assert_eq!(table.known(), 333);
}

#[test]
fn a_port_is_forgotten_as_often_as_it_is_learned_on() {
    let table = Table::new(KEY);
    for round in 0..3 {
        learn(&table, mac(1), 7, round);
        learn(&table, mac(2), 8, round);
        assert_eq!(table.known(), 2);
        table.forget_port(7);
        // As each of several workers does.
        table.forget_port(7);
        assert_eq!((find(&table, mac(1), round), find(&table, mac(2), round)), (None, Some(8)));
        assert_eq!(table.known(), 1);
    }
    // A station that moved.
    learn(&table, mac(2), 9, 3);
    table.forget_port(8);
    assert_eq!(find(&table, mac(2), 3), Some(9));
    table.forget_port(9);
    assert_eq!((find(&table, mac(2), 3), table.known()), (None, 0));
}

#[test]
fn a_new_address_takes_an_aged_entry_first_and_then_the_one_seen_least_recently() {
    let table = Table::new(KEY);
    let numbers = sharing(&table, 0, WAYS + 2);
    // Each on a port of its own; the second is the one that is not seen again.
    for (way, number) in numbers.iter().take(WAYS).enumerate() {
        learn(&table, mac(*number), way as PortNumber, 10);
    }
    for (way, number) in numbers.iter().take(WAYS).enumerate().filter(|(way, _)| *way != 1) {
        learn(&table, mac(*number), way as PortNumber, 20 + way as u32);
    }
    learn(&table, mac(numbers[WAYS]), 100, 40);
    assert_eq!(find(&table, mac(numbers[1]), 40), None);
    assert_eq!(table.len(40), WAYS);
    // The first ages, and only the first.
    learn(&table, mac(numbers[WAYS + 1]), 101, 320);
    assert_eq!(find(&table, mac(numbers[0]), 320), None);
    for (way, number) in numbers.iter().enumerate().take(WAYS).skip(2) {
        assert_eq!(find(&table, mac(*number), 319), Some(way as PortNumber));
    }
}

#[test]
fn a_port_with_its_share_of_a_bucket_replaces_its_own() {
    let table = Table::new(KEY);
    let numbers = sharing(&table, 0, 100);
    let (honest, forged) = numbers.split_at(SHARE);
    for number in honest {
        learn(&table, mac(*number), 1, 0);
    }
    for (second, number) in forged.iter().enumerate() {
        learn(&table, mac(*number), 2, second as u32);
    }
    for number in honest {
        assert_eq!(find(&table, mac(*number), 99), Some(1));
    }
    // And what it learned last is there.
    for number in &forged[forged.len() - SHARE..] {
        assert_eq!(find(&table, mac(*number), 99), Some(2));
    }
}

#[test]
fn a_port_that_came_first_makes_room_for_the_others() {
    let table = Table::new(KEY);
    let numbers = sharing(&table, 0, 100);
    let (honest, forged) = numbers.split_at(SHARE);
    let mut second = 0;
    for number in forged {
        learn(&table, mac(*number), 2, second);
        second += 1;
    }
    for number in honest {
        learn(&table, mac(*number), 1, second);
        second += 1;
        // It goes on.
        for number in &forged[..WAYS] {
            learn(&table, mac(*number), 2, second);
        }
    }
    for number in honest {
        assert_eq!(find(&table, mac(*number), second), Some(1));
    }
}

#[test]
fn a_flood_neither_grows_the_table_nor_evicts_what_other_ports_learned() {
    let table = Table::new(KEY);
    let honest: Vec<u64> = (0..1000).map(|number| 0x5254_0000_0000 + number).collect();
    for number in &honest {
        learn(&table, mac(*number), 1, 0);
    }
    let mut buckets = HashMap::new();
    for number in &honest {
        *buckets.entry(bucket(&table, *number)).or_insert(0) += 1;
    }
    assert!(buckets.values().all(|count| *count <= SHARE), "choose another key");

    for number in 0..10 * CAPACITY as u64 {
        learn(&table, mac(0x0200_0000_0000 + number * 7), 2, 1 + (number / 2000) as u32);
    }
    let now = 1 + 10 * CAPACITY as u32 / 2000;
    assert!(table.len(now) <= CAPACITY);
    // Full, so that the flood did press on everything.
    assert_eq!(table.len(now), CAPACITY);
    for number in honest {
        assert_eq!(find(&table, mac(number), now), Some(1));
    }
}

/// Keys as they come out of the system: well mixed (by splitmix64).
fn keys() -> impl Iterator<Item = [u64; 2]> {
    let mix = |seed: u64| {
        let mixed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    };
    (1..20).map(move |seed| [mix(seed), mix(seed + 1000)])
}

#[test]
fn addresses_in_a_row_spread_over_the_buckets() {
    for key in keys() {
        let table = Table::new(key);
        let mut counts = vec![0; BUCKETS];
        for number in 0..CAPACITY as u64 {
            counts[bucket(&table, 0x5254_0000_0000 + number)] += 1;
        }
        // Evenly would be 8 each; at random, 30 is beyond all reason.
        let most = counts.iter().max().unwrap();
        assert!(*most < 30, "{most} in a bucket, with the key {key:x?}");
    }
}

#[test]
fn who_shares_a_bucket_depends_on_the_key() {
    let colliding = sharing(&Table::new(KEY), 0x5254_0000_0000, 64);
    let [first, second] = KEY;
    for other in keys().chain([[first, !second], [!first, second]]) {
        let table = Table::new(other);
        let buckets: HashSet<usize> =
            colliding.iter().map(|number| bucket(&table, *number)).collect();
        assert!(buckets.len() > 48, "{other:x?}: {} buckets", buckets.len());
    }
}

#[derive(Clone, Debug)]
enum Step {
    Learn(usize, PortNumber),
    Find(usize),
    Wait(u32),
    ForgetPort(PortNumber),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..WAYS, 0..3u16).prop_map(|(which, port)| Step::Learn(which, port)),
        4 => (0..WAYS).prop_map(Step::Find),
        1 => (0..400u32).prop_map(Step::Wait),
        1 => (0..3u16).prop_map(Step::ForgetPort),
    ]
}

proptest! {
    /// As many addresses as a bucket has room for are never evicted, also if it is one bucket.
    #[test]
    fn a_bucket_behaves_as_a_map(
        in_one_bucket: bool,
        steps in prop::collection::vec(step(), 0..200),
    ) {
        let table = Table::new(KEY);
        let numbers = if in_one_bucket {
            sharing(&table, 0, WAYS)
        } else {
            (0..WAYS as u64).collect()
        };
        let mut model: HashMap<usize, (PortNumber, u32)> = HashMap::new();
        let mut now = 0;
        for step in steps {
            match step {
                Step::Learn(which, port) => {
                    learn(&table, mac(numbers[which]), port, now);
                    model.insert(which, (port, now));
                }
                Step::Find(which) => {
                    let found = model.get(&which).filter(|(_, seen)| now - seen < 300);
                    prop_assert_eq!(
                        find(&table, mac(numbers[which]), now),
                        found.map(|(port, _)| *port)
                    );
                }
                Step::Wait(seconds) => now += seconds,
                Step::ForgetPort(port) => {
                    table.forget_port(port);
                    model.retain(|_, (learned, _)| *learned != port);
                }
            }
        }
        let known = model.values().filter(|(_, seen)| now - seen < 300).count();
        prop_assert_eq!(table.len(now), known);
        prop_assert!(table.known() >= known as u64);
        table.sweep_all(now);
        prop_assert_eq!(table.known(), known as u64);
        prop_assert_eq!(table.len(now), known, "what is not aged stays");
    }

    /// Whatever is learned, what was learned last is found, and no more than there is room for.
    #[test]
    fn the_last_is_always_found(
        steps in prop::collection::vec((0..64usize, 0..4u16, 0..50u32), 0..300),
    ) {
        let table = Table::new(KEY);
        let numbers = sharing(&table, 0, 64);
        let mut now = 0;
        for (which, port, seconds) in steps {
            now += seconds;
            learn(&table, mac(numbers[which]), port, now);
            prop_assert_eq!(find(&table, mac(numbers[which]), now), Some(port));
        }
        prop_assert!(table.len(now) <= WAYS);
    }
}

proptest! {
    #[test]
    fn both_addresses_of_a_header_belong_where_each_does(header: [u8; 12], vlan in 0..4096u16) {
        let table = Table::new(KEY);
        for domain in [Domain::NONE, table.domain(vlan)] {
            let places = table.places(&header, domain);
            let (destination, source) = header.split_at(6);
            for (place, address) in [(places.destination, destination), (places.source, source)] {
                let address = MacAddress(address.try_into().unwrap());
                prop_assert_eq!(place.0, table.place(address, domain).0);
                prop_assert_eq!(place.address(domain), address);
            }
        }
    }
}

#[test]
fn an_address_is_another_one_in_each_vlan() {
    for key in keys().chain([KEY]) {
        let table = Table::new(key);
        // A dozen stations, each of them in all VLANs.
        let vlans = [1, 2, 3, 2048, 4094];
        for (port, vlan) in (0..).zip(vlans) {
            let domain = table.domain(vlan);
            for number in 0..12 {
                table.learn(table.place(mac(number), domain), port, 0);
            }
        }
        for (port, vlan) in (0..).zip(vlans) {
            let domain = table.domain(vlan);
            for number in 0..12 {
                let found = table.find(table.place(mac(number), domain), 0);
                assert_eq!(found, Some(port), "{number} in {vlan}");
            }
        }
        let masks: HashSet<u64> = (0..4096).map(|vlan| table.domain(vlan).0).collect();
        assert_eq!(masks.len(), 4096, "with the key {key:x?}");
        assert!(masks.iter().all(|mask| mask & 0xffff == 0));
    }
}
