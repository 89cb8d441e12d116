//! Flags of secrets-store-csi-driver that have nothing to do here. They are taken, so that its arguments
//! can stay as they are, and named in the log.

use clap::Args;
use tracing::warn;

/// The flags. Each takes a value as Go's flags do: `--flag` or `--flag=value`.
#[derive(Args, Clone, Debug, Default)]
pub struct UpstreamArgs {
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    enable_secret_rotation: Option<bool>,
    #[arg(long, hide = true)]
    metrics_backend: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    enable_pprof: Option<bool>,
    #[arg(long, hide = true)]
    pprof_port: Option<String>,
    /// Flags of klog that have a value.
    #[arg(
        long = "v",
        short = 'v',
        aliases = ["vmodule", "stderrthreshold", "log_backtrace_at", "log_dir", "log_file", "log_file_max_size"],
        hide = true
    )]
    klog: Vec<String>,
    /// Flags of klog that are on or off.
    #[arg(
        long = "logtostderr",
        aliases = ["alsologtostderr", "add_dir_header", "one_output", "skip_headers", "skip_log_headers"],
        hide = true,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    klog_switch: Vec<String>,
}

impl UpstreamArgs {
    /// Says which of them were given, and what to do instead.
    pub fn warn(&self) {
        for (flag, instead) in self.given() {
            warn!("--{flag} does nothing here: {instead}");
        }
    }

    fn given(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let klog = "--log-level says how much is logged, to standard output";
        let rotation =
            "volumes are always kept fresh; spec.immutable in a class keeps them as they are";
        let profiles = "there are no profiles to serve";
        [
            // Wanted or not wanted, but not what it says.
            (
                "enable-secret-rotation=false",
                self.enable_secret_rotation == Some(false),
                rotation,
            ),
            (
                "metrics-backend",
                self.metrics_backend
                    .as_ref()
                    .is_some_and(|name| !name.eq_ignore_ascii_case("prometheus")),
                "metrics are served for Prometheus",
            ),
            ("enable-pprof", self.enable_pprof == Some(true), profiles),
            ("pprof-port", self.pprof_port.is_some(), profiles),
            (
                "v, like every flag of klog,",
                !self.klog.is_empty() || !self.klog_switch.is_empty(),
                klog,
            ),
        ]
        .into_iter()
        .filter_map(|(flag, given, instead)| given.then_some((flag, instead)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Typed {
        #[command(flatten)]
        upstream: UpstreamArgs,
    }

    fn given(flags: &[&str]) -> Vec<&'static str> {
        let typed = Typed::try_parse_from(["node"].iter().chain(flags)).expect("taken");
        typed.upstream.given().map(|(flag, _)| flag).collect()
    }

    #[test]
    fn what_changes_nothing_is_named_and_what_asks_for_what_there_is_anyway_is_not() {
        assert!(given(&["--enable-secret-rotation", "--metrics-backend=Prometheus"]).is_empty());
        assert!(given(&["--enable-secret-rotation=true", "--enable-pprof=false"]).is_empty());
        let ours = [
            "--enable-secret-rotation=false",
            "--metrics-backend=OpenCensus",
            "--enable-pprof",
            "--pprof-port=6065",
        ];
        assert_eq!(given(&ours).len(), ours.len());
        let klog = [
            "-v=5",
            "--v=0",
            "--vmodule=a=1",
            "--stderrthreshold=2",
            "--log_backtrace_at=a:1",
            "--log_dir=/a",
            "--log_file=/a",
            "--log_file_max_size=1",
            "--logtostderr",
            "--alsologtostderr=false",
            "--add_dir_header",
            "--one_output",
            "--skip_headers",
            "--skip_log_headers=true",
        ];
        for flag in klog {
            assert_eq!(given(&[flag]).len(), 1, "{flag}");
        }
        assert_eq!(given(&klog).len(), 1, "said once");
    }
}
