//! The list in `objects`: which secrets, in which version, as which files.

use coffer_provider::{ObjectRef, ProviderError, Yaml};
use serde_json::json;

use crate::arn::{self, Arn};
use crate::fields::Fields;
use crate::name::{self, Files, Translation};
use crate::view::{Encoding, Member, Members, View};

const FIELD: &str = "parameters.objects";
/// More than a volume can hold, and little enough to check on the way to every publish.
const MAX_ENTRIES: usize = 1000;
/// The parser of JMESPath goes down a level for each operator, and a stack has an end.
const MAX_OPERATORS: usize = 100;

/// Which service has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Service {
    SecretsManager,
    ParameterStore,
}

impl Service {
    fn as_str(self) -> &'static str {
        match self {
            Self::SecretsManager => "secretsmanager",
            Self::ParameterStore => "ssmparameter",
        }
    }
}

/// One secret or parameter in one version, as a service is asked for it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Selector {
    pub(crate) service: Service,
    /// Its name or ARN.
    pub(crate) id: String,
    pub(crate) version: Option<String>,
    pub(crate) label: Option<String>,
}

/// One entry of the list.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) object: ObjectRef,
    /// Its path, for errors.
    pub(crate) field: String,
    /// What the first region is asked for.
    pub(crate) first: Selector,
    /// What the regions after it are asked for.
    pub(crate) standby: Selector,
    pub(crate) reach: Reach,
    pub(crate) view: View,
}

/// How much an entry stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    One,
    /// Everything whose name starts with the selector's id; each is a file by its own name.
    Prefix(Translation),
}

impl Entry {
    /// Whether the entry says that there will be a file of this name.
    pub(crate) fn declares(&self, file: &str) -> bool {
        let is_listed = match &self.view.members {
            Members::Listed(members) => members.iter().any(|member| member.file == file),
            Members::All(_) => false,
        };
        is_listed || self.object.names(file)
    }

    /// Whether a file of this name may turn up once the entry is read.
    pub(crate) fn may_have(&self, file: &str) -> bool {
        let is_below = match self.reach {
            Reach::One => false,
            Reach::Prefix(translation) => file.starts_with(&translation.apply(&self.first.id)),
        };
        is_below || matches!(self.view.members, Members::All(_))
    }

    /// What `region` is asked for; nothing where the ARN of a secret belongs to another one.
    pub(crate) fn selector(&self, region: &str, first: bool) -> Option<&Selector> {
        let selector = if first { &self.first } else { &self.standby };
        let elsewhere = Arn::parse(&selector.id).is_some_and(|arn| arn.region != region);
        (!elsewhere).then_some(selector)
    }
}

/// Reads the list. The paths of fields that mean nothing are added to `unknown`.
pub(crate) fn parse(
    text: &str,
    translation: Translation,
    failover: &[String],
    unknown: &mut Vec<String>,
) -> Result<Vec<Entry>, ProviderError> {
    let list = match Yaml::parse(FIELD, text)? {
        Yaml::List(list) if !list.is_empty() => list,
        _ => {
            let problem = "must be a YAML list with at least one entry";
            return Err(ProviderError::parameter(FIELD, problem));
        }
    };
    if list.len() > MAX_ENTRIES {
        let problem = format!("has {} entries, and the limit is {MAX_ENTRIES}", list.len());
        return Err(ProviderError::parameter(FIELD, problem));
    }
    let mut entries = Vec::with_capacity(list.len());
    let mut files = Files::default();
    for (index, node) in list.into_iter().enumerate() {
        let at = format!("{FIELD}[{index}]");
        let Some(fields) = Fields::new(at.clone(), node) else {
            let problem = "must be a mapping with objectName and objectType";
            return Err(ProviderError::parameter(at, problem));
        };
        let mut reader = Reader {
            translation,
            failover,
            unknown,
            files: &mut files,
        };
        entries.push(reader.entry(fields)?);
    }
    files.fit_beside_each_other()?;
    Ok(entries)
}

struct Reader<'a> {
    translation: Translation,
    failover: &'a [String],
    unknown: &'a mut Vec<String>,
    files: &'a mut Files,
}

impl Reader<'_> {
    fn entry(&mut self, mut fields: Fields) -> Result<Entry, ProviderError> {
        let Some(id) = fields.text("objectName")? else {
            return Err(fields.wrong("objectName", "is missing"));
        };
        let object_type = fields.text("objectType")?;
        let mut first = Selector {
            service: service(&fields, "objectName", &id, object_type.as_deref())?,
            id,
            version: fields.text("objectVersion")?,
            label: fields.text("objectVersionLabel")?,
        };
        one_version(&fields, &first)?;
        let alias = fields.text("objectAlias")?;
        let reach = self.reach(&fields, &mut first, alias.is_some())?;
        let standby = match fields.node("failoverObject") {
            None => first.clone(),
            Some(node) => {
                let kind = object_type.as_deref();
                self.standby(&fields, node, &first, kind, alias.is_some())?
            }
        };
        let mode = fields.permission()?;
        let encoding = encoding(&mut fields)?;
        let file = {
            let (field, name) = match &alias {
                Some(alias) => ("objectAlias", alias.clone()),
                None if reach == Reach::One => ("objectName", first.id.clone()),
                None => ("objectName", self.folder(&first.id)),
            };
            self.file(&fields, field, &name)?
        };
        let members = match fields.node("jmesPath") {
            None => Members::Listed(Vec::new()),
            Some(_) if reach != Reach::One => {
                return Err(fields.wrong("jmesPath", "cannot be used with a prefix"));
            }
            Some(Yaml::Text(text)) if text == "*" => Members::All(self.translation),
            Some(Yaml::List(list)) => Members::Listed(self.members(&fields.at, list, mode)?),
            Some(_) => {
                let problem = "must be a list of path and objectAlias, or \"*\" for every key";
                return Err(fields.wrong("jmesPath", problem));
            }
        };
        let view = View {
            encoding,
            mode,
            members,
        };
        let request = request(&file, &first, &standby, reach, &view);
        let field = fields.at.clone();
        self.unknown.extend(fields.left_over());
        Ok(Entry {
            object: ObjectRef {
                name: file,
                request,
            },
            field,
            first,
            standby,
            reach,
            view,
        })
    }

    /// Whether the name ends in a `*`, which no real name has; it is taken off.
    fn reach(
        &self,
        fields: &Fields,
        selector: &mut Selector,
        has_alias: bool,
    ) -> Result<Reach, ProviderError> {
        let wrong = |problem: &str| Err(fields.wrong("objectName", problem));
        let Some(prefix) = selector.id.strip_suffix('*') else {
            return match selector.id.contains('*') {
                true => wrong("can have a `*` at its end only"),
                false => Ok(Reach::One),
            };
        };
        if prefix.contains('*') || arn::is_meant(prefix) {
            return wrong("can have one `*`, at the end of a name that is not an ARN");
        }
        let parameters = selector.service == Service::ParameterStore;
        if prefix.is_empty() || parameters && !(prefix.starts_with('/') && prefix.ends_with('/')) {
            return wrong(
                "must have a prefix before its `*`; for parameters a path, as in `/app/*`",
            );
        }
        if has_alias || selector.version.is_some() || selector.label.is_some() {
            return wrong("with a `*` cannot have an alias, a version or a label");
        }
        selector.id = prefix.to_owned();
        Ok(Reach::Prefix(self.translation))
    }

    /// What a prefix is called as a whole: the folder of its files, where there are folders.
    fn folder(&self, prefix: &str) -> String {
        match self.translation {
            Translation::Off => prefix.trim_end_matches('/').to_owned(),
            Translation::To(_) => format!("{prefix}*"),
        }
    }

    fn standby(
        &self,
        parent: &Fields,
        node: Yaml,
        first: &Selector,
        object_type: Option<&str>,
        has_alias: bool,
    ) -> Result<Selector, ProviderError> {
        let at = format!("{}.failoverObject", parent.at);
        let Some(mut fields) = Fields::new(at, node) else {
            return Err(parent.wrong("failoverObject", "must be a mapping with objectName"));
        };
        let id = fields.text("objectName")?;
        let version = fields.text("objectVersion")?;
        let label = fields.text("objectVersionLabel")?;
        if let Some(id) = &id {
            if !has_alias {
                let problem = "is missing: it names the file, whichever region answers";
                return Err(parent.wrong("objectAlias", problem));
            }
            if self.failover.is_empty() {
                let problem = "is missing: a failoverObject is read there";
                return Err(ProviderError::parameter(
                    "parameters.failoverRegion",
                    problem,
                ));
            }
            if id.contains('*') {
                return Err(fields.wrong("objectName", "cannot have a `*`"));
            }
            if service(&fields, "objectName", id, object_type)? != first.service {
                let problem = "must be of the same service as the object it stands in for";
                return Err(fields.wrong("objectName", problem));
            }
            let arn = Arn::parse(id);
            if arn.is_some_and(|arn| !self.failover.iter().any(|region| region == arn.region)) {
                return Err(fields.wrong("objectName", "must be in a failoverRegion"));
            }
            if version != first.version {
                let problem = "must be that of the object it stands in for";
                return Err(fields.wrong("objectVersion", problem));
            }
        }
        let standby = Selector {
            service: first.service,
            id: id.unwrap_or_else(|| first.id.clone()),
            version: version.or_else(|| first.version.clone()),
            label: label.or_else(|| first.label.clone()),
        };
        one_version(&fields, &standby)?;
        Ok(standby)
    }

    fn members(
        &mut self,
        parent: &str,
        list: Vec<Yaml>,
        mode: Option<u32>,
    ) -> Result<Vec<Member>, ProviderError> {
        let mut members = Vec::with_capacity(list.len());
        for (index, node) in list.into_iter().enumerate() {
            let at = format!("{parent}.jmesPath[{index}]");
            let Some(mut fields) = Fields::new(at.clone(), node) else {
                let problem = "must be a mapping with path and objectAlias";
                return Err(ProviderError::parameter(at, problem));
            };
            let Some(path) = fields.text("path")? else {
                return Err(fields.wrong("path", "is missing"));
            };
            let Some(alias) = fields.text("objectAlias")? else {
                return Err(fields.wrong("objectAlias", "is missing"));
            };
            let member = Member {
                file: self.file(&fields, "objectAlias", &alias)?,
                path: compile(&fields, &path)?,
                encoding: encoding(&mut fields)?,
                mode: fields.permission()?.or(mode),
            };
            members.push(member);
            self.unknown.extend(fields.left_over());
        }
        Ok(members)
    }

    /// The file for what is called `name`, which no other may have.
    fn file(&mut self, fields: &Fields, field: &str, name: &str) -> Result<String, ProviderError> {
        let file = self.translation.apply(name);
        if let Some(problem) = name::problem(&file) {
            return Err(fields.wrong(field, problem));
        }
        let at = format!("{}.{field}", fields.at);
        self.files.add(&file, at)?;
        Ok(file)
    }
}

/// The service that has `name`: by its ARN, or else by `objectType`; they must not disagree.
fn service(
    fields: &Fields,
    field: &str,
    name: &str,
    object_type: Option<&str>,
) -> Result<Service, ProviderError> {
    let by_type = match object_type {
        None => None,
        Some("secretsmanager") => Some(Service::SecretsManager),
        Some("ssmparameter") => Some(Service::ParameterStore),
        Some(_) => {
            return Err(fields.wrong("objectType", "must be secretsmanager or ssmparameter"));
        }
    };
    if !arn::is_meant(name) {
        let problem = "is missing: only the ARN of an object says it by itself";
        return by_type.ok_or_else(|| fields.wrong("objectType", problem));
    }
    let by_arn = match Arn::parse(name) {
        Some(arn) if !arn::is_region(arn.region) => None,
        Some(arn) if arn.service == "secretsmanager" => Some(Service::SecretsManager),
        Some(arn) if arn.service == "ssm" => Some(Service::ParameterStore),
        _ => None,
    };
    let problem = "must be the ARN of a secret or a parameter, or a name";
    let by_arn = by_arn.ok_or_else(|| fields.wrong(field, problem))?;
    match by_type {
        Some(by_type) if by_type != by_arn => {
            Err(fields.wrong("objectType", "is not what the ARN in objectName says"))
        }
        _ => Ok(by_arn),
    }
}

/// A parameter has its version or label behind its name, where there is room for one.
fn one_version(fields: &Fields, selector: &Selector) -> Result<(), ProviderError> {
    let Selector {
        service,
        version,
        label,
        ..
    } = selector;
    if *service == Service::ParameterStore && version.is_some() && label.is_some() {
        let problem = "cannot be given with a label for a parameter";
        return Err(fields.wrong("objectVersion", problem));
    }
    Ok(())
}

fn encoding(fields: &mut Fields) -> Result<Encoding, ProviderError> {
    let Some(text) = fields.text("objectEncoding")? else {
        return Ok(Encoding::default());
    };
    Encoding::parse(&text).map_err(|problem| fields.wrong("objectEncoding", problem))
}

fn compile(fields: &Fields, path: &str) -> Result<jmespath::Expression<'static>, ProviderError> {
    let operators = path.bytes().filter(|byte| b"([{.!&|<>=".contains(byte));
    if operators.count() > MAX_OPERATORS {
        let problem = format!("must not have more than {MAX_OPERATORS} operators");
        return Err(fields.wrong("path", problem));
    }
    jmespath::compile(path).map_err(|error| {
        let at = error.column;
        let problem = format!(
            "is not a JMESPath expression (character {at}); a key with other characters than letters, digits \
             and _ stands in double quotes, as in path: '\"my-key\"'"
        );
        fields.wrong("path", problem)
    })
}

/// The canonical text of everything that decides what an entry gives.
fn request(file: &str, first: &Selector, standby: &Selector, reach: Reach, view: &View) -> String {
    let selector = |s: &Selector| json!([s.service.as_str(), s.id, s.version, s.label]);
    let slashes = |translation| match translation {
        Translation::To(character) => character.to_string(),
        Translation::Off => "/".to_owned(),
    };
    let members = match &view.members {
        Members::All(translation) => json!(slashes(*translation)),
        Members::Listed(members) => members
            .iter()
            .map(|m| json!([m.file, m.path.as_str(), m.encoding.as_str(), m.mode]))
            .collect(),
    };
    let mut request = json!({
        "file": file,
        "object": selector(first),
        "encoding": view.encoding.as_str(),
        "mode": view.mode,
        "members": members,
    });
    if standby != first {
        request["standby"] = selector(standby);
    }
    if let Reach::Prefix(translation) = reach {
        request["prefix"] = json!(slashes(translation));
    }
    request.to_string()
}

#[cfg(test)]
mod tests;
