//! What is logged, on standard error. The level can be changed while the program runs.

use std::io::{self, IsTerminal};
use std::sync::OnceLock;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::prelude::*;
use tracing_subscriber::{fmt, reload};

/// Changes the level.
static SET: OnceLock<Box<dyn Fn(LevelFilter) + Send + Sync>> = OnceLock::new();

/// Logs what is at least as severe, from now on.
pub fn to_stderr(level: LevelFilter) {
    let (filter, handle) = reload::Layer::new(level);
    let lines = fmt::layer()
        .with_target(false)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    tracing_subscriber::registry().with(filter).with(lines).init();
    // To change it fails only when nobody logs any more.
    let _ = SET.set(Box::new(move |level| drop(handle.reload(level))));
}

/// Logs this from now on, if anything is logged at all.
pub fn set_level(level: LevelFilter) {
    if let Some(set) = SET.get() {
        set(level);
    }
}
