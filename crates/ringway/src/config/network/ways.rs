//! The ways that frames may take through a network.

use std::collections::{BTreeSet, HashMap};

use apps::impair::Impairment;
use apps::mirror::MIRROR;
use apps::sides::{NETWORK, PORT, opposite};

use super::{End, Network, NetworkApp, Spec};

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

    /// Whether what comes in by an input stays here until a later breath.
    fn keeps(&self, input: usize) -> bool {
        match &self.spec {
            Spec::Impair(settings) => {
                let impairment = if input == PORT { settings.from_port } else { settings.to_port };
                impairment != Impairment::default()
            }
            _ => false,
        }
    }
}

/// The links of a network, by where they begin.
struct Leads<'a> {
    network: &'a Network,
    /// The number of the link from each output.
    links: HashMap<End, usize>,
}

impl<'a> Leads<'a> {
    fn new(network: &'a Network) -> Self {
        let links = network.links.iter().enumerate().map(|(number, link)| (link.from, number));
        Self { network, links: links.collect() }
    }

    /// The links by which what came in at an end may go on.
    fn onward(&self, end: End) -> Vec<usize> {
        let ways = self.network.apps[end.app].ways(end.number).into_iter();
        ways.filter_map(|number| self.links.get(&End { app: end.app, number }).copied()).collect()
    }

    /// A shortest way from an input back to its app in one breath.
    fn way_back(&self, start: End) -> Option<Vec<usize>> {
        // With the link that each was found by, and from where.
        let mut found: Vec<(End, Option<(usize, usize)>)> = vec![(start, None)];
        let mut seen = BTreeSet::from([start]);
        let mut at = 0;
        while let Some((end, _)) = found.get(at).copied() {
            if !self.network.apps[end.app].keeps(end.number) {
                for link in self.onward(end) {
                    let to = self.network.links[link].to;
                    if to.app == start.app {
                        let mut way = vec![link];
                        let mut before = at;
                        while let Some((link, from)) = found[before].1 {
                            way.push(link);
                            before = from;
                        }
                        way.reverse();
                        return Some(way);
                    }
                    if seen.insert(to) {
                        found.push((to, Some((link, at))));
                    }
                }
            }
            at += 1;
        }
        None
    }
}

impl Network {
    /// Ways on which frames would come back, in one breath, to an app that still has them: the numbers of the links. Of those
    /// by the same apps, one.
    pub fn cycles(&self) -> Vec<Vec<usize>> {
        let leads = Leads::new(self);
        let (mut cycles, mut known) = (Vec::new(), BTreeSet::new());
        for link in &self.links {
            let Some(cycle) = leads.way_back(link.to) else { continue };
            let apps: BTreeSet<_> = cycle.iter().map(|link| self.links[*link].to.app).collect();
            if known.insert(apps) {
                cycles.push(cycle);
            }
        }
        cycles
    }
}
