//! Which links are up, and who is told.
//!
//! A link is up when the app that it begins at runs and says that it is ([`App::is_up`](crate::App::is_up)), unless that app passes on
//! by it that something else is down. An input is up when one of the links that lead to it is: its app hears of a
//! change ([`App::link`](crate::App::link)), and may pass that on by one of its outputs.
//!
//! What may have changed is noted, and looked at when no frame is on its way: between breaths, or at the end of one.
//!
//! A change is passed on to its end before the next is looked at. All that comes of it is up, or all of it is down, so that
//! each link changes once at most, also in a ring of apps.

use super::{Graph, Target};
use crate::{AppId, Change};

/// The outputs that lead to each input.
struct Leading {
    /// An input, and an output that leads there; those of one input stand together.
    links: Vec<((AppId, usize), (AppId, usize))>,
}

impl Leading {
    fn to(&self, input: (AppId, usize)) -> impl Iterator<Item = (AppId, usize)> {
        let first = self.links.partition_point(|(to, _)| *to < input);
        let rest = self.links.get(first..).unwrap_or_default().iter();
        rest.take_while(move |(to, _)| *to == input).map(|(_, from)| *from)
    }

    /// All inputs that something leads to, some of them more than once.
    fn inputs(&self) -> impl Iterator<Item = (AppId, usize)> {
        self.links.iter().map(|(to, _)| *to)
    }
}

impl Graph {
    /// Takes note that an app may have come up, or gone down; or is new, or its links are. The others hear of it at the end of the
    /// next breath. For who has called an app of a graph without a worker.
    pub fn may_have_changed(&mut self, id: AppId) {
        self.changed.push(id);
    }

    /// Whether there is something to [`settle`](Self::settle), or a failure to report.
    #[inline]
    pub(crate) fn has_news(&self) -> bool {
        self.has_failures() || !self.changed.is_empty()
    }

    /// Tells the apps what came up and what went down.
    #[cold]
    pub(crate) fn settle(&mut self) {
        // One that panics meanwhile has gone down, and is looked at next.
        while !self.changed.is_empty() {
            // First all of them, then those that they lead to, which else might believe of one that it is down.
            let mut changed = std::mem::take(&mut self.changed);
            changed.retain(|id| self.is_other(*id));
            if changed.is_empty() {
                continue;
            }
            let all = self.leading();
            for id in changed {
                let Some(slot) = self.slot(id) else { continue };
                let targets = slot.outputs.iter().flatten();
                let targets: Vec<_> = targets.map(|target| (target.app, target.input)).collect();
                // What leads to it first: what it passes on of that, others need not hear twice.
                let mut own = slot.down.clone();
                let leading = self.targets().filter(|(.., target)| target.app == id);
                own.extend(leading.map(|(.., target)| target.input));
                let own = own.into_iter().map(|input| (id, input));
                own.chain(targets).for_each(|(app, input)| self.look(&all, app, input, false));
            }
            self.end_telling();
        }
    }

    /// Tells those who have heard of a change that they have heard of all.
    fn end_telling(&mut self) {
        for app in std::mem::take(&mut self.told) {
            self.pulse.enter(app);
            self.call(app, |app| app.links_told());
            self.pulse.leave();
        }
    }

    /// Asks an app whether it is up. Returns whether that is another than before, or the app.
    fn is_other(&mut self, id: AppId) -> bool {
        // It may have gone since.
        if self.slot(id).is_none() {
            return false;
        }
        self.pulse.enter(id);
        let is_up = self.call(id, |app| app.is_up()).unwrap_or(false);
        self.pulse.leave();
        let Some(slot) = self.slot_mut(id) else { return false };
        let was_up = std::mem::replace(&mut slot.is_up, is_up);
        std::mem::take(&mut slot.is_new) || is_up != was_up
    }

    /// Tells all apps what came up and what went down, after a change of many. Of the inputs that nothing leads to, it is those
    /// where something led before that went down; and those that were behind an end that is gone did so first, whoever leads there now.
    ///
    /// What is up is found in one pass; only of what is another than an app believes the rest is looked at.
    pub(super) fn look_at_all(&mut self, change: &Change) {
        let all = self.leading();
        change.led_by_ends().into_iter().for_each(|(app, input)| self.look(&all, app, input, true));
        let mut inputs: Vec<_> = change.led_before().chain(all.inputs()).collect();
        inputs.sort_unstable();
        inputs.dedup();
        inputs.retain(|(app, input)| {
            let is_up = self.is_input_up(&all, *app, *input);
            self.slot(*app).is_some_and(|slot| slot.down.contains(input) == is_up)
        });
        inputs.into_iter().for_each(|(app, input)| self.look(&all, app, input, false));
        self.end_telling();
    }

    /// The outputs that lead to each input.
    fn leading(&self) -> Leading {
        let links = self.targets();
        let links = links.map(|(from, output, to)| ((to.app, to.input), (from, output)));
        let mut links: Vec<_> = links.collect();
        links.sort_unstable();
        Leading { links }
    }

    fn is_input_up(&self, all: &Leading, app: AppId, input: usize) -> bool {
        all.to((app, input)).any(|(from, output)| self.is_link_up(from, output))
    }

    /// Tells an app what has become of what leads to an input, and those that it passes that on to. With `is_cut` the input
    /// is down, whatever leads to it.
    fn look(&mut self, all: &Leading, mut app: AppId, mut input: usize, mut is_cut: bool) {
        loop {
            let is_up = !std::mem::take(&mut is_cut) && self.is_input_up(all, app, input);
            let Some(slot) = self.slot_mut(app) else { return };
            if !set(&mut slot.down, input, !is_up) {
                return;
            }
            self.pulse.enter(app);
            let passed_on = self.call(app, |app| app.link(input, is_up)).flatten();
            self.pulse.leave();
            self.told.insert(app);
            let Some(output) = passed_on else { return };
            let Some(slot) = self.slot_mut(app) else { return };
            set(&mut slot.dark, output, !is_up);
            let Some(Some(target)) = slot.outputs.get(output) else { return };
            (app, input) = (target.app, target.input);
        }
    }

    /// Whether the link that begins there is up.
    pub(super) fn is_link_up(&self, from: AppId, output: usize) -> bool {
        let slot = self.slot(from);
        slot.is_some_and(|slot| slot.is_up && !slot.dark.contains(&output))
    }

    /// Where all links lead, and where they begin.
    pub(super) fn targets(&self) -> impl Iterator<Item = (AppId, usize, &Target)> {
        self.slots.iter().flat_map(|slot| {
            let targets = slot.outputs.iter().enumerate();
            targets.filter_map(move |(output, target)| Some((slot.id?, output, target.as_ref()?)))
        })
    }
}

/// Has a number be in a set, or not. Returns whether that is new.
fn set(numbers: &mut Vec<usize>, number: usize, is_in: bool) -> bool {
    let before = numbers.len();
    numbers.retain(|other| *other != number);
    let was_in = numbers.len() < before;
    if is_in {
        numbers.push(number);
    }
    was_in != is_in
}

#[cfg(test)]
mod tests;
