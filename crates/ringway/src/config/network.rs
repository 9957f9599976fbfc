//! The network of apps that the ports of a configuration make: which apps there are, and what is joined to what.

use super::{Config, app_name};

/// The name of the bridge, and its type.
pub const BRIDGE: &str = "bridge";

/// Apps and how they are joined.
#[derive(Debug, PartialEq, Eq)]
pub struct Network {
    /// The bridge; then each port and what lies between it and the bridge, in this order.
    pub apps: Vec<NetworkApp>,
    /// What is joined, by links both ways: two sides of two apps, the port's end first.
    pub joins: Vec<[Side; 2]>,
}

/// An app of a network.
#[derive(Debug, PartialEq, Eq)]
pub struct NetworkApp {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: &'static str,
    /// What its sides are called: where frames come in, and where they go out.
    sides: Vec<[String; 2]>,
}

/// A side of an app: its input and its output of one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Side {
    /// Which of the apps.
    pub app: usize,
    /// Which of its sides.
    pub number: usize,
}

impl NetworkApp {
    fn new<const N: usize>(name: String, kind: &'static str, sides: [[&str; 2]; N]) -> Self {
        Self { name, kind, sides: sides.map(|side| side.map(str::to_owned)).to_vec() }
    }

    /// What its inputs are called, by their numbers.
    pub fn inputs(&self) -> Vec<String> {
        self.sides.iter().map(|[input, _]| input.clone()).collect()
    }

    /// What its outputs are called, by their numbers.
    pub fn outputs(&self) -> Vec<String> {
        self.sides.iter().map(|[_, output]| output.clone()).collect()
    }
}

impl Config {
    /// The network of the apps of this configuration.
    pub fn network(&self) -> Network {
        let names = self.ports.iter().map(|port| [port.name.clone(), port.name.clone()]);
        let bridge = NetworkApp { name: BRIDGE.to_owned(), kind: BRIDGE, sides: names.collect() };
        let mut network = Network { apps: vec![bridge], joins: Vec::new() };
        for (number, port) in self.ports.iter().enumerate() {
            let (kind, _) = port.kind.target();
            let mut end =
                network.add(NetworkApp::new(port.name.clone(), kind.name, [["rx", "tx"]]));
            for what in port.between.names() {
                let name = app_name(&port.name, what);
                let sides = [["port"; 2], ["network"; 2]];
                let Side { app, .. } = network.add(NetworkApp::new(name, what, sides));
                network.joins.push([end, Side { app, number: apps::sides::PORT }]);
                end = Side { app, number: apps::sides::NETWORK };
            }
            network.joins.push([end, Side { app: 0, number }]);
        }
        network
    }
}

impl Network {
    /// Adds an app, and returns its first side.
    fn add(&mut self, app: NetworkApp) -> Side {
        self.apps.push(app);
        Side { app: self.apps.len() - 1, number: 0 }
    }

    /// The apps as tables of TOML, and the links between them as `vm1.tx -> bridge.vm1`.
    pub fn to_toml(&self) -> String {
        let mut text = String::from("links = [\n");
        for [one, other] in &self.joins {
            for (from, to) in [(one, other), (other, one)] {
                text += &format!("    \"{} -> {}\",\n", self.end(*from, 1), self.end(*to, 0));
            }
        }
        text += "]\n";
        for NetworkApp { name, kind, .. } in &self.apps {
            // A name has no characters that would have to be escaped.
            text += &format!("\n[app.\"{name}\"]\ntype = \"{kind}\"\n");
        }
        text
    }

    fn end(&self, side: Side, direction: usize) -> String {
        let app = &self.apps[side.app];
        format!("{}.{}", app.name, app.sides[side.number][direction])
    }

    /// A drawing for Graphviz. An edge stands for the links of both directions.
    pub fn to_dot(&self) -> String {
        let mut text =
            String::from("graph ringway {\n    rankdir = LR;\n    node [shape = box];\n");
        for NetworkApp { name, kind, .. } in &self.apps {
            let label = if name == kind { name.clone() } else { format!("{name}\\n{kind}") };
            text += &format!("    \"{name}\" [label = \"{label}\"];\n");
        }
        for join in &self.joins {
            let [one, other] = join.map(|side| &self.apps[side.app].name);
            text += &format!("    \"{one}\" -- \"{other}\";\n");
        }
        text + "}\n"
    }
}
