//! What is different between two networks: what a reload has to do, and says that it does.
//!
//! Apps are the same if they have the same name, and links if they join terminals of the same names.

use std::collections::{HashMap, HashSet};
use std::fmt;

use super::settings::can_become;
use crate::config::network::{End, Network, NetworkApp, NetworkLink, Spec};

/// What becomes of an app that does not stay as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Goes,
    Comes,
    /// It gets other settings, and keeps what it knows.
    Changes,
    /// It goes, and another one comes by its name.
    IsMadeAnew,
}

/// What is different.
#[derive(Debug, Default)]
pub(super) struct Difference {
    fates: HashMap<String, Fate>,
    /// All of it, for people.
    lines: Vec<String>,
}

impl Difference {
    /// From one network to another.
    pub(super) fn new(old: &Network, new: &Network) -> Self {
        let mut difference = Self::default();
        let [before, after] = [old, new].map(|network| {
            let apps = network.apps.iter().map(|app| (app.name.as_str(), app));
            apps.collect::<HashMap<&str, &NetworkApp>>()
        });
        for app in &old.apps {
            if !after.contains_key(app.name.as_str()) {
                difference.add(&app.name, Fate::Goes, format!("- {}", describe(app)));
            }
        }
        for app in &new.apps {
            let Some(was) = before.get(app.name.as_str()) else {
                difference.add(&app.name, Fate::Comes, format!("+ {}", describe(app)));
                continue;
            };
            match (&was.spec, &app.spec) {
                // A tee has no settings but its outputs.
                (Spec::Tee, Spec::Tee) if was.outputs.len() != app.outputs.len() => {
                    difference.add(&app.name, Fate::Changes, format!("~ {}", describe(app)));
                }
                (one, other) if one == other => {}
                (Spec::Bridge(one), Spec::Bridge(other)) => {
                    // Those that come and go are told of by what is joined to them.
                    let stays = |side: &&String| was.inputs.contains(*side);
                    let sides: Vec<&str> = (app.inputs.iter().filter(stays))
                        .filter(|side| one.get(*side) != other.get(*side))
                        .map(String::as_str)
                        .collect();
                    if !sides.is_empty() {
                        let line = format!("~ {}: the VLANs of {}", app.name, sides.join(", "));
                        difference.add(&app.name, Fate::Changes, line);
                    }
                }
                (one, other) if can_become(one, other) => {
                    difference.add(&app.name, Fate::Changes, format!("~ {}", describe(app)));
                }
                _ => {
                    let line = format!("~ {}: made anew", describe(app));
                    difference.add(&app.name, Fate::IsMadeAnew, line);
                }
            }
        }
        let [before, after] = [old, new].map(|network| {
            let links = network.links.iter().filter(|link| {
                let apps = [link.from, link.to].map(|end| network.apps[end.app].name.as_str());
                apps.iter().all(|app| difference.stays(app))
            });
            links.map(|link| name(network, link)).collect::<Vec<String>>()
        });
        let missing = |these: &[String], those: &[String], sign: char| {
            let those: HashSet<&String> = those.iter().collect();
            let missing = these.iter().filter(|link| !those.contains(link));
            missing.map(|link| format!("{sign} link {link}")).collect::<Vec<_>>()
        };
        difference.lines.extend(missing(&before, &after, '-'));
        difference.lines.extend(missing(&after, &before, '+'));
        difference
    }

    fn add(&mut self, name: &str, fate: Fate, line: String) {
        self.fates.insert(name.to_owned(), fate);
        self.lines.push(line);
    }

    /// What becomes of an app; nothing, if it stays as it is.
    pub(super) fn fate(&self, name: &str) -> Option<Fate> {
        self.fates.get(name).copied()
    }

    /// Whether it is the same app before and afterwards.
    fn stays(&self, name: &str) -> bool {
        matches!(self.fate(name), None | Some(Fate::Changes))
    }

    /// Whether an app that was there is there no more.
    pub(super) fn goes(&self, name: &str) -> bool {
        matches!(self.fate(name), Some(Fate::Goes | Fate::IsMadeAnew))
    }

    /// Whether an app is there that was not.
    pub(super) fn comes(&self, name: &str) -> bool {
        matches!(self.fate(name), Some(Fate::Comes | Fate::IsMadeAnew))
    }

    /// All of it, a line each.
    pub(super) fn into_lines(self) -> Vec<String> {
        self.lines
    }
}

/// An app for people: `port vm3 (vhost-user)`, `vm1.police`.
fn describe(app: &NetworkApp) -> String {
    let (name, kind) = (&app.name, app.spec.type_name());
    let own = name.rsplit('.').next().unwrap_or(name);
    match app.spec {
        Spec::Port(_) => format!("port {name} ({kind})"),
        _ if own == kind => name.clone(),
        _ => format!("{name} ({kind})"),
    }
}

/// A link by the names of its terminals: `vm1.tx -> bridge.vm1`.
fn name(network: &Network, link: &NetworkLink) -> String {
    struct Named<'a>(&'a NetworkApp, &'a [String], usize);
    impl fmt::Display for Named<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let Self(app, terminals, number) = self;
            write!(f, "{}.{}", app.name, terminals.get(*number).map_or("", String::as_str))
        }
    }
    let End { app, number } = link.from;
    let from = Named(&network.apps[app], &network.apps[app].outputs, number);
    let End { app, number } = link.to;
    let to = Named(&network.apps[app], &network.apps[app].inputs, number);
    format!("{from} -> {to}")
}

#[cfg(test)]
mod tests;
