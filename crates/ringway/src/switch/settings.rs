//! Other settings for apps that run, which keep what they know and have: buckets, conversations, addresses.

use std::any::Any;
use std::sync::Arc;

use apps::anti_spoof::AntiSpoof;
use apps::bridge::Bridge;
use apps::bridge::sides::Sides;
use apps::filter::Filter;
use apps::police::Police;
use apps::storm::Storm;
use engine::{App, AppId, Worker};

use crate::config::Spec;

/// What gives one part of an app its settings, on its worker. Returns what is to be dropped by control.
pub(super) type Adjustment = Box<dyn FnOnce(&mut Worker) -> Box<dyn Any + Send> + Send>;
/// Makes that, for as many parts as are asked for.
pub(super) type Adjust = Arc<dyn Fn() -> Adjustment + Send + Sync>;

/// Whether an app that is `one` can become `other` while it runs.
pub(super) fn can_become(one: &Spec, other: &Spec) -> bool {
    let is_port = matches!(one, Spec::Port(_));
    !is_port && std::mem::discriminant(one) == std::mem::discriminant(other)
}

/// Gives a part of an app the settings of `spec`. With an error nothing has changed. A bridge gets its ports otherwise:
/// [`sides`].
pub(super) fn set(app: &mut dyn App, spec: &Spec) -> anyhow::Result<()> {
    fn typed<A: App>(app: &mut dyn App) -> anyhow::Result<&mut A> {
        let app: &mut dyn Any = app;
        app.downcast_mut().ok_or_else(|| anyhow::anyhow!("it is of another type"))
    }
    match spec {
        Spec::Police(settings) => typed::<Police>(app)?.set(settings)?,
        Spec::Storm(settings) => typed::<Storm>(app)?.set(settings)?,
        Spec::AntiSpoof(settings) => typed::<AntiSpoof>(app)?.set(settings),
        Spec::Filter(settings) => typed::<Filter>(app)?.set(settings.clone()),
        Spec::Bridge(_) | Spec::Port(_) => {}
    }
    Ok(())
}

/// What gives app `id` the settings of `spec`, which another part of it has taken.
pub(super) fn adjust(id: AppId, spec: &Spec) -> Adjust {
    let spec = Arc::new(spec.clone());
    Arc::new(move || {
        let spec = spec.clone();
        Box::new(move |worker| {
            let refused = worker.call(id, |app, _| set(app, &spec)).and_then(Result::err);
            Box::new((refused, spec))
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
