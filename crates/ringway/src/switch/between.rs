//! The apps between a port and the bridge, each of which is named by the port and what it does: `vm1.filter`.
//!
//! They are in the order of [`Between`], so that what one has dropped costs no other anything: whoever claims to be
//! somebody else uses up no rate, a storm does not use up the rate of what is no storm, and what is beyond the rate is not
//! looked at by the filter, which costs most. What is sent to the port comes by in the opposite order, and what its filter
//! drops does not count for its rate.

use anyhow::Context;
use apps::anti_spoof::AntiSpoof;
use apps::filter::Filter;
use apps::police::Police;
use apps::storm::Storm;
use engine::{App, AppId};

use super::{Graphs, Remake, random_key};
use crate::config::{Between, PortConfig, app_name, between};

/// An app that was added.
pub(super) struct Added {
    pub(super) app: AppId,
    pub(super) name: String,
    pub(super) remake: Remake,
}

/// Adds what lies between a port and the bridge, the port's end first. It is not linked yet.
pub(super) fn add(graphs: &mut Graphs, port: &PortConfig) -> anyhow::Result<Vec<Added>> {
    let Between { anti_spoof, storm, police, filter } = &port.between;
    let mut adder = Adder { graphs, port: &port.name, added: Vec::new() };
    if let Some(settings) = anti_spoof {
        adder.add(between::ANTI_SPOOF, AntiSpoof::new(settings), AntiSpoof::part);
    }
    if let Some(settings) = storm {
        let app = Storm::new(settings).with_context(|| adder.name(between::STORM))?;
        adder.add(between::STORM, app, Storm::part);
    }
    if let Some(settings) = police {
        let app = Police::new(settings).with_context(|| adder.name(between::POLICE))?;
        adder.add(between::POLICE, app, Police::part);
    }
    if let Some(settings) = filter {
        adder.add(between::FILTER, Filter::new(settings.clone(), random_key()?), Filter::part);
    }
    Ok(adder.added)
}

struct Adder<'a> {
    graphs: &'a mut Graphs,
    port: &'a str,
    added: Vec<Added>,
}

impl Adder<'_> {
    fn name(&self, what: &str) -> String {
        app_name(self.port, what)
    }

    fn add<A: App + Sync>(&mut self, what: &str, app: A, part: fn(&A) -> A) {
        let name = self.name(what);
        let (app, remake) = self.graphs.add_with_remake(&name, app, part);
        self.added.push(Added { app, name, remake });
    }
}
