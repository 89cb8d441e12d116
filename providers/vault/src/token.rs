//! A token of the store: how long it is good, and what hangs on it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::HeaderValue;

use crate::answer::Object;
use crate::headers::{Credentials, Headers, token_header};
use crate::http::Reply;

/// For so long after a token was given, or was looked up, a denial is about the policy. A read that
/// succeeded proves less: the store may have lost its tokens since, and a denial would be believed.
const PROVEN_BY_LOGIN: Duration = Duration::from_secs(2);
const PROVEN_BY_LOOKUP: Duration = Duration::from_secs(30);

/// A token of the store. A renewed one is the same token with another end.
#[derive(Clone)]
pub(crate) struct StoreToken {
    credentials: Credentials,
    /// Tells it from the ones before it.
    pub(crate) serial: u64,
    /// What it was given at first; nothing for one without an end.
    life: Duration,
    ends: Option<Instant>,
    /// When it has to be renewed or replaced.
    refresh: Option<Instant>,
    pub(crate) renewable: bool,
    /// Batch tokens are not stored: there is nothing to renew or to revoke.
    pub(crate) stored: bool,
    /// The state of the store that it was given in.
    index: Option<HeaderValue>,
    leases: Arc<AtomicBool>,
    proven_until: Arc<Mutex<Instant>>,
}

impl StoreToken {
    /// The token that a login brought.
    pub(crate) fn from_login(reply: &Reply, serial: u64) -> Option<Self> {
        let body = Object::parse(&reply.body)?;
        let auth = body.object("auth")?;
        let secret = auth
            .text("client_token")
            .filter(|token| !token.is_empty())?;
        let life = auth.seconds("lease_duration")?;
        let stored = auth.text("token_type").is_none_or(|kind| *kind != "batch");
        // A token that may be used so many times ends without a word.
        let counted = auth.number("num_uses").is_some_and(|uses| uses > 0);
        let proven = if counted {
            Duration::ZERO
        } else {
            PROVEN_BY_LOGIN
        };
        Some(Self {
            credentials: token_header(secret)?,
            serial,
            life,
            ends: end(life),
            refresh: refresh_at(life),
            renewable: stored && auth.is_true("renewable"),
            stored,
            index: reply.index(),
            leases: Arc::default(),
            proven_until: Arc::new(Mutex::new(Instant::now() + proven)),
        })
    }

    /// The same token after its renewal.
    pub(crate) fn renewed(&self, reply: &Reply) -> Option<Self> {
        let body = Object::parse(&reply.body)?;
        let auth = body.object("auth")?;
        let life = auth.seconds("lease_duration")?;
        Some(Self {
            ends: end(life),
            refresh: refresh_at(life),
            renewable: auth.is_true("renewable"),
            index: reply.index().or_else(|| self.index.clone()),
            ..self.clone()
        })
    }

    /// What stands in for a token where each request logs in by itself.
    pub(crate) fn inline(credentials: Credentials) -> Self {
        Self {
            credentials,
            serial: 0,
            life: Duration::ZERO,
            ends: None,
            refresh: None,
            renewable: false,
            stored: false,
            index: None,
            leases: Arc::default(),
            proven_until: Arc::new(Mutex::new(Instant::now())),
        }
    }

    /// The same token, to be renewed or replaced later than it should be.
    pub(crate) fn put_off(&self) -> Self {
        Self {
            refresh: self.remaining().map(|rest| Instant::now() + rest / 4),
            ..self.clone()
        }
    }

    /// What it goes out with.
    pub(crate) fn headers(&self, namespace: &str) -> Headers {
        Headers {
            namespace: namespace.to_owned(),
            credentials: self.credentials.clone(),
            index: self.index.clone(),
        }
    }

    /// How long it will live at most, unless it is renewed. `None` is for ever.
    pub(crate) fn remaining(&self) -> Option<Duration> {
        Some(self.ends?.saturating_duration_since(Instant::now()))
    }

    /// Whether it has ended.
    pub(crate) fn is_over(&self) -> bool {
        self.remaining().is_some_and(|rest| rest.is_zero())
    }

    /// Whether it has to be renewed or replaced.
    pub(crate) fn is_due(&self) -> bool {
        self.refresh
            .is_some_and(|refresh| refresh <= Instant::now())
    }

    /// Whether its renewal brought less than it had at first: nobody can move its end any more.
    pub(crate) fn is_near_its_end(&self) -> bool {
        self.remaining()
            .is_some_and(|rest| rest * 10 < self.life * 9)
    }

    /// Whether a renewal would leave more of a life of `wanted` to what hangs on it. One that was renewed a
    /// moment ago has as long as it can have.
    pub(crate) fn falls_short_of(&self, wanted: Duration) -> bool {
        let short = |rest: Duration| rest < wanted && rest * 20 < self.life * 19;
        self.renewable && self.remaining().is_some_and(short)
    }

    /// Whether it was good a moment ago.
    pub(crate) fn is_proven(&self) -> bool {
        let until = self
            .proven_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Instant::now() < *until
    }

    /// The store has just said that it is good.
    pub(crate) fn looked_up(&self) {
        let mut until = self
            .proven_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *until = Instant::now() + PROVEN_BY_LOOKUP;
    }

    /// From now on a lease ends with it.
    pub(crate) fn hold_a_lease(&self) {
        self.leases.store(true, Ordering::Relaxed);
    }

    /// Whether leases may end with it.
    pub(crate) fn holds_leases(&self) -> bool {
        self.leases.load(Ordering::Relaxed)
    }
}

/// A life of 0 has no end: the token of a root, or one without a TTL.
fn end(life: Duration) -> Option<Instant> {
    (!life.is_zero()).then(|| Instant::now() + life)
}

/// 60 to 70 % of its life, so that logins made together are not renewed together.
fn refresh_at(life: Duration) -> Option<Instant> {
    let mut random = [0];
    // Without randomness they are renewed together.
    let _ = aws_lc_rs::rand::fill(&mut random);
    let part = 0.6 + 0.1 * f64::from(random[0]) / 255.0;
    (!life.is_zero()).then(|| Instant::now() + life.mul_f64(part))
}
