use std::any::Any;

use proptest::prelude::*;

use super::*;
use crate::testing::{Listener, Repeater, Sink, Source, Taken, Tidings, Told, taken, told};
use crate::{Counters, DropReason, Graph, Traffic};

fn breathe(graph: &mut Graph) {
    graph.breathe(0, |_| panic!("nothing to report was expected"));
}

#[test]
fn all_of_a_change_is_made_at_once() {
    let mut ids = Ids::default();
    let mut graph = Graph::new();
    let (sink, took) = Sink::new();
    let [source, repeater, sink_id] = [(); 3].map(|()| ids.take());
    let mut change = Change::new(&ids);
    change.add(source, "source", Box::new(Source::new([1, 2])));
    change.add(repeater, "repeater", Box::new(Repeater::new(2)));
    change.add(sink_id, "sink", Box::new(sink));
    change.lead(source, &[Some((repeater, 0))]);
    change.lead(repeater, &[Some((sink_id, 5)), Some((sink_id, 6))]);
    graph.change(&mut change);
    breathe(&mut graph);
    assert_eq!(taken(&took), [(5, 1), (5, 2), (6, 1), (6, 2)]);

    // Another in between, one output less, and the first one gone: its name is free, and its place.
    ids.give_back(repeater);
    let other = ids.take();
    assert_ne!(other, repeater);
    assert_eq!(other.place(), repeater.place());
    let mut change = Change::new(&ids);
    change.remove(repeater);
    change.add(other, "repeater", Box::new(Repeater::new(1)));
    change.lead(source, &[Some((other, 0))]);
    change.lead(other, &[Some((sink_id, 7))]);
    graph.change(&mut change);
    graph.get::<Source>(source).unwrap().frames.push_back(3);
    breathe(&mut graph);
    assert_eq!(taken(&took), [(7, 3)]);
    assert!(graph.ids().eq([source, other, sink_id]));
    assert!(change.removed[0].1.is_some(), "for control to drop");
}

#[test]
fn who_has_kept_the_id_of_an_app_that_is_gone_does_not_find_the_next() {
    let mut ids = Ids::default();
    let mut graph = Graph::new();
    let old = ids.take();
    let mut change = Change::new(&ids);
    change.add(old, "old", Box::new(Repeater::new(1)));
    graph.change(&mut change);
    ids.give_back(old);
    ids.give_back(old);
    let new = ids.take();
    assert_ne!(ids.take().place(), new.place(), "given back twice, and free once");
    let mut change = Change::new(&ids);
    change.remove(old);
    change.add(new, "new", Box::new(Repeater::new(1)));
    graph.change(&mut change);
    assert_eq!((graph.name(old), graph.name(new)), ("", "new"));
    assert!(graph.get::<Repeater>(old).is_none());
    assert!(!graph.is_running(old) && graph.is_running(new));
    assert!(!graph.has(old) && graph.has(new));
    assert!(graph.replace(old, Box::new(Repeater::new(1))).is_some(), "it comes back");
    assert!(graph.take(old).is_none());
    assert!(graph.link((old, 0), (new, 0)).is_err());
    assert!(graph.link((new, 0), (old, 0)).is_err());
    graph.get::<Repeater>(new).unwrap().counters.drop(DropReason::TooShort);
    assert_eq!(graph.counters(old), Counters::default());
    assert_eq!(AppId::from_word(new.to_word()), new);
}

#[test]
fn what_stays_goes_on_counting_and_what_led_to_the_gone_leads_nowhere() {
    let mut ids = Ids::default();
    let mut graph = Graph::new();
    let [source, repeater, one, two] = [(); 4].map(|()| ids.take());
    let mut change = Change::new(&ids);
    change.add(source, "source", Box::new(Source::new([1])));
    change.add(repeater, "repeater", Box::new(Repeater::new(2)));
    change.add(one, "one", Box::new(Sink::new().0));
    change.add(two, "two", Box::new(Sink::new().0));
    change.lead(source, &[Some((repeater, 0))]);
    change.lead(repeater, &[Some((one, 0)), Some((two, 0))]);
    graph.change(&mut change);
    breathe(&mut graph);
    // The second sink goes, which the change need not say of the repeater's link; and a third comes, in its place.
    let three = {
        ids.give_back(two);
        ids.take()
    };
    assert_eq!(three.place(), two.place());
    let mut change = Change::new(&ids);
    change.remove(two);
    change.add(three, "three", Box::new(Sink::new().0));
    change.lead(source, &[Some((repeater, 0))]);
    graph.change(&mut change);
    graph.get::<Source>(source).unwrap().frames.push_back(2);
    breathe(&mut graph);
    let traffic: Vec<_> = graph.links().map(|link| (link.from, link.to, link.traffic)).collect();
    let both = Traffic { frames: 2, bytes: 2 };
    assert_eq!(
        traffic,
        [((source, 0), (repeater, 0), both), ((repeater, 0), (one, 0), both)],
        "links that stay go on counting"
    );
    assert_eq!(graph.counters(repeater)[DropReason::NoDestination], 1);
    assert_eq!(graph.counters(one).sent.frames, 2);
    assert_eq!(graph.counters(three).sent.frames, 0);
}

#[test]
fn only_who_is_there_is_asked() {
    let mut ids = Ids::default();
    let mut graph = Graph::new();
    let apps = [(); 3].map(|()| ids.take());
    let [one, two, three] = apps;
    let asked = |graph: &Graph| {
        let next = |from| graph.next_asked(from..graph.places().end, true);
        std::iter::successors(next(0), |last| next(last + 1)).collect::<Vec<_>>()
    };
    let mut change = Change::new(&ids);
    apps.iter().for_each(|id| change.add(*id, "source", Box::new(Source::default())));
    graph.change(&mut change);
    assert_eq!(asked(&graph), [one, two, three].map(AppId::place));
    // One that rests is asked in each breath again when another one takes its place.
    for _ in 0..2 * crate::graph::IDLE {
        breathe(&mut graph);
    }
    graph.replace(three, Box::new(Source::default()));
    let mut change = Change::new(&ids);
    change.remove(two);
    graph.change(&mut change);
    assert_eq!(asked(&graph), [one, three].map(AppId::place));
    for _ in 0..16 {
        graph.get::<Source>(three).unwrap().frames.push_back(1);
        breathe(&mut graph);
        assert!(graph.get::<Source>(three).unwrap().frames.is_empty(), "it was not asked");
    }
}

#[test]
fn an_app_is_asked_whose_id_was_taken_after_the_change_was_begun() {
    let (mut ids, mut graph) = (Ids::default(), Graph::new());
    let mut change = Change::new(&ids);
    let source = [(); 65].map(|()| ids.take())[64];
    change.add(source, "source", Box::new(Source::new([1])));
    graph.change(&mut change);
    breathe(&mut graph);
    assert!(graph.get::<Source>(source).unwrap().frames.is_empty());
}

#[test]
fn what_was_stopped_ahead_of_its_change_drops_what_comes_until_it_goes() {
    let mut ids = Ids::default();
    let mut graph = Graph::new();
    let (listener, tidings) = Listener::new();
    let [source, port, behind] = [(); 3].map(|()| ids.take());
    let (sink, of_behind) = Listener::new();
    let mut change = Change::new(&ids);
    change.add(source, "source", Box::new(Source::new([1, 2])));
    change.add(port, "port", Box::new(listener));
    change.add(behind, "behind", Box::new(sink));
    change.lead(source, &[Some((port, 0))]);
    change.lead(port, &[Some((behind, 0))]);
    graph.change(&mut change);
    breathe(&mut graph);
    let before = graph.counters(port);
    drop([&tidings, &of_behind].map(told));
    assert_eq!(graph.links().map(|link| link.traffic.frames).collect::<Vec<_>>(), [2, 2]);

    graph.stop_ahead(port);
    graph.stop_ahead(port);
    assert!(!graph.has(port) && !graph.is_running(port));
    assert!(!graph.has_failed(port), "nobody is to be told so, and to start it again");
    assert_eq!((graph.name(port), graph.links().count()), ("port", 2), "it still has its place");
    graph.get::<Source>(source).unwrap().frames.push_back(3);
    breathe(&mut graph);
    assert_eq!(graph.links().map(|link| link.traffic.frames).collect::<Vec<_>>(), [3, 2]);
    let counters = graph.counters(port);
    assert_eq!((counters[DropReason::Stopped], before[DropReason::Stopped]), (1, 0));
    assert_eq!(told(&of_behind), [], "it hears of that by the change");

    // Whoever starts it again comes too late.
    assert!(graph.replace(port, Box::new(Source::default())).is_some(), "it comes back");
    assert!(!graph.has(port) && !graph.is_running(port));

    let mut change = Change::new(&ids);
    change.remove_end(port);
    graph.change(&mut change);
    assert_eq!(told(&tidings), [Told::Stop], "once");
    assert_eq!(told(&of_behind), [Told::Link(0, false)]);
    assert!(change.removed[0].1.is_some(), "for control to drop");
    assert_eq!(graph.links().count(), 0);
}

#[test]
fn what_was_stopped_ahead_of_its_change_has_counted_what_it_had() {
    let mut graph = Graph::new();
    let source = graph.add("source", Source::new([1, 2, 3]));
    let sink = graph.add("sink", Sink::new().0);
    graph.link((source, 0), (sink, 0)).unwrap();
    breathe(&mut graph);
    graph.stop_ahead(sink);
    assert_eq!(graph.counters(sink).sent.frames, 3);
}

#[test]
fn what_goes_is_stopped_and_the_others_hear_what_came_up_and_what_went_down() {
    let mut ids = Ids::default();
    let mut graph = Graph::new();
    let listener = |is_up| -> (Box<Listener>, Tidings) {
        let (mut listener, tidings) = Listener::new();
        listener.is_up = is_up;
        (Box::new(listener), tidings)
    };
    let [port, between, bridge] = [(); 3].map(|()| ids.take());
    let [(first, of_first), (second, of_second), (third, of_third)] =
        [false, true, true].map(listener);
    let mut change = Change::new(&ids);
    change.add(port, "port", first);
    change.add(between, "between", second);
    change.add(bridge, "bridge", third);
    change.lead(port, &[Some((between, 0))]);
    change.lead(between, &[Some((bridge, 0))]);
    graph.change(&mut change);
    assert_eq!(told(&of_second), [Told::Link(0, false)], "nobody is there");
    assert_eq!(told(&of_third).last(), Some(&Told::Link(0, false)), "by what is between");

    // Another port that is up, in the place of that and what was between.
    [port, between].into_iter().for_each(|id| ids.give_back(id));
    let other = ids.take();
    let mut change = Change::new(&ids);
    change.remove(port);
    change.remove(between);
    change.add(other, "other", listener(true).0);
    change.lead(other, &[Some((bridge, 0))]);
    graph.change(&mut change);
    assert_eq!(told(&of_third), [Told::Link(0, true)]);
    assert_eq!((told(&of_first), told(&of_second)), (vec![Told::Stop], vec![Told::Stop]));

    // One that is up in the place of one that is: who was behind that is gone.
    ids.give_back(other);
    let next = ids.take();
    let mut change = Change::new(&ids);
    change.remove_end(other);
    change.add(next, "next", listener(true).0);
    change.lead(next, &[Some((bridge, 0))]);
    graph.change(&mut change);
    assert_eq!(told(&of_third), [Told::Link(0, false), Told::Link(0, true)]);

    // Something comes between, and goes again: who is behind it was there all along.
    let [filter, tap] = [(); 2].map(|()| ids.take());
    let mut change = Change::new(&ids);
    change.add(filter, "filter", listener(true).0);
    change.lead(next, &[Some((filter, 0))]);
    change.lead(filter, &[Some((bridge, 0))]);
    graph.change(&mut change);
    let mut change = Change::new(&ids);
    change.remove(filter);
    change.lead(next, &[Some((bridge, 0))]);
    graph.change(&mut change);
    assert_eq!(told(&of_third), []);

    // An end that goes with what is between is gone for those behind that, too.
    let between = ids.take();
    let mut change = Change::new(&ids);
    change.add(between, "between", listener(true).0);
    change.lead(next, &[Some((between, 0))]);
    change.lead(between, &[Some((bridge, 0))]);
    graph.change(&mut change);
    let mut change = Change::new(&ids);
    change.remove(between);
    change.remove_end(next);
    change.add(tap, "tap", listener(true).0);
    change.lead(tap, &[Some((bridge, 0))]);
    graph.change(&mut change);
    assert_eq!(told(&of_third), [Told::Link(0, false), Told::Link(0, true)]);

    // Nothing leads there any more.
    let mut change = Change::new(&ids);
    change.remove(tap);
    graph.change(&mut change);
    assert_eq!(told(&of_third), [Told::Link(0, false)]);
    graph.change(&mut Change::new(&ids));
    assert_eq!(told(&of_third), [], "it was said");
}

/// What is done in one step of a random history.
#[derive(Clone, Debug)]
enum Step {
    /// These apps go, these sources and sinks (with so much room) come, and each source that there is then leads to a sink,
    /// or nowhere.
    Change {
        gone: Vec<prop::sample::Index>,
        sources: u8,
        sinks: Vec<u8>,
        led: Vec<Option<u8>>,
    },
    /// A source has frames.
    Frames(prop::sample::Index, u8),
    Breathe,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (
            prop::collection::vec(any::<prop::sample::Index>(), 0..3),
            0..3u8,
            prop::collection::vec(0..20u8, 0..3),
            prop::collection::vec(prop::option::of(any::<u8>()), 8),
        )
            .prop_map(|(gone, sources, sinks, led)| Step::Change {
                gone,
                sources,
                sinks,
                led
            }),
        (any::<prop::sample::Index>(), 1..8u8)
            .prop_map(|(source, frames)| Step::Frames(source, frames)),
        Just(Step::Breathe),
    ];
    prop::collection::vec(step, 1..60)
}

/// A graph and what is known of it.
#[derive(Default)]
struct History {
    ids: Ids,
    graph: Graph,
    /// The sources, the byte of whose frames is their number in here, and where each leads. None: gone.
    sources: Vec<Option<(AppId, Option<AppId>)>>,
    sinks: Vec<(AppId, Taken)>,
    /// Frames that sources were given; that sinks took; that were counted by what is gone, or were left in it.
    given: u64,
    taken: u64,
    gone: u64,
}

impl History {
    fn change(
        &mut self,
        gone: &[prop::sample::Index],
        sources: u8,
        sinks: &[u8],
        led: &[Option<u8>],
    ) {
        let mut leaving = Vec::new();
        for index in gone {
            let all: Vec<AppId> = self.graph.ids().filter(|id| !leaving.contains(id)).collect();
            if !all.is_empty() {
                leaving.push(*index.get(&all));
            }
        }
        self.sinks.retain(|(id, _)| !leaving.contains(id));
        for source in &mut self.sources {
            *source = source.filter(|(id, _)| !leaving.contains(id));
        }
        leaving.iter().for_each(|id| self.ids.give_back(*id));
        let mut added: Vec<(AppId, Box<dyn App>)> = Vec::new();
        for room in sinks {
            let (mut sink, taken) = Sink::new();
            sink.room = usize::from(*room);
            let id = self.ids.take();
            added.push((id, Box::new(sink)));
            self.sinks.push((id, taken));
        }
        for _ in 0..sources {
            let id = self.ids.take();
            added.push((id, Box::new(Source::default())));
            self.sources.push(Some((id, None)));
        }
        let mut change = Change::new(&self.ids);
        leaving.iter().for_each(|id| change.remove(*id));
        added.into_iter().for_each(|(id, app)| change.add(id, "app", app));
        let sinks: Vec<AppId> = self.sinks.iter().map(|(id, _)| *id).collect();
        for ((source, leads), led) in self.sources.iter_mut().flatten().zip(led) {
            *leads = led
                .and_then(|led| (!sinks.is_empty()).then(|| sinks[usize::from(led) % sinks.len()]));
            change.lead(*source, &[leads.map(|sink| (sink, 0))]);
        }
        // Those that were not led anew may have lost where they led to.
        for (_, leads) in self.sources.iter_mut().flatten() {
            *leads = leads.filter(|sink| sinks.contains(sink));
        }
        self.graph.change(&mut change);
        for (_, slot) in &mut change.removed {
            let slot = slot.as_mut().expect("it was there");
            let drops = slot.counters();
            self.gone += drops.drops().map(|(_, count)| count).sum::<u64>();
            let app: &mut dyn Any = slot.app_mut().expect("none failed");
            if let Some(source) = app.downcast_mut::<Source>() {
                self.gone += source.frames.len() as u64;
            }
        }
    }

    fn give(&mut self, which: prop::sample::Index, frames: u8) {
        let there: Vec<usize> =
            (0..self.sources.len()).filter(|index| self.sources[*index].is_some()).collect();
        if there.is_empty() {
            return;
        }
        let index = *which.get(&there);
        let (id, _) = self.sources[index].unwrap();
        let source = self.graph.get::<Source>(id).unwrap();
        // No more than a burst.
        if source.frames.len() < 40 {
            source.frames.extend(std::iter::repeat_n(index as u8, frames.into()));
            self.given += u64::from(frames);
        }
    }

    fn breathe(&mut self) {
        breathe(&mut self.graph);
        for (sink, took) in &self.sinks {
            for (_, byte) in taken(took) {
                self.taken += 1;
                let (_, leads) = self.sources[usize::from(byte)].expect("whose source is there");
                assert_eq!(leads, Some(*sink), "a frame of source {byte}");
            }
        }
        self.check();
    }

    /// Each frame was taken, or counted, or is still with its source.
    fn check(&mut self) {
        let ids: Vec<AppId> = self.graph.ids().collect();
        let mut there = 0;
        for id in ids {
            there += self.graph.counters(id).drops().map(|(_, count)| count).sum::<u64>();
            there += self.graph.get::<Source>(id).map_or(0, |source| source.frames.len() as u64);
        }
        assert_eq!(self.given, self.taken + self.gone + there);
    }
}

proptest! {
    #[test]
    fn whatever_comes_and_goes_each_frame_is_delivered_or_counted(steps in steps()) {
        let mut history = History::default();
        for step in steps {
            match step {
                Step::Change { gone, sources, sinks, led } => {
                    history.change(&gone, sources, &sinks, &led);
                }
                Step::Frames(source, frames) => history.give(source, frames),
                Step::Breathe => history.breathe(),
            }
        }
        history.breathe();
    }
}
