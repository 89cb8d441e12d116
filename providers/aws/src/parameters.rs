//! The `parameters` of a class, checked: where to ask, as whom, and for what. Pure.

use coffer_provider::{Parameters, ProviderError};

use crate::arn::{self, Arn};
use crate::name::Translation;
use crate::objects::{self, Entry};

/// The audience of a token for AWS STS.
pub(crate) const STS_AUDIENCE: &str = "sts.amazonaws.com";
/// The audience of a token for the Pod Identity agent.
pub(crate) const POD_IDENTITY_AUDIENCE: &str = "pods.eks.amazonaws.com";

/// Everything that a class says.
pub(crate) struct Class {
    /// The region to ask first; without one it is the node's.
    pub(crate) region: Option<String>,
    /// The regions to ask after that one.
    pub(crate) failover: Vec<String>,
    /// Whether those are asked every time, and not only in need.
    pub(crate) eager: bool,
    pub(crate) login: Login,
    pub(crate) entries: Vec<Entry>,
    /// The paths of fields that mean nothing.
    pub(crate) unknown: Vec<String>,
}

/// How a pod becomes a role.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Login {
    pub(crate) via: Via,
    /// The role to go on to from the pod's own.
    pub(crate) then: Option<NextRole>,
}

/// Who takes the pod's token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Via {
    /// AWS STS, for the role in the ServiceAccount's annotation (IRSA).
    WebIdentity,
    /// The node's EKS Pod Identity agent, which knows the role.
    PodIdentity(AddressFamily),
}

/// Which address of the Pod Identity agent is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum AddressFamily {
    /// IPv4, then IPv6.
    Auto,
    Ipv4,
    Ipv6,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct NextRole {
    pub(crate) arn: String,
    pub(crate) external_id: Option<String>,
}

impl Class {
    /// Checks `parameters`. `region` is the administrator's, for classes that name none.
    pub(crate) fn new(
        parameters: &Parameters,
        region: Option<&str>,
    ) -> Result<Self, ProviderError> {
        let given = |key: &str| parameters.get(key).map(String::as_str).unwrap_or_default();
        let wrong = |key: &str, problem: &str| {
            ProviderError::parameter(format!("parameters.{key}"), problem)
        };
        let region = Some(given("region"))
            .filter(|text| !text.is_empty())
            .or(region)
            .map(str::to_owned);
        let mut failover = Vec::new();
        for region in given("failoverRegion").split(',').map(str::trim) {
            if !region.is_empty() && !failover.iter().any(|known| known == region) {
                failover.push(region.to_owned());
            }
        }
        for (key, regions) in [("region", region.as_slice()), ("failoverRegion", &failover)] {
            if !regions.iter().all(|region| arn::is_region(region)) {
                return Err(wrong(
                    key,
                    "must be the name of a region, such as us-west-2",
                ));
            }
        }
        let eager = match given("failoverMode") {
            "" | "OnFailure" => false,
            "Always" => true,
            _ => return Err(wrong("failoverMode", "must be OnFailure or Always")),
        };
        let translation = Translation::parse(given("pathTranslation"))
            .map_err(|problem| wrong("pathTranslation", problem))?;
        let login = Login {
            via: via(given("usePodIdentity"), given("preferredAddressType"))
                .map_err(|problem| wrong("usePodIdentity", problem))?,
            then: next_role(given("assumeRoleArn"), given("assumeRoleExternalId"))
                .map_err(|(key, problem)| wrong(key, problem))?,
        };
        let mut unknown = unknown_keys(parameters);
        let entries = objects::parse(given("objects"), translation, &failover, &mut unknown)?;
        let class = Self {
            region,
            failover,
            eager,
            login,
            entries,
            unknown,
        };
        if let Some(region) = &class.region {
            class.check_regions(region)?;
        }
        Ok(class)
    }

    /// What has to hold of the first region, once that is known.
    pub(crate) fn check_regions(&self, first: &str) -> Result<(), ProviderError> {
        if self.failover.iter().any(|region| region == first) {
            let problem = format!("must not be {first}, which is asked already");
            return Err(ProviderError::parameter(
                "parameters.failoverRegion",
                problem,
            ));
        }
        for entry in &self.entries {
            let arn = Arn::parse(&entry.first.id);
            if let Some(arn) = arn.filter(|arn| arn.region != first) {
                let problem = format!("is in {}, and the class reads {first}", arn.region);
                return Err(ProviderError::parameter(
                    format!("{}.objectName", entry.field),
                    problem,
                ));
            }
        }
        Ok(())
    }

    pub(crate) fn audience(&self) -> &'static str {
        match self.login.via {
            Via::WebIdentity => STS_AUDIENCE,
            Via::PodIdentity(_) => POD_IDENTITY_AUDIENCE,
        }
    }
}

fn via(use_pod_identity: &str, address_family: &str) -> Result<Via, &'static str> {
    match use_pod_identity {
        "" | "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(Via::WebIdentity),
        "1" | "t" | "T" | "TRUE" | "true" | "True" => {
            let family = match address_family.to_ascii_lowercase().as_str() {
                "ipv4" => AddressFamily::Ipv4,
                "ipv6" => AddressFamily::Ipv6,
                _ => AddressFamily::Auto,
            };
            Ok(Via::PodIdentity(family))
        }
        _ => Err("must be \"true\" or \"false\""),
    }
}

type Wrong = (&'static str, &'static str);

fn next_role(arn: &str, external_id: &str) -> Result<Option<NextRole>, Wrong> {
    let external_id = Some(external_id.to_owned()).filter(|id| !id.is_empty());
    if arn.is_empty() {
        return match external_id {
            None => Ok(None),
            Some(_) => Err(("assumeRoleExternalId", "needs an assumeRoleArn")),
        };
    }
    if !arn::is_role(arn) {
        let problem = "must be the ARN of a role: arn:aws:iam::123456789012:role/name";
        return Err(("assumeRoleArn", problem));
    }
    let fits = |id: &String| {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_+=,.@:/-".contains(&b);
        (2..=1224).contains(&id.len()) && id.bytes().all(allowed)
    };
    if !external_id.as_ref().is_none_or(fits) {
        let problem = "must be 2 to 1224 letters, digits or _+=,.@:/-";
        return Err(("assumeRoleExternalId", problem));
    }
    Ok(Some(NextRole {
        arn: arn.to_owned(),
        external_id,
    }))
}

fn unknown_keys(parameters: &Parameters) -> Vec<String> {
    let known = [
        "region",
        "failoverRegion",
        "failoverMode",
        "pathTranslation",
        "usePodIdentity",
        "preferredAddressType",
        "assumeRoleArn",
        "assumeRoleExternalId",
        "objects",
    ];
    parameters
        .keys()
        // The kubelet's own words about the pod may come along.
        .filter(|key| !known.contains(&key.as_str()) && !key.starts_with("csi.storage.k8s.io/"))
        .map(|key| format!("parameters.{key}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OBJECT: &str = "- {objectName: a, objectType: secretsmanager}";

    fn class(parameters: &[(&str, &str)]) -> Result<Class, String> {
        let mut all = Parameters::from([
            ("objects".to_owned(), OBJECT.to_owned()),
            ("region".to_owned(), "us-west-2".to_owned()),
        ]);
        let given = parameters
            .iter()
            .map(|&(k, v)| (k.to_owned(), v.to_owned()));
        all.extend(given);
        Class::new(&all, None).map_err(|error| error.to_string())
    }

    #[test]
    fn aws_use_pod_identity_is_a_boolean_of_go() {
        let auto = Via::PodIdentity(AddressFamily::Auto);
        for (text, via) in [
            ("", Via::WebIdentity),
            ("false", Via::WebIdentity),
            ("0", Via::WebIdentity),
            ("T", auto),
            ("true", auto),
            ("1", auto),
        ] {
            let class = class(&[("usePodIdentity", text)]);
            assert_eq!(class.map(|class| class.login.via), Ok(via), "{text}");
        }
        let error = class(&[("usePodIdentity", "yes")]).err();
        assert!(error.is_some_and(|e| e.starts_with("parameters.usePodIdentity: ")));
    }

    #[test]
    fn aws_address_preference_is_one_of_three_and_anything_else_is_auto() {
        for (text, family) in [
            ("", AddressFamily::Auto),
            ("auto", AddressFamily::Auto),
            ("ipv4", AddressFamily::Ipv4),
            ("IPv6", AddressFamily::Ipv6),
            ("ipv5", AddressFamily::Auto),
        ] {
            let class = class(&[("usePodIdentity", "true"), ("preferredAddressType", text)]);
            let via = class.map(|class| class.login.via);
            assert_eq!(via, Ok(Via::PodIdentity(family)), "{text}");
        }
    }

    #[test]
    fn aws_regions_are_checked_before_anybody_is_asked() {
        for (key, value, says) in [
            (
                "region",
                "us-west-2.evil.example",
                "parameters.region: must be the name",
            ),
            (
                "failoverRegion",
                "us west",
                "parameters.failoverRegion: must be the name",
            ),
            (
                "failoverRegion",
                "us-west-2",
                "parameters.failoverRegion: must not be us-west-2",
            ),
            (
                "failoverMode",
                "eager",
                "parameters.failoverMode: must be OnFailure",
            ),
            (
                "pathTranslation",
                "--",
                "parameters.pathTranslation: must be one",
            ),
            (
                "assumeRoleArn",
                "shop",
                "parameters.assumeRoleArn: must be the ARN",
            ),
            (
                "assumeRoleExternalId",
                "id",
                "parameters.assumeRoleExternalId: needs",
            ),
        ] {
            let error = class(&[(key, value)]).err().expect(value);
            assert!(error.starts_with(says), "{error}");
        }
        let class = class(&[("failoverRegion", "us-east-2, eu-west-1,")]).ok();
        assert_eq!(
            class.map(|class| class.failover),
            Some(vec!["us-east-2".into(), "eu-west-1".into()])
        );
    }

    #[test]
    fn unknown_keys_are_told_and_do_no_harm() {
        let class = class(&[("rotate", "x"), ("csi.storage.k8s.io/pod.name", "web")]).ok();
        assert_eq!(
            class.map(|class| class.unknown),
            Some(vec!["parameters.rotate".into()])
        );
    }
}
