//! Other settings for apps that run, which keep what they know and have: buckets, conversations, addresses.

use std::any::Any;
use std::sync::Arc;

use apps::bridge::Bridge;
use apps::bridge::sides::Sides;
use apps::tee;
use engine::{App, AppId, Fault, Worker};

use crate::config::network::{NetworkApp, Spec};

/// What gives one part of an app its settings, on its worker.
pub(super) type Adjustment = Box<dyn FnOnce(&mut Worker) -> Adjusted + Send>;

/// What came of it.
pub(super) struct Adjusted {
    /// Of a part that goes by its old settings: why. One that has failed says so itself.
    pub(super) refused: Option<Refused>,
    /// What is to be dropped by control.
    _remains: Box<dyn Any + Send>,
}

/// Which app has refused its settings, and why.
pub(super) struct Refused {
    pub(super) app: AppId,
    pub(super) fault: Fault,
}

/// Makes that, for as many parts as are asked for.
pub(super) type Adjust = Arc<dyn Fn() -> Adjustment + Send + Sync>;

/// Whether an app that is `one` can become `other` while it runs.
pub(super) fn can_become(one: &Spec, other: &Spec) -> bool {
    let is_port = matches!(one, Spec::Port(_));
    !is_port && std::mem::discriminant(one) == std::mem::discriminant(other)
}

/// Gives a part of an app other settings. With an error nothing has changed. A bridge gets its ports otherwise: [`sides`].
pub(super) fn set(app: &mut dyn App, new: &NetworkApp) -> Result<(), Fault> {
    settings(new, |settings| app.reconfigure(settings)).unwrap_or(Ok(()))
}

/// What gives app `id` settings which another part of it has taken.
pub(super) fn adjust(id: AppId, new: &NetworkApp) -> Adjust {
    let new = Arc::new(new.clone());
    Arc::new(move || {
        let new = new.clone();
        Box::new(move |worker| {
            let done = settings(&new, |settings| worker.reconfigure(id, settings));
            let refused = done.and_then(Result::err).map(|fault| Refused { app: id, fault });
            let refused = refused.filter(|_| worker.graph().is_running(id));
            Adjusted { refused, _remains: Box::new(new) }
        })
    })
}

/// Calls `give` with the settings of an app that has some, as it takes them.
fn settings<R>(app: &NetworkApp, give: impl FnOnce(&dyn Any) -> R) -> Option<R> {
    Some(match &app.spec {
        Spec::Police(settings) => give(settings),
        Spec::Storm(settings) => give(settings),
        Spec::AntiSpoof(settings) => give(settings),
        Spec::Filter(settings) => give(settings),
        Spec::Mirror(settings) => give(settings),
        Spec::Tee => give(&tee::Settings { outputs: app.outputs.len() }),
        Spec::Source(settings) => give(settings),
        Spec::Impair(settings) => give(settings),
        Spec::Bridge(_) | Spec::Port(_) | Spec::Sink => return None,
    })
}

/// What gives a bridge its ports.
pub(super) fn sides(id: AppId, sides: Arc<Sides>) -> Adjust {
    Arc::new(move || {
        let mut part = sides.part();
        Box::new(move |worker| {
            worker.with(id, |bridge: &mut Bridge, _| bridge.set_sides(&mut part));
            Adjusted { refused: None, _remains: Box::new(part) }
        })
    })
}
