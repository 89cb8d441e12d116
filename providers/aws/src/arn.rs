//! Amazon resource names, as far as a class may use them.

/// `arn:partition:service:region:account:resource`, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arn<'a> {
    pub(crate) service: &'a str,
    pub(crate) region: &'a str,
    pub(crate) account: &'a str,
    pub(crate) resource: &'a str,
}

/// Whether somebody meant an ARN; the incumbent goes by these four letters, too.
pub(crate) fn is_meant(name: &str) -> bool {
    name.starts_with("arn:")
}

impl<'a> Arn<'a> {
    pub(crate) fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.strip_prefix("arn:")?.splitn(5, ':');
        let _partition = parts.next()?;
        Some(Self {
            service: parts.next()?,
            region: parts.next()?,
            account: parts.next()?,
            resource: parts.next().filter(|resource| !resource.is_empty())?,
        })
    }
}

/// Whether this can be the name of a region: it becomes part of a host name (S8).
pub(crate) fn is_region(name: &str) -> bool {
    let mut parts = name.split('-');
    let word = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric());
    name.len() <= 32
        && name.bytes().all(|b| !b.is_ascii_uppercase())
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.contains('-')
        && parts.all(word)
}

/// Whether this can be the ARN of a role.
pub(crate) fn is_role(arn: &str) -> bool {
    let account = |arn: &Arn<'_>| arn.account.len() == 12 && arn.account.parse::<u64>().is_ok();
    arn.len() <= 2048
        && arn.bytes().all(|b| b.is_ascii_graphic())
        && Arn::parse(arn).is_some_and(|arn| {
            arn.service == "iam"
                && arn.region.is_empty()
                && account(&arn)
                && arn
                    .resource
                    .strip_prefix("role/")
                    .is_some_and(|r| !r.is_empty())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arn_has_six_parts_of_which_the_last_may_have_colons() {
        let arn = Arn::parse("arn:aws:secretsmanager:us-west-2:123456789012:secret:a/b-AbCdEf");
        assert_eq!(
            arn,
            Some(Arn {
                service: "secretsmanager",
                region: "us-west-2",
                account: "123456789012",
                resource: "secret:a/b-AbCdEf",
            })
        );
        for wrong in [
            "",
            "arn:",
            "arn::",
            "arn:aws:ssm:r:1",
            "arn:aws:ssm:r:1:",
            "a:b:c:d:e:f",
        ] {
            assert_eq!(Arn::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_region_cannot_be_another_host() {
        for right in ["us-west-2", "us-gov-east-1", "eusc-de-east-1", "cn-north-1"] {
            assert!(is_region(right), "{right}");
        }
        for wrong in [
            "",
            "uswest2",
            "us-west-2.evil.example",
            "us-west-2/",
            "US-WEST-2",
            "us--2",
            "-a",
            "a-",
            "us-west-2#",
            "us west-2",
        ] {
            assert!(!is_region(wrong), "{wrong}");
        }
    }

    #[test]
    fn a_role_is_told_from_other_arns() {
        assert!(is_role("arn:aws-cn:iam::123456789012:role/path/shop"));
        for wrong in [
            "shop",
            "arn:aws:iam::123456789012:user/a",
            "arn:aws:iam::12:role/a",
            "arn:aws:iam::123456789012:role/",
        ] {
            assert!(!is_role(wrong), "{wrong}");
        }
    }
}
