//! The ways that frames may take through a network.
//!
//! Frames come back to an app if one of its inputs leads to another one, or to the same. For that, the apps that each link leads to
//! are gathered in one pass over all of them, each after those that it leads to: so with a bridge of many ports none of these is
//! gone through for each of the others again. Only for a link whose own app is among them a way back is searched.
//!
//! In a ring there is no such order, and some of its links miss apps. The one by which the pass came to the ring does not miss
//! its own, and one fault for a ring is enough.
//!
//! What an app keeps for later makes no difference: it cannot take what comes back while its frames are on their way.

use std::collections::{BTreeSet, HashMap, VecDeque};

use apps::mirror::MIRROR;
use apps::sides::{NETWORK, PORT, opposite};

use super::{Network, NetworkApp, Spec};

impl NetworkApp {
    /// The outputs by which what comes in by an input may go on.
    fn ways(&self, input: usize) -> Vec<usize> {
        match &self.spec {
            Spec::Bridge(_) => (0..self.outputs.len()).filter(|output| *output != input).collect(),
            Spec::Tee => (0..self.outputs.len()).collect(),
            Spec::Port(_) | Spec::Source(_) | Spec::Sink => Vec::new(),
            Spec::Mirror(settings) => {
                let is_copied = match input {
                    PORT => settings.from_port,
                    NETWORK => settings.to_port,
                    _ => return Vec::new(),
                };
                [opposite(input)].into_iter().chain(is_copied.then_some(MIRROR)).collect()
            }
            Spec::AntiSpoof(_)
            | Spec::Storm(_)
            | Spec::Police(_)
            | Spec::Filter(_)
            | Spec::Impair(_) => vec![opposite(input)],
        }
    }
}

/// The links of a network, and what each leads to. Links and apps are numbers here.
struct Leads {
    /// By the number of a link, the app that it leads to.
    apps: Vec<usize>,
    /// By the number of a link, the links by which what came in by it may go on.
    onward: Vec<Vec<usize>>,
    /// How many apps there are.
    count: usize,
}

/// Apps, a bit for each.
type Apps = Vec<u64>;

impl Leads {
    fn new(network: &Network) -> Self {
        let Network { apps, links } = network;
        let outputs = |app: &NetworkApp| vec![None; app.outputs.len()];
        let mut leading: Vec<Vec<Option<usize>>> = apps.iter().map(outputs).collect();
        for (number, link) in links.iter().enumerate() {
            leading[link.from.app][link.from.number] = Some(number);
        }
        let onward = links.iter().map(|link| {
            let ways = apps[link.to.app].ways(link.to.number).into_iter();
            ways.filter_map(|output| leading[link.to.app][output]).collect()
        });
        let onward = onward.collect();
        Self { apps: links.iter().map(|link| link.to.app).collect(), onward, count: apps.len() }
    }

    /// The links in an order in which each stands behind those that it leads to, but for rings.
    fn order(&self) -> Vec<usize> {
        let mut order = Vec::with_capacity(self.apps.len());
        let mut seen = vec![false; self.apps.len()];
        for start in 0..self.apps.len() {
            // With how many of those that it leads to have been looked at.
            let mut path = if seen[start] { Vec::new() } else { vec![(start, 0)] };
            seen[start] = true;
            while let Some((link, looked_at)) = path.last_mut() {
                if let Some(next) = self.onward[*link].get(*looked_at) {
                    *looked_at += 1;
                    if !std::mem::replace(&mut seen[*next], true) {
                        path.push((*next, 0));
                    }
                } else {
                    order.push(*link);
                    path.pop();
                }
            }
        }
        order
    }

    /// Whether what each link brings to an app can come to that app again.
    fn come_back(&self) -> Vec<bool> {
        // What leads nowhere, as most that is sent to a port, has no bits.
        let mut reached: Vec<Apps> = vec![Vec::new(); self.apps.len()];
        for link in self.order() {
            if self.onward[link].is_empty() {
                continue;
            }
            let mut apps = vec![0; self.count.div_ceil(64)];
            for next in &self.onward[link] {
                apps[self.apps[*next] / 64] |= 1 << (self.apps[*next] % 64);
                apps.iter_mut().zip(&reached[*next]).for_each(|(apps, others)| *apps |= others);
            }
            reached[link] = apps;
        }
        let comes_back = |(reached, app): (&Apps, &usize)| {
            reached.get(app / 64).is_some_and(|apps| apps & 1 << (app % 64) != 0)
        };
        reached.iter().zip(&self.apps).map(comes_back).collect()
    }

    /// A shortest way back to the app that a link leads to, by none of some apps.
    fn way_back(&self, start: usize, without: &BTreeSet<usize>) -> Option<Vec<usize>> {
        // By what link each was found.
        let mut before: HashMap<usize, usize> = HashMap::new();
        let mut found = VecDeque::from([start]);
        while let Some(at) = found.pop_front() {
            for &link in &self.onward[at] {
                if without.contains(&self.apps[link]) || before.contains_key(&link) {
                    continue;
                }
                before.insert(link, at);
                if self.apps[link] == self.apps[start] {
                    let (mut way, mut at) = (vec![link], at);
                    while at != start {
                        way.push(at);
                        at = before[&at];
                    }
                    way.reverse();
                    return Some(way);
                }
                found.push_back(link);
            }
        }
        None
    }
}

impl Network {
    /// Ways on which frames would come back, in one breath, to an app that still has them: the numbers of the links. No two of them
    /// have an app in common, so that a ring is told of once and not with each port that leads to it.
    pub fn cycles(&self) -> Vec<Vec<usize>> {
        let leads = Leads::new(self);
        let (mut cycles, mut known) = (Vec::new(), BTreeSet::new());
        for (link, comes_back) in leads.come_back().into_iter().enumerate() {
            if !comes_back || known.contains(&leads.apps[link]) {
                continue;
            }
            let Some(way) = leads.way_back(link, &known) else { continue };
            // The first app to which they come back may be another one.
            let mut apps = vec![leads.apps[link]];
            for (at, link) in way.iter().enumerate() {
                let app = leads.apps[*link];
                if let Some(first) = apps.iter().position(|other| *other == app) {
                    known.extend(&apps[first..]);
                    cycles.push(way[first..=at].to_vec());
                    break;
                }
                apps.push(app);
            }
        }
        cycles
    }
}
