//! What is logged, on standard error. The level can be changed while the program runs.

use std::io::{self, IsTerminal};
use std::sync::OnceLock;

use tracing::level_filters::LevelFilter;

/// Changes the level.
static SET: OnceLock<Box<dyn Fn(LevelFilter) + Send + Sync>> = OnceLock::new();

/// Logs what is at least as severe, from now on.
pub fn to_stderr(level: LevelFilter) {
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_filter_reloading()
        .with_target(false)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    let handle = subscriber.reload_handle();
    // It fails only when nobody logs any more.
    let _ = SET.set(Box::new(move |level| drop(handle.reload(level))));
    subscriber.init();
}

/// Logs this from now on, if anything is logged at all.
pub fn set_level(level: LevelFilter) {
    if let Some(set) = SET.get() {
        set(level);
    }
}
