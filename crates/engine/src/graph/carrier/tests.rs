use std::sync::{Arc, Mutex};

use crate::testing::{
    Faulty, Listener, Moment, Sink, Source, Tidings, Told, silence_deliberate_panics, told,
};
use crate::{App, AppId, Burst, Change, Counters, Graph, Ids, Outputs, Selection};

/// An app, and what it was told.
fn add(graph: &mut Graph, name: &str) -> (AppId, Tidings) {
    let (listener, tidings) = Listener::new();
    (graph.add(name, listener), tidings)
}

/// Has a port's outside come up, or go down.
fn set(graph: &mut Graph, port: AppId, is_up: bool) {
    graph.get::<Listener>(port).unwrap().is_up = is_up;
    graph.may_have_changed(port);
    graph.settle();
}

#[test]
fn each_app_hears_in_the_beginning_what_is_down() {
    let mut graph = Graph::new();
    let (up, of_up) = add(&mut graph, "up");
    let (down, _) = add(&mut graph, "down");
    let (app, tidings) = add(&mut graph, "app");
    graph.get::<Listener>(down).unwrap().is_up = false;
    graph.link((up, 0), (app, 0)).unwrap();
    graph.link((down, 0), (app, 1)).unwrap();
    graph.settle();
    assert_eq!(told(&tidings), [Told::Link(1, false)]);
    assert_eq!(told(&of_up), [], "nothing leads to it");
    let links: Vec<_> = graph.links().map(|link| link.is_up).collect();
    assert_eq!(links, [true, false]);
    // And no more.
    graph.settle();
    graph.breathe(0, |_| panic!("nothing to report was expected"));
    assert_eq!(told(&tidings), [Told::Tick(0)]);
}

/// Many that come by one change are looked at by that, and not one by one when each is called for the first time: a look finds out
/// where all links lead.
#[test]
fn who_came_by_a_change_is_not_looked_at_again() {
    let mut ids = Ids::default();
    let mut graph = Graph::new();
    let [port, app] = [(); 2].map(|()| ids.take());
    let ((mut down, _), (listener, tidings)) = (Listener::new(), Listener::new());
    down.is_up = false;
    let mut change = Change::new(&ids);
    change.add(port, "port", Box::new(down));
    change.add(app, "app", Box::new(listener));
    change.lead(port, &[Some((app, 3))]);
    graph.change(&mut change);
    assert_eq!(told(&tidings), [Told::Link(3, false)]);
    assert!(
        ![port, app].map(|id| graph.is_other(id)).contains(&true),
        "nothing has happened since"
    );
    set(&mut graph, port, true);
    assert_eq!(told(&tidings), [Told::Link(3, true)]);
}

/// Whatever the order in which they were noted.
#[test]
fn nobody_hears_of_a_port_as_it_was_before() {
    let mut graph = Graph::new();
    let ports = ["one", "two"].map(|name| {
        let (mut listener, _) = Listener::new();
        listener.is_up = false;
        graph.add(name, listener)
    });
    let (bridge, tidings) = add(&mut graph, "bridge");
    for (number, port) in ports.into_iter().enumerate() {
        graph.link((bridge, number), (port, 0)).unwrap();
        graph.link((port, 0), (bridge, number)).unwrap();
        graph.get::<Listener>(port).unwrap().is_up = true;
    }
    graph.may_have_changed(bridge);
    graph.settle();
    assert_eq!(told(&tidings), [], "both are up");
}

/// Inputs that an app heard of at once, and whether they are up.
type Heard = Vec<(usize, bool)>;

/// Notes all that it hears of at once.
#[derive(Default)]
struct Walker {
    heard: Heard,
    walks: Arc<Mutex<Vec<Heard>>>,
    counters: Counters,
}

impl App for Walker {
    fn push(&mut self, _: usize, _: &mut Burst<'_>, _: &Selection, _: &mut Outputs<'_>) {}

    fn link(&mut self, input: usize, is_up: bool) -> Option<usize> {
        self.heard.push((input, is_up));
        None
    }

    fn links_told(&mut self) {
        self.walks.lock().unwrap().push(std::mem::take(&mut self.heard));
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}

#[test]
fn who_hears_of_several_is_told_when_that_is_all() {
    let mut graph = Graph::new();
    let ports = ["one", "other"].map(|name| add(&mut graph, name).0);
    let walker = Walker::default();
    let walks = walker.walks.clone();
    let app = graph.add("app", walker);
    for (number, port) in ports.into_iter().enumerate() {
        graph.link((port, 0), (app, number)).unwrap();
    }
    let set = |graph: &mut Graph, ports: &[AppId], is_up| {
        for port in ports {
            graph.get::<Listener>(*port).unwrap().is_up = is_up;
            graph.may_have_changed(*port);
        }
        graph.settle();
        std::mem::take(&mut *walks.lock().unwrap())
    };
    assert_eq!(set(&mut graph, &ports, false), [[(0, false), (1, false)]]);
    assert_eq!(set(&mut graph, &ports, false), [[]; 0], "it has heard that");
    assert_eq!(set(&mut graph, &ports[1..], true), [[(1, true)]]);
    // By a change of many, too.
    let mut ids = Ids::default();
    let mut graph = Graph::new();
    let [one, other, app] = [(); 3].map(|()| ids.take());
    let mut change = Change::new(&ids);
    for port in [one, other] {
        let mut down = Listener::new().0;
        down.is_up = false;
        change.add(port, "port", Box::new(down));
    }
    change.add(app, "app", Box::new(Walker { walks: walks.clone(), ..Walker::default() }));
    change.lead(one, &[Some((app, 0))]);
    change.lead(other, &[Some((app, 1))]);
    graph.change(&mut change);
    let mut walks = std::mem::take(&mut *walks.lock().unwrap());
    walks.iter_mut().for_each(|walk| walk.sort_unstable());
    assert_eq!(walks, [[(0, false), (1, false)]]);
}

#[test]
fn those_between_two_others_pass_it_on() {
    let mut graph = Graph::new();
    let (port, _) = add(&mut graph, "port");
    let (police, of_police) = add(&mut graph, "police");
    let (filter, of_filter) = add(&mut graph, "filter");
    let (bridge, of_bridge) = add(&mut graph, "bridge");
    graph.link((port, 0), (police, 1)).unwrap();
    graph.link((police, 1), (filter, 2)).unwrap();
    graph.link((filter, 2), (bridge, 3)).unwrap();
    graph.settle();
    for tidings in [&of_police, &of_filter, &of_bridge] {
        told(tidings);
    }
    for is_up in [false, true] {
        set(&mut graph, port, is_up);
        assert_eq!(told(&of_police), [Told::Link(1, is_up)]);
        assert_eq!(told(&of_filter), [Told::Link(2, is_up)]);
        assert_eq!(told(&of_bridge), [Told::Link(3, is_up)]);
        // What is between them as well: it is what the port is.
        assert!(graph.links().all(|link| link.is_up == is_up));
    }
    // It is down by itself, and the port behind it changes nothing.
    set(&mut graph, filter, false);
    assert_eq!(told(&of_bridge), [Told::Link(3, false)]);
    set(&mut graph, port, false);
    set(&mut graph, filter, true);
    assert_eq!(told(&of_bridge), []);
    set(&mut graph, port, true);
    assert_eq!(told(&of_bridge), [Told::Link(3, true)]);
}

#[test]
fn an_input_is_up_while_one_that_leads_to_it_is() {
    let mut graph = Graph::new();
    let (one, _) = add(&mut graph, "one");
    let (other, _) = add(&mut graph, "other");
    let (app, tidings) = add(&mut graph, "app");
    graph.link((one, 0), (app, 0)).unwrap();
    graph.link((other, 0), (app, 0)).unwrap();
    graph.settle();
    told(&tidings);
    set(&mut graph, one, false);
    assert_eq!(told(&tidings), []);
    set(&mut graph, other, false);
    assert_eq!(told(&tidings), [Told::Link(0, false)]);
    set(&mut graph, one, true);
    assert_eq!(told(&tidings), [Told::Link(0, true)]);
    set(&mut graph, other, true);
    assert_eq!(told(&tidings), []);
}

#[test]
fn an_app_that_fails_goes_down_and_its_successor_knows_what_is() {
    silence_deliberate_panics();
    let mut graph = Graph::new();
    let source = graph.add("source", Source::new([1]));
    let (down, _) = add(&mut graph, "down");
    let faulty = graph.add("faulty", Faulty::new(Moment::Push));
    let (app, tidings) = add(&mut graph, "app");
    graph.get::<Listener>(down).unwrap().is_up = false;
    graph.link((source, 0), (faulty, 0)).unwrap();
    graph.link((down, 0), (faulty, 1)).unwrap();
    graph.link((faulty, 1), (app, 5)).unwrap();
    graph.settle();
    assert_eq!(told(&tidings), [], "it does not pass on what it hears");
    let mut failures = 0;
    graph.breathe(0, |_| failures += 1);
    assert_eq!(failures, 1);
    assert_eq!(told(&tidings), [Told::Tick(0), Told::Link(5, false)], "at the end of the breath");

    // The next one passes on what it hears, first of all.
    let (listener, of_listener) = Listener::new();
    graph.replace(faulty, Box::new(listener));
    graph.settle();
    assert_eq!(told(&of_listener), [Told::Link(1, false)]);
    assert_eq!(told(&tidings), []);
    set(&mut graph, down, true);
    assert_eq!(told(&tidings), [Told::Link(5, true)]);
    // One that cannot be added.
    graph.take(faulty);
    graph.settle();
    assert_eq!(told(&tidings), [Told::Link(5, false)]);
}

#[test]
fn a_link_that_is_added_is_heard_of() {
    let mut graph = Graph::new();
    let (down, _) = add(&mut graph, "down");
    let (up, _) = add(&mut graph, "up");
    let (app, tidings) = add(&mut graph, "app");
    graph.get::<Listener>(down).unwrap().is_up = false;
    graph.link((down, 0), (app, 0)).unwrap();
    graph.settle();
    assert_eq!(told(&tidings), [Told::Link(0, false)]);
    graph.link((up, 0), (app, 0)).unwrap();
    graph.settle();
    assert_eq!(told(&tidings), [Told::Link(0, true)]);
    // What an app passes on by an output is known to what this leads to from now on.
    set(&mut graph, up, false);
    told(&tidings);
    let (behind, of_behind) = add(&mut graph, "behind");
    graph.link((app, 0), (behind, 9)).unwrap();
    graph.settle();
    assert_eq!(told(&of_behind), [Told::Link(9, false)]);
}

/// What changes in a ring of apps goes around once.
#[test]
fn a_ring_of_apps_comes_to_rest() {
    let mut graph = Graph::new();
    let (port, _) = add(&mut graph, "port");
    let apps: Vec<_> = (0..3).map(|_| add(&mut graph, "app")).collect();
    for (at, (app, _)) in apps.iter().enumerate() {
        let (next, _) = apps[(at + 1) % 3];
        graph.link((*app, 0), (next, 0)).unwrap();
    }
    graph.link((port, 0), (apps[0].0, 0)).unwrap();
    graph.settle();
    apps.iter().for_each(|(_, tidings)| drop(told(tidings)));
    set(&mut graph, apps[1].0, false);
    let heard: Vec<_> = apps.iter().map(|(_, tidings)| told(tidings)).collect();
    // The first of them has the port, too.
    assert_eq!(heard, [vec![], vec![], vec![Told::Link(0, false)]]);
    set(&mut graph, port, false);
    set(&mut graph, apps[1].0, true);
    let heard: Vec<_> = apps.iter().map(|(_, tidings)| told(tidings)).collect();
    assert_eq!(heard[2], [], "nothing has come up that leads to it");
}

#[test]
fn a_panic_of_one_that_is_told_is_the_end_of_that_one() {
    silence_deliberate_panics();
    let mut graph = Graph::new();
    let (port, _) = add(&mut graph, "port");
    graph.get::<Listener>(port).unwrap().is_up = false;
    let faulty = graph.add("faulty", Faulty::new(Moment::Link));
    let (behind, tidings) = add(&mut graph, "behind");
    let sink = graph.add("sink", Sink::new().0);
    graph.link((port, 0), (faulty, 0)).unwrap();
    graph.link((faulty, 0), (behind, 0)).unwrap();
    graph.link((faulty, 1), (sink, 0)).unwrap();
    let mut failed = Vec::new();
    graph.breathe(0, |event| match event {
        crate::Event::Failed { app, .. } => failed.push(app),
        crate::Event::Fault { fault, .. } => panic!("unexpected: {fault}"),
    });
    assert_eq!(failed, [faulty]);
    assert_eq!(told(&tidings).last(), Some(&Told::Link(0, false)));
    assert!(!graph.is_running(faulty) && graph.is_running(behind));
    assert!(graph.has(faulty) && graph.has_failed(faulty), "it was not taken out");
}
