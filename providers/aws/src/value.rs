//! What a service gives, and the place that it comes from.

use std::sync::Arc;

use coffer_provider::{ErrorKind, ProviderError, SecretBytes, Version};

use crate::error::Asked;
use crate::regions::Region;

/// The most values that a prefix may stand for: as many as a volume holds.
const MOST_BELOW: usize = 256;

/// The value of a secret or a parameter, in one version.
#[derive(Clone)]
pub(crate) struct Value {
    pub(crate) bytes: SecretBytes,
    pub(crate) version: Version,
}

/// Where a client asks, and as whom.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) region: Arc<Region>,
    pub(crate) role: Arc<str>,
}

impl Place {
    pub(crate) fn asked<'a>(&'a self, what: &'a str, action: &'static str) -> Asked<'a> {
        Asked {
            what,
            action,
            region: &self.region.name,
            role: &self.role,
        }
    }

    pub(crate) fn cut_short(&self, what: &str, action: &'static str) -> ProviderError {
        let asked = self.asked(what, action);
        asked.says(ErrorKind::Unavailable, "reading was cut short", "", "")
    }

    /// A prefix must stand for something, and not for more than a volume can hold.
    pub(crate) fn check_below(
        &self,
        prefix: &str,
        action: &'static str,
        found: usize,
        more: bool,
    ) -> Result<(), ProviderError> {
        let asked = self.asked(prefix, action);
        if found > MOST_BELOW {
            let problem = format!("stands for more than {MOST_BELOW} objects");
            return Err(asked.says(ErrorKind::TooLarge, &problem, "", "choose a longer prefix"));
        }
        if found == 0 && !more {
            return Err(asked.says(ErrorKind::NotFound, "nothing has this prefix", "", ""));
        }
        Ok(())
    }
}
