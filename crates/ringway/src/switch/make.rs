//! Makes apps that are no ports.

use std::sync::Arc;

use anyhow::bail;
use apps::anti_spoof::AntiSpoof;
use apps::filter::Filter;
use apps::police::Police;
use apps::storm::Storm;
use engine::App;

use super::port::{boxed, parts};
use super::random_key;
use super::register::Remake;
use crate::config::Spec;

/// An app in as many parts as there are workers, and how another part is made.
pub(super) struct Made {
    pub(super) parts: Vec<Box<dyn App>>,
    pub(super) remake: Remake,
}

/// Takes a first part, and makes the others.
pub(super) fn of<A: App + Sync>(app: A, workers: usize, part: fn(&A) -> A) -> Made {
    let spare = part(&app);
    let remake: Remake = Arc::new(move || Box::new(part(&spare)));
    Made { parts: boxed(parts(app, workers, part)), remake }
}

/// Makes an app.
pub(super) fn make(spec: &Spec, workers: usize) -> anyhow::Result<Made> {
    Ok(match spec {
        Spec::AntiSpoof(settings) => of(AntiSpoof::new(settings), workers, AntiSpoof::part),
        Spec::Storm(settings) => of(Storm::new(settings)?, workers, Storm::part),
        Spec::Police(settings) => of(Police::new(settings)?, workers, Police::part),
        Spec::Filter(settings) => {
            of(Filter::new(settings.clone(), random_key()?), workers, Filter::part)
        }
        Spec::Bridge(_) | Spec::Port(_) => bail!("it is made otherwise"),
    })
}
