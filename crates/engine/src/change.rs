//! Changes of a graph that runs: apps come and go, and links with them.
//!
//! Control makes a [`Change`] ready for each worker, with all the room that it takes. The worker makes it between two of its
//! breaths, when no frame is in flight, by exchanging what is there for what is new ([`crate::Graph::change`]): it allocates
//! next to nothing, and drops nothing. What it has exchanged is in the change then, which goes back to control.
//!
//! Links are said by the app that they begin at, all of its outputs at once, so that there is no moment at which it
//! has neither the old nor the new. Links to an app that goes need not be mentioned.

use std::collections::{HashMap, HashSet};

use crate::graph::{Due, Slot, Target};
use crate::id::{AppId, Ids};
use crate::{App, Traffic};

/// What is to become of a graph; or, once it was made, what is left of what was there.
pub struct Change {
    /// The apps that go.
    pub(crate) removed: Vec<(AppId, Option<Slot>)>,
    /// Those of them that frames came from.
    ends: Vec<AppId>,
    /// The apps that come.
    pub(crate) added: Vec<Slot>,
    pub(crate) outgoing: Vec<Outgoing>,
    /// Room for all apps that there are then.
    slots: Vec<Slot>,
    due: Due,
}

/// Where all outputs of an app lead.
pub(crate) struct Outgoing {
    pub(crate) app: AppId,
    pub(crate) outputs: Vec<Option<Target>>,
}

impl Change {
    /// Changes nothing yet. `ids` has given out those of all apps that are there afterwards.
    pub fn new(ids: &Ids) -> Self {
        let places = ids.places();
        Self {
            removed: Vec::new(),
            ends: Vec::new(),
            added: Vec::new(),
            outgoing: Vec::new(),
            slots: Vec::with_capacity(places),
            due: Due::with_capacity(places),
        }
    }

    /// Takes an app out, and all links from it and to it. One that lies between others: who was behind it may still be there.
    pub fn remove(&mut self, id: AppId) {
        self.removed.push((id, None));
    }

    /// The same for an app that frames came from: whoever was behind it is gone, also for those that another app leads to then.
    pub fn remove_end(&mut self, id: AppId) {
        self.remove(id);
        self.ends.push(id);
    }

    /// Puts an app in, under an id that no other has had. Its descriptors are to be registered already.
    pub fn add(&mut self, id: AppId, name: &str, app: Box<dyn App>) {
        // The id may have been taken since this was begun.
        self.due.schedule.reserve(id.place() + 1);
        self.added.push(Slot::new(id, name, app));
    }

    /// Leads the outputs of an app, which may be one that is added, to these inputs, and all others nowhere.
    pub fn lead(&mut self, app: AppId, outputs: &[Option<(AppId, usize)>]) {
        let target = |(app, input)| Target { app, input, traffic: Traffic::default() };
        let outputs = outputs.iter().map(|output| output.map(target)).collect();
        self.outgoing.push(Outgoing { app, outputs });
    }

    /// The inputs that something led to, before this was made, that has changed.
    pub(crate) fn led_before(&self) -> impl Iterator<Item = (AppId, usize)> {
        let removed = self.removed.iter().filter_map(|(_, slot)| slot.as_ref());
        let removed = removed.map(|slot| &slot.outputs);
        let outputs = removed.chain(self.outgoing.iter().map(|outgoing| &outgoing.outputs));
        outputs.flatten().flatten().map(|target| (target.app, target.input))
    }

    /// Those that apps led to, by others that it has taken out or directly, which frames came from and which it has taken out.
    pub(crate) fn led_by_ends(&self) -> Vec<(AppId, usize)> {
        let slots: HashMap<_, _> = self.removed.iter().map(|(id, slot)| (*id, slot)).collect();
        let (mut next, mut seen) = (self.ends.clone(), HashSet::new());
        let mut led = Vec::new();
        while let Some(id) = next.pop() {
            let Some(Some(slot)) = slots.get(&id).filter(|_| seen.insert(id)) else { continue };
            for target in slot.outputs.iter().flatten() {
                match slots.contains_key(&target.app) {
                    true => next.push(target.app),
                    false => led.push((target.app, target.input)),
                }
            }
        }
        led
    }

    /// Sees to it that there is a slot for each id, in the room that is here.
    pub(crate) fn make_room(&mut self, slots: &mut Vec<Slot>, due: &mut Due) {
        if slots.capacity() < self.slots.capacity() {
            self.slots.append(slots);
            std::mem::swap(slots, &mut self.slots);
        }
        let last = self.added.iter().filter_map(|slot| slot.id).map(AppId::place).max();
        let places = last.map_or(0, |last| last + 1);
        if slots.len() < places {
            // All that is needed was allocated: see above.
            slots.resize_with(places, Slot::default);
        }
        // Nothing is due between two breaths but what carries over to the next; that is moved.
        due.make_room(&mut self.due);
    }
}

#[cfg(test)]
mod tests;
