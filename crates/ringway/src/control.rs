//! The control socket of a running switch: a Unix socket to which a request is one line of JSON, and so is the answer.
//!
//!     {"ringway":1,"request":"stats"}
//!     {"ringway":1,"stats":{...}}        or        {"ringway":1,"error":"..."}
//!
//! All of it is served by the control thread, without a thread or a task of its own for anybody: who connects is one of a
//! few, a line has a limit, and so have the times to send one and to take the answer. Only the user that runs the switch,
//! and root, can connect.

mod lines;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use futures_util::stream::{FuturesUnordered, StreamExt};
use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{sleep, timeout};

use crate::config::ControlSocket;
use crate::report::Report;
use crate::socket::{InUse, Listener, listen_at};
use crate::switch::{Observer, Reloader};
use lines::{LineError, Lines};

/// The version of requests and answers. One who speaks another is told so.
const PROTOCOL: u32 = 1;
/// Bytes of the longest request.
const REQUEST_LIMIT: usize = 64 * 1024;
/// Bytes of the longest answer: of a switch with more ports than there are ring numbers for.
const ANSWER_LIMIT: usize = 64 * 1024 * 1024;
/// Who is served at once. Others wait until they are accepted.
const CONNECTIONS: usize = 8;
/// How long one may take to send a request, and to take an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long to wait when nobody can be accepted, for want of descriptors.
const PAUSE: Duration = Duration::from_millis(100);
/// Only for the user that runs the switch.
const MODE: u32 = 0o600;
/// The name of the socket that nobody chose.
const DEFAULT_NAME: &str = "ringway.sock";

/// What a switch can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// A look at everything.
    Stats,
    /// To read the configuration again, and to change what is different; or, as a dry run, to say what that would be.
    #[serde(rename_all = "kebab-case")]
    Reload {
        #[serde(default)]
        dry_run: bool,
    },
}

/// What it answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// To [`Request::Stats`].
    Stats(Box<Report>),
    /// To [`Request::Reload`]: what was changed, a line each.
    Reloaded(Vec<String>),
    /// It could not be done, and why.
    Error(String),
}

/// A request or an answer, and the version that it is of.
#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    ringway: u32,
    #[serde(flatten)]
    body: T,
}

/// The part of both that stays the same in all versions.
#[derive(Deserialize)]
struct Version {
    ringway: u32,
}

/// Where the control socket is when nobody says so: the first of these where one can be made.
fn default_paths() -> Vec<PathBuf> {
    let own =
        std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|own| own.is_absolute());
    own.into_iter().chain([PathBuf::from("/run")]).map(|path| path.join(DEFAULT_NAME)).collect()
}

/// Opens the control socket. That one cannot be made is an error if it was asked for.
pub fn open(wanted: &ControlSocket) -> anyhow::Result<Option<Listener>> {
    match wanted {
        ControlSocket::Off => Ok(None),
        ControlSocket::At(path) => {
            let listener = listen_at(path, MODE, None);
            let what = || format!("cannot make the control socket {}", path.display());
            listener.map(Some).with_context(what)
        }
        ControlSocket::Default => Ok(open_first(&default_paths())),
    }
}

/// Opens the control socket at the first of these paths where one can be made. If another switch is there, this one has none:
/// whoever asks without saying whom would always ask the other.
fn open_first(paths: &[PathBuf]) -> Option<Listener> {
    for path in paths {
        match listen_at(path, MODE, None) {
            Ok(listener) => return Some(listener),
            Err(error) if error.is::<InUse>() => {
                let path = path.display();
                tracing::warn!(
                    "no control socket: {path} is {error}; `--control PATH` gives this switch one of its own, \
                     and `--control off` says that it needs none"
                );
                return None;
            }
            Err(error) => tracing::info!("no control socket {}: {error:#}", path.display()),
        }
    }
    None
}

/// Serves everybody who connects, until it is dropped.
pub async fn serve<F: Future<Output = Answer>>(
    listener: Listener,
    handle: impl Fn(Request) -> F,
) -> io::Result<()> {
    // Its file goes when this does.
    let socket = UnixListener::from_std(listener.socket.try_clone()?)?;
    let mut served = FuturesUnordered::new();
    loop {
        tokio::select! {
            accepted = socket.accept(), if served.len() < CONNECTIONS => match accepted {
                Ok((stream, _)) => served.push(attend(stream, &handle)),
                Err(error) => {
                    tracing::warn!("cannot accept at the control socket: {error}");
                    sleep(PAUSE).await;
                }
            },
            Some(()) = served.next() => {}
        }
    }
}

/// Serves one, until he leaves, or is too slow, or sends what is no line.
async fn attend<F: Future<Output = Answer>>(stream: UnixStream, handle: impl Fn(Request) -> F) {
    let mut lines = Lines::new(stream, REQUEST_LIMIT);
    loop {
        let (answer, is_last) = match timeout(PATIENCE, lines.next()).await {
            Ok(Ok(Some(line))) => match read_request(&line) {
                Ok(request) => (handle(request).await, false),
                Err(error) => (Answer::Error(error), false),
            },
            Ok(Err(error @ LineError::TooLong(_))) => (Answer::Error(error.to_string()), true),
            Ok(Ok(None) | Err(LineError::Socket(_))) | Err(_) => return,
        };
        let taken = timeout(PATIENCE, lines.send(&in_line(answer))).await;
        if is_last || !matches!(taken, Ok(Ok(()))) {
            return;
        }
    }
}

/// What a switch answers.
pub async fn answer(request: Request, observer: &Observer, reloader: &Reloader) -> Answer {
    match request {
        Request::Stats => match observer.report().await {
            Ok(report) => Answer::Stats(Box::new(report)),
            Err(error) => Answer::Error(format!("{error:#}")),
        },
        Request::Reload { dry_run } => match reloader.reload(dry_run).await {
            Ok(lines) => Answer::Reloaded(lines),
            Err(error) => Answer::Error(format!("{error:#}")),
        },
    }
}

fn in_line<T: Serialize>(body: T) -> Vec<u8> {
    // Everything in it has a form in JSON.
    serde_json::to_vec(&Versioned { ringway: PROTOCOL, body }).unwrap_or_default()
}

fn read_request(line: &[u8]) -> Result<Request, String> {
    let version: Version =
        serde_json::from_slice(line).map_err(|error| format!("not a request: {error}"))?;
    if version.ringway != PROTOCOL {
        return Err(format!("this switch speaks version {PROTOCOL}, and not {}", version.ringway));
    }
    let request: Versioned<Request> =
        serde_json::from_slice(line).map_err(|error| format!("not a request: {error}"))?;
    Ok(request.body)
}

fn read_answer(line: &[u8]) -> anyhow::Result<Answer> {
    let version: Version = serde_json::from_slice(line).context("it is not a switch of ours")?;
    if version.ringway != PROTOCOL {
        bail!(
            "it speaks version {} of the control protocol, and this program version {PROTOCOL}: use the \
             `ringway` that the switch was started with",
            version.ringway
        );
    }
    let answer: Versioned<Answer> = serde_json::from_slice(line).context(
        "its answer is none of ours: use the `ringway` that the switch was started with",
    )?;
    Ok(answer.body)
}

/// Asks the switch whose control socket is at `path`, or where one is by default.
pub async fn ask(path: Option<&Path>, request: Request) -> anyhow::Result<Answer> {
    let (stream, path) = connect(path).await?;
    let answer = converse(stream, request).await;
    answer.with_context(|| format!("cannot ask the switch at {}", path.display()))
}

async fn converse(stream: UnixStream, request: Request) -> anyhow::Result<Answer> {
    let mut lines = Lines::new(stream, ANSWER_LIMIT);
    let slow = |_| anyhow!("it has not answered within {} s", 2 * PATIENCE.as_secs());
    let line = timeout(2 * PATIENCE, async {
        lines.send(&in_line(request)).await?;
        lines.next().await
    });
    let line = line.await.map_err(slow)??;
    read_answer(&line.context("it has closed the connection")?)
}

async fn connect(path: Option<&Path>) -> anyhow::Result<(UnixStream, PathBuf)> {
    let paths = path.map_or_else(default_paths, |path| vec![path.to_owned()]);
    let mut wrong = Vec::new();
    for path in paths {
        match UnixStream::connect(&path).await {
            Ok(stream) => return Ok((stream, path)),
            Err(error) => wrong.push((path, error)),
        }
    }
    bail!(not_connected(&wrong))
}

/// Why there is no switch to ask, at any of these paths.
fn not_connected(wrong: &[(PathBuf, io::Error)]) -> String {
    let mut is_elsewhere = false;
    let why = wrong.iter().map(|(path, error)| {
        let path = path.display();
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                is_elsewhere = true;
                format!("no switch listens at {path}")
            }
            io::ErrorKind::PermissionDenied => format!(
                "{path} belongs to another user: ask as the user that runs the switch, or as root"
            ),
            _ => format!("cannot connect to {path}: {error}"),
        }
    });
    let mut why = why.collect::<Vec<_>>().join(", and ");
    if is_elsewhere {
        why += "; a switch says with `ringway run --control PATH` where it listens, and `--control PATH` finds it there";
    }
    why
}

#[cfg(test)]
mod tests;
