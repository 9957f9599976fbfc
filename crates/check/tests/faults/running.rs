//! A back end that runs in a thread.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use ringway_check::faults::{Fault, serve};
use tempfile::TempDir;

/// A back end with a fault. Dropping it ends it.
pub struct Running {
    directory: TempDir,
    fault: &'static Fault,
    life: Mutex<Option<Life>>,
}

struct Life {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Life {
    fn start(path: &Path, fault: &'static Fault) -> Self {
        let listener = UnixListener::bind(path).expect("a socket");
        let stop = Arc::new(AtomicBool::new(false));
        let seen = stop.clone();
        let thread = thread::spawn(move || {
            serve(&listener, fault, &|| seen.load(Ordering::Relaxed));
        });
        Self { stop, thread }
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.join();
    }
}

impl Running {
    pub fn start(fault: &'static Fault) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let life = Life::start(&directory.path().join("socket"), fault);
        Self { directory, fault, life: Mutex::new(Some(life)) }
    }

    pub fn path(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    /// Ends it, if it has not ended itself, and starts it anew.
    pub fn restart(&self) -> bool {
        let mut life = self.life.lock().expect("nobody panics");
        if let Some(former) = life.take() {
            former.end();
        }
        std::fs::remove_file(self.path()).expect("the socket is there");
        *life = Some(Life::start(&self.path(), self.fault));
        true
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(life) = self.life.get_mut().ok().and_then(Option::take) {
            life.end();
        }
    }
}
