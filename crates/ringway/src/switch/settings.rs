//! Other settings for apps that run, which keep what they know and have: buckets, conversations, addresses.

use std::any::Any;
use std::sync::Arc;

use apps::anti_spoof::AntiSpoof;
use apps::bridge::Bridge;
use apps::bridge::sides::Sides;
use apps::filter::Filter;
use apps::impair::Impair;
use apps::mirror::Mirror;
use apps::police::Police;
use apps::source::Source;
use apps::storm::Storm;
use apps::tee::Tee;
use engine::{App, AppId, Worker};

use crate::config::network::{NetworkApp, Spec};

/// What gives one part of an app its settings, on its worker. Returns what is to be dropped by control.
pub(super) type Adjustment = Box<dyn FnOnce(&mut Worker) -> Box<dyn Any + Send> + Send>;
/// Makes that, for as many parts as are asked for.
pub(super) type Adjust = Arc<dyn Fn() -> Adjustment + Send + Sync>;

/// Whether an app that is `one` can become `other` while it runs.
pub(super) fn can_become(one: &Spec, other: &Spec) -> bool {
    let is_port = matches!(one, Spec::Port(_));
    !is_port && std::mem::discriminant(one) == std::mem::discriminant(other)
}

/// Gives a part of an app other settings. With an error nothing has changed. A bridge gets its ports otherwise: [`sides`].
pub(super) fn set(app: &mut dyn App, new: &NetworkApp) -> anyhow::Result<()> {
    fn typed<A: App>(app: &mut dyn App) -> anyhow::Result<&mut A> {
        let app: &mut dyn Any = app;
        app.downcast_mut().ok_or_else(|| anyhow::anyhow!("it is of another type"))
    }
    match &new.spec {
        Spec::Police(settings) => typed::<Police>(app)?.set(settings)?,
        Spec::Storm(settings) => typed::<Storm>(app)?.set(settings)?,
        Spec::AntiSpoof(settings) => typed::<AntiSpoof>(app)?.set(settings),
        Spec::Filter(settings) => typed::<Filter>(app)?.set(settings.clone()),
        Spec::Mirror(settings) => typed::<Mirror>(app)?.set(settings.clone()),
        Spec::Tee => typed::<Tee>(app)?.set(new.outputs.len()),
        Spec::Source(settings) => typed::<Source>(app)?.set(settings.clone())?,
        Spec::Impair(settings) => typed::<Impair>(app)?.set(settings.clone())?,
        Spec::Bridge(_) | Spec::Port(_) | Spec::Sink => {}
    }
    Ok(())
}

/// What gives app `id` settings which another part of it has taken.
pub(super) fn adjust(id: AppId, new: &NetworkApp) -> Adjust {
    let new = Arc::new(new.clone());
    Arc::new(move || {
        let new = new.clone();
        Box::new(move |worker| {
            let refused = worker.call(id, |app, _| set(app, &new)).and_then(Result::err);
            Box::new((refused, new))
        })
    })
}

/// What gives a bridge its ports.
pub(super) fn sides(id: AppId, sides: Arc<Sides>) -> Adjust {
    Arc::new(move || {
        let mut part = sides.part();
        Box::new(move |worker| {
            worker.with(id, |bridge: &mut Bridge, _| bridge.set_sides(&mut part));
            Box::new(part)
        })
    })
}
