use super::*;
use crate::testing::{Repeater, Sink, Source, taken};

fn breathe(graph: &mut Graph) -> bool {
    graph.breathe(0, |_| panic!("nothing to report was expected"))
}

#[test]
fn frames_follow_the_links() {
    let mut graph = Graph::new();
    let (sink, took) = Sink::new();
    let source = graph.add("source", Source::new([1, 2, 3]));
    let repeater = graph.add("repeater", Repeater::new(1));
    let sink = graph.add("sink", sink);
    graph.link((source, 0), (repeater, 5)).unwrap();
    graph.link((repeater, 0), (sink, 7)).unwrap();
    assert!(breathe(&mut graph));
    assert_eq!(taken(&took), [(7, 1), (7, 2), (7, 3)]);
    assert_eq!(graph.counters(sink).sent.frames, 3);
    assert!(!breathe(&mut graph), "there is nothing more to do");
    assert_eq!(graph.name(repeater), "repeater");
}

#[test]
fn several_outputs_may_lead_to_one_app() {
    let mut graph = Graph::new();
    let (sink, took) = Sink::new();
    let source = graph.add("source", Source::new([1, 2]));
    let repeater = graph.add("repeater", Repeater::new(2));
    let sink = graph.add("sink", sink);
    graph.link((source, 0), (repeater, 0)).unwrap();
    graph.link((repeater, 0), (sink, 0)).unwrap();
    graph.link((repeater, 1), (sink, 1)).unwrap();
    breathe(&mut graph);
    assert_eq!(taken(&took), [(0, 1), (0, 2), (1, 1), (1, 2)]);
}

#[test]
fn an_output_leads_to_one_place() {
    let mut graph = Graph::new();
    let source = graph.add("vm1", Source::default());
    let one = graph.add("one", Sink::new().0);
    let other = graph.add("other", Sink::new().0);
    graph.link((source, 2), (one, 0)).unwrap();
    let error = graph.link((source, 2), (other, 0)).unwrap_err();
    assert_eq!(error.to_string(), "output 2 of vm1 is linked already");
    // The gap below it is free.
    graph.link((source, 1), (other, 0)).unwrap();
}

#[test]
fn links_need_both_ends() {
    let mut graph = Graph::new();
    let source = graph.add("source", Source::default());
    let nobody = AppId::from_word(1);
    for (from, to) in [(source, nobody), (nobody, source)] {
        let error = graph.link((from, 0), (to, 0)).unwrap_err();
        assert!(matches!(error, LinkError::NoApp));
    }
    assert_eq!(graph.name(nobody), "");
    assert_eq!(graph.counters(nobody), Counters::default());
}

#[test]
fn an_output_that_leads_nowhere_is_counted() {
    let mut graph = Graph::new();
    let source = graph.add("source", Source::new([1, 2]));
    breathe(&mut graph);
    assert_eq!(graph.counters(source)[DropReason::NoDestination], 2);

    // With a link on a higher output, too.
    let sink = graph.add("sink", Sink::new().0);
    graph.link((source, 3), (sink, 0)).unwrap();
    graph.get::<Source>(source).unwrap().frames.push_back(3);
    breathe(&mut graph);
    assert_eq!(graph.counters(source)[DropReason::NoDestination], 3);
    assert_eq!(graph.counters(sink), Counters::default());
}

#[test]
fn a_loop_is_cut_and_counted() {
    let mut graph = Graph::new();
    let source = graph.add("source", Source::new([1, 2]));
    let one = graph.add("one", Repeater::new(1));
    let other = graph.add("other", Repeater::new(1));
    graph.link((source, 0), (one, 0)).unwrap();
    graph.link((one, 0), (other, 0)).unwrap();
    graph.link((other, 0), (one, 1)).unwrap();
    breathe(&mut graph);
    assert_eq!(graph.counters(one)[DropReason::Loop], 2);
    assert_eq!(graph.counters(one)[DropReason::AppFailed], 0);
    // Nobody was lost over it.
    assert!(graph.get::<Repeater>(one).is_some());
    assert!(graph.get::<Repeater>(other).is_some());
}

#[test]
fn a_frame_may_return_to_the_app_that_pulled_it() {
    let mut graph = Graph::new();
    let source = graph.add("source", Source::new([1, 2]));
    let repeater = graph.add("repeater", Repeater::new(1));
    graph.link((source, 0), (repeater, 0)).unwrap();
    graph.link((repeater, 0), (source, 0)).unwrap();
    breathe(&mut graph);
    assert_eq!(graph.counters(source)[DropReason::Refused], 2);
}

#[test]
fn apps_are_found_by_their_type() {
    let mut graph = Graph::new();
    let source = graph.add("source", Source::default());
    assert!(graph.get::<Source>(source).is_some());
    assert!(graph.get::<Sink>(source).is_none());
    assert!(graph.ids().eq([source]));
}

#[test]
fn counters_of_an_app_include_what_was_dropped_for_it() {
    let mut graph = Graph::new();
    let source = graph.add("source", Source::new([1]));
    let repeater = graph.add("repeater", Repeater::new(1));
    graph.link((source, 0), (repeater, 0)).unwrap();
    let app = graph.get::<Repeater>(repeater).unwrap();
    app.counters.drop(DropReason::NoDestination);
    app.counters.drop(DropReason::TooShort);
    breathe(&mut graph);
    let drops: Vec<_> =
        graph.counters(repeater).drops().map(|(reason, count)| (reason.name(), count)).collect();
    assert_eq!(drops, [("too_short", 1), ("no_destination", 2)]);
}

#[test]
fn another_app_takes_the_place_of_one_that_failed_or_runs() {
    crate::testing::silence_deliberate_panics();
    let mut graph = Graph::new();
    let source = graph.add("source", Source::default());
    let place = graph.add("place", crate::testing::Faulty::new(crate::testing::Moment::Push));
    graph.link((source, 0), (place, 1)).unwrap();
    let send = |graph: &mut Graph, frame| {
        graph.get::<Source>(source).unwrap().frames.push_back(frame);
        let mut failures = 0;
        graph.breathe(0, |_| failures += 1);
        failures
    };
    assert_eq!(send(&mut graph, 1), 1);
    assert_eq!(send(&mut graph, 2), 0);
    assert_eq!(graph.counters(place)[DropReason::AppFailed], 1);

    let (sink, took) = Sink::new();
    assert!(graph.replace(place, Box::new(sink)).is_none(), "the one that failed was reported");
    assert_eq!(send(&mut graph, 3), 0);
    assert_eq!(taken(&took), [(1, 3)], "the links stay");
    // Now one that runs.
    let (sink, took) = Sink::new();
    assert!(graph.replace(place, Box::new(sink)).is_some());
    assert_eq!(send(&mut graph, 4), 0);
    assert_eq!(taken(&took), [(1, 4)]);
    let counters = graph.counters(place);
    assert_eq!((counters.sent.frames, counters[DropReason::AppFailed]), (2, 1), "all of it");
    assert_eq!(graph.name(place), "place");
    // It may have an outside where the other had none, and the other way round.
    assert!(graph.replace(place, Box::new(Repeater::new(1))).is_some());
    assert!(graph.take(place).is_some());
    assert_eq!(send(&mut graph, 5), 0);
    assert_eq!(graph.counters(place)[DropReason::AppFailed], 2);
    let nowhere = AppId::from_word(7);
    assert!(graph.replace(nowhere, Box::new(Repeater::new(1))).is_some(), "it comes back");
    assert!(graph.take(nowhere).is_none());
}

#[test]
fn links_count_what_goes_by_them() {
    let mut graph = Graph::new();
    let source = graph.add("source", Source::new([1, 2, 3]));
    let repeater = graph.add("repeater", Repeater::new(2));
    let (sink, _) = Sink::new();
    let sink = graph.add("sink", sink);
    graph.link((source, 0), (repeater, 4)).unwrap();
    graph.link((repeater, 1), (sink, 2)).unwrap();
    breathe(&mut graph);
    breathe(&mut graph);
    // Each of the source's frames has one byte. An output that leads nowhere is no link.
    let traffic = Traffic { frames: 3, bytes: 3 };
    let expected = [
        Link { from: (source, 0), to: (repeater, 4), traffic, is_up: true },
        Link { from: (repeater, 1), to: (sink, 2), traffic, is_up: true },
    ];
    assert!(graph.links().eq(expected), "{:?}", graph.links().collect::<Vec<_>>());
    assert_eq!(graph.frames, 3);
}
