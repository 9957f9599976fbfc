//! `features`: which virtio features a port offers.
//!
//! Names alone are the whole set; names with `-` are taken out of the default set. A file has them in
//! a list, a flag has `+` between them, because commas separate its keys.

use ports::vhost_user::SUPPORTED;
use wire::virtio::Features;

use super::DEFAULT_FEATURES;
use super::fault::{Fault, Problem};
use super::value::{Misfit, Scalar, Value, all_of, nearest, one_of};
use super::written::Entry;

/// The names of features, as the virtio specification has them, in lower case and without prefix.
pub fn names(features: Features) -> Vec<String> {
    let named = Features::NAMED.iter().filter(|(feature, _)| features.contains(*feature));
    named.map(|(_, name)| name.to_lowercase()).collect()
}

/// What the value of `features` means. Everything that is wrong with it goes to `faults`.
pub fn read(entry: &Entry, faults: &mut Vec<Fault>) -> Option<Features> {
    let before = faults.len();
    let items = items(entry, faults)?;
    let mut listed = Features::NONE;
    let mut is_taken_out = None;
    for item in &items {
        let (minus, feature) = match feature(&item.scalar) {
            Ok(found) => found,
            Err(misfit) => {
                faults.push(entry.wrong(item, misfit));
                continue;
            }
        };
        let mut fault = |problem| faults.push(Fault { place: item.place.clone(), problem });
        if *is_taken_out.get_or_insert(minus) != minus {
            fault(Problem::FeaturesMixed);
            return None;
        }
        if listed.contains(feature) {
            let name = names(feature).concat();
            fault(Problem::KeyTwice(if minus { format!("-{name}") } else { name }));
        }
        listed |= feature;
    }
    if faults.len() > before {
        // What the set lacks may be what was misspelt.
        return None;
    }
    let features = if is_taken_out? { DEFAULT_FEATURES.without(listed) } else { listed };
    let lacking = lacking(features);
    let is_complete = lacking.is_empty();
    let place = &entry.value.place;
    faults.extend(lacking.into_iter().map(|problem| Fault { place: place.clone(), problem }));
    is_complete.then_some(features)
}

/// The items of a list, each with its place.
fn items(entry: &Entry, faults: &mut Vec<Fault>) -> Option<Vec<Value>> {
    let place = &entry.value.place;
    let item = |text: &str| Value { scalar: Scalar::Text(text.to_owned()), place: place.clone() };
    match &entry.value.scalar {
        Scalar::Text(text) => Some(text.split('+').map(item).collect()),
        Scalar::List(items) if !items.is_empty() => Some(items.clone()),
        _ => {
            let expected = "names of features, as [\"version_1\", \"csum\"] or [\"-ring_packed\"]";
            let misfit = Misfit { expected: expected.to_owned(), nearest: None };
            faults.push(entry.wrong(&entry.value, misfit));
            None
        }
    }
}

/// One feature, and whether it is to be taken out.
fn feature(scalar: &Scalar) -> Result<(bool, Features), Misfit> {
    let text = if let Scalar::Text(text) = scalar { text.as_str() } else { "" };
    let (minus, word) = match text.strip_prefix('-') {
        Some(word) => ("-", word),
        None => ("", text),
    };
    let choices = if minus.is_empty() { SUPPORTED } else { DEFAULT_FEATURES };
    let named = Features::NAMED.iter().filter(|(feature, _)| choices.contains(*feature));
    match named.clone().find(|(_, name)| name.to_lowercase() == word) {
        Some((feature, _)) => Ok((!minus.is_empty(), *feature)),
        None => {
            let names: Vec<String> = names(choices);
            // QEMU says `packed` where the specification says RING_PACKED.
            let end = format!("_{word}");
            let longer = names.iter().find(|name| !word.is_empty() && name.ends_with(&end));
            let near = longer.cloned().or_else(|| nearest(word, names.iter().map(String::as_str)));
            let all: Vec<String> = names.iter().map(|name| format!("{minus}{name}")).collect();
            Err(Misfit {
                expected: one_of(&all),
                nearest: near.map(|name| format!("{minus}{name}")),
            })
        }
    }
}

/// What features rest on that is not among them.
fn lacking(features: Features) -> Vec<Problem> {
    let mut unmet: Vec<(Features, Features, &str)> = Vec::new();
    for (feature, needs) in features.unmet_dependencies() {
        match unmet.iter_mut().find(|(_, other, _)| *other == needs) {
            Some((lacking, ..)) => *lacking |= feature,
            None => unmet.push((feature, needs, "virtio 1.3, 5.1.3.1")),
        }
    }
    // Without it a device is one from before virtio 1, which is allowed.
    let modern = features.without(Features::LEGACY).without(Features::VERSION_1);
    if !features.contains(Features::VERSION_1) && !modern.is_empty() {
        unmet.push((
            modern,
            Features::VERSION_1,
            "virtio 1.3, 2.2.3: drivers from before see bits 0 to 31",
        ));
    }
    let problem = |(features, needs, rule)| Problem::FeaturesLack {
        features: all_of(&names(features)),
        needs: one_of(&names(needs)),
        rule,
    };
    unmet.into_iter().map(problem).collect()
}
