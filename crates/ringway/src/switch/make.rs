//! Makes the apps that are no ports, in as many parts as there are workers; and makes them anew, should one fail. A part that
//! is made anew shares what all parts share: a bridge's table, the conversations of a filter, what a police has left.

use std::sync::Arc;

use anyhow::Context;
use apps::anti_spoof::AntiSpoof;
use apps::bridge::Bridge;
use apps::bridge::table::{PortNumber, Table};
use apps::filter::Filter;
use apps::impair::Impair;
use apps::mirror::Mirror;
use apps::police::Police;
use apps::sink::Sink;
use apps::source::Source;
use apps::storm::Storm;
use apps::tee::Tee;
use engine::App;

use super::random_key;
use crate::config::network::{NetworkApp, Spec};

/// An app that was made.
pub(super) struct Made {
    /// A part for each worker.
    pub(super) parts: Vec<Box<dyn App>>,
    /// How to make another part.
    pub(super) remake: Remake,
    /// What it has learned, if it is a bridge.
    pub(super) table: Option<Arc<Table>>,
}

/// Makes another part of an app for the worker of this number, as good as the first.
pub(super) type Remake = Arc<dyn Fn(usize) -> Box<dyn App> + Send + Sync>;

/// Makes an app. None when it is a port.
pub(super) fn make(app: &NetworkApp, workers: usize) -> anyhow::Result<Option<Made>> {
    let NetworkApp { name, spec, inputs, outputs } = app;
    let what = || format!("app `{name}`");
    Ok(Some(match spec {
        Spec::Port(_) => return Ok(None),
        Spec::Bridge(memberships) => {
            let sides = PortNumber::try_from(inputs.len());
            let sides = sides.ok().context("too many sides").with_context(what)?;
            // All of them have one, or none.
            let memberships = inputs.iter().filter_map(|side| memberships.get(side)).cloned();
            let memberships: Arc<[_]> = memberships.collect();
            let bridge = match memberships.is_empty() {
                true => Bridge::new(sides, random_key()?),
                false => Bridge::with_vlans(memberships, random_key()?),
            };
            let table = Some(bridge.table().clone());
            Made { table, ..parts(bridge, workers, Bridge::part) }
        }
        Spec::AntiSpoof(settings) => parts(AntiSpoof::new(settings), workers, AntiSpoof::part),
        Spec::Storm(settings) => {
            parts(Storm::new(settings).with_context(what)?, workers, Storm::part)
        }
        Spec::Police(settings) => {
            parts(Police::new(settings).with_context(what)?, workers, Police::part)
        }
        Spec::Filter(settings) => {
            parts(Filter::new(settings.clone(), random_key()?), workers, Filter::part)
        }
        Spec::Mirror(settings) => parts(Mirror::new(settings.clone()), workers, Mirror::part),
        Spec::Tee => parts(Tee::new(outputs.len()), workers, Tee::part),
        Spec::Source(settings) => {
            let source = Source::new(settings.clone()).with_context(what)?;
            let made = parts(source, workers, Source::part);
            let (settings, others) = (settings.clone(), made.remake.clone());
            // The one that sends begins anew.
            let remake: Remake = Arc::new(move |worker| match Source::new(settings.clone()) {
                Ok(source) if worker == 0 => Box::new(source),
                _ => others(worker),
            });
            Made { remake, ..made }
        }
        Spec::Sink => parts(Sink::new(), workers, Sink::part),
        Spec::Impair(settings) => {
            parts(Impair::new(settings.clone()).with_context(what)?, workers, Impair::part)
        }
    }))
}

/// An app in as many parts as there are workers.
fn parts<A: App + Sync>(app: A, workers: usize, part: fn(&A) -> A) -> Made {
    let spare = part(&app);
    let others: Vec<A> = (1..workers).map(|_| part(&app)).collect();
    let boxed = |app| -> Box<dyn App> { Box::new(app) };
    Made {
        parts: [app].into_iter().chain(others).map(boxed).collect(),
        remake: Arc::new(move |_| Box::new(part(&spare))),
        table: None,
    }
}

#[cfg(test)]
mod tests {
    use apps::source;
    use engine::{Change, Graph, Ids};
    use wire::ethernet::{EtherType, MacAddress};

    use super::*;

    #[test]
    fn a_source_that_is_made_anew_sends_on_the_worker_where_it_did() {
        let settings = source::Settings {
            destination: MacAddress([0xff; 6]),
            source: MacAddress([2, 0, 0, 0, 0, 1]),
            ethertype: EtherType::ARP,
            size: 60,
            rate: None,
            frames: Some(3),
        };
        let app = NetworkApp {
            name: "made".to_owned(),
            spec: Spec::Source(settings),
            inputs: Vec::new(),
            outputs: vec!["out".to_owned()],
        };
        let made = make(&app, 2).unwrap().expect("it is no port");
        assert_eq!(made.parts.len(), 2);
        let again = [0, 1].map(|worker| (made.remake)(worker));
        for (part, sent) in made.parts.into_iter().chain(again).zip([3, 0, 3, 0]) {
            let mut graph = Graph::new();
            let mut ids = Ids::default();
            let [source, sink] = [ids.take(), ids.take()];
            let mut change = Change::new(&ids);
            change.add(source, "source", part);
            change.add(sink, "sink", Box::new(Sink::new()));
            change.lead(source, &[Some((sink, 0))]);
            graph.change(&mut change);
            graph.breathe(0, |_| panic!("nothing is wrong"));
            assert_eq!(graph.counters(sink).sent.frames, sent);
        }
    }
}
