//! Ctrl-C and its like put the machine back before they end this process.

use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::machine::Machine;
use super::remains;
use super::state::State;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on, the first signal takes down the cluster of this folder, and then this process ends.
pub(crate) fn put_back_when_interrupted(state: &State) -> Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    let (state, before) = (state.clone(), Machine::look()?);
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            let Some(signal) = signals.forever().next() else {
                return;
            };
            INTERRUPTED.store(true, Ordering::SeqCst);
            println!("\ninterrupted: taking the cluster down");
            let put_back = remains::put_back(&state).and_then(|()| before.ensure_unchanged());
            if let Err(error) = put_back {
                println!("the machine is not as it was: {error:#}");
            }
            process::exit(128 + signal);
        })?;
    Ok(())
}

/// Does not come back if the cluster is being taken down by a signal: what fails now fails because of that, and
/// is nothing to tell.
pub(crate) fn stand_still() {
    while INTERRUPTED.load(Ordering::SeqCst) {
        thread::sleep(Duration::from_secs(1));
    }
}
