//! What can be wrong with a configuration, said so that the reader can mend it.
//!
//! Every fault is one line: where it is, the offending text, what was expected, and the nearest
//! valid spelling if one is near. All the faults of one configuration are reported together.

use std::fmt;
use std::path::PathBuf;

/// Where a part of the configuration was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A configuration file as a whole.
    File(PathBuf),
    /// A position in a configuration file. Lines and columns count from 1, columns in characters.
    Position { path: PathBuf, line: usize, column: usize },
    /// A flag and its value, on the command line.
    Flag { flag: String, value: String },
    /// Nowhere in particular: something is missing from the whole.
    CommandLine,
}

impl Place {
    /// The value of `--flag value`.
    pub(super) fn flag(key: &str, value: &str) -> Place {
        Place::Flag { flag: format!("--{key}"), value: value.to_owned() }
    }

    pub(super) fn is_flag(&self) -> bool {
        matches!(self, Place::Flag { .. })
    }

    /// What precedes a fault: nothing in particular, if the fault is of the whole.
    fn prefix(&self) -> String {
        match self {
            Place::CommandLine => String::new(),
            place => format!("{place}: "),
        }
    }

    /// The file from top to bottom, then the flags, then the whole.
    fn reading_order(&self) -> (u8, usize, usize) {
        match self {
            Place::File(_) => (0, 0, 0),
            Place::Position { line, column, .. } => (0, *line, *column),
            Place::Flag { .. } => (1, 0, 0),
            Place::CommandLine => (2, 0, 0),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::File(path) => write!(f, "{}", path.display()),
            Place::Position { path, line, column } => {
                write!(f, "{}:{line}:{column}", path.display())
            }
            Place::Flag { flag, value } => write!(f, "{flag} {value}"),
            Place::CommandLine => f.write_str("the configuration"),
        }
    }
}

/// What is wrong at one place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("cannot read the file: {0}")]
    Unreadable(String),
    #[error("`{line}` is not TOML: {error}")]
    Syntax { line: String, error: String },
    #[error("unknown key `{key}` of {owner}: expected {expected}{}", did_you_mean(.nearest))]
    UnknownKey { key: String, owner: String, expected: String, nearest: Option<String> },
    #[error("wrong value {value} for `{key}`: expected {expected}{}", did_you_mean(.nearest))]
    WrongValue { key: String, value: String, expected: String, nearest: Option<String> },
    #[error("{owner} lacks the key `{key}`: expected {expected}")]
    MissingKey { owner: String, key: &'static str, expected: String },
    #[error("{owner} would do nothing: expected {expected}")]
    Idle { owner: String, expected: String },
    #[error("`{0}` is given twice")]
    KeyTwice(String),
    #[error("{found} is not {whose} table: expected {expected}")]
    NotATable { found: String, whose: &'static str, expected: &'static str },
    #[error(
        "`{0}` does not describe a port: expected NAME=TYPE:TARGET[,KEY=VALUE...], as \
         vm1=vhost-user:/run/vm1.sock or host=tap:rw0"
    )]
    PortShape(String),
    #[error(
        "`{0}` is not KEY=VALUE: expected a key of the port after each comma (a path or a filter \
         that has a comma can only be given in a file)"
    )]
    NotKeyValue(String),
    #[error("`{0}` is not a port name: expected 1 to 32 characters out of A-Z, a-z, 0-9, . _ -")]
    PortName(String),
    #[error("`{0}` is not an app name: expected 1 to 64 characters out of A-Z, a-z, 0-9, . _ -")]
    AppName(String),
    #[error(
        "`{0}` is not the name of a side: expected 1 to 64 characters out of A-Z, a-z, 0-9, . _ -"
    )]
    SideName(String),
    #[error("`{0}` is the name of the bridge that ports are joined to: expected another name")]
    NameOfBridge(String),
    #[error("`{0}` reads as a side of the bridge that ports are joined to: expected another name")]
    NameOfSide(String),
    #[error("`{name}` reads as {what} of `{app}`, defined in {first}: expected another name")]
    NameOfTerminal { name: String, what: &'static str, app: String, first: Place },
    #[error("app `{name}` has the name of a port, defined in {first}: expected another name")]
    NameOfPort { name: String, first: Place },
    #[error(
        "`{name}` is the name of what lies between port `{port}` and the bridge: expected another name"
    )]
    NameOfApp { name: String, port: String },
    #[error("{what} `{name}` is defined twice, first in {first}")]
    Twice { what: &'static str, name: String, first: Place },
    #[error("port `{port}` has the same {key} `{target}` as port `{other}`, defined in {first}")]
    TargetTwice { port: String, key: &'static str, target: String, other: String, first: Place },
    #[error(
        "`{0}` has no effect together with `connect`: the process that listens makes the socket; \
         remove one of the two"
    )]
    NotWithConnect(String),
    #[error(
        "`{0}` has no effect together with `fd`: whoever opened the descriptors has decided that; \
         remove one of the two"
    )]
    NotWithFd(String),
    #[error(
        "`qinq` is for a port with one VLAN, which all of its frames are put into, or for a trunk: expected `vlan` or `trunk`"
    )]
    QinqAlone,
    #[error(
        "`trunk` is for frames that have a tag, which a tun port neither sends nor takes: expected `vlan`"
    )]
    TrunkOfTun,
    #[error(
        "{side} is in no VLAN, but {other} is, in {first}: expected `vlan`, `trunk` or both for each {what}, or for none"
    )]
    NoVlan { side: String, other: String, first: Place, what: &'static str },
    #[error(
        "`{key}` has no effect, as port `{port}` is not joined to the bridge: expected it for the side of a bridge that \
         links lead to, in [app.BRIDGE.side.SIDE]"
    )]
    NotJoined { key: String, port: String },
    #[error(
        "`{side}` has its VLANs from port `{side}` already, defined in {first}: remove one of the two"
    )]
    SideTwice { side: String, first: Place },
    #[error(
        "a burst has no effect without a rate of its kind: expected `{rate}` with one in {unit}"
    )]
    BurstAlone { rate: &'static str, unit: &'static str },
    #[error(
        "`allow-replies` has no effect without a filter: expected `filter-from`, `filter-to` or both"
    )]
    RepliesAlone,
    #[error("`mirror` has no effect without a port for the copies: expected `mirror-to`")]
    MirrorAlone,
    #[error(
        "`seed` has no effect without chance: expected `loss-from`, `delay-to` or another of what is done to frames"
    )]
    SeedAlone,
    #[error("`{key}` has no effect without a delay: expected `{delay}`")]
    NoDelay { key: String, delay: String },
    #[error(
        "`{end}` of the link `{link}` is not {what} of any app: expected the name of a port or an app, a dot, and {what} of \
         it{}",
        did_you_mean(.nearest)
    )]
    NoApp { end: String, link: String, what: &'static str, nearest: Option<String> },
    #[error(
        "`{end}` of the link `{link}`: `{app}` has no such {what}: expected {expected}{}",
        did_you_mean(.nearest)
    )]
    NoTerminal {
        end: String,
        link: String,
        app: String,
        what: &'static str,
        expected: String,
        nearest: Option<String>,
    },
    #[error(
        "`{end}` of the link `{link}`: a port of type {kind} {does} no frames: expected another app, or a link back as well"
    )]
    NoFlow { end: String, link: String, kind: &'static str, does: &'static str },
    #[error(
        "`{output}` is linked twice, first in {first}: expected one link from each output; a tee sends to several"
    )]
    LinkedTwice { output: String, first: Place },
    #[error("{0} is linked to nothing: expected its name in `links`")]
    Unlinked(String),
    #[error(
        "frames would come back to an app that still has them: {0}; expected a port or a sink on the way, or one link less"
    )]
    Cycle(String),
    #[error("wrong value for `{key}`: {error}")]
    Filter { key: String, error: String },
    #[error(
        "`persistent` with the pattern `{0}`: each start would make one more interface, and leave it; \
         give the interface a name"
    )]
    PersistentPattern(String),
    #[error(
        "{cpus} of `cpus` for {workers} `workers`: expected at least one CPU for each, or no `cpus` \
         to let the kernel choose"
    )]
    TooFewCpus { cpus: usize, workers: usize },
    #[error(
        "`features` has names with `-`, which are taken out of the default set, and names without, \
         which are the whole set: expected one or the other"
    )]
    FeaturesMixed,
    #[error("`features` has {features}, which cannot do without {needs} ({rule})")]
    FeaturesLack { features: String, needs: String, rule: &'static str },
    #[error("no ports: expected --port NAME=TYPE:TARGET, or [port.NAME] in the file of --config")]
    NoPorts,
}

fn did_you_mean(nearest: &Option<String>) -> String {
    nearest.as_ref().map_or_else(String::new, |nearest| format!("; did you mean `{nearest}`?"))
}

/// One thing wrong with the configuration, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{problem}", .place.prefix())]
pub struct Fault {
    pub place: Place,
    pub problem: Problem,
}

/// Everything wrong with the configuration, never empty: the file's faults from top to bottom, then
/// the flags'. It is displayed as one line for each, without a newline at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults(Vec<Fault>);

impl Faults {
    /// `None` if nothing is wrong.
    pub(super) fn new(mut faults: Vec<Fault>) -> Option<Faults> {
        faults.sort_by_key(|fault| fault.place.reading_order());
        (!faults.is_empty()).then_some(Faults(faults))
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}
