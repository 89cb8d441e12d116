//! The mode of a file.

use schemars::JsonSchema;
use serde::Deserialize;

/// Permission bits of a file, 0 to 0777.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "i64")]
#[schemars(extend("minimum" = 0, "maximum" = 511))]
pub struct Mode(u16);

/// A mode that is not one.
#[derive(Clone, Debug, thiserror::Error)]
#[error("mode {0} must be between 0 and 511 (octal 0777)")]
pub struct ModeError(i64);

impl Mode {
    /// What a Secret volume gives its files.
    pub const DEFAULT: Self = Self(0o644);

    /// The bits.
    #[must_use]
    pub fn bits(self) -> u32 {
        u32::from(self.0)
    }

    /// The mode under an fsGroup in a read-only volume: the kubelet adds u+r and g+r.
    #[must_use]
    pub fn with_group_read(self) -> Self {
        Self(self.0 | 0o440)
    }
}

impl TryFrom<i64> for Mode {
    type Error = ModeError;

    fn try_from(bits: i64) -> Result<Self, ModeError> {
        match u16::try_from(bits) {
            Ok(bits) if bits <= 0o777 => Ok(Self(bits)),
            _ => Err(ModeError(bits)),
        }
    }
}
