//! `coffer node`: the driver.

use crate::config::{Config, NodeArgs};
use crate::{driver, privileges, telemetry};

/// Runs the driver until it is told to stop.
///
/// # Errors
/// When it cannot start, with the setting or the right that is missing.
pub fn run(args: NodeArgs) -> anyhow::Result<()> {
    privileges::check_kernel()?;
    // Before the first thread: rights are given up thread by thread.
    let plugins = match args.plugins.plugin_uids.iter().all(|uid| *uid == 0) {
        true => privileges::PluginSockets::OfRoot,
        false => privileges::PluginSockets::OfOthers,
    };
    privileges::shed(plugins)?;
    telemetry::start_logging(args.log_format(), args.log_level);
    args.upstream.warn();
    let config = Config::try_from(args)?;
    let runtime = super::runtime()?;
    runtime.block_on(driver::run(config))
}
