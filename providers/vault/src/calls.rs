//! The calls that vaultrs does not have, as a request type of its kind.

use std::collections::BTreeMap;

use rustify::Endpoint;
use rustify::enums::{RequestMethod, RequestType, ResponseType};
use rustify::errors::ClientError;
use rustify::http::build_body;
use serde::Serialize;
use serde_json::Value;

use crate::object::{Method, Request};

/// One call of the API.
pub(crate) struct Call {
    method: RequestMethod,
    path: String,
    query: Option<String>,
    body: Option<Vec<u8>>,
    /// What a denial is remembered for, where that is more than the path.
    denied_as: Option<String>,
}

impl Call {
    /// What a policy tells it from others by.
    pub(crate) fn name(&self) -> String {
        let path = self.denied_as.as_ref().unwrap_or(&self.path);
        format!("{:?} {path}", self.method)
    }

    /// Whatever a class asks for. `csr` is the certificate request for a key that was made here.
    pub(crate) fn read(request: &Request, csr: Option<&str>) -> Result<Self, ClientError> {
        #[derive(Serialize)]
        struct Body<'a> {
            #[serde(flatten)]
            args: Option<&'a BTreeMap<String, Value>>,
            #[serde(skip_serializing_if = "Option::is_none")]
            csr: Option<&'a str>,
        }
        let body = Body {
            args: request.args.as_ref(),
            csr,
        };
        let body = build_body(&body, RequestType::JSON)?;
        Ok(Self {
            method: match request.method {
                Method::Get => RequestMethod::GET,
                Method::Put => RequestMethod::PUT,
                Method::Post => RequestMethod::POST,
            },
            path: request.path.clone(),
            query: request.query.clone(),
            body: request.method.writes().then_some(body),
            denied_as: None,
        })
    }

    /// Which mount a path lies in, and of what kind it is. Anybody may ask who may use the path.
    pub(crate) fn mount_of(path: &str) -> Self {
        Self {
            method: RequestMethod::GET,
            path: format!("sys/internal/ui/mounts/{path}"),
            query: None,
            body: None,
            denied_as: None,
        }
    }

    /// What KV v2 says of a secret besides its values.
    pub(crate) fn metadata(mount: &str, below: &str) -> Self {
        Self {
            method: RequestMethod::GET,
            path: format!("{mount}/metadata/{below}"),
            // One denial is taken for all of them: it is only the cheaper question.
            denied_as: Some(format!("{mount}/metadata")),
            query: None,
            body: None,
        }
    }

    /// Follows what is written and deleted in KV mounts, as JSON. Vault Enterprise has it.
    pub(crate) fn events() -> Self {
        Self {
            method: RequestMethod::GET,
            path: "sys/events/subscribe/kv*".to_owned(),
            query: Some("json=true".to_owned()),
            body: None,
            denied_as: None,
        }
    }

    /// Prolongs a lease, or leaves it the rest of life that `increment` says, in seconds from now.
    pub(crate) fn renew_lease(id: &str, increment: u64) -> Result<Self, ClientError> {
        #[derive(Serialize)]
        struct Body<'a> {
            lease_id: &'a str,
            increment: u64,
        }
        let lease_id = id;
        Self::on_leases(
            "renew",
            &Body {
                lease_id,
                increment,
            },
        )
    }

    /// Ends a lease. Vault's default policy does not allow it.
    pub(crate) fn revoke_lease(id: &str) -> Result<Self, ClientError> {
        #[derive(Serialize)]
        struct Body<'a> {
            lease_id: &'a str,
        }
        Self::on_leases("revoke", &Body { lease_id: id })
    }

    fn on_leases(verb: &str, body: &impl Serialize) -> Result<Self, ClientError> {
        Ok(Self {
            method: RequestMethod::POST,
            path: format!("sys/leases/{verb}"),
            query: None,
            body: Some(build_body(body, RequestType::JSON)?),
            denied_as: None,
        })
    }
}

impl Endpoint for Call {
    type Response = ();
    const REQUEST_BODY_TYPE: RequestType = RequestType::JSON;
    const RESPONSE_BODY_TYPE: ResponseType = ResponseType::JSON;

    fn path(&self) -> String {
        self.path.clone()
    }

    fn method(&self) -> RequestMethod {
        self.method.clone()
    }

    fn query(&self) -> Result<Option<String>, ClientError> {
        Ok(self.query.clone())
    }

    fn body(&self) -> Result<Option<Vec<u8>>, ClientError> {
        Ok(self.body.clone())
    }
}
