//! Which entry of a bucket gives way to a new one, so that nobody who floods a table pushes everybody's
//! out: an owner that holds half of a bucket replaces its own entries there, and no others; and one that
//! got hold of more than half, while there was room, gives way first. So the flood has one half, and what
//! the others have in the other half stays.

/// An entry that counts: whose it is, and seconds since it was seen.
pub(crate) type Entry<Owner> = (Owner, u32);

/// The way of a bucket that a new entry of `owner` takes. An entry that is empty or too old is none.
#[cold]
pub(crate) fn victim<Owner: Copy + PartialEq, const WAYS: usize>(
    owner: Owner,
    entries: [Option<Entry<Owner>>; WAYS],
) -> usize {
    if let Some(way) = entries.iter().position(Option::is_none) {
        return way;
    }
    let all = || entries.iter().flatten().map(|(owner, _)| *owner);
    let held_by = |owner| all().filter(|other| *other == owner).count();
    let share = WAYS / 2;
    let loser = if held_by(owner) >= share {
        Some(owner)
    } else {
        all().find(|other| held_by(*other) > share)
    };
    (0..WAYS)
        .filter_map(|way| entries[way].map(|(owner, age)| (way, owner, age)))
        .filter(|(_, owner, _)| loser.is_none_or(|loser| loser == *owner))
        .max_by_key(|(_, _, age)| *age)
        .map_or(0, |(way, _, _)| way)
}
