//! The flags of provider plugins.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args};

/// Where everybody puts the sockets of plugins.
pub(super) const PROVIDER_VOLUME: &str = "/var/run/secrets-store-csi-providers";

/// Which plugins there are, and what they may do.
#[derive(Args, Clone, Debug)]
pub struct PluginArgs {
    /// Folder with the sockets of provider plugins; empty for none
    #[arg(
        long,
        env = "COFFER_PROVIDER_VOLUME",
        default_value = PROVIDER_VOLUME,
        value_parser = folder
    )]
    pub provider_volume: PathBuf,

    /// More such folders, which are searched first
    #[arg(
        long,
        env = "COFFER_ADDITIONAL_PROVIDER_VOLUME_PATHS",
        value_delimiter = ',',
        default_value = "/etc/kubernetes/secrets-store-csi-providers",
        value_parser = folder
    )]
    pub additional_provider_volume_paths: Vec<PathBuf>,

    /// Plugin that is asked though the driver has a provider of its name
    #[arg(
        long,
        value_name = "NAME",
        env = "COFFER_PREFER_PLUGIN",
        value_delimiter = ','
    )]
    pub prefer_plugin: Vec<String>,

    /// Users, beside root, that may own the socket of a plugin and its folder. With any, the driver keeps the
    /// capability DAC_OVERRIDE
    #[arg(
        long,
        value_name = "UID",
        env = "COFFER_PLUGIN_UIDS",
        value_delimiter = ','
    )]
    pub plugin_uids: Vec<u32>,

    /// Audience whose tokens a plugin gets, as often as needed; *END is every one that ends so, and NAME= is
    /// the empty one. Without any: what the plugins azure, gcp, aws, vault and openbao are known to need, and
    /// all but the empty one for every other
    #[arg(
        long,
        value_name = "NAME=AUDIENCE",
        env = "COFFER_PLUGIN_AUDIENCE",
        value_delimiter = ',',
        value_parser = audience
    )]
    pub plugin_audience: Vec<(String, String)>,

    /// Plugin that may write files by itself, into a folder of its own beside the volume
    #[arg(
        long,
        value_name = "NAME",
        env = "COFFER_LEGACY_PLUGIN_WRITES",
        value_delimiter = ','
    )]
    pub legacy_plugin_writes: Vec<String>,

    /// Most bytes in one answer of a plugin
    #[arg(
        long,
        env = "COFFER_MAX_CALL_RECV_MSG_SIZE",
        default_value_t = coffer_provider_plugin::ANSWER_BYTES
    )]
    pub max_call_recv_msg_size: usize,

    /// Asks plugins now and then whether they are there, each for as long as volumes use it or wait for it
    #[arg(
        long,
        env = "COFFER_PROVIDER_HEALTH_CHECK",
        action = ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        default_value_t = false,
        default_missing_value = "true"
    )]
    pub provider_health_check: bool,

    /// How often, as in 2m
    #[arg(
        long,
        env = "COFFER_PROVIDER_HEALTH_CHECK_INTERVAL",
        default_value = "2m",
        value_parser = interval
    )]
    pub provider_health_check_interval: Duration,
}

impl Default for PluginArgs {
    /// No plugin at all.
    fn default() -> Self {
        Self {
            provider_volume: PathBuf::new(),
            additional_provider_volume_paths: Vec::new(),
            prefer_plugin: Vec::new(),
            plugin_uids: Vec::new(),
            plugin_audience: Vec::new(),
            legacy_plugin_writes: Vec::new(),
            max_call_recv_msg_size: coffer_provider_plugin::ANSWER_BYTES,
            provider_health_check: false,
            provider_health_check_interval: Duration::from_secs(120),
        }
    }
}

impl PluginArgs {
    /// How often plugins are asked whether they are there, if they are.
    #[must_use]
    pub fn health_check(&self) -> Option<Duration> {
        self.provider_health_check
            .then_some(self.provider_health_check_interval)
    }

    /// The same as the plugins' own settings.
    #[must_use]
    pub fn settings(&self) -> coffer_provider_plugin::Settings {
        let mut audiences = BTreeMap::<String, Vec<String>>::new();
        for (name, audience) in &self.plugin_audience {
            audiences
                .entry(name.clone())
                .or_default()
                .push(audience.clone());
        }
        let mut folders = self.additional_provider_volume_paths.clone();
        folders.push(self.provider_volume.clone());
        folders.retain(|folder| !folder.as_os_str().is_empty());
        coffer_provider_plugin::Settings {
            folders,
            uids: self.plugin_uids.clone(),
            audiences,
            preferred: self.prefer_plugin.clone(),
            legacy_writers: self.legacy_plugin_writes.clone(),
            answer_bytes: self.max_call_recv_msg_size,
            ..coffer_provider_plugin::Settings::default()
        }
    }
}

/// A folder, or nothing for none.
fn folder(text: &str) -> Result<PathBuf, String> {
    match text.is_empty() || text.starts_with('/') {
        true => Ok(PathBuf::from(text)),
        false => Err("must be an absolute path".to_owned()),
    }
}

fn audience(text: &str) -> Result<(String, String), String> {
    let (name, audience) = text
        .split_once('=')
        .filter(|(name, _)| !name.is_empty())
        .ok_or("must be the name of a plugin, = and an audience")?;
    Ok((name.to_owned(), audience.to_owned()))
}

fn interval(text: &str) -> Result<Duration, String> {
    super::duration_of(text, Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Typed {
        #[command(flatten)]
        plugins: PluginArgs,
    }

    fn typed(flags: &[&str]) -> Result<PluginArgs, String> {
        let typed = Typed::try_parse_from(["node"].iter().chain(flags));
        typed
            .map(|typed| typed.plugins)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_flags_of_the_incumbent_mean_the_same() {
        let settings = typed(&[]).expect("good").settings();
        let folders = [
            "/etc/kubernetes/secrets-store-csi-providers",
            "/var/run/secrets-store-csi-providers",
        ];
        assert_eq!(settings.folders, folders.map(PathBuf::from));
        assert_eq!(settings.answer_bytes, 4_194_304);
        assert_eq!(typed(&[]).expect("good").health_check(), None);
        for (flag, expected) in [
            ("--provider-health-check", Some(120)),
            ("--provider-health-check=true", Some(120)),
            ("--provider-health-check=false", None),
        ] {
            let args = typed(&[flag]).expect(flag);
            let expected = expected.map(Duration::from_secs);
            assert_eq!(args.health_check(), expected, "{flag}");
        }
        let args = typed(&[
            "--provider-volume=/a",
            "--additional-provider-volume-paths=/b,/c",
            "--provider-health-check=true",
            "--provider-health-check-interval=90s",
        ]);
        let args = args.expect("good");
        assert_eq!(
            args.settings().folders,
            ["/b", "/c", "/a"].map(PathBuf::from)
        );
        assert_eq!(args.health_check(), Some(Duration::from_secs(90)));
    }

    #[test]
    fn audiences_are_listed_by_plugin() {
        let args = typed(&[
            "--plugin-audience=gcp=*.svc.id.goog",
            "--plugin-audience=gcp=,conjur=conjur",
            "--plugin-uids=1000,1001",
        ]);
        let settings = args.expect("good").settings();
        assert_eq!(settings.audiences["gcp"], ["*.svc.id.goog", ""]);
        assert_eq!(settings.audiences["conjur"], ["conjur"]);
        assert_eq!(settings.uids, [1000, 1001]);
        for bad in [
            "--provider-volume=run",
            "--plugin-audience=gcp",
            "--plugin-audience==a",
            "--plugin-uids=root",
            "--provider-health-check-interval=soon",
            "--provider-health-check-interval=0s",
        ] {
            assert!(typed(&[bad]).is_err(), "{bad}");
        }
    }
}
