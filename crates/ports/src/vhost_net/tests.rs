use super::*;

#[test]
fn a_part_transmits_by_its_own_pairs_or_by_another_ones() {
    let pairs = |part, workers, pairs| -> Vec<usize> {
        outlets(part, workers, pairs).iter().map(|outlet| outlet.pair).collect()
    };
    assert_eq!(pairs(0, 1, 1), [0]);
    assert_eq!([pairs(0, 2, 4), pairs(1, 2, 4)], [[0, 2], [1, 3]]);
    assert_eq!([pairs(0, 2, 1), pairs(1, 2, 1)], [[0], [0]]);
    assert_eq!([pairs(2, 4, 2), pairs(3, 4, 2)], [[0], [1]]);
    assert!(pairs(0, 1, 0).is_empty());
}
